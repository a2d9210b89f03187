"""APGD's path in l1: sparse steps, whose number of pixels follows the support of the best point.

Source: Croce and Hein 2021, "Mind the box", section 4, as `attack_single_run` and `decr_eps_pgd` in
AutoAttack do it.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from robustbench_kd.core.threat import Norm, Threat
from robustbench_kd.tensors.attack import Rows, per_row
from robustbench_kd.tensors.contracts import Images, Labels
from robustbench_kd.tensors.geometry import project

STAGES = 3
_SHARE = 0.2
_TINY = 1e-10


@dataclass(frozen=True, kw_only=True)
class L1Path:
    """Where each row stands; tensors lead with the row, the other fields hold for all rows.

    `stages` counts the stages left, and the radius is `eps` times that number. `early` and `final`
    are the steps of the stages before the last and of the last; `early` is 0 where there is one
    stage. `step` counts the evaluated points of the stage. A step moves the `share` of the pixels
    with the largest gradients; `support` is the number of pixels in which the best point differed
    from the image when the share was last set.
    """

    centre: Images
    labels: Labels
    targets: Labels
    point: Images
    best: Images
    best_gradient: Tensor
    best_loss: Tensor
    share: Tensor
    support: Tensor
    step: Tensor
    step_size: Tensor
    stages: Tensor
    early: int
    final: int
    threat: Threat

    @property
    def length(self) -> Tensor:
        """How many steps `(n,)` the stage has."""
        return self._of_stage(self.early, self.final)

    @property
    def window(self) -> Tensor:
        """How many steps `(n,)` lie between two checks."""
        return self._of_stage(_window(self.early), _window(self.final))

    @property
    def radius(self) -> Tensor:
        """The radius `(n,)` of the stage, float64."""
        return self.stages.double() * self.threat.eps

    def advance(self, loss: Tensor, gradient: Tensor) -> "L1Path":
        """Returns the path after one step, from the loss `(n,)` and its gradient at the asked point."""
        better = loss > self.best_loss
        reached = replace(
            self,
            best=_choose(better, self.point, self.best),
            best_gradient=_choose(better, gradient, self.best_gradient),
            best_loss=torch.where(better, loss, self.best_loss),
        )
        restarted, path = _check(reached)
        base = _choose(restarted, path.best, self.point)
        return _move(
            path, base + _sparse_step(path, _choose(restarted, path.best_gradient, gradient))
        )

    def _of_stage(self, early: int, final: int) -> Tensor:
        return torch.where(self.stages == 1, final, early)


def begin(
    rows: Rows, targets: Labels, threat: Threat, points: Images, steps: int, *, large_radius: bool
) -> L1Path:
    """Returns the path of jobs that start from the given points `(n, c, h, w)`."""
    stages = torch.full_like(rows.job, STAGES if large_radius else 1)
    early = math.ceil(0.3 * steps) if large_radius else 0
    radius = stages.double() * threat.eps
    pixels = points.flatten(1).shape[1]
    return L1Path(
        centre=rows.images,
        labels=rows.labels,
        targets=targets,
        point=points,
        best=points,
        best_gradient=torch.zeros_like(points),
        best_loss=torch.full_like(radius, -torch.inf, dtype=points.dtype),
        share=torch.full_like(radius, _SHARE, dtype=torch.get_default_dtype()),
        support=torch.full_like(rows.job, pixels),
        step=torch.zeros_like(rows.job),
        step_size=radius.to(points.dtype),
        stages=stages,
        early=early,
        final=steps - (STAGES - 1) * early,
        threat=threat,
    )


def lengths(steps: int) -> tuple[int, ...]:
    """Returns the steps of each stage of the large-radius schedule: 30, 30 and 40 %."""
    early = math.ceil(0.3 * steps)
    return early, early, steps - 2 * early


def _check(path: L1Path) -> tuple[Tensor, L1Path]:
    """Returns which rows `(n,)` restart from their best point, and the path with new steps where a check is due.

    If the support of the best point has shrunk by more than 5 %, the step becomes the radius again
    and the row restarts; otherwise the step shrinks. A stage that continues an earlier one takes
    its share from its start.
    """
    due = (path.step > 0) & (path.step % path.window == 0)
    support = (path.best != path.centre).flatten(1).sum(dim=1)
    shrunk = support / path.support < 0.95
    largest, least = (size.to(path.step_size.dtype) for size in (path.radius, path.radius / 10))
    step_size = torch.where(shrunk, largest, torch.maximum(path.step_size / 1.5, least))
    measured = due | (path.step == 0) if path.early else due
    return due & shrunk, replace(
        path,
        step_size=torch.where(due, step_size, path.step_size),
        share=torch.where(measured, support / path.centre.flatten(1).shape[1] / 1.5, path.share),
        support=torch.where(measured, support, path.support),
    )


def _sparse_step(path: L1Path, gradient: Tensor) -> Tensor:
    """Returns steps of l1 length `step_size`, equal in size in all pixels that move."""
    size = gradient.abs().flatten(1)
    pixels = size.shape[1]
    still = ((1 - path.share) * pixels).clamp(0, pixels - 1).long()
    least = size.sort(dim=1).values.gather(1, still[:, None])
    sign = gradient.sign() * (size >= least).view_as(gradient)
    length = sign.abs().flatten(1).sum(dim=1)
    return sign.mul_(per_row(path.step_size / (length + _TINY), gradient))


def _move(path: L1Path, moved: Tensor) -> L1Path:
    """Returns the path at the moved points, or in the next stage at its best point; projected."""
    ended = (path.stages > 1) & (path.step == path.length)
    entered = replace(
        path,
        stages=torch.where(ended, path.stages - 1, path.stages),
        step=torch.where(ended, 0, path.step + 1),
        best_loss=path.best_loss.masked_fill(ended, -torch.inf),
    )
    point = project(_choose(ended, path.best, moved), path.centre, entered.radius, Norm.L1)
    return replace(
        entered,
        point=point,
        step_size=torch.where(ended, entered.radius.to(path.step_size.dtype), path.step_size),
    )


def _window(steps: int) -> int:
    return max(int(0.04 * steps), 1)


def _choose(rows: Tensor, chosen: Tensor, others: Tensor) -> Tensor:
    return torch.where(per_row(rows, chosen), chosen, others)
