"""Decides, independently of every attack, whether a candidate image breaks an example.

A randomized defence gives several answers, `(k, n, classes)`: one per member of a finite ensemble,
otherwise draws under a stream that no search uses. An image breaks its example where all answers
are wrong; `wrong` is the fraction of wrong answers.
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
_ALL = 1 - 1e-6  # weights of members sum to 1, apart from rounding


@dataclass(frozen=True)
class Judgement:
    """The judgement of n candidates, all `(n,)` on the CPU.

    `wrong` is the weight of the wrong answers, 0 or 1 for a deterministic defence, and `broken`
    says whether it is 1. The prediction is the most frequent one and the margin the mean one.
    `rejected` is the weight of the answers that reject, None for a defence that never does; the
    caller says whether these are wrong. `outside` marks candidates that left the ball or the box;
    they never count.
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
    clean: Dataset,
    threat: Threat,
    *,
    stream: str = "judge",
    draws: int = DRAWS,
) -> Judgement:
    """Judges candidates `(n, c, h, w)`: misclassified, inside the ball, inside [0, 1].

    A randomized defence without members is judged by so many draws of the stream. An answer that
    rejects the image counts as correct. The defence sees nothing outside the box: such a candidate
    does not count, whatever the defence would say. NaN for an answer counts as correct.
    """
    candidates = candidates.detach().float().cpu()
    in_box = candidates.nan_to_num().clamp(0, 1)
    ids = torch.tensor(clean.ids)
    answers = oracle.answers(in_box, ids, stream=stream, draws=draws, attacked=clean.labels)

    accepted = without_rejection(answers, clean.labels) if oracle.abstains else answers
    weights = oracle.weights(len(accepted))
    judgement = judge_answers(accepted, weights, candidates, clean, threat)
    return replace(judgement, rejected=rejected_weight(oracle, answers))


def judge_answers(
    answers: Tensor, weights: Tensor, candidates: Images, clean: Dataset, threat: Threat
) -> Judgement:
    """Judges candidates whose answers `(k, n, classes)` are known already."""
    outside = ~inside(candidates, clean.images, threat.eps, threat.norm)
    predictions = answers.argmax(dim=2)
    wrong = weights @ (predictions != clean.labels).double()
    wrong = wrong.masked_fill(outside, 0)
    broken = wrong > _ALL
    margins = torch.stack([margin(logits, clean.labels) for logits in answers]).double()

    return Judgement(
        broken=broken,
        wrong=wrong.masked_fill(broken, 1),
        prediction=_most_frequent(predictions, weights, answers.shape[2]),
        distance=distance(candidates, clean.images, threat.norm),
        margin=(weights @ margins).float(),
        outside=outside,
    )


def rejected_weight(oracle: Oracle, answers: Tensor) -> Tensor | None:
    """Returns the weight `(n,)` of the answers `(k, n, classes + 1)` that reject.

    It is None for a defence that never rejects.
    """
    if not oracle.abstains:
        return None
    rejects = answers.argmax(dim=2) == answers.shape[2] - 1
    return oracle.weights(len(answers)) @ rejects.double()


def decisions(ids: Iterable[int], judgement: Judgement) -> list[Decision]:
    """Returns what the ledger keeps of a judgement."""
    n = len(judgement.wrong)
    columns = (
        judgement.broken.tolist(),
        judgement.prediction.tolist(),
        judgement.margin.tolist(),
        judgement.distance.tolist(),
        judgement.wrong.tolist(),
        [None] * n if judgement.rejected is None else judgement.rejected.tolist(),
    )
    found = []
    for index, broken, prediction, gap, far, wrong, rejected in zip(ids, *columns, strict=True):
        decision = Decision(
            index=index,
            broken=broken,
            prediction=prediction,
            margin=gap,
            distance=far if wrong or broken else None,
            wrong=None if wrong == broken else wrong,
            rejected=rejected,
        )
        found.append(decision)
    return found


def survival(data: Dataset, logits: Logits, row: int) -> Decision:
    """Returns the decision on a row of the data set that no attack changed, from clean logits."""
    label = data.labels[row : row + 1]
    gap = float(margin(logits[row : row + 1], label))
    return Decision(index=data.ids[row], broken=False, prediction=int(label), margin=gap)


def _most_frequent(predictions: Tensor, weights: Tensor, classes: int) -> Labels:
    """Returns the class with the most weight among predictions `(k, n)`; ties go to the lower."""
    n = predictions.shape[1]
    votes = torch.zeros(n, classes, dtype=weights.dtype)
    votes.scatter_add_(1, predictions.T, weights.expand(n, -1))
    return votes.argmax(dim=1)
