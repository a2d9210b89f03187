"""Criteria of the detector: each scores images, and adversarial images should score high."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from robustbench_kd.core.threat import Norm
from robustbench_kd.defences._gradients import slope, with_gradient_of
from robustbench_kd.defences._surfaces import gaussian
from robustbench_kd.tensors.contracts import Images, Labels, Logits
from robustbench_kd.tensors.defence import Key
from robustbench_kd.tensors.geometry import project
from robustbench_kd.tensors.losses import margin


class Criterion(Protocol):
    """One way to recognise adversarial images."""

    @property
    def ceiling(self) -> float:
        """The largest score."""
        ...

    @property
    def passes(self) -> int:
        """Passes of the part that the stand-in costs."""
        ...

    def score(self, part: nn.Module, images: Images, logits: Logits, key: Key) -> Tensor:
        """Returns the scores `(n,)` of images to which the part gives these logits."""
        ...

    def excess(
        self, part: nn.Module, images: Images, logits: Logits, key: Key, threshold: Tensor
    ) -> Tensor:
        """Returns a differentiable stand-in `(n,)` for the score minus a threshold.

        The criterion accepts an image below 0.
        """
        ...


@dataclass(frozen=True)
class Noise:
    """How much noise changes the probabilities, in the l1 norm (C1)."""

    sigma: float
    ceiling: float = 2.0
    passes: int = 1

    def score(self, part: nn.Module, images: Images, logits: Logits, key: Key) -> Tensor:
        """Returns the change, at most 2, for one draw of each row; it is differentiable."""
        noisy: Logits = part(images + self.sigma * gaussian(images, key))
        return (noisy.softmax(dim=1) - logits.softmax(dim=1)).abs().sum(dim=1)

    def excess(
        self, part: nn.Module, images: Images, logits: Logits, key: Key, threshold: Tensor
    ) -> Tensor:
        """Returns the score minus the threshold."""
        return self.score(part, images, logits, key) - threshold


@dataclass(frozen=True)
class Steps:
    """How many steps of gradient descent it takes to change the prediction (C2).

    A step is `rate` times the raw gradient of the cross-entropy: towards a random other class
    (C2t), or away from the predicted one (C2u). All steps stay within `radius` of the image (linf)
    and in the box.
    """

    rate: float
    radius: float
    cap: int
    targeted: bool
    passes: int = 2

    @property
    def ceiling(self) -> float:
        """The score of an image whose prediction none of the steps changes."""
        return self.cap

    def score(self, part: nn.Module, images: Images, logits: Logits, key: Key) -> Tensor:
        """Returns the number of steps, at most `cap`; a row stops when its prediction changes."""
        prediction = logits.argmax(dim=1)
        classes = self._followed_classes(logits, key)
        counts = torch.full_like(prediction, self.cap)
        rows = torch.arange(len(images), device=images.device)
        points = images.detach()
        for taken in range(self.cap):
            answer, gradient = slope(part, points, classes[rows])
            left = answer.argmax(dim=1) == prediction[rows]
            counts[rows[~left]] = taken
            rows = rows[left]
            if not len(rows):
                break
            points = self._moved(points[left], gradient[left], images.detach()[rows], self.rate)
        return counts.to(images.dtype)

    def excess(
        self, part: nn.Module, images: Images, logits: Logits, key: Key, threshold: Tensor
    ) -> Tensor:
        """Returns the margin of the prediction after one step as long as `threshold` steps.

        The margin is below 0 if that step changes the prediction. Its gradient treats the step as
        the identity. Source: losses L3 and L4 of the adaptive attack in
        s-huu/TurningWeaknessIntoStrength `attack.py` at a1ed063, which takes one plain step and the
        cross-entropy instead.
        """
        origin = images.detach()
        _, gradient = slope(part, origin, self._followed_classes(logits, key))
        length = self.rate * float(threshold.clamp(min=1))
        moved = self._moved(origin, gradient, origin, length)
        return margin(part(with_gradient_of(moved, images)), logits.argmax(dim=1))

    def _moved(self, points: Images, gradient: Tensor, origin: Images, length: float) -> Images:
        signed_length = -length if self.targeted else length
        return project(points + signed_length * gradient, origin, self.radius, Norm.LINF)

    def _followed_classes(self, logits: Logits, key: Key) -> Labels:
        """Returns the class `(n,)` whose cross-entropy the steps follow."""
        prediction = logits.argmax(dim=1)
        if not self.targeted:
            return prediction

        others = logits.shape[1] - 1
        ahead = 1 + (key.uniform("target", 1)[:, 0] * others).floor().long()
        return (prediction + ahead) % logits.shape[1]
