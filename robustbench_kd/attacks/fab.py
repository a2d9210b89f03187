"""FAB and FAB-T: walks along the decision boundary towards the clean image, as in AutoAttack.

Source: Croce and Hein 2020, "Minimally distorted adversarial examples with a fast adaptive boundary
attack"; `fab_base.py` of fra31/auto-attack at a392200. From the clean image the iterates are
AutoAttack's but for rounding. Three things differ: a row within rounding of the boundary is pushed
over it instead of staying there for ever, the targets are ranked among the classes other than the
label even where the label is not the best, and the random numbers belong to the example instead of
the batch.
"""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from robustbench_kd.core.threat import Norm, Threat
from robustbench_kd.tensors.attack import Attack, Rows, Shared, per_row
from robustbench_kd.tensors.contracts import Images, Labels, Logits
from robustbench_kd.tensors.hyperplane import dual_length, length, step_to_hyperplane
from robustbench_kd.tensors.keyed_random import normal, uniform

VARIANTS = {"fab-t": {"targeted": True}, "fab": {"targeted": False}}

_TINY = 1e-12
_SHORTEST = 1e-8
_PUSH = 8


@dataclass(frozen=True, kw_only=True)
class Fab(Attack):
    """Fast adaptive boundary attack: searches the nearest misclassified point, at any radius.

    An iteration takes two rounds. The first linearises the classifier at the current point. The
    next point is a mean of two projections onto the boundary of the linear model, that of the
    current point and that of the clean image. The second round checks the new point without
    gradient, and pulls it back where it is misclassified.

    Args:
        targeted: Whether a restart approaches the boundary between the label and one target.
            Otherwise it takes the boundary that is nearest in the linear model, at one backward
            pass per class.
        targets: Targets of an example when targeted: the other classes in the order of their clean
            logits.
        restarts: Restarts per target, or of an untargeted example; the first begins at the clean
            image, the others at a random point at half the radius.
        steps: Iterations of a restart: twice as many forward passes, and as many backward passes
            per boundary.
        alpha_max: Largest weight of the clean image's projection.
        eta: Length of a step in units of the projection's: above 1 it crosses the boundary.
        beta: Fraction of its way from the clean image that a misclassified point keeps.

    >>> Fab(targeted=True).restart_count(Norm.LINF, 10)
    9
    """

    targeted: bool
    targets: int = 9
    restarts: int = 1
    steps: int = 100
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9

    def restart_count(self, norm: Norm, classes: int) -> int:
        """Returns the restarts of all targets; those of one target follow each other."""
        targets = min(self.targets, classes - 1) if self.targeted else 1
        return self.restarts * targets

    def schedule(self, norm: Norm) -> tuple[bool, ...]:
        """Returns that every other point wants a gradient; the rest are checks."""
        return (True, False) * self.steps

    def stays_in_ball(self, norm: Norm) -> bool:
        """Returns that points may lie outside the ball: the attack minimises the distance."""
        return False

    def start_points(self, rows: Rows, threat: Threat, seed: int) -> Images:
        """Returns the clean images, and for later restarts random points at half the radius."""
        if self.restarts == 1:
            return rows.images

        noise = self._noise(rows, threat.norm, seed)
        later = rows.restart % self.restarts > 0
        radius = torch.where(later, threat.eps / 2, 0.0).to(noise.dtype)
        offset = noise * (radius / length(noise, threat.norm))[:, None]
        return (rows.images + offset.view_as(rows.images)).clamp(0, 1)

    def begin(self, rows: Rows, threat: Threat, points: Images, seed: int) -> "FabState":
        """Returns the state of restarts that begin at the given points, with a gradient."""
        others = rows.logits.scatter(1, rows.labels[:, None], -torch.inf)
        ranked = others.argsort(dim=1, descending=True, stable=True)
        target = (rows.restart // self.restarts)[:, None]

        return FabState(
            settings=self,
            norm=threat.norm,
            clean=rows.images,
            labels=rows.labels,
            targets=ranked.gather(1, target).squeeze(1),
            points=points,
            checking=torch.zeros_like(rows.restart, dtype=torch.bool),
        )

    def _noise(self, rows: Rows, norm: Norm, seed: int) -> Tensor:
        """Returns random directions `(n, pixels)`."""
        stream = "fab-t" if self.targeted else "fab"
        pixels = rows.images[0].numel()
        if norm is Norm.LINF:
            noise = uniform(seed, stream, rows.ids, rows.restart, 0, pixels)
            return 2 * noise.to(rows.images.dtype) - 1
        return normal(seed, stream, rows.ids, rows.restart, 0, pixels).to(rows.images.dtype)


@dataclass(frozen=True)
class FabState:
    """Where each row stands: its point, and whether that is to be checked or differentiated next.

    `targets` `(n,)` are the classes that `fab-t` approaches.
    """

    settings: Shared[Fab]
    norm: Shared[Norm]
    clean: Images
    labels: Labels
    targets: Labels
    points: Images
    checking: Tensor

    def ask(self) -> Images:
        """Returns the current points."""
        return self.points

    def objective(self, logits: Logits) -> Tensor:
        """Returns z_target - z_label, `(1, n)`, or z_j - z_label of all j, `(classes, n)`."""
        label = logits.gather(1, self.labels[:, None])
        chosen = logits.gather(1, self.targets[:, None]) if self.settings.targeted else logits
        return (chosen - label).T

    def tell(self, logits: Logits, values: Tensor, gradient: Tensor | None) -> Self:
        """Moves rows along the boundary, or back to the clean image after a failed check."""
        misclassified = logits.argmax(dim=1) != self.labels
        pull = torch.where(misclassified, 1 - self.settings.beta, 0.0).to(self.points.dtype)
        if gradient is None:
            return self._moved(torch.lerp(self.points, self.clean, per_row(pull, self.points)))

        pair = torch.stack([self.points, self.clean]).flatten(2)
        steps = self._steps(pair, values.to(pair.dtype), gradient.flatten(2))
        weight = torch.where(self.checking, pull, self._weight(steps))
        ends = steps.mul_(self.settings.eta).add_(pair)
        return self._moved(torch.lerp(ends[0], ends[1], weight[:, None]).view_as(self.clean))

    def _steps(self, pair: Tensor, values: Tensor, gradient: Tensor) -> Tensor:
        """Returns the steps `(2, n, d)` of points and clean images to the linear boundary.

        The step is zero where the boundary has no weights.
        """
        reach = dual_length(gradient, self.norm)
        nearest = _nearest(values, reach)
        row = torch.arange(len(self.labels), device=values.device)

        weights = gradient[nearest, row]
        excess = _pushed(values[nearest, row], reach[nearest, row])
        way_back = ((pair[1] - pair[0]) * weights).sum(dim=1)
        return step_to_hyperplane(
            pair, weights, torch.stack([excess, excess + way_back]), self.norm
        )

    def _weight(self, steps: Tensor) -> Tensor:
        """Returns the weight `(n,)` of the clean image's projection, less near the boundary."""
        distance = length(steps, self.norm).clamp(min=_SHORTEST)
        return (distance[0] / distance.sum(dim=0)).clamp(max=self.settings.alpha_max)

    def _moved(self, points: Images) -> Self:
        """Returns the state at the next points, whose memory it reuses."""
        return replace(self, points=points.clamp_(0, 1), checking=~self.checking)


def _nearest(values: Tensor, reach: Tensor) -> Tensor:
    """Returns the class with the nearest linear boundary `(n,)`.

    The label itself has no gradient and is never chosen.
    """
    distance = values.abs() / (reach + _TINY)
    return torch.where(reach > 0, distance, torch.inf).argmin(dim=0)


def _pushed(value: Tensor, reach: Tensor) -> Tensor:
    """Returns the values, those below zero so far below that the step back changes the pixels."""
    least = _PUSH * torch.finfo(value.dtype).eps * reach
    return torch.where(value <= 0, torch.minimum(value, -least), value)


component = Fab
