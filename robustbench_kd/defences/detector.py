"""Rejects images whose prediction changes under noise or after a few steps (Hu et al. 2019).

Source: "A New Defense Against Adversarial Images: Turning a Weakness into a Strength", NeurIPS
2019, arXiv 1910.07629, and s-huu/TurningWeaknessIntoStrength `detect.py` at a1ed063. According to
the paper natural images are robust to noise and yet close to the decision boundary, but adversarial
images are only one or the other. The authors set thresholds in another way; here they are one
common quantile.
"""

from bisect import bisect_right
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from robustbench_kd.core.errors import UsageError
from robustbench_kd.defences._arguments import (
    only_part,
    require_choice,
    require_number,
    require_positive,
    require_whole,
)
from robustbench_kd.defences._batches import batches
from robustbench_kd.defences._criteria import Criterion, Noise, Steps
from robustbench_kd.defences._defence import Sampled
from robustbench_kd.tensors.contracts import Images, Labels, Logits
from robustbench_kd.tensors.defence import Key, Surface

_CRITERIA = ("noise", "targeted", "untargeted")
_GAP = 1e-4  # of a logit: separates a rejection from a tie with the largest logit
_FAR = 10.0


class Detector(Sampled):
    """A classifier with one more class, for images that a criterion scores above its threshold.

    It rejects nothing before `fit`.
    """

    thresholds: Tensor
    ceilings: Tensor
    abstains = True

    def __init__(self, part: nn.Module, criteria: Sequence[Criterion], fpr: float) -> None:
        super().__init__([part])
        self.criteria = tuple(criteria)
        self.fpr = fpr
        ceilings = torch.tensor([criterion.ceiling for criterion in criteria], dtype=torch.float32)
        self.register_buffer("ceilings", ceilings, persistent=False)
        self.register_buffer("thresholds", ceilings.clone())

    def draw(self, images: Images, key: Key) -> Logits:
        """Returns the logits `(n, classes + 1)` of one draw; the last one wins for a rejection.

        It exceeds the largest other logit by the largest excess of a score over its threshold, as a
        fraction of the largest possible score; it is smaller if no score exceeds its threshold. Of
        the scores only that of noise has a gradient.
        """
        logits: Logits = self.part(images)
        scores = self._scores(images, logits, key)
        excess = ((scores - self.thresholds) / self.ceilings).amax(dim=1)
        top = logits.amax(dim=1)
        gap = _GAP * (1 + top.detach().abs())
        return _with_column(logits, top + excess + torch.where(excess > 0, gap, -gap))

    def scores(self, images: Images, key: Key) -> Tensor:
        """Returns the scores `(n, criteria)`; a threshold on any criterion gives a ROC curve."""
        return self._scores(images, self.part(images), key)

    @torch.no_grad()
    def fit(
        self,
        images: Images,
        labels: Labels,
        held_out: Images,
        held_out_labels: Labels,
    ) -> None:
        """Sets thresholds that reject at most the fraction `fpr` of clean held-out images.

        Each criterion may reject the same number of images, the largest for which the union is
        small enough. Because step counts have ties, fewer may be rejected.
        """
        ids = torch.arange(len(held_out))
        parts = []
        for batch, rows in batches(self.thresholds.device, held_out, ids):
            key = Key(0, "fit", ids=rows, draw=torch.zeros_like(rows))
            parts.append(self.scores(batch, key))
        scores = torch.cat(parts)
        ordered = scores.sort(dim=0, descending=True).values

        def rejection_rate(rejected: int) -> float:
            return float((scores > ordered[rejected]).any(dim=1).double().mean())

        allowed = bisect_right(range(len(scores)), self.fpr, key=rejection_rate) - 1
        self.thresholds.copy_(ordered[allowed])

    def surfaces(self) -> Sequence[Surface]:
        """Returns the classifier without its detector, and both with differentiable stand-ins."""
        passes = 1 + sum(criterion.passes for criterion in self.criteria)
        return [
            Surface(name="classifier", answer=self._oblivious),
            Surface(name="joint", answer=self._joint, passes=passes),
        ]

    def _scores(self, images: Images, logits: Logits, key: Key) -> Tensor:
        scores = [criterion.score(self.part, images, logits, key) for criterion in self.criteria]
        return torch.stack(scores, dim=1)

    def _oblivious(self, images: Images, key: Key) -> Logits:
        """Returns logits that never reject."""
        logits: Logits = self.part(images)
        return _with_column(logits, logits.detach().amin(dim=1) - _FAR)

    def _joint(self, images: Images, key: Key) -> Logits:
        """Returns logits whose last one is a smooth maximum over all criteria.

        Every criterion has a gradient.
        """
        logits: Logits = self.part(images)
        excesses = []
        for criterion, threshold in zip(self.criteria, self.thresholds, strict=True):
            excesses.append(criterion.excess(self.part, images, logits, key, threshold))
        largest = torch.stack(excesses, dim=1).logsumexp(dim=1)
        return _with_column(logits, logits.amax(dim=1) + largest)


def assemble(
    parts: Sequence[nn.Module],
    *,
    criteria: Sequence[str] = _CRITERIA,
    fpr: float = 0.05,
    sigma: float = 0.01,
    lr_t: float = 0.0005,
    lr_u: float = 1.0,
    radius: float = 0.5,
    steps_t: int = 200,
    steps_u: int = 1000,
) -> nn.Module:
    """Returns one part that rejects suspicious images.

    The defaults are those published for a VGG-19 on CIFAR-10.

    Args:
        parts: The classifier.
        criteria: Any of `noise`, `targeted` and `untargeted`, each once.
        fpr: Fraction of clean held-out images that it may reject after `fit`.
        sigma: Standard deviation of the noise, in pixels of [0, 1].
        lr_t: Length of a targeted step, as a multiple of the gradient.
        lr_u: Length of an untargeted step.
        radius: How far the steps may go, in pixels (linf).
        steps_t: Most targeted steps.
        steps_u: Most untargeted steps; both cost a forward and a backward pass each.

    Raises:
        UsageError: If an argument is impossible.
    """
    part = only_part(parts, "detector")
    _require_criteria(criteria)
    require_number("fpr", fpr, 0, 1)
    require_number("sigma", sigma, 0, 10)
    for name, value in {"lr_t": lr_t, "lr_u": lr_u, "radius": radius}.items():
        require_positive(name, value)
    for name, cap in {"steps_t": steps_t, "steps_u": steps_u}.items():
        require_whole(name, cap, 1)

    by_name: dict[str, Criterion] = {
        "noise": Noise(sigma),
        "targeted": Steps(lr_t, radius, steps_t, targeted=True),
        "untargeted": Steps(lr_u, radius, steps_u, targeted=False),
    }
    return Detector(part, [by_name[name] for name in criteria], fpr)


def _require_criteria(criteria: Sequence[str]) -> None:
    for name in criteria:
        require_choice("criterion", name, _CRITERIA)
    if not criteria or len(set(criteria)) < len(criteria):
        raise UsageError(
            f"expected some of {', '.join(_CRITERIA)} as criteria, each once, got {list(criteria)}"
        )


def _with_column(logits: Logits, column: Tensor) -> Logits:
    return torch.cat([logits, column[:, None]], dim=1)
