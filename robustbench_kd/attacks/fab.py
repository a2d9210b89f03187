"""FAB and FAB-T: walks along the decision boundary towards the clean image, as in AutoAttack.

Source: Croce and Hein 2020, "Minimally distorted adversarial examples with a fast adaptive boundary
attack"; `fab_base.py` of fra31/auto-attack at a392200. From the clean image the iterates are
AutoAttack's but for rounding. Three things differ: a row within rounding of the boundary is pushed
over it instead of staying there for ever, the targets are ranked among the classes other than the
label even where the label is not the best, and the random numbers belong to the example instead of
the batch.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from robustbench_kd.core.threat import Norm, Threat
from robustbench_kd.tensors.attack import Rows, per_row
from robustbench_kd.tensors.contracts import Images, Labels, Logits
from robustbench_kd.tensors.hyperplane import dual_length, length, step_to_hyperplane
from robustbench_kd.tensors.keyed_random import normal, uniform

VARIANTS = {"fab-t": {"targeted": True}, "fab": {"targeted": False}}

_TINY = 1e-12
_SHORTEST = 1e-8
_PUSH = 8


@dataclass(frozen=True)
class FabState:
    """Where each row stands: its point, and whether that is to be checked or to be differentiated next.

    `targets` `(n,)` are the classes that `fab-t` approaches.
    """

    norm: Norm
    clean: Images
    labels: Labels
    targets: Labels
    points: Images
    checking: Tensor


@dataclass(frozen=True, kw_only=True)
class Fab:
    """Fast adaptive boundary attack: looks for the nearest misclassified point, whatever the radius.

    An iteration takes two rounds. The first linearises the classifier at the current point. The
    next point is a mean of two projections onto the boundary of the linear model, that of the
    current point and that of the clean image. The second round checks the new point without
    gradient, and pulls it back where it is misclassified.

    Args:
        targeted: Whether a job approaches the boundary between the label and one target. Otherwise
            it takes the boundary that is nearest in the linear model, at one backward pass per
            class.
        targets: Targets of an example when targeted: the other classes in the order of their clean
            logits.
        restarts: Jobs of each target, or of an untargeted example; the first starts at the clean
            image, the others at a random point at half the radius.
        steps: Iterations of a job: twice as many forward passes, and as many backward passes per
            boundary.
        alpha_max: Largest weight of the clean image's projection.
        eta: Length of a step in units of the projection's: above 1 it crosses the boundary.
        beta: Share of its way from the clean image that a misclassified point keeps.

    >>> Fab(targeted=True).jobs(Norm.LINF, 10)
    9
    """

    targeted: bool
    targets: int = 9
    restarts: int = 1
    steps: int = 100
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9

    def jobs(self, norm: Norm, classes: int) -> int:  # noqa: ARG002  # the contract has it, the budget does not need it
        """Returns the number of restarts, times that of targets if targeted; the restarts of a target are neighbours."""
        return self.restarts * (min(self.targets, classes - 1) if self.targeted else 1)

    def schedule(self, norm: Norm) -> tuple[bool, ...]:  # noqa: ARG002  # the contract has it
        """Returns that every other point is differentiated; the rest are checks."""
        return (True, False) * self.steps

    def start(self, rows: Rows, threat: Threat, seed: int) -> FabState:
        """Returns the state of fresh jobs, which begin with a gradient."""
        others = rows.logits.scatter(1, rows.labels[:, None], -torch.inf).argsort(
            dim=1, descending=True, stable=True
        )
        return FabState(
            norm=threat.norm,
            clean=rows.images,
            labels=rows.labels,
            targets=others.gather(1, (rows.job // self.restarts)[:, None]).squeeze(1),
            points=self._start_points(rows, threat, seed),
            checking=torch.zeros_like(rows.job, dtype=torch.bool),
        )

    def ask(self, state: FabState) -> Images:
        """Returns the current points."""
        return state.points

    def objective(self, state: FabState, logits: Logits) -> Tensor:
        """Returns z_target - z_label, `(1, n)`; untargeted z_j - z_label of every class j, `(classes, n)`."""
        label = logits.gather(1, state.labels[:, None])
        chosen = logits.gather(1, state.targets[:, None]) if self.targeted else logits
        return (chosen - label).T

    def tell(
        self, state: FabState, logits: Logits, values: Tensor, gradient: Tensor | None
    ) -> FabState:
        """Moves rows along the boundary, or back towards the clean image if a check found them misclassified."""
        misclassified = logits.argmax(dim=1) != state.labels
        pull = torch.where(misclassified, 1 - self.beta, 0.0).to(state.points.dtype)
        if gradient is None:
            return _moved(state, torch.lerp(state.points, state.clean, per_row(pull, state.points)))
        pair = torch.stack([state.points, state.clean]).flatten(2)
        steps = self._steps(state, pair, values.to(pair.dtype), gradient.flatten(2))
        weight = torch.where(state.checking, pull, self._weight(steps, state.norm))
        ends = steps.mul_(self.eta).add_(pair)
        return _moved(state, torch.lerp(ends[0], ends[1], weight[:, None]).view_as(state.clean))

    def _steps(self, state: FabState, pair: Tensor, values: Tensor, gradient: Tensor) -> Tensor:
        """Returns the steps `(2, n, d)` of points and clean images to the linear boundary; without weights there is none."""
        reach = dual_length(gradient, state.norm)
        nearest, row = (
            _nearest(values, reach),
            torch.arange(len(state.labels), device=values.device),
        )
        weights = gradient[nearest, row]
        excess = _pushed(values[nearest, row], reach[nearest, row])
        way_back = ((pair[1] - pair[0]) * weights).sum(dim=1)
        return step_to_hyperplane(
            pair, weights, torch.stack([excess, excess + way_back]), state.norm
        )

    def _weight(self, steps: Tensor, norm: Norm) -> Tensor:
        """Returns the weight `(n,)` of the clean image's projection: the nearer the boundary, the less."""
        far = length(steps, norm).clamp(min=_SHORTEST)
        return (far[0] / far.sum(dim=0)).clamp(max=self.alpha_max)

    def _start_points(self, rows: Rows, threat: Threat, seed: int) -> Images:
        if self.restarts == 1:
            return rows.images
        draw = uniform if threat.norm is Norm.LINF else normal
        stream = "fab-t" if self.targeted else "fab"
        noise = draw(seed, stream, rows.ids, rows.job, 0, rows.images[0].numel()).to(
            rows.images.dtype
        )
        noise = 2 * noise - 1 if threat.norm is Norm.LINF else noise
        radius = torch.where(rows.job % self.restarts > 0, threat.eps / 2, 0.0).to(noise.dtype)
        offset = noise * (radius / length(noise, threat.norm))[:, None]
        return (rows.images + offset.view_as(rows.images)).clamp(0, 1)


def _moved(state: FabState, points: Images) -> FabState:
    """Returns the state at the next points; takes them over."""
    return replace(state, points=points.clamp_(0, 1), checking=~state.checking)


def _nearest(values: Tensor, reach: Tensor) -> Tensor:
    """Returns whose linear boundary is nearest, `(n,)`: not the label's own, which has no gradient at all."""
    distance = values.abs() / (reach + _TINY)
    return torch.where(reach > 0, distance, torch.inf).argmin(dim=0)


def _pushed(value: Tensor, reach: Tensor) -> Tensor:
    """Returns the values below zero at least so far below that the step back changes the pixels."""
    least = _PUSH * torch.finfo(value.dtype).eps * reach
    return torch.where(value <= 0, torch.minimum(value, -least), value)


component = Fab
