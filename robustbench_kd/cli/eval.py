"""Evaluate the robust accuracy of checkpoints."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from robustbench_kd.cli import _eval_options, _failures, _options, _requests, _workers
from robustbench_kd.cli._eval_options import EvalOptions, OpenData
from robustbench_kd.cli._failures import Failures
from robustbench_kd.core.errors import MissingError, UnreliableError, UsageError

if TYPE_CHECKING:
    from robustbench_kd.checkpoints.subject import Target
    from robustbench_kd.core.shards import Shard
    from robustbench_kd.core.suites import Suite
    from robustbench_kd.engine.evaluate import Outcome


@click.command("eval")
@click.argument("targets", nargs=-1, required=True, metavar="TARGET...")
@_eval_options.options
@_options.typed(EvalOptions)
def command(options: EvalOptions) -> None:
    """Evaluates checkpoints and stores each run under --results.

    A TARGET is a card, a weights file, a folder of either, robustbench:ID, timm:ID, torchvision:ID,
    module:factory or file.py:factory. The same command again returns the stored result, or resumes
    where it was stopped. A target that fails does not stop the others; it is named at the end, and
    the exit code is 2, or 4 where it can be resumed.

    \b
    Examples:
      rkd eval checkpoints/digits-teacher.toml
      rkd eval net.pth --arch resnet18 --dataset cifar10 --threat linf:8/255 --examples 1000
      rkd eval net.pth --arch model.py:make --dataset npz:test.npz --threat linf:2/255
      rkd eval defence.toml --suite standard+adaptive --surrogate student.toml
      rkd eval net.toml --workers 4
      rkd eval net.toml --until-decided "robust>=0.45"
    """  # fmt: skip  # click wraps it
    from robustbench_kd.cli import _runs

    suite = options.chosen_suite()
    failures: Failures = {}
    targets = _described(options, failures)
    outcomes: list[Outcome] = []
    try:
        _evaluate(targets, suite, options, outcomes, failures)
    finally:
        if outcomes:
            _runs.report(outcomes, as_json=options.as_json)

    _failures.conclude(failures)
    if options.strict:
        _raise_if_unreliable(outcomes)
    _workers.raise_if_refuted(outcomes)


def _described(options: EvalOptions, failures: Failures) -> list["Target"]:
    """Returns the targets; one that cannot be described is added to the failures.

    What is missing of any is asked for before anything runs.
    """
    from robustbench_kd.checkpoints.listing import expanded
    from robustbench_kd.checkpoints.target import describe
    from robustbench_kd.core.threat import parse_curve

    for text in options.threats:  # refuses a wrong threat before any file is read
        parse_curve(text)
    choices = options.choices(options.name)
    targets: list[Target] = []
    missing: list[str] = []
    texts = [text for target in options.targets for text in expanded(target)]
    for text in texts:
        described: list[Target] = []
        try:
            with _failures.going_on(failures, text, alone=len(texts) == 1):
                described = describe(text, choices)
        except MissingError as error:
            missing += [str(error), *_left_open(options, text)]
        for target in described:
            has_threat = target.card and target.card.threats
            missing += _left_open(options, target.name, bool(target.card), bool(has_threat))
        targets += described
    if missing:
        raise MissingError("; ".join(dict.fromkeys(missing)))
    if options.name and len(targets) > 1:
        raise UsageError(f"--name names one model, but there are {len(targets)}: leave it out")
    return targets


def _left_open(
    options: EvalOptions, name: str, has_dataset: bool = False, has_threat: bool = False
) -> Iterator[str]:
    """Yields what must still be said of a checkpoint, given what its card says."""
    if not (options.dataset or has_dataset):
        yield str(_options.no_dataset(name))
    if not (options.threats or has_threat):
        yield str(_eval_options.no_threat(name))


def _evaluate(
    targets: list["Target"],
    suite: "Suite",
    options: EvalOptions,
    outcomes: list["Outcome"],
    failures: Failures,
) -> None:
    """Evaluates every target; one that fails is added to the failures."""
    shard = _workers.own_shard(options)
    open_data = options.open_data()
    alone = len(targets) + len(failures) == 1
    for target in targets:
        with _failures.going_on(failures, target.name, alone=alone):
            outcomes.extend(_outcomes(target, suite, options, open_data, shard))


def _outcomes(
    target: "Target",
    suite: "Suite",
    options: EvalOptions,
    open_data: OpenData,
    shard: "Shard | None",
) -> Iterator["Outcome"]:
    """Yields what comes of a target under every threat, nothing where one shard is decided."""
    curves = options.curves(target)
    threat = curves[0][0]
    request = _requests.make_request(target, threat, suite, options, open_data)
    if shard:
        _workers.decide(shard, request, curves, options.results)
        return

    spread = _requests.spread_of(target, threat, suite, options)
    for curve in curves:
        yield from _requests.outcomes_of(request, curve, options, spread)


def _raise_if_unreliable(outcomes: list["Outcome"]) -> None:
    records = [outcome.record for outcome in outcomes]
    models = [record.identity.model for record in records if record.verdict == "unreliable"]
    if models:
        raise UnreliableError(
            f"unreliable under --strict: {', '.join(models)}; the findings say why"
        )
