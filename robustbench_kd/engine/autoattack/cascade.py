"""Runs the AutoAttack package attack by attack on the survivors; parity tests compare with it.

It gives the same verdicts as the package's own loop with the same batch size and seed: both attack
only the survivors, in batches of consecutive ones. This loop can be resumed after any batch, counts
passes, judges success itself, and halves the batch where memory runs out. The package draws its
random numbers per batch, so the batch size is part of a result's identity. For a randomized defence
the package believes a single draw; so does this engine, to show its number beside the expected
accuracy on the same images.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial

import torch

from robustbench_kd.core.errors import UsageError
from robustbench_kd.core.ledger import Decision, Entry
from robustbench_kd.core.records import Finding, Severity
from robustbench_kd.engine.autoattack import package
from robustbench_kd.engine.judging.judge import Judgement, decisions, judge
from robustbench_kd.engine.judging.packing import pack
from robustbench_kd.engine.passes.batching import in_batches
from robustbench_kd.engine.passes.meter import EntryClock
from robustbench_kd.engine.run.plan import Plan
from robustbench_kd.engine.run.run import Run
from robustbench_kd.engine.run.stages import Stage
from robustbench_kd.tensors.contracts import Dataset, Images

CHECKS = "checks"


def attack(run: Run) -> Iterator[Entry]:
    """Yields what the stages decide, batch by batch; the run's index grows meanwhile.

    Raises `IncompleteError` where even a batch of one image does not fit in memory.
    """
    suite = run.plan.suite
    if suite.settings not in package.SETTINGS or suite.adaptive:
        raise UsageError(f"the AutoAttack package has no suite '{suite.name}': use --engine native")

    costs = {stage.name: passes(run.plan, stage, run.classes) for stage in run.stages}
    for stage in run.stages:
        work = partial(_attacked, run, stage, costs)
        yield from in_batches(run.pending(stage), run.batch_size, work)


def check_model(run: Run) -> Entry:
    """Returns what the package's own checks find on the first batch."""
    rows = list(range(len(run.data)))
    return next(in_batches(rows, run.batch_size, partial(_checked, run)))


def passes(plan: Plan, stage: Stage, classes: int) -> int:
    """Returns the passes that one surviving example costs in a stage at most."""
    norm = plan.request.threat.norm
    if stage.adaptive:
        return stage.passes(norm, classes)
    return package.passes(stage.name, plan.suite, norm, classes)


def _checked(run: Run, rows: list[int]) -> Entry:
    clock = EntryClock(run.oracle.meter)
    first = run.data.take(torch.tensor(rows))
    randomized = run.plan.suite.settings == "rand"
    findings = package.check(run.oracle, first.images, first.labels, randomized=randomized)
    return clock.entry(CHECKS, findings=findings)


def _attacked(run: Run, stage: Stage, costs: dict[str, int], rows: list[int]) -> Entry:
    run.tracker.at(run.progress(stage, costs))
    clock = EntryClock(run.oracle.meter)
    warnings = package.Warnings()
    batch = run.data.take(torch.tensor(rows))
    candidates = package.perturb(
        stage.name,
        run.oracle,
        batch.images,
        batch.labels,
        threat=run.threat,
        suite=run.plan.suite,
        classes=run.classes,
        seed=run.seed,
        warnings=warnings,
    )

    judgement = judge(run.oracle, candidates, batch, run.threat)
    found = _decisions(run, judgement, candidates, batch)
    left = _left_the_ball(batch.ids, judgement, stage.name)
    return clock.entry(stage.name, found, findings=[*warnings.findings(), *left])


def _decisions(
    run: Run, judgement: Judgement, candidates: Images, batch: Dataset
) -> list[Decision]:
    if run.oracle.randomized:
        logits = run.oracle.logits(candidates, attacked=batch.labels)
        one_draw = logits.argmax(dim=1) != batch.labels
        judgement = replace(judgement, broken=one_draw & ~judgement.outside)

    found = decisions(batch.ids, judgement)
    if not run.stores_images:
        return found

    with_images = []
    for decision, image in zip(found, candidates, strict=True):
        matters = decision.broken or decision.error_rate
        text = pack(image) if matters else ""
        with_images.append(decision.model_copy(update={"image": text}))
    return with_images


def _left_the_ball(ids: Iterable[int], judgement: Judgement, attack: str) -> list[Finding]:
    pairs = zip(ids, judgement.outside.tolist(), strict=True)
    outside = [example for example, is_outside in pairs if is_outside]
    if not outside:
        return []

    message = (
        f"{attack} returned {len(outside)} images outside the ball or the box; they do not count"
    )
    return [
        Finding(
            check="candidate-outside-ball",
            severity=Severity.INFO,
            message=message,
            value=float(len(outside)),
            examples=outside,
        )
    ]
