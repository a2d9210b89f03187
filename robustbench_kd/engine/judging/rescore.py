"""The last stage of a randomized defence: its worst images, scored on fresh draws.

A search keeps the image that looked worst on its draws, which flatters the attack; fresh draws give
the true error rate. The worst images of the standard attacks are scored beside those of all
attacks, so that both numbers rest on the same draws.
"""

from collections.abc import Iterator

import torch

from robustbench_kd.core.ledger import Decision, Entry
from robustbench_kd.engine.judging.judge import decisions, judge
from robustbench_kd.engine.judging.packing import unpack
from robustbench_kd.engine.passes.batching import in_batches
from robustbench_kd.engine.passes.meter import EntryClock
from robustbench_kd.engine.run.run import Run

SCORE = SCORE_STREAM = "score"  # the stage, and the stream of its draws
STANDARD = "score-standard"  # the stage for the images that were found before adaptive attacks
DRAWS = 100


def entries(run: Run) -> Iterator[Entry]:
    """Yields the scores of all images of a randomized defence without members.

    Other defences need no scores: their error rates are exact.
    """
    if run.oracle.exact:
        return
    if any(stage.adaptive for stage in run.stages):
        yield from _scored(run, STANDARD, run.worst(standard_only=True))
    yield from _scored(run, SCORE, run.worst())


def _scored(run: Run, stage: str, worst: dict[int, Decision]) -> Iterator[Entry]:
    """Yields the scores of the worst images, one stage of the ledger."""
    decided = run.index.decisions(stage)
    images: dict[int, str] = {}
    rows: list[int] = []
    for row, example in enumerate(run.data.ids):
        if example in worst and worst[example].image:
            images[example] = worst[example].image
            if example not in decided:
                rows.append(row)

    def score(batch: list[int]) -> Entry:
        clock = EntryClock(run.oracle.meter)
        clean = run.data.take(torch.tensor(batch))
        texts = [images[example] for example in clean.ids]
        points = unpack(texts, tuple(clean.images.shape[1:]))

        judgement = judge(run.oracle, points, clean, run.threat, stream=SCORE_STREAM, draws=DRAWS)
        found = decisions(clean.ids, judgement)
        if run.saves_images:
            found = [one.model_copy(update={"image": images[one.index]}) for one in found]
        return clock.entry(stage, found)

    yield from in_batches(rows, run.batch_size, score)
