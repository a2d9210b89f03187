"""Projected steepest ascent: the loop of every attack that needs nothing but a gradient."""

from collections.abc import Callable

from torch import Tensor

from robustbench_kd.core.threat import Threat
from robustbench_kd.tensors.contracts import Images
from robustbench_kd.tensors.geometry import project, steepest


def ascend(
    slope: Callable[[Images], Tensor],
    start: Images,
    images: Images,
    threat: Threat,
    *,
    steps: int,
    step_size: float,
) -> Images:
    """Returns the points `(n, c, h, w)` after all steps, inside the ball and the box.

    `slope` maps points to the gradient of what is raised; `step_size` is a fraction of the radius.
    Source: Madry et al. 2018, section 2. Raises `UsageError` for `l1`.

    >>> import torch
    >>> images = torch.full((1, 1, 1, 2), 0.5)
    >>> ascend(torch.ones_like, images, images, Threat.parse("linf:0.1"), steps=3, step_size=0.5)
    tensor([[[[0.6000, 0.6000]]]])
    """
    points = start
    for _ in range(steps):
        step = step_size * threat.eps * steepest(slope(points), threat.norm)
        points = project(points + step, images, threat.eps, threat.norm)
    return points
