"""APGD's path in linf and l2: momentum, steps that halve at checkpoints, restarts from the best point.

Source: Croce and Hein 2020, section 3, as `attack_single_run` in AutoAttack does it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from robustbench_kd.core.threat import Norm, Threat
from robustbench_kd.tensors.attack import Rows, per_row
from robustbench_kd.tensors.contracts import Images, Labels

_MOMENTUM = 0.75
_RISES = 0.75
_TINY = 1e-12


@dataclass(frozen=True)
class Schedule:
    """The checkpoints: in `limits` `(steps + 2,)` how many rises before a step are too few; -1 where none is due."""

    limits: Tensor


@dataclass(frozen=True, kw_only=True)
class LpPath:
    """Where each row stands; tensors lead with the row, the other fields hold for all rows.

    `step` counts the evaluated points of a row, so the asked point is the start when it is 0.
    `previous` is where the last step began, `direction` the direction of ascent at `best`.
    `checked_loss` is the best loss at the last checkpoint, -inf where the step was halved there;
    `rises` counts the steps since then that raised the loss.
    """

    centre: Images
    labels: Labels
    targets: Labels
    point: Images
    previous: Images
    best: Images
    direction: Tensor
    best_loss: Tensor
    checked_loss: Tensor
    loss: Tensor
    rises: Tensor
    step: Tensor
    step_size: Tensor
    schedule: Schedule
    steps: int
    threat: Threat

    def advance(self, loss: Tensor, gradient: Tensor) -> "LpPath":
        """Returns the path after one step, from the loss `(n,)` and its gradient at the asked point."""
        direction = _ascent(gradient, self.threat.norm)
        better = _weight(loss > self.best_loss, direction)
        best = torch.lerp(self.best, self.point, better)
        best_direction = torch.lerp(self.direction, direction, better)
        best_loss = torch.fmax(loss, self.best_loss)
        rises = self.rises + (loss > self.loss)
        due, halved = self._check(rises, best_loss)
        restarted = _weight(halved, direction)
        base = torch.lerp(self.point, best, restarted)
        step_size = torch.where(halved, self.step_size / 2, self.step_size)
        return replace(
            self,
            point=self._step(base, direction.lerp_(best_direction, restarted), step_size),
            previous=base,
            best=best,
            direction=best_direction,
            best_loss=best_loss,
            checked_loss=torch.where(
                due, best_loss.masked_fill(halved, -torch.inf), self.checked_loss
            ),
            # AutoAttack compares the loss after the first step with an empty entry of its table,
            # not with the start.
            loss=loss.masked_fill(self.step == 0, 0),
            rises=rises.masked_fill(due, 0),
            step=(self.step + 1).clamp(max=self.steps + 1),
            step_size=step_size,
        )

    def _check(self, rises: Tensor, best_loss: Tensor) -> tuple[Tensor, Tensor]:
        """Returns which rows `(n,)` are at a checkpoint, and which of them halve the step and restart from the best.

        Those do in which too few steps of the window raised the loss, or whose best loss has not
        risen since the last checkpoint although the step was not halved there.
        """
        limit = self.schedule.limits[self.step]
        due = limit >= 0
        return due, (rises <= limit) | (due & (self.checked_loss >= best_loss))

    def _step(self, base: Images, direction: Tensor, step_size: Tensor) -> Images:
        """Returns the next points, in the memory of `direction`; operations and hence rounding are AutoAttack's."""
        clip = _clipper(self.centre, self.threat)
        share = per_row(torch.where(self.step == 0, 1.0, _MOMENTUM), base)
        moved = clip(direction.mul_(per_row(step_size, base)).add_(base))
        moved.sub_(base).mul_(share).add_(base)
        return clip(moved.add_(base - self.previous, alpha=1 - _MOMENTUM))


def begin(rows: Rows, targets: Labels, threat: Threat, points: Images, steps: int) -> LpPath:
    """Returns the path of jobs that start from the given points `(n, c, h, w)`."""

    def each(value: float) -> Tensor:
        return points.new_full((len(points),), value)

    return LpPath(
        centre=rows.images,
        labels=rows.labels,
        targets=targets,
        point=points,
        previous=points,
        best=points,
        direction=torch.zeros_like(points),
        best_loss=each(-torch.inf),
        checked_loss=each(-torch.inf),
        loss=each(torch.inf),
        rises=each(0),
        step=torch.zeros_like(rows.job),
        step_size=each(2 * threat.eps),
        schedule=Schedule(torch.tensor(_limits(steps), device=points.device)),
        steps=steps,
        threat=threat,
    )


def _limits(steps: int) -> list[float]:
    """Returns the `limits` of a schedule: windows of 22 % of the steps, each 3 % shorter than the last, down to 6 %."""
    limits = [-1.0] * (steps + 2)
    window = checkpoint = max(int(0.22 * steps), 1)
    while checkpoint <= steps:
        limits[checkpoint] = _RISES * window
        window = max(window - max(int(0.03 * steps), 1), int(0.06 * steps), 1)
        checkpoint += window
    return limits


def _clipper(centre: Images, threat: Threat) -> Callable[[Tensor], Images]:
    """Returns what moves points, in place, into the ball and then into the box.

    `geometry.project` goes through float64 for l2. This is the hot loop, twice a step, and rounds
    as AutoAttack does.
    """
    if threat.norm is Norm.LINF:
        low, high = (centre - threat.eps).clamp_(min=0), (centre + threat.eps).clamp_(max=1)
        return lambda points: points.clamp_(low, high)

    def scale(points: Tensor) -> Images:
        offset = points.sub_(centre)
        length = _length(offset)
        return (
            offset.div_(length + _TINY).mul_(length.clamp(max=threat.eps)).add_(centre).clamp_(0, 1)
        )

    return scale


def _ascent(gradient: Tensor, norm: Norm) -> Tensor:
    """Returns the direction of steepest ascent, always finite: zero where an l2 gradient has overflown."""
    if norm is Norm.LINF:
        return gradient.sign()
    return (gradient / (_length(gradient) + _TINY)).nan_to_num_(0)


def _length(values: Tensor) -> Tensor:
    return per_row(values.square().flatten(1).sum(dim=1).sqrt(), values)


def _weight(rows: Tensor, like: Tensor) -> Tensor:
    """Returns 1 for the given rows, bool `(n,)`, and 0 for others: `lerp` then selects rows, exactly for finite values.

    `torch.where` says the same, but with a condition per row it is not vectorised on a CPU and
    takes 8 times as long.
    """
    return per_row(rows.to(like.dtype), like)
