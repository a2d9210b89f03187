"""A random transformation of the input.

Sources: Gaussian noise is Cohen et al. 2019 (arXiv 1902.02918), without their vote over many draws;
random resizing and padding is Xie et al. 2018 (arXiv 1711.01991).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from robustbench_kd.defences._arguments import (
    only_part,
    require_choice,
    require_number,
    require_positive,
)
from robustbench_kd.defences._defence import Sampled
from robustbench_kd.defences._surfaces import backbone, expected, gaussian, shared_noise
from robustbench_kd.tensors.contracts import Images, Logits
from robustbench_kd.tensors.defence import Key, Surface

Transform: TypeAlias = Callable[[Images, Key], Images]


@dataclass(frozen=True)
class Noise:
    """Adds Gaussian noise and does not clip the result."""

    sigma: float

    def __call__(self, images: Images, key: Key) -> Images:
        """Returns one draw of each row."""
        return images + self.sigma * gaussian(images, key)


@dataclass(frozen=True)
class ResizePad:
    """Resizes an image at random and pads it with zeros at random.

    The size lies between `low` and `high` times the size of the image, the padding fills the
    largest size.
    """

    low: float
    high: float

    def __call__(self, images: Images, key: Key) -> Images:
        """Returns one draw of each row, resized bilinearly; sizes and offsets are whole pixels."""
        size, top, left = key.uniform("resize-pad", 3).to(images.dtype).unbind(dim=1)
        rows = self._sources(images.shape[2], size, top)
        columns = self._sources(images.shape[3], size, left)

        x = columns[:, None, :].expand(-1, rows.shape[1], -1)
        y = rows[:, :, None].expand(-1, -1, columns.shape[1])
        grid = torch.stack([x, y], dim=3)
        resized = functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
        return resized * (grid.abs() <= 1).all(dim=3)[:, None]

    def _sources(self, side: int, size: Tensor, offset: Tensor) -> Tensor:
        """Returns where each pixel of a row or column comes from, `(n, largest)`.

        The image lies on [-1, 1]. `size` and `offset` are random numbers in [0, 1).
        """
        least = max(1, round(self.low * side))
        most = max(1, round(self.high * side))
        sizes = least + (size * (most - least + 1)).floor()
        before = (offset * (most - sizes + 1)).floor()
        pixels = torch.arange(most, device=size.device) + 0.5
        return 2 * (pixels - before[:, None]) / sizes[:, None] - 1


class Smoothed(Sampled):
    """One part that classifies a randomly transformed image."""

    def __init__(self, part: nn.Module, transform: Transform) -> None:
        super().__init__([part])
        self.transform = transform

    def draw(self, images: Images, key: Key) -> Logits:
        """Returns the logits `(n, classes)` of one draw of each row."""
        logits: Logits = self.part(self.transform(images, key))
        return logits

    def surfaces(self) -> Sequence[Surface]:
        """Returns the part, one fixed draw, and ten draws."""
        return [backbone(self.part), shared_noise(self.draw), expected(self.draw)]


def assemble(
    parts: Sequence[nn.Module],
    *,
    transform: str = "noise",
    sigma: float = 0.1,
    low: float = 0.75,
    high: float = 1.0,
) -> nn.Module:
    """Returns one part behind a random transformation.

    Args:
        parts: The classifier.
        transform: `noise`, or `resize-pad`.
        sigma: Standard deviation of the noise, in pixels of [0, 1].
        low: Smallest size that `resize-pad` gives an image, as a multiple of its own.
        high: Largest size; the classifier always gets images of this size.

    Raises:
        UsageError: If an argument is impossible.
    """
    part = only_part(parts, "smoothed")
    require_choice("transformation", transform, ("noise", "resize-pad"))
    require_number("sigma", sigma, 0, 10)
    require_positive("low", low)
    require_number("high", high, low, 4)
    if transform == "noise":
        return Smoothed(part, Noise(sigma))
    return Smoothed(part, ResizePad(low, high))
