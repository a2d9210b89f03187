"""Our own engine: AutoAttack's attacks and budgets on a slot batch, without a pass for a decided example.

Source of attacks, order and budgets: Croce & Hein 2020 (arXiv 2003.01690) and the files of `attacks/`. What differs from
the package: random numbers are keyed by example, so batch size, order and resume change nothing; an example leaves at the
step that breaks it; clean logits are computed once; success is judged by the unmodified model in fp32.
"""

import time
from collections.abc import Iterator
from typing import Any

from robustbench_kd.core.ledger import Decision, Entry
from robustbench_kd.core.plugins import find, module
from robustbench_kd.core.records import Work
from robustbench_kd.core.suites import Suite
from robustbench_kd.core.threat import Norm
from robustbench_kd.engine.batches import halved, halving
from robustbench_kd.engine.job import Job, pending, progress
from robustbench_kd.engine.queue import Queue
from robustbench_kd.engine.search import Search
from robustbench_kd.engine.slots import Stage, Turnover
from robustbench_kd.tensors.contracts import Classifier
from robustbench_kd.tensors.oracle import Oracle, is_out_of_memory

_KEEP_EVERY = 1.0  # seconds between entries of the ledger
_SYNC_STEPS = 4  # steps between questions to a GPU


def entries(job: Job, ledger: list[Entry]) -> Iterator[Entry]:
    """Yields what is decided, about once a second; `ledger` holds what earlier runs decided and grows.

    Raises `IncompleteError` where even a batch of one image does not fit in memory.
    """
    costs = [passes(name, job.suite, job.threat.norm, job.classes) for name in job.suite.attacks]
    search, size = Search(_searched(job.oracle), job.tracker.tick), job.batch_size
    for position, name in enumerate(job.suite.attacks):
        while True:
            try:
                yield from _attack(job, position, ledger, costs=costs, search=search, size=size)
                break
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                size = halved(min(size, len(pending(job, position, ledger))))
            yield Entry(stage=name, findings=[halving(name, size)])


def _attack(
    job: Job, position: int, ledger: list[Entry], *, costs: list[int], search: Search, size: int
) -> Iterator[Entry]:
    name, waiting = job.suite.attacks[position], pending(job, position, ledger)
    stage = _stage(job, name, search, size)
    turnover = Turnover(stage, Queue(waiting, stage.attack.jobs(job.threat.norm, job.classes)))
    clock = _Clock(job, search, turnover)
    job.tracker.at(progress(job, position, costs, ledger, clock.passes()))
    for retired in turnover.run():
        if clock.gather(retired):
            yield clock.entry(name)
            job.tracker.at(progress(job, position, costs, ledger, clock.passes()))
    yield clock.entry(name)


def build(name: str, suite: Suite, norm: Norm) -> Any:
    """Returns an attack with the budget that the suite gives it."""
    component = find("attacks", name, "attack")
    return module("attacks", component.stem).component(**component.arguments, **suite.budget(name, norm))


def passes(name: str, suite: Suite, norm: Norm, classes: int) -> int:
    """Returns the forward and backward passes that one surviving example costs."""
    attack = build(name, suite, norm)
    schedule = attack.schedule(norm)
    return int(attack.jobs(norm, classes) * (len(schedule) + sum(schedule)))


def _searched(oracle: Oracle) -> Classifier:
    """Returns the model that the search asks; success is judged by the oracle itself."""
    return oracle.model


def _stage(job: Job, name: str, search: Search, size: int) -> Stage:
    return Stage(
        attack=build(name, job.suite, job.threat.norm),
        data=job.data,
        logits=job.logits,
        threat=job.threat,
        seed=job.seed,
        size=size,
        sync=1 if job.oracle.device.type == "cpu" else _SYNC_STEPS,
        oracle=job.oracle,
        search=search,
    )


class _Clock:
    """Gathers decided rows into entries, each with the passes and seconds since the one before."""

    def __init__(self, job: Job, search: Search, turnover: Turnover) -> None:
        self._job, self._search, self._turnover = job, search, turnover
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
        oracle, search, tally = self._job.oracle, self._search, self._turnover.tally
        return (
            oracle.forwards + search.forwards,
            oracle.backwards + search.backwards,
            tally.computed,
            tally.live,
            tally.disagreements,
            tally.marginal,
            search.seconds,
            time.perf_counter(),
        )
