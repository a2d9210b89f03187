"""Turns the options of `rkd eval` into requests to the engine, and runs them."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from robustbench_kd.cli import _options, _workers
from robustbench_kd.cli._eval_options import Curve, EvalOptions, OpenData
from robustbench_kd.core.claim import parse_claim
from robustbench_kd.core.suites import Suite
from robustbench_kd.core.threat import Threat

if TYPE_CHECKING:
    from robustbench_kd.checkpoints.subject import Subject, Target
    from robustbench_kd.engine.evaluate import Outcome
    from robustbench_kd.engine.run.request import Request


def make_request(
    target: "Target", threat: Threat, suite: Suite, options: EvalOptions, open_data: OpenData
) -> "Request":
    """Loads a target and its data, and returns what to evaluate."""
    from robustbench_kd.checkpoints.target import load
    from robustbench_kd.cli import _adaptive, _devices
    from robustbench_kd.engine.run.request import Request

    device = _devices.choose(options.device)
    data = open_data(options.dataset_of(target), _options.class_names(target))
    channels, height, width = data.images.shape[1:]
    shape = (channels, height, width)
    subject = load(target, classes=data.classes, shape=shape)
    _say_notes(subject)

    surrogates = _adaptive.described(options.surrogates, trust_code=options.trust_code)
    if suite.adaptive:
        surrogates += _adaptive.teachers(target, trust_code=options.trust_code)
    extra = _adaptive.added(
        surrogates, options.attacks, classes=data.classes, shape=shape, device=device
    )
    return Request(
        subject=subject,
        data=data,
        threat=threat,
        suite=suite,
        device=device,
        seed=options.seed,
        batch_size=options.chosen_batch_size(),
        engine=options.engine,
        speedups=options.speedups(),
        probes=not options.no_probes,
        saves=options.save_adversarial,
        source=options.source(target),
        at_least=parse_claim(options.claim) if options.claim else None,
        extra=extra,
    )


def spread_of(
    target: "Target", threat: Threat, suite: Suite, options: EvalOptions
) -> _workers.Spread | None:
    """Returns what lets several processes share the examples, None for a single process."""
    load = partial(load_request, target, threat, suite)
    return _workers.spread(load, options)


def load_request(target: "Target", threat: Threat, suite: Suite, options: EvalOptions) -> "Request":
    """Returns what a worker, in a process of its own, is to evaluate."""
    return make_request(target, threat, suite, options, options.open_data())


def outcomes_of(
    request: "Request", curve: Curve, options: EvalOptions, spread: _workers.Spread | None = None
) -> Iterator["Outcome"]:
    """Yields the outcomes of ascending radii; a broken example is not attacked at larger ones.

    `spread` is that of `_workers` where several processes share the examples.
    """
    from robustbench_kd.cli import _console, _runs
    from robustbench_kd.engine.evaluate import evaluate

    smaller: Path | None = None
    for threat in curve:
        asked = replace(request, threat=threat, smaller=smaller)
        with _console.progress() as line:
            observer = _runs.observer(line, f"{request.subject.name} {threat}")
            outcome = evaluate(
                asked,
                options.results,
                observer=observer,
                fresh=options.fresh,
                spread=partial(spread, asked, observer) if spread else None,
                say=partial(_console.say, style="yellow"),
            )
        # A randomized defence almost never fails on every draw, so nothing carries over to the next
        # radius.
        smaller = None if outcome.record.robust_draws else outcome.folder
        _runs.announce(outcome)
        yield outcome


def _say_notes(subject: "Subject") -> None:
    from robustbench_kd.cli import _console

    for note in subject.notes:
        _console.say(f"{subject.name}: {note}", "dim")
