"""What a tensor of a forward pass may be a changed copy of, and how well it follows it."""

from torch import Tensor
from torch.nn import functional

from robustbench_kd.tensors.contracts import Images

_COLOURS = (1, 3)


class Starts:
    """What tensors may follow: the first tensor of their shape, or resized images in its place.

    Images `(n, c, h, w)` that came back from outside of torch in another size or number of channels
    are compared with these images in that size.
    """

    def __init__(self, images: Images) -> None:
        self._images = images
        self._first: dict[tuple[int, ...], Tensor] = {}

    def of(self, value: Tensor, *, opaque: bool) -> Tensor | None:
        """Returns what a tensor may follow, itself if it is the first one, None for no image."""
        n, channels = self._images.shape[:2]
        if value.ndim != 4 or len(value) % n or not value.is_floating_point():
            return None
        shape = tuple(value.shape)
        if shape not in self._first and opaque and value.shape[1] in _COLOURS:
            self._first[shape] = self._resized(value)
        elif value.shape[1] != channels and shape not in self._first:
            return None
        return self._first.setdefault(shape, value)

    def _resized(self, value: Tensor) -> Tensor:
        copies, channels = len(value) // len(self._images), value.shape[1]
        images = self._images
        if channels != images.shape[1]:
            images = images.mean(dim=1, keepdim=True).expand(-1, channels, -1, -1)
        if images.shape[2:] != value.shape[2:]:
            images = functional.interpolate(images, size=value.shape[2:], mode="bilinear")
        return images.repeat(copies, 1, 1, 1)


def line_fit(before: Images, after: Images) -> tuple[Tensor, float]:
    """Returns the slope of each channel `(1, c, 1, 1)` of the best line, and its mean R^2."""
    dims = (0, 2, 3)
    x = before - before.mean(dim=dims, keepdim=True)
    y = after - after.mean(dim=dims, keepdim=True)
    both = (x * y).sum(dim=dims, keepdim=True)
    spread = x.square().sum(dim=dims, keepdim=True)
    slope = both / spread.clamp(min=1e-12)
    explained = both.square() / (spread * y.square().sum(dim=dims, keepdim=True)).clamp(min=1e-12)
    return slope, float(explained.mean().nan_to_num())
