"""The last stage where chance decides: the worst images that were found, judged on draws that no search has seen.

Searching keeps the image that looked worst on its draws, which flatters the attack; fresh draws
tell what it is worth. The worst images of the standard attacks are scored besides those of all
attacks: else their gap would be one of two yardsticks.
"""

import time
from collections.abc import Iterator

import torch

from robustbench_kd.core.ledger import Entry, decisions_of
from robustbench_kd.engine.judging.judge import decisions, judge
from robustbench_kd.engine.judging.packing import unpacked
from robustbench_kd.engine.passes.batching import in_batches
from robustbench_kd.engine.run.run import Job, worst

SCORE = SCORE_STREAM = "score"  # the stage, and the stream of its draws
STANDARD = "score-standard"  # the stage for what was found before adaptive attacks followed
DRAWS = 100


def entries(job: Job, ledger: list[Entry]) -> Iterator[Entry]:
    """Yields the scores of all images of a randomized defence without members; of others nothing, they are exact."""
    if job.oracle.exact:
        return
    standard = sum(not step.adaptive for step in job.steps)
    if standard < len(job.steps):
        yield from _scored(job, ledger, STANDARD, standard)
    yield from _scored(job, ledger, SCORE, len(job.steps))


def _scored(job: Job, ledger: list[Entry], stage: str, position: int) -> Iterator[Entry]:
    """Yields the scores of the worst images that the attacks before `position` found."""
    done = decisions_of(ledger, stage)
    images = {example: decision.image for example, decision in worst(job, position, ledger).items()}
    rows = [
        row
        for row, example in enumerate(job.data.ids)
        if images.get(example) and example not in done
    ]

    def score(some: list[int]) -> Entry:
        start, forwards = time.perf_counter(), job.oracle.forwards
        true = job.data.take(torch.tensor(some))
        points = unpacked([images[example] for example in true.ids], tuple(true.images.shape[1:]))
        judgement = judge(job.oracle, points, true, job.threat, stream=SCORE_STREAM, draws=DRAWS)
        cost, seconds = job.oracle.forwards - forwards, time.perf_counter() - start
        found = [
            one.model_copy(update={"image": images[one.index] if job.saves else ""})
            for one in decisions(true.ids, judgement)
        ]
        return Entry(stage=stage, decisions=found, forwards=cost, seconds=seconds)

    yield from in_batches(rows, job.batch_size, score)
