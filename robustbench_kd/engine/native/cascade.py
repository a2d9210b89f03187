"""Our own engine: AutoAttack's attacks and budgets on a slot batch, without needless passes.

Source of attacks, order and budgets: Croce and Hein 2020 (arXiv 2003.01690) and the files of
`attacks/`. What differs from the package: random numbers are keyed by example, so batch size, order
and resume change nothing; an example leaves at the step that breaks it; clean logits are computed
once; success is judged by the unmodified model in fp32.
"""

from collections.abc import Iterator, Mapping
from functools import partial

import torch

from robustbench_kd.core.ledger import Decision, Entry
from robustbench_kd.engine.native import custom_attacks, subsampling
from robustbench_kd.engine.native.slots import SlotBatch
from robustbench_kd.engine.passes.batching import halved, halving_note
from robustbench_kd.engine.passes.meter import EntryClock
from robustbench_kd.engine.probing.checkup import Scope, checkup
from robustbench_kd.engine.run.plan import Plan
from robustbench_kd.engine.run.run import Run
from robustbench_kd.engine.run.stages import Stage
from robustbench_kd.tensors.attack import Attack
from robustbench_kd.tensors.oracle import is_out_of_memory

_ENTRY_EVERY = 1.0  # seconds between entries of the ledger


def attack(run: Run) -> Iterator[Entry]:
    """Yields what the stages decide, about once a second; the run's index grows meanwhile.

    Raises `IncompleteError` where even a batch of one image does not fit in memory.
    """
    costs = {stage.name: passes(run.plan, stage, run.classes) for stage in run.stages}
    batch_size = run.batch_size
    for stage in run.stages:
        while True:
            run.tracker.at(run.progress(stage, costs))
            try:
                yield from _stage_entries(run, stage, costs, batch_size)
                break
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                batch_size = halved(min(batch_size, len(run.pending(stage))))
            yield Entry(stage=stage.name, findings=[halving_note(stage.name, batch_size)])


def check_model(run: Run) -> Entry:
    """Returns what the checks of `trust/` find on images that are classified correctly.

    A run with adaptive stages attacks the declared surfaces anyway, so that the checks need not.
    """
    correct = run.logits.argmax(dim=1) == run.data.labels
    rows = torch.nonzero(correct).flatten().tolist()
    scope = Scope(seed=run.seed, parts=run.plan.suite.adaptive is None, scout=True)
    return checkup(run.oracle, run.data, rows, run.threat, scope)


def passes(plan: Plan, stage: Stage, classes: int) -> int:
    """Returns the passes that one surviving example costs in a stage at most."""
    return stage.passes(plan.request.threat.norm, classes)


def _stage_entries(
    run: Run, stage: Stage, costs: Mapping[str, float], batch_size: int
) -> Iterator[Entry]:
    """Yields what a stage decides about the survivors.

    It attacks a sample first where the suite says so, and the others only if it breaks one of the
    sample.
    """
    if stage.adversary:
        yield from custom_attacks.entries(run, stage, stage.adversary, batch_size=batch_size)
    if stage.attack is None:
        return

    attacked = partial(_attacked, run, stage, stage.attack, costs=costs, batch_size=batch_size)
    if stage.fraction < 1:
        if subsampling.closed(run, stage):
            return
        chosen = set(subsampling.sampled(run, stage))
        rows = [row for row in run.pending(stage) if row in chosen]
        yield from attacked(rows)
        if not subsampling.broke_any(run, stage):
            yield subsampling.left_out_of_sample(run, stage)
            return
        yield subsampling.in_full(stage)

    yield from attacked(run.pending(stage))


def _attacked(
    run: Run,
    stage: Stage,
    attack: Attack,
    rows: list[int],
    *,
    costs: Mapping[str, float],
    batch_size: int,
) -> Iterator[Entry]:
    """Yields what an attack decides about some rows of the data set."""
    slots = SlotBatch(run, stage, attack, rows, batch_size)
    clock = EntryClock(run.oracle.meter)
    decided: list[Decision] = []

    for decisions in slots.run():
        decided += decisions
        if decided and clock.seconds > _ENTRY_EVERY:
            work = slots.work(clock.model_seconds)
            yield clock.entry(stage.name, decided, work=work)
            decided = []
            run.tracker.at(run.progress(stage, costs))

    yield clock.entry(stage.name, decided, work=slots.work(clock.model_seconds))
