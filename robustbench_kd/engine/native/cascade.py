"""Our own engine: AutoAttack's attacks and budgets on a slot batch, without a pass for a decided example.

Source of attacks, order and budgets: Croce & Hein 2020 (arXiv 2003.01690) and the files of
`attacks/`. What differs from the package: random numbers are keyed by example, so batch size, order
and resume change nothing; an example leaves at the step that breaks it; clean logits are computed
once; success is judged by the unmodified model in fp32.
"""

import time
from collections.abc import Callable, Iterator
from functools import partial

from robustbench_kd.core.ledger import Decision, Entry, decisions_of
from robustbench_kd.core.records import Work
from robustbench_kd.engine.judging.packing import unpacked
from robustbench_kd.engine.native import custom_attacks as external
from robustbench_kd.engine.native import subsampling as sample
from robustbench_kd.engine.native.queue import Queue
from robustbench_kd.engine.native.slots import SlotBatch, StageContext
from robustbench_kd.engine.passes.batching import halved, halving
from robustbench_kd.engine.passes.search import Search, Spent
from robustbench_kd.engine.passes.speedups import reduced
from robustbench_kd.engine.run.run import Job, pending, progress, worst
from robustbench_kd.engine.run.stages import Stage
from robustbench_kd.tensors.contracts import Images
from robustbench_kd.tensors.oracle import is_out_of_memory

_KEEP_EVERY = 1.0  # seconds between entries of the ledger
_SYNC_STEPS = 4  # steps between questions to a GPU


def entries(job: Job, ledger: list[Entry]) -> Iterator[Entry]:
    """Yields what is decided, about once a second; `ledger` holds what earlier runs decided and grows.

    Raises `IncompleteError` where even a batch of one image does not fit in memory.
    """
    costs, size, spent = (
        [step.passes(job.threat.norm, job.classes) for step in job.steps],
        job.batch_size,
        Spent(),
    )
    for position, step in enumerate(job.steps):
        job.tracker.at(progress(job, position, costs, ledger, _passes(job, spent)))
        while True:
            try:
                if step.adversary:
                    yield from external.entries(
                        job, position, ledger, make=step.adversary, size=size
                    )
                else:
                    yield from _rounds(
                        job, position, ledger, partial(_attack, costs=costs, spent=spent, size=size)
                    )
                break
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                size = halved(min(size, len(pending(job, position, ledger))))
            yield Entry(stage=step.name, findings=[halving(step.name, size)])


def _rounds(
    job: Job, position: int, ledger: list[Entry], attack: Callable[..., Iterator[Entry]]
) -> Iterator[Entry]:
    """Runs a stage on what stands; on a sample first where the suite says so, on the rest only if one of it falls."""
    if job.steps[position].share < 1:
        chosen = set(sample.sampled(job, position, ledger))
        yield from attack(
            job, position, ledger, [row for row in pending(job, position, ledger) if row in chosen]
        )
        if not sample.fell(job, position, ledger):
            yield sample.left_out_of_sample(job, position, ledger)
            return
        yield sample.in_full(job, position)
    yield from attack(job, position, ledger, pending(job, position, ledger))


def _attack(  # the first four say what is attacked
    job: Job,
    position: int,
    ledger: list[Entry],
    waiting: list[int],
    *,
    costs: list[int],
    spent: Spent,
    size: int,
) -> Iterator[Entry]:
    step = job.steps[position]
    stage = StageContext(
        step=step,
        data=job.data,
        logits=job.logits,
        threat=job.threat,
        seed=job.seed_of(step),
        size=size,
        sync=1 if job.oracle.device.type == "cpu" else _SYNC_STEPS,
        oracle=job.oracle,
        search=_search(job, step, spent),
        worst=worst(job, position, ledger),
        starts=_starts(job, step, ledger),
        stores_images=job.stores_images or step.feeds_later_stage,
    )
    turnover = SlotBatch(stage, Queue(waiting, step.attack.jobs(job.threat.norm, job.classes)))
    clock = _Clock(job, spent, turnover)
    for retired in turnover.run():
        if clock.gather(retired):
            yield clock.entry(step.name)
            job.tracker.at(progress(job, position, costs, ledger, _passes(job, spent)))
    yield clock.entry(step.name)


def _search(job: Job, step: Stage, spent: Spent) -> Search:
    surface = step.surface
    return Search(
        surface.answer,
        weights=None if surface.weights is None else surface.weights.to(job.oracle.device),
        passes=surface.passes,
        spent=spent,
        abstains=job.oracle.abstains,
        within=partial(reduced, job.speedups, job.oracle.device),
        on_pass=lambda: job.tracker.tick(_passes(job, spent)),
    )


def _starts(job: Job, step: Stage, ledger: list[Entry]) -> dict[int, Images]:
    """Returns the images by example id that an earlier stage has left for this one to start from."""
    shape = tuple(job.data.images.shape[1:])
    left = decisions_of(ledger, step.starts_from) if step.starts_from else {}
    return {
        example: unpacked([decision.image], shape)[0]
        for example, decision in left.items()
        if decision.image
    }


def _passes(job: Job, spent: Spent) -> int:
    """Returns all passes since the start of the process."""
    return job.oracle.forwards + job.oracle.backwards + spent.forwards + spent.backwards


class _Clock:
    """Gathers decided rows into entries, each with the passes and seconds since the one before."""

    def __init__(self, job: Job, spent: Spent, turnover: SlotBatch) -> None:
        self._job, self._spent, self._turnover = job, spent, turnover
        self._retired: list[Decision] = []
        self._before = self._reading()

    def gather(self, retired: list[Decision]) -> bool:
        """Adds decided rows; returns whether it is time to write an entry."""
        self._retired += retired
        return bool(self._retired) and time.perf_counter() - self._before[-1] > _KEEP_EVERY

    def entry(self, name: str) -> Entry:
        """Returns what was gathered, and starts anew."""
        now = self._reading()
        forwards, backwards, computed, live, disagreements, marginal, model, wall = (
            new - old for new, old in zip(now, self._before, strict=True)
        )
        decisions, self._before, self._retired = self._retired, now, []
        return Entry(
            stage=name,
            decisions=decisions,
            forwards=int(forwards),
            backwards=int(backwards),
            seconds=wall,
            work=Work(
                computed=int(computed),
                live=int(live),
                disagreements=int(disagreements),
                marginal=int(marginal),
                model_seconds=model,
            ),
        )

    def _reading(self) -> tuple[float, ...]:
        oracle, spent, tally = self._job.oracle, self._spent, self._turnover.tally
        return (
            oracle.forwards + spent.forwards,
            oracle.backwards + spent.backwards,
            tally.computed,
            tally.live,
            tally.disagreements,
            tally.marginal,
            spent.seconds,
            time.perf_counter(),
        )
