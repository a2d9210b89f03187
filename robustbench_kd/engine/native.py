"""Our own engine: AutoAttack's attacks and budgets on a slot batch, without a pass for a decided example.

Source of attacks, order and budgets: Croce & Hein 2020 (arXiv 2003.01690) and the files of `attacks/`. What differs from
the package: random numbers are keyed by example, so batch size, order and resume change nothing; an example leaves at the
step that breaks it; clean logits are computed once; success is judged by the unmodified model in fp32.
"""

import time
from collections.abc import Iterator

from robustbench_kd.core.ledger import Decision, Entry
from robustbench_kd.core.records import Work
from robustbench_kd.engine.batches import halved, halving
from robustbench_kd.engine.job import Job, pending, progress, worst
from robustbench_kd.engine.plan import Step
from robustbench_kd.engine.queue import Queue
from robustbench_kd.engine.search import Search
from robustbench_kd.engine.slots import Stage, Turnover
from robustbench_kd.tensors.oracle import is_out_of_memory

_KEEP_EVERY = 1.0  # seconds between entries of the ledger
_SYNC_STEPS = 4  # steps between questions to a GPU


def entries(job: Job, ledger: list[Entry]) -> Iterator[Entry]:
    """Yields what is decided, about once a second; `ledger` holds what earlier runs decided and grows.

    Raises `IncompleteError` where even a batch of one image does not fit in memory.
    """
    costs, size = [step.passes(job.threat.norm, job.classes) for step in job.steps], job.batch_size
    searches: list[Search] = []
    for position, step in enumerate(job.steps):
        while True:
            try:
                searches.append(_search(job, step, searches))
                yield from _attack(job, position, ledger, costs=costs, searches=searches, size=size)
                break
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                size = halved(min(size, len(pending(job, position, ledger))))
            yield Entry(stage=step.name, findings=[halving(step.name, size)])


def _attack(
    job: Job, position: int, ledger: list[Entry], *, costs: list[int], searches: list[Search], size: int
) -> Iterator[Entry]:
    step, waiting = job.steps[position], pending(job, position, ledger)
    stage = Stage(
        step=step,
        data=job.data,
        logits=job.logits,
        threat=job.threat,
        seed=job.seed_of(step),
        size=size,
        sync=1 if job.oracle.device.type == "cpu" else _SYNC_STEPS,
        oracle=job.oracle,
        search=searches[-1],
        worst=worst(job, position, ledger),
    )
    turnover = Turnover(stage, Queue(waiting, step.attack.jobs(job.threat.norm, job.classes)))
    clock = _Clock(job, searches, turnover)
    job.tracker.at(progress(job, position, costs, ledger, clock.passes()))
    for retired in turnover.run():
        if clock.gather(retired):
            yield clock.entry(step.name)
            job.tracker.at(progress(job, position, costs, ledger, clock.passes()))
    yield clock.entry(step.name)


def _search(job: Job, step: Step, before: list[Search]) -> Search:
    """Returns the search of a stage, which tells the passes of all searches so far."""
    surface, spent = step.surface, sum(search.forwards + search.backwards for search in before)
    oracle, tick = job.oracle, job.tracker.tick
    weights = None if surface.weights is None else surface.weights.to(oracle.device)
    return Search(
        surface.answer,
        weights=weights,
        passes=surface.passes,
        abstains=oracle.abstains,
        on_pass=lambda passes: tick(spent + passes + oracle.forwards + oracle.backwards),
    )


class _Clock:
    """Gathers decided rows into entries, each with the passes and seconds since the one before."""

    def __init__(self, job: Job, searches: list[Search], turnover: Turnover) -> None:
        self._job, self._searches, self._turnover = job, searches, turnover
        self._retired: list[Decision] = []
        self._before = self._reading()

    def passes(self) -> int:
        """Returns all passes since the start of the process."""
        forwards, backwards, *_ = self._reading()
        return int(forwards + backwards)

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
        oracle, searches, tally = self._job.oracle, self._searches, self._turnover.tally
        return (
            oracle.forwards + sum(search.forwards for search in searches),
            oracle.backwards + sum(search.backwards for search in searches),
            tally.computed,
            tally.live,
            tally.disagreements,
            tally.marginal,
            sum(search.seconds for search in searches),
            time.perf_counter(),
        )
