"""APGD in linf and l2: momentum, and steps that halve at checkpoints and go on at the best point.

Source: Croce and Hein 2020, section 3, as `attack_single_run` in AutoAttack does it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from robustbench_kd.attacks._apgd_state import ApgdState, Loss
from robustbench_kd.core.threat import Norm, Threat
from robustbench_kd.tensors.attack import Rows, Shared, per_row
from robustbench_kd.tensors.contracts import Images, Labels

_MOMENTUM = 0.75
_RISES = 0.75
_TINY = 1e-12


@dataclass(frozen=True, kw_only=True)
class LpState(ApgdState):
    """Where each row stands.

    `step` counts the evaluated points of a row, so the asked point is the start when it is 0.
    `previous` is where the last step began, `direction` the direction of ascent at `best`.
    `checked_loss` is the best loss at the last checkpoint, -inf where the step was halved there;
    `rises` counts the steps since then that raised the loss. `limits` `(steps + 2,)` says for each
    step how many rises are too few; it is -1 where no checkpoint is due.
    """

    previous: Images
    best: Images
    direction: Tensor
    best_loss: Tensor
    checked_loss: Tensor
    loss: Tensor
    rises: Tensor
    step: Tensor
    step_size: Tensor
    limits: Shared[Tensor]
    steps: Shared[int]

    def advance(self, loss: Tensor, gradient: Tensor) -> Self:
        """Returns the state after one step, from the loss `(n,)` and its gradient at the point."""
        direction = _ascent(gradient, self.threat.norm)
        better = _weight(loss > self.best_loss, direction)
        best = torch.lerp(self.best, self.point, better)
        best_direction = torch.lerp(self.direction, direction, better)
        best_loss = torch.fmax(loss, self.best_loss)

        rises = self.rises + (loss > self.loss)
        due, halved = self._check(rises, best_loss)
        step_size = torch.where(halved, self.step_size / 2, self.step_size)

        returned = _weight(halved, direction)
        base = torch.lerp(self.point, best, returned)

        return replace(
            self,
            point=self._step(base, direction.lerp_(best_direction, returned), step_size),
            previous=base,
            best=best,
            direction=best_direction,
            best_loss=best_loss,
            checked_loss=torch.where(
                due, best_loss.masked_fill(halved, -torch.inf), self.checked_loss
            ),
            # AutoAttack compares the loss after the first step with an empty entry of its table,
            # not with the loss of the start.
            loss=loss.masked_fill(self.step == 0, 0),
            rises=rises.masked_fill(due, 0),
            step=(self.step + 1).clamp(max=self.steps + 1),
            step_size=step_size,
        )

    def _check(self, rises: Tensor, best_loss: Tensor) -> tuple[Tensor, Tensor]:
        """Returns which rows `(n,)` are at a checkpoint, and which of these halve the step.

        A row halves its step and returns to its best point in two cases: too few steps of the
        window raised the loss, or the best loss has not risen since the last checkpoint although
        the step was not halved there.
        """
        limit = self.limits[self.step]
        due = limit >= 0
        stalled = due & (self.checked_loss >= best_loss)
        return due, (rises <= limit) | stalled

    def _step(self, base: Images, direction: Tensor, step_size: Tensor) -> Images:
        """Returns the next points; it reuses the memory of `direction` and rounds as AutoAttack."""
        clip = _clipper(self.centre, self.threat)
        momentum = per_row(torch.where(self.step == 0, 1.0, _MOMENTUM), base)

        moved = clip(direction.mul_(per_row(step_size, base)).add_(base))
        moved.sub_(base).mul_(momentum).add_(base)
        return clip(moved.add_(base - self.previous, alpha=1 - _MOMENTUM))


def begin(
    rows: Rows, targets: Labels, threat: Threat, points: Images, *, loss: Loss, steps: int
) -> LpState:
    """Returns the state of restarts that begin at the given points `(n, c, h, w)`."""

    def each(value: float) -> Tensor:
        return points.new_full((len(points),), value)

    return LpState(
        centre=rows.images,
        labels=rows.labels,
        targets=targets,
        point=points,
        loss_name=loss,
        threat=threat,
        previous=points,
        best=points,
        direction=torch.zeros_like(points),
        best_loss=each(-torch.inf),
        checked_loss=each(-torch.inf),
        loss=each(torch.inf),
        rises=each(0),
        step=torch.zeros_like(rows.restart),
        step_size=each(2 * threat.eps),
        limits=torch.tensor(_limits(steps), device=points.device),
        steps=steps,
    )


def _limits(steps: int) -> list[float]:
    """Returns the `limits` of a run.

    The first window has 22 % of the steps; each window is 3 % shorter than the last, down to 6 %.
    """
    limits = [-1.0] * (steps + 2)
    window = max(int(0.22 * steps), 1)
    checkpoint = window

    while checkpoint <= steps:
        limits[checkpoint] = _RISES * window
        window = max(window - max(int(0.03 * steps), 1), int(0.06 * steps), 1)
        checkpoint += window

    return limits


def _clipper(centre: Images, threat: Threat) -> Callable[[Tensor], Images]:
    """Returns the function that moves points, in place, into the ball and then into the box.

    `geometry.project` goes through float64 for l2. This is the hot loop, twice a step, and it
    rounds as AutoAttack does.
    """
    if threat.norm is Norm.LINF:
        low = (centre - threat.eps).clamp_(min=0)
        high = (centre + threat.eps).clamp_(max=1)
        return lambda points: points.clamp_(low, high)

    def scale(points: Tensor) -> Images:
        offset = points.sub_(centre)
        length = _length(offset)
        onto_ball = offset.div_(length + _TINY).mul_(length.clamp(max=threat.eps))
        return onto_ball.add_(centre).clamp_(0, 1)

    return scale


def _ascent(gradient: Tensor, norm: Norm) -> Tensor:
    """Returns the direction of steepest ascent: finite, and zero where an l2 gradient overflows."""
    if norm is Norm.LINF:
        return gradient.sign()
    return (gradient / (_length(gradient) + _TINY)).nan_to_num_(0)


def _length(values: Tensor) -> Tensor:
    return per_row(values.square().flatten(1).sum(dim=1).sqrt(), values)


def _weight(rows: Tensor, like: Tensor) -> Tensor:
    """Returns 1 for the chosen rows, bool `(n,)`, and 0 for others, so that `lerp` selects rows.

    For finite values the selection is exact. `torch.where` does the same, but with a condition per
    row it is not vectorised on a CPU and takes 8 times as long.
    """
    return per_row(rows.to(like.dtype), like)
