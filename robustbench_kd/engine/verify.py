"""Decides, independently of every attack, whether a candidate image breaks an example."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from robustbench_kd.core.ledger import Decision
from robustbench_kd.core.threat import Threat
from robustbench_kd.tensors.contracts import Images, Labels, Logits
from robustbench_kd.tensors.geometry import distance, inside
from robustbench_kd.tensors.losses import margin
from robustbench_kd.tensors.oracle import Oracle


@dataclass(frozen=True)
class Judgement:
    """Per candidate, all `(n,)` on the CPU: is it broken, what does the model say, how far, by which margin.

    `outside` marks candidates that left the ball or the box; they never count.
    """

    broken: Tensor
    prediction: Labels
    distance: Tensor
    margin: Tensor
    outside: Tensor


def judge(oracle: Oracle, candidates: Images, images: Images, labels: Labels, threat: Threat) -> Judgement:
    """Judges candidates `(n, c, h, w)` for clean images: misclassified, inside the ball, inside [0, 1].

    The model sees nothing outside the box: such a candidate does not count, whatever the model would say, NaN included.
    """
    candidates = candidates.detach().float().cpu()
    return judged(oracle.logits(candidates.nan_to_num().clamp(0, 1)), candidates, images, labels, threat)


def judged(logits: Logits, candidates: Images, images: Images, labels: Labels, threat: Threat) -> Judgement:
    """Judges candidates whose logits are known already."""
    prediction = logits.argmax(dim=1)
    outside = ~inside(candidates, images, threat.eps, threat.norm)
    return Judgement(
        broken=(prediction != labels) & ~outside,
        prediction=prediction,
        distance=distance(candidates, images, threat.norm),
        margin=margin(logits, labels),
        outside=outside,
    )


def decisions(ids: Iterable[int], judgement: Judgement) -> list[Decision]:
    """Returns what the ledger keeps of a judgement."""
    rows = zip(
        ids,
        judgement.broken.tolist(),
        judgement.prediction.tolist(),
        judgement.margin.tolist(),
        judgement.distance.tolist(),
        strict=True,
    )
    return [
        Decision(index=index, broken=broken, prediction=prediction, margin=margin, distance=far if broken else None)
        for index, broken, prediction, margin, far in rows
    ]
