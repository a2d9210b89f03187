"""What every engine does first: the clean pass, and the package's own checks of the model."""

import time
from collections.abc import Iterator

import torch

from robustbench_kd.core.ledger import Entry, decided
from robustbench_kd.engine import autoattack
from robustbench_kd.engine.batches import in_batches
from robustbench_kd.engine.job import CLEAN, Job
from robustbench_kd.engine.verify import decisions, judge

CHECKS = "checks"


def entries(job: Job, ledger: list[Entry]) -> Iterator[Entry]:
    """Yields the clean predictions of all examples that the ledger lacks, and the findings of the checks."""
    done = decided(ledger, CLEAN)
    waiting = [row for row, example in enumerate(job.data.ids) if example not in done]
    yield from in_batches(waiting, job.batch_size, lambda rows: _classify(job, rows))
    if not any(entry.stage == CHECKS for entry in ledger):
        yield _check(job)


def _classify(job: Job, rows: list[int]) -> Entry:
    start = time.perf_counter()
    batch = job.data.take(torch.tensor(rows))
    judgement = judge(job.oracle, batch.images, batch.images, batch.labels, job.threat)
    seconds = time.perf_counter() - start
    return Entry(stage=CLEAN, decisions=decisions(batch.ids, judgement), forwards=len(rows), seconds=seconds)


def _check(job: Job) -> Entry:
    start, forwards = time.perf_counter(), job.oracle.forwards
    first = job.data.take(torch.arange(min(job.batch_size, len(job.data))))
    randomized = job.suite.settings == "rand"
    findings = autoattack.check(job.oracle, first.images, first.labels, randomized=randomized)
    cost = job.oracle.forwards - forwards
    return Entry(stage=CHECKS, forwards=cost, seconds=time.perf_counter() - start, findings=findings)
