"""The reversal of a front end attacks the backbone and pulls the result back through the front end.

Source: `front_rev_simple` of boschresearch/bcai_art at 4ab5cc8. Here the scale is measured for each
image instead of for the whole data set, and the inner attack starts without noise, so that a
candidate depends on its own image alone.
"""

from typing import Protocol

import torch
from torch import Tensor, nn

from robustbench_kd.core.errors import UsageError
from robustbench_kd.core.threat import Norm
from robustbench_kd.defences._gradients import slope
from robustbench_kd.tensors import keyed_random
from robustbench_kd.tensors.attack import per_row
from robustbench_kd.tensors.contracts import Images, Labels, Logits
from robustbench_kd.tensors.geometry import distance, project, steepest

_ROUNDS, _STEPS, _REACH = 3, 20, 2.5
_FRACTIONS = tuple(tenths / 10 for tenths in range(1, 11))  # of the pulled change
_PROBES = 4
_TINY = 1e-12


class Fronted(Protocol):
    """A backbone behind a front end."""

    @property
    def part(self) -> nn.Module:
        """The backbone."""
        ...

    def front(self, images: Images) -> Images:
        """Returns the output of the front end, which is the input of the backbone."""
        ...

    def __call__(self, images: Images) -> Logits:
        """Returns the logits of the whole defence."""
        ...


class Reversal:
    """Three rounds of PGD on the backbone, pulled back linearly to the images in ten sizes.

    Each PGD takes 20 steps, and no gradient of the front end is used. Every candidate is tried on
    the whole defence, and the first that fools it is kept. The next round starts half-way to the
    result of the last one.

    >>> Reversal(defence, norm="linf", eps=8 / 255, seed=0)(images, labels)  # doctest: +SKIP
    """

    def __init__(self, model: Fronted, *, norm: str, eps: float, seed: int) -> None:
        self._model = model
        self._norm = Norm(norm)
        self._eps = eps
        self._seed = seed
        if self._norm is Norm.L1:
            raise UsageError(
                "expected linf or l2 for the reversal of a front end, got l1: attack its surfaces"
            )

    @torch.no_grad()
    def __call__(self, images: Images, labels: Labels) -> Images:
        """Returns candidates `(n, c, h, w)` in ball and box, or the last point where all fail."""
        scale = self._scale(images)
        best = images
        centre = images
        done = torch.zeros_like(labels, dtype=torch.bool)
        for _ in range(_ROUNDS):
            pull = self._pull(centre, images, labels, scale)
            for fraction in _FRACTIONS:
                candidate = self._inside(centre + fraction * pull, images)
                fooled = ~done & (self._model(candidate).argmax(dim=1) != labels)
                best = torch.where(per_row(fooled, images), candidate, best)
                done = done | fooled
            centre = self._inside(centre + pull / 2, images)
        return torch.where(per_row(done, images), best, centre)

    def _pull(self, centre: Images, images: Images, labels: Labels, scale: Tensor) -> Tensor:
        """Returns the change of the images that should reproduce the inner attack.

        The inner attack changes the output of the front end.
        """
        room = (self._eps - distance(centre, images, self._norm)).clamp(min=0)
        radius = per_row(room * scale, images)
        output = self._model.front(centre)
        offset = torch.zeros_like(output)
        for _ in range(_STEPS):
            _, gradient = slope(self._model.part, output + offset, labels)
            step = _REACH / _STEPS * radius * steepest(gradient, self._norm)
            offset = self._shortened(offset + step, radius)
        return offset / per_row(scale, images).clamp(min=_TINY)

    def _scale(self, images: Images) -> Tensor:
        """Returns the factor `(n,)` by which the front end lengthens noise of the radius.

        It is the mean of four directions.
        """
        names = torch.arange(_PROBES, device=images.device)
        numbers = keyed_random.uniform(
            self._seed, "reversal", names, names * 0, 0, images[0].numel()
        )
        probes = (2 * numbers - 1).to(images.dtype).view(-1, 1, *images.shape[1:])

        output = self._model.front(images)
        ratios = []
        for probe in probes:
            noise = self._eps * probe / distance(probe, probe * 0, self._norm)
            noisy = self._model.front(images + noise)
            ratios.append(distance(noisy, output, self._norm) / self._eps)
        return torch.stack(ratios).mean(dim=0)

    def _shortened(self, offset: Tensor, radius: Tensor) -> Tensor:
        """Returns the offset inside the ball of a radius; there is no box behind a front end."""
        if self._norm is Norm.LINF:
            return offset.clamp(-radius, radius)
        length = per_row(distance(offset, offset * 0, self._norm), offset)
        return offset * (radius / length.clamp(min=_TINY)).clamp(max=1)

    def _inside(self, points: Tensor, images: Images) -> Images:
        return project(points, images, self._eps, self._norm)
