"""The reversal of a front end: attacks the backbone and pulls what it finds back through the front end.

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
_SHARES = tuple(share / 10 for share in range(1, 11))
_PROBES = 4
_TINY = 1e-12


class Fronted(Protocol):
    """A backbone behind a front end."""

    @property
    def part(self) -> nn.Module:
        """The backbone."""
        ...

    def front(self, images: Images) -> Images:
        """Returns the images as the backbone sees them."""
        ...

    def __call__(self, images: Images) -> Logits:
        """Returns the logits of the whole."""
        ...


class Reversal:
    """Three rounds, each a PGD of 20 steps on the backbone whose result is pulled back linearly in ten sizes.

    It takes no gradient of the front end. Every candidate is tried on the whole defence, and the
    first that fools it is kept; each round starts half-way to what the last one found.

    >>> Reversal(defence, norm="linf", eps=8 / 255, seed=0)(images, labels)  # doctest: +SKIP
    """

    def __init__(self, model: Fronted, *, norm: str, eps: float, seed: int) -> None:
        self._model = model
        self._norm, self._eps, self._seed = Norm(norm), eps, seed
        if self._norm is Norm.L1:
            raise UsageError(
                "expected linf or l2 for the reversal of a front end, got l1: attack its surfaces"
            )

    @torch.no_grad()
    def __call__(self, images: Images, labels: Labels) -> Images:
        """Returns candidates in the ball and the box, `(n, c, h, w)`; where none succeeds, the last point reached."""
        scale = self._scale(images)
        best, centre = images, images
        done = torch.zeros_like(labels, dtype=torch.bool)
        for _ in range(_ROUNDS):
            pull = self._pull(centre, images, labels, scale)
            for share in _SHARES:
                trial = self._inside(centre + share * pull, images)
                fooled = ~done & (self._model(trial).argmax(dim=1) != labels)
                best = torch.where(per_row(fooled, images), trial, best)
                done = done | fooled
            centre = self._inside(centre + pull / 2, images)
        return torch.where(per_row(done, images), best, centre)

    def _pull(self, centre: Images, images: Images, labels: Labels, scale: Tensor) -> Tensor:
        """Returns the change of the images that should change what the backbone sees as the inner attack does."""
        room = (self._eps - distance(centre, images, self._norm)).clamp(min=0)
        radius = per_row(room * scale, images)
        seen = self._model.front(centre)
        offset = torch.zeros_like(seen)
        for _ in range(_STEPS):
            _, gradient = slope(self._model.part, seen + offset, labels)
            offset = self._shortened(
                offset + _REACH / _STEPS * radius * steepest(gradient, self._norm), radius
            )
        return offset / per_row(scale, images).clamp(min=_TINY)

    def _scale(self, images: Images) -> Tensor:
        """Returns how much longer the front end makes noise of the radius, `(n,)`, the mean of four directions."""
        names = torch.arange(_PROBES, device=images.device)
        numbers = keyed_random.uniform(
            self._seed, "reversal", names, names * 0, 0, images[0].numel()
        )
        probes = (2 * numbers - 1).to(images.dtype).view(-1, 1, *images.shape[1:])
        seen, ratios = self._model.front(images), []
        for probe in probes:
            noise = self._eps * probe / distance(probe, probe * 0, self._norm)
            ratios.append(distance(self._model.front(images + noise), seen, self._norm) / self._eps)
        return torch.stack(ratios).mean(dim=0)

    def _shortened(self, offset: Tensor, radius: Tensor) -> Tensor:
        """Returns the offset inside the ball of a radius; unlike images, what the backbone sees has no box."""
        if self._norm is Norm.LINF:
            return offset.clamp(-radius, radius)
        length = per_row(distance(offset, offset * 0, self._norm), offset)
        return offset * (radius / length.clamp(min=_TINY)).clamp(max=1)

    def _inside(self, points: Tensor, images: Images) -> Images:
        return project(points, images, self._eps, self._norm)
