"""Runs the AutoAttack package attack by attack on the survivors; the oracle of parity tests and benchmarks.

Same verdicts as the package's own loop, given the same batch size and seed: it too attacks only what still stands, in batches of
consecutive survivors. This loop can be resumed after any batch, counts passes, judges success itself, and halves the batch
where memory runs out. The package draws its random numbers per batch, so the batch size is part of a result's identity.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from robustbench_kd.core.ledger import Entry, decided
from robustbench_kd.core.records import Finding, Severity
from robustbench_kd.core.suites import Suite
from robustbench_kd.core.threat import Threat
from robustbench_kd.engine import autoattack
from robustbench_kd.engine.batches import in_batches
from robustbench_kd.engine.progress import Progress, Tracker
from robustbench_kd.engine.verify import Judgement, decisions, judge
from robustbench_kd.tensors.contracts import Dataset
from robustbench_kd.tensors.oracle import Oracle

CHECKS = "checks"


@dataclass(frozen=True)
class Job:
    """One run of the package: the whole data set, the threat, the suite, and how to run it."""

    oracle: Oracle
    data: Dataset
    threat: Threat
    suite: Suite
    classes: int
    seed: int
    batch_size: int
    tracker: Tracker


def entries(job: Job, ledger: list[Entry]) -> Iterator[Entry]:
    """Yields what is decided, batch by batch; `ledger` holds what earlier runs decided and grows as entries are kept.

    Raises `IncompleteError` where even a batch of one image does not fit in memory.
    """
    if not any(entry.stage == CHECKS for entry in ledger):
        yield _checks(job)
    for position, attack in enumerate(job.suite.attacks):
        yield from _stage(job, position, attack, ledger)


def _stage(job: Job, position: int, attack: str, ledger: list[Entry]) -> Iterator[Entry]:
    rows = {example: row for row, example in enumerate(job.data.ids)}
    alive = _alive(job, position, ledger)
    done = decided(ledger, attack)
    pending = [rows[example] for example in alive if example not in done]

    def attack_batch(batch: list[int]) -> Entry:
        _tell(job, position, attack, len(alive), ledger)
        return _attack(job, attack, batch)

    yield from in_batches(pending, job.batch_size, attack_batch)


def _alive(job: Job, position: int, ledger: list[Entry]) -> list[int]:
    """Returns the example ids that every stage before `position` left standing, in order."""
    broken = {
        example
        for stage in ("clean", *job.suite.attacks[:position])
        for example, decision in decided(ledger, stage).items()
        if decision.broken
    }
    return [example for example in job.data.ids if example not in broken]


def _tell(job: Job, position: int, attack: str, alive: int, ledger: list[Entry]) -> None:
    done = decided(ledger, attack)
    pending = alive - len(done)
    standing = alive - sum(decision.broken for decision in done.values())
    cost = autoattack.passes(attack, job.suite, job.threat.norm, job.classes) * pending
    later = sum(
        autoattack.passes(name, job.suite, job.threat.norm, job.classes) for name in job.suite.attacks[position + 1 :]
    )
    job.tracker.at(
        Progress(
            stage=attack,
            decided=len(done),
            total=alive,
            robust=standing,
            examples=len(job.data),
            passes=job.oracle.forwards + job.oracle.backwards,
            passes_left=cost + later * standing,
        )
    )


def _checks(job: Job) -> Entry:
    start, forwards = time.perf_counter(), job.oracle.forwards
    first = job.data.take(torch.arange(min(job.batch_size, len(job.data))))
    randomized = job.suite.settings == "rand"
    findings = autoattack.check(job.oracle, first.images, first.labels, randomized=randomized)
    return Entry(
        stage=CHECKS,
        forwards=job.oracle.forwards - forwards,
        seconds=time.perf_counter() - start,
        findings=findings,
    )


def _attack(job: Job, attack: str, rows: list[int]) -> Entry:
    start, forwards, backwards = time.perf_counter(), job.oracle.forwards, job.oracle.backwards
    batch = job.data.take(torch.tensor(rows))
    flags = autoattack.Flags()
    candidates = autoattack.perturb(
        attack,
        job.oracle,
        batch.images,
        batch.labels,
        threat=job.threat,
        suite=job.suite,
        classes=job.classes,
        seed=job.seed,
        flags=flags,
    )
    judgement = judge(job.oracle, candidates, batch.images, batch.labels, job.threat)
    return Entry(
        stage=attack,
        decisions=decisions(batch.ids, judgement),
        forwards=job.oracle.forwards - forwards,
        backwards=job.oracle.backwards - backwards,
        seconds=time.perf_counter() - start,
        findings=flags.findings() + _left_the_ball(batch.ids, judgement, attack),
    )


def _left_the_ball(ids: Iterable[int], judgement: Judgement, attack: str) -> list[Finding]:
    outside = [example for example, out in zip(ids, judgement.outside.tolist(), strict=True) if out]
    if not outside:
        return []
    return [
        Finding(
            check="candidate-outside-ball",
            severity=Severity.INFO,
            message=f"{attack} returned {len(outside)} images outside the ball or the box; they do not count",
            value=float(len(outside)),
            examples=outside,
        )
    ]
