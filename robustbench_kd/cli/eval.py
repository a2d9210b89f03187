"""Evaluate the robust accuracy of checkpoints."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from robustbench_kd.cli import _options, _workers
from robustbench_kd.core.claim import parse_claim
from robustbench_kd.core.errors import UnreliableError, UsageError
from robustbench_kd.core.suites import Suite, parse_suite
from robustbench_kd.core.threat import Threat, parse_curve

if TYPE_CHECKING:
    from robustbench_kd.checkpoints.subject import Target
    from robustbench_kd.engine.evaluate import Outcome
    from robustbench_kd.engine.passes.speedups import Speedups
    from robustbench_kd.engine.run.request import Request
    from robustbench_kd.tensors.contracts import Dataset

Curve = list[Threat]
Opened = Callable[[str], "Dataset"]


@click.command("eval")
@click.argument("targets", nargs=-1, required=True, metavar="TARGET...")
@click.option(
    "--threat",
    "threats",
    multiple=True,
    metavar="NORM:EPS",
    help="linf:8/255, l2:0.5, l1:12, or a curve linf:1/255,2/255; repeatable (default: the card's).",
)
@click.option(
    "--suite",
    default="standard",
    show_default=True,
    help="standard, plus, rand, quick, standard+adaptive, or attacks: apgd-ce,square.",
)
@click.option(
    "--mode",
    type=click.Choice(["exact", "fast"]),
    default="exact",
    show_default=True,
    help="fast runs a short front and then samples: a first guess at standard, with a bound.",
)
@click.option(
    "--surrogate",
    "surrogates",
    multiple=True,
    metavar="TARGET",
    help="Stand-in model for adaptive attacks; repeatable.",
)
@click.option(
    "--adaptive",
    "attacks",
    multiple=True,
    metavar="FILE.py:ATTACK",
    help="Adaptive attack of your own; repeatable.",
)
@click.option(
    "--examples",
    default="all",
    show_default=True,
    help="First N of the test split in official order, or all.",
)
@_options.data
@_options.loading
@click.option(
    "--name", default="", help="Name of the model in tables (default: the card's, or the file's)."
)
@click.option(
    "--engine",
    default="native",
    show_default=True,
    help="native is our own engine, autoattack runs the AutoAttack package.",
)
@click.option(
    "--batch-size",
    default="auto",
    show_default=True,
    help="Images per batch, or auto: found by trial.",
)
@_options.speedups
@_options.seed
@_options.device
@_options.results
@_workers.options
@click.option("--no-probes", is_flag=True, help="Do not check the model before the attacks.")
@click.option(
    "--save-adversarial",
    is_flag=True,
    help="Keep the images that decide, for 'rkd verify' and 'rkd report'.",
)
@click.option(
    "--fresh", is_flag=True, help="Ignore stored and unfinished results of the same question."
)
@click.option("--strict", is_flag=True, help="Exit 3 if a number is unreliable.")
@click.option("--trust-code", is_flag=True, help="Run the Python code that a card names.")
@_options.as_json
def command(targets: tuple[str, ...], **options: Any) -> None:
    """Evaluates checkpoints and stores each run under --results.

    A TARGET is a card, a weights file, a folder of either, robustbench:ID, timm:ID, torchvision:ID, module:factory or
    file.py:factory. The same command again returns the stored result, or resumes where it was stopped.

    \b
    Examples:
      rkd eval checkpoints/digits-teacher.toml
      rkd eval net.pth --arch resnet18 --dataset cifar10 --threat linf:8/255 --examples 1000
      rkd eval net.pth --arch model.py:make --dataset npz:test.npz --threat linf:2/255
      rkd eval defence.toml --suite standard+adaptive --surrogate student.toml
      rkd eval net.toml --workers 4
      rkd eval net.toml --until-decided "robust>=0.45"
    """  # fmt: skip
    from robustbench_kd.checkpoints.target import describe
    from robustbench_kd.cli import _runs

    curves, suite, choices = (
        [parse_curve(text) for text in options["threats"]],
        chosen_suite(options),
        _options.choices(options),
    )
    described = [target for text in targets for target in describe(text, choices)]
    if options["name"] and len(described) > 1:
        raise UsageError(f"--name names one model, but there are {len(described)}: leave it out")
    shard, opened = _workers.own_shard(options), opener(options)
    outcomes: list[Outcome] = []
    try:
        for target in described:
            own = curves or card_curves(target)
            if shard:
                _workers.decide(
                    shard,
                    request(target, own[0][0], suite, options, opened),
                    own,
                    options["results"],
                )
            else:
                outcomes.extend(_evaluate(target, own, suite, options, opened))
    finally:
        if outcomes:
            _runs.report(outcomes, as_json=options["as_json"])
    unreliable = [
        found.record.identity.model for found in outcomes if found.record.verdict == "unreliable"
    ]
    if options["strict"] and unreliable:
        raise UnreliableError(
            f"unreliable under --strict: {', '.join(unreliable)}; the findings say why"
        )
    _workers.raise_if_refuted(outcomes)


def chosen_suite(options: dict[str, Any]) -> Suite:
    """Reads --suite and --mode, and refuses what does not go with them."""
    suite = parse_suite(options["suite"])
    if (options["surrogates"] or options["attacks"]) and not suite.adaptive:
        raise UsageError(
            f"--surrogate and --adaptive need an adaptive suite: use --suite {suite.name}+adaptive"
        )
    if options["engine"] == "autoattack" and _levers(options).label != "fp32":
        raise UsageError("--precision, --channels-last and --compile speed up --engine native only")
    if options["mode"] == "fast":
        if suite.name != "standard":
            raise UsageError(
                f"--mode fast is a short form of --suite standard, got --suite {suite.name}"
            )
        return replace(parse_suite("fast"), name=suite.name)
    return suite


def card_curves(target: "Target") -> list[Curve]:
    """Returns the threats of a target's card, each by itself; raises `UsageError` where it names none."""
    if target.card is None or not target.card.threats:
        raise UsageError(
            f"which threat for '{target.name}'? Give --threat NORM:EPS, such as --threat linf:8/255"
        )
    return [[Threat.parse(text)] for text in target.card.threats]


def _evaluate(  # what is evaluated, then how
    target: "Target",
    curves: list[Curve],
    suite: Suite,
    options: dict[str, Any],
    opened: Opened,
) -> Iterator["Outcome"]:
    """Yields the outcome of each threat."""
    asked = request(target, curves[0][0], suite, options, opened)
    spread = spread_of(target, curves[0][0], suite, options)
    for curve in curves:
        yield from outcomes_of(asked, curve, options, spread)


def request(  # what is evaluated, then how
    target: "Target",
    threat: Threat,
    suite: Suite,
    options: dict[str, Any],
    opened: Opened,
) -> "Request":
    """Loads a target and its data, and returns what to evaluate; `opened` is that of `opener`."""
    from robustbench_kd.checkpoints.target import load
    from robustbench_kd.cli import _adaptive, _console, _devices
    from robustbench_kd.engine.run.request import Request

    device = _devices.choose(options["device"])
    data = opened(options["dataset"] or (target.card.dataset if target.card else "digits"))
    channels, height, width = data.images.shape[1:]
    shape = (channels, height, width)
    subject = load(target, classes=data.classes, shape=shape)
    for note in subject.notes:
        _console.say(f"{subject.name}: {note}", "dim")
    surrogates = _adaptive.described(options["surrogates"], trust_code=options["trust_code"])
    if suite.adaptive:
        surrogates += _adaptive.teachers(target, trust_code=options["trust_code"])
    return Request(
        subject=subject,
        data=data,
        threat=threat,
        suite=suite,
        device=device,
        seed=options["seed"],
        batch_size=chosen_batch_size(options),
        engine=options["engine"],
        speedups=_levers(options),
        probes=not options["no_probes"],
        saves=options["save_adversarial"],
        at_least=parse_claim(options["claim"]) if options["claim"] else None,
        extra=_adaptive.added(
            surrogates, options["attacks"], classes=data.classes, shape=shape, device=device
        ),
    )


def spread_of(
    target: "Target", threat: Threat, suite: Suite, options: dict[str, Any]
) -> _workers.Spread | None:
    """Returns what lets several processes share the examples of a request, None where it is to be one."""
    return _workers.spread(partial(_loaded, target, threat, suite), options)


def _loaded(target: "Target", threat: Threat, suite: Suite, options: dict[str, Any]) -> "Request":
    """Returns what a worker, in a process of its own, is to evaluate."""
    return request(target, threat, suite, options, opener(options))


def outcomes_of(
    request: "Request", curve: Curve, options: dict[str, Any], spread: _workers.Spread | None = None
) -> Iterator["Outcome"]:
    """Yields the outcomes of ascending radii; what a smaller one breaks is not attacked again.

    `spread` is that of `_workers` where several processes are to share the examples.
    """
    from robustbench_kd.cli import _console, _runs
    from robustbench_kd.engine.evaluate import evaluate

    smaller: Path | None = None
    for threat in curve:
        with _console.progress() as line:
            observer = _runs.observer(line, f"{request.subject.name} {threat}")
            asked = replace(request, threat=threat, smaller=smaller)
            shared = partial(spread, asked, observer) if spread else None
            outcome = evaluate(
                asked, options["results"], observer=observer, fresh=options["fresh"], spread=shared
            )
        # Of a randomized defence an example is hardly ever broken for good.
        smaller = None if outcome.record.robust_draws else outcome.folder
        _runs.announce(outcome)
        yield outcome


def _levers(options: dict[str, Any]) -> "Speedups":
    from robustbench_kd.engine.passes.speedups import Speedups

    asked = Speedups(
        **{name: options[name] for name in ("precision", "fold", "channels_last", "compile")}
    )
    return asked if options["engine"] == "native" else replace(asked, fold=False)


def chosen_batch_size(options: dict[str, Any]) -> int:
    """Reads --batch-size; 0 stands for auto, and the package's usual 250 where its verdicts depend on it."""
    text = options["batch_size"]
    if text == "auto":
        return 0 if options["engine"] == "native" else 250
    if not text.isdecimal() or int(text) == 0:
        raise UsageError(f"expected --batch-size as a positive number or auto, got '{text}'")
    return int(text)


def opener(options: dict[str, Any]) -> Opened:
    """Returns what gives a data set by name, read once however often it is asked for."""
    return cache(
        lambda named: _options.open_test(
            named, _options.parse_examples(options["examples"]), options
        )
    )
