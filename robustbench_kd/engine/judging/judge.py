"""Decides, independently of every attack, whether a candidate image breaks an example.

A randomized defence answers in several ways, `(k, n, classes)`: with every member of a finite
ensemble, else with draws under a stream that no search uses. An image breaks its example where all
answers are wrong; `wrong` says how many of them are.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from robustbench_kd.core.ledger import Decision
from robustbench_kd.core.threat import Threat
from robustbench_kd.tensors.contracts import Dataset, Images, Labels, Logits
from robustbench_kd.tensors.defence import without_rejection
from robustbench_kd.tensors.geometry import distance, inside
from robustbench_kd.tensors.losses import margin
from robustbench_kd.tensors.oracle import Oracle

DRAWS = 20  # fresh draws that judge a candidate of a randomized defence without members
_ALL = 1 - 1e-6  # weights of members sum to 1 but for rounding


@dataclass(frozen=True)
class Judgement:
    """Per candidate, all `(n,)` on the CPU: is it broken, what does the defence say, how far, by which margin.

    `wrong` is the weight of the answers that err, 0 or 1 for a deterministic defence; the
    prediction is the most frequent one and the margin the mean one. `rejected` is the weight of the
    answers that reject, None of a defence that never does; whether they err is for the caller to
    say. `outside` marks candidates that left the ball or the box; they never count.
    """

    broken: Tensor
    wrong: Tensor
    prediction: Labels
    distance: Tensor
    margin: Tensor
    outside: Tensor
    rejected: Tensor | None = None


def judge(
    oracle: Oracle,
    candidates: Images,
    true: Dataset,
    threat: Threat,
    *,
    stream: str = "judge",
    draws: int = DRAWS,
) -> Judgement:
    """Judges candidates `(n, c, h, w)` for clean images: misclassified, inside the ball, inside [0, 1].

    Where chance decides, by so many draws of the stream. An answer that rejects the image counts as
    right. The defence sees nothing outside the box: such a candidate does not count, whatever the
    defence would say, NaN included.
    """
    candidates = candidates.detach().float().cpu()
    seen = candidates.nan_to_num().clamp(0, 1)
    answers = oracle.answers(seen, torch.tensor(true.ids), stream=stream, draws=draws)
    known = without_rejection(answers, true.labels) if oracle.abstains else answers
    judgement = judged(known, oracle.weights(len(known)), candidates, true, threat)
    return replace(judgement, rejected=rejecting(oracle, answers))


def rejecting(oracle: Oracle, answers: Tensor) -> Tensor | None:
    """Returns the weight `(n,)` of the answers `(k, n, classes + 1)` that reject, None where the defence never does."""
    if not oracle.abstains:
        return None
    return oracle.weights(len(answers)) @ (answers.argmax(dim=2) == answers.shape[2] - 1).double()


def judged(
    answers: Tensor, weights: Tensor, candidates: Images, true: Dataset, threat: Threat
) -> Judgement:
    """Judges candidates whose answers `(k, n, classes)` are known already."""
    outside = ~inside(candidates, true.images, threat.eps, threat.norm)
    predictions = answers.argmax(dim=2)
    share = (weights @ (predictions != true.labels).double()).masked_fill(outside, 0)
    broken = share > _ALL
    return Judgement(
        broken=broken,
        wrong=share.masked_fill(broken, 1),
        prediction=_most_frequent(predictions, weights, answers.shape[2]),
        distance=distance(candidates, true.images, threat.norm),
        margin=(
            weights @ torch.stack([margin(logits, true.labels) for logits in answers]).double()
        ).float(),
        outside=outside,
    )


def decisions(ids: Iterable[int], judgement: Judgement) -> list[Decision]:
    """Returns what the ledger keeps of a judgement; `wrong` only where `broken` does not say it."""
    unknown = [None] * len(judgement.wrong)
    rows = zip(
        ids,
        judgement.broken.tolist(),
        judgement.prediction.tolist(),
        judgement.margin.tolist(),
        judgement.distance.tolist(),
        judgement.wrong.tolist(),
        unknown if judgement.rejected is None else judgement.rejected.tolist(),
        strict=True,
    )
    return [
        Decision(
            index=index,
            broken=broken,
            prediction=prediction,
            margin=margin,
            distance=far if wrong or broken else None,
            wrong=None if wrong == broken else wrong,
            rejected=rejected,
        )
        for index, broken, prediction, margin, far, wrong, rejected in rows
    ]


def _most_frequent(predictions: Tensor, weights: Tensor, classes: int) -> Labels:
    """Returns the class with the largest weight among predictions `(k, n)`, the lower one of two equal."""
    votes = torch.zeros(predictions.shape[1], classes, dtype=weights.dtype)
    return votes.scatter_add_(1, predictions.T, weights.expand(predictions.shape[1], -1)).argmax(
        dim=1
    )


def standing_decision(data: Dataset, logits: Logits, row: int) -> Decision:
    """Returns the decision on a row of the data set that nothing has moved, from its clean logits."""
    label = data.labels[row : row + 1]
    gap = float(margin(logits[row : row + 1], label))
    return Decision(index=data.ids[row], broken=False, prediction=int(label), margin=gap)
