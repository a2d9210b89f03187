"""APGD in l1: sparse steps, whose number of pixels follows the support of the best point.

Source: Croce and Hein 2021, "Mind the box", section 4, as `attack_single_run` and `decr_eps_pgd` in
AutoAttack do it.
"""

import math
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from robustbench_kd.attacks._apgd_state import ApgdState, Loss
from robustbench_kd.core.threat import Norm, Threat
from robustbench_kd.tensors.attack import Rows, Shared, per_row
from robustbench_kd.tensors.contracts import Images, Labels
from robustbench_kd.tensors.geometry import project

PHASES = 3
_FIRST_FRACTION = 0.2
_TINY = 1e-10


@dataclass(frozen=True, kw_only=True)
class L1State(ApgdState):
    """Where each row stands.

    A run has one phase, or three with decreasing radii. `phases` counts the phases left, and the
    radius is `eps` times that number. `early` and `final` are the steps of the phases before the
    last and of the last; `early` is 0 where there is one phase. `step` counts the evaluated points
    of the phase. A step moves the `fraction` of the pixels with the largest gradients; `support`
    is the number of pixels in which the best point differed from the image when the fraction was
    last set.
    """

    best: Images
    best_gradient: Tensor
    best_loss: Tensor
    fraction: Tensor
    support: Tensor
    step: Tensor
    step_size: Tensor
    phases: Tensor
    early: Shared[int]
    final: Shared[int]

    @property
    def length(self) -> Tensor:
        """How many steps `(n,)` the phase has."""
        return self._of_phase(self.early, self.final)

    @property
    def window(self) -> Tensor:
        """How many steps `(n,)` lie between two checks."""
        return self._of_phase(_window(self.early), _window(self.final))

    @property
    def radius(self) -> Tensor:
        """The radius `(n,)` of the phase, float64."""
        return self.phases.double() * self.threat.eps

    def advance(self, loss: Tensor, gradient: Tensor) -> Self:
        """Returns the state after one step, from the loss `(n,)` and its gradient at the point."""
        better = loss > self.best_loss
        improved = replace(
            self,
            best=_choose(better, self.point, self.best),
            best_gradient=_choose(better, gradient, self.best_gradient),
            best_loss=torch.where(better, loss, self.best_loss),
        )

        returned, checked = improved.checked()
        base = _choose(returned, checked.best, self.point)
        direction = _choose(returned, checked.best_gradient, gradient)
        return checked.moved(base + checked.sparse_step(direction))

    def _of_phase(self, early: int, final: int) -> Tensor:
        return torch.where(self.phases == 1, final, early)

    def checked(self) -> tuple[Tensor, Self]:
        """Returns which rows `(n,)` return to their best point, and the state with new steps.

        If the support of the best point has shrunk by more than 5 %, the step becomes the radius
        again and the row returns; otherwise the step shrinks. A phase that continues an earlier
        one sets its fraction at its start.
        """
        due = (self.step > 0) & (self.step % self.window == 0)
        support = (self.best != self.centre).flatten(1).sum(dim=1)
        shrunk = support / self.support < 0.95

        largest = self.radius.to(self.step_size.dtype)
        least = (self.radius / 10).to(self.step_size.dtype)
        step_size = torch.where(shrunk, largest, torch.maximum(self.step_size / 1.5, least))

        measured = due | (self.step == 0) if self.early else due
        pixels = self.centre.flatten(1).shape[1]
        fraction = support / pixels / 1.5

        return due & shrunk, replace(
            self,
            step_size=torch.where(due, step_size, self.step_size),
            fraction=torch.where(measured, fraction, self.fraction),
            support=torch.where(measured, support, self.support),
        )

    def sparse_step(self, gradient: Tensor) -> Tensor:
        """Returns steps of l1 length `step_size`, equal in size in all pixels that move."""
        size = gradient.abs().flatten(1)
        pixels = size.shape[1]

        still = ((1 - self.fraction) * pixels).clamp(0, pixels - 1).long()
        least = size.sort(dim=1).values.gather(1, still[:, None])

        sign = gradient.sign() * (size >= least).view_as(gradient)
        length = sign.abs().flatten(1).sum(dim=1)
        return sign.mul_(per_row(self.step_size / (length + _TINY), gradient))

    def moved(self, points: Tensor) -> Self:
        """Returns the state at the given points, or in the next phase at its best; projected."""
        ended = (self.phases > 1) & (self.step == self.length)
        entered = replace(
            self,
            phases=torch.where(ended, self.phases - 1, self.phases),
            step=torch.where(ended, 0, self.step + 1),
            best_loss=self.best_loss.masked_fill(ended, -torch.inf),
        )

        chosen = _choose(ended, self.best, points)
        return replace(
            entered,
            point=project(chosen, self.centre, entered.radius, Norm.L1),
            step_size=torch.where(ended, entered.radius.to(self.step_size.dtype), self.step_size),
        )


def begin(
    rows: Rows,
    targets: Labels,
    threat: Threat,
    points: Images,
    *,
    loss: Loss,
    steps: int,
    large_radius: bool,
) -> L1State:
    """Returns the state of restarts that begin at the given points `(n, c, h, w)`."""
    phases = torch.full_like(rows.restart, PHASES if large_radius else 1)
    radius = phases.double() * threat.eps
    early = math.ceil(0.3 * steps) if large_radius else 0
    pixels = points.flatten(1).shape[1]

    return L1State(
        centre=rows.images,
        labels=rows.labels,
        targets=targets,
        point=points,
        loss_name=loss,
        threat=threat,
        best=points,
        best_gradient=torch.zeros_like(points),
        best_loss=torch.full_like(radius, -torch.inf, dtype=points.dtype),
        fraction=torch.full_like(radius, _FIRST_FRACTION, dtype=torch.get_default_dtype()),
        support=torch.full_like(rows.restart, pixels),
        step=torch.zeros_like(rows.restart),
        step_size=radius.to(points.dtype),
        phases=phases,
        early=early,
        final=steps - (PHASES - 1) * early,
    )


def lengths(steps: int) -> tuple[int, ...]:
    """Returns the steps of each phase of the large-radius schedule: 30, 30 and 40 %."""
    early = math.ceil(0.3 * steps)
    return early, early, steps - 2 * early


def _window(steps: int) -> int:
    return max(int(0.04 * steps), 1)


def _choose(rows: Tensor, chosen: Tensor, others: Tensor) -> Tensor:
    return torch.where(per_row(rows, chosen), chosen, others)
