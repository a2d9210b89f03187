"""Changes of images that keep their content: colours, crops, and styles outside the training data.

Random numbers are keyed by example, so that every network gets the same copy in every batch.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from robustbench_kd.tensors import keyed_random
from robustbench_kd.tensors.contracts import Images

Change = Callable[[Images, Tensor, int], Images]
"""Maps images `(n, c, h, w)`, example ids `(n,)` and a seed to images of that shape in [0, 1]."""

_GREY = (0.299, 0.587, 0.114)
_CHROMA = ((0.596, -0.274, -0.322), (0.211, -0.523, 0.312))  # I and Q of the NTSC standard


def colour(images: Images, ids: Tensor, seed: int) -> Images:
    """Changes brightness, contrast and saturation by up to 40 %, and rotates hues.

    Hues rotate by up to a fifth of the circle, in the plane of I and Q. The strengths are those of
    Ojha et al. 2023, appendix. Grey images change in brightness and contrast alone.
    """
    drawn = 2 * _uniform(images, ids, seed, "colour", 4) - 1
    brightness, contrast, saturation = (1 + 0.4 * drawn[:, :3]).T[:, :, None, None, None]
    changed = (images * brightness).clamp(0, 1)
    mean = _grey(changed).mean(dim=(1, 2, 3), keepdim=True)
    changed = torch.lerp(mean, changed, contrast).clamp(0, 1)
    if images.shape[1] != 3:
        return changed

    changed = torch.lerp(_grey(changed), changed, saturation).clamp(0, 1)
    return _rotated(changed, 2 * math.pi * 0.2 * drawn[:, 3]).clamp(0, 1)


def crop(images: Images, ids: Tensor, seed: int) -> Images:
    """Cuts out a square of 30 to 60 % of the area and enlarges it to the size of the image.

    Source: Ojha et al. 2023.
    """
    drawn = _uniform(images, ids, seed, "crop", 3)
    side = (0.3 + 0.3 * drawn[:, 0]).sqrt()
    centre = (2 * drawn[:, 1:] - 1) * (1 - side)[:, None]
    scale = side[:, None, None] * torch.eye(2, device=images.device)
    affine = torch.cat([scale, centre[:, :, None]], dim=2)
    grid = functional.affine_grid(affine, list(images.shape), align_corners=False)
    resized = functional.grid_sample(
        images, grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    return resized.clamp(0, 1)


def noise(images: Images, ids: Tensor, seed: int) -> Images:
    """Adds Gaussian noise of deviation 0.1, the strongest of CIFAR-10-C.

    Source: Hendrycks and Dietterich 2019.
    """
    rows = torch.zeros_like(ids)
    drawn = keyed_random.normal(seed, "similarity-noise", ids, rows, 0, images[0].numel())
    return (images + 0.1 * drawn.view(images.shape)).clamp(0, 1)


def blur(images: Images, ids: Tensor, seed: int) -> Images:  # noqa: ARG001  # as every change
    """Blurs images with a binomial window of 3 by 3 pixels."""
    window = torch.tensor([0.25, 0.5, 0.25], device=images.device)
    kernel = (window[:, None] * window).expand(images.shape[1], 1, 3, 3)
    padded = functional.pad(images, [1] * 4, mode="replicate")
    return functional.conv2d(padded, kernel, groups=images.shape[1]).clamp(0, 1)


def edges(images: Images, ids: Tensor, seed: int) -> Images:  # noqa: ARG001
    """Keeps the slopes of the brightness, bright on black; the steepest of each image is white."""
    padded = functional.pad(_grey(images), [1] * 4, mode="replicate")
    across = padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]
    down = padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]
    slope = (across.square() + down.square()).sqrt()
    steepest = slope.amax(dim=(1, 2, 3), keepdim=True)
    return (slope / steepest.clamp(min=1e-6)).expand_as(images)


def negative(images: Images, ids: Tensor, seed: int) -> Images:  # noqa: ARG001
    """Makes dark pixels bright and bright ones dark."""
    return 1 - images


INVARIANCES: dict[str, Change] = {"colours": colour, "crops": crop}
DOMAINS: dict[str, Change] = {"noise": noise, "blur": blur, "edges": edges, "negatives": negative}


def _uniform(images: Images, ids: Tensor, seed: int, part: str, size: int) -> Tensor:
    drawn = keyed_random.uniform(seed, f"similarity-{part}", ids, torch.zeros_like(ids), 0, size)
    return drawn.to(images.dtype)


def _grey(images: Images) -> Tensor:
    """Returns the brightness, `(n, 1, h, w)`."""
    if images.shape[1] != 3:
        return images.mean(dim=1, keepdim=True)
    return torch.einsum("nchw,c->nhw", images, images.new_tensor(_GREY))[:, None]


def _rotated(images: Images, angle: Tensor) -> Images:
    """Returns colour images with chroma rotated by an angle `(n,)` and the same brightness."""
    basis = images.new_tensor((_GREY, *_CHROMA))
    one = torch.ones_like(angle)
    zero = torch.zeros_like(angle)
    cosine = angle.cos()
    sine = angle.sin()
    entries = torch.stack([one, zero, zero, zero, cosine, -sine, zero, sine, cosine], dim=1)
    rotation = entries.view(-1, 3, 3)
    return torch.einsum("nij,njhw->nihw", torch.linalg.inv(basis) @ rotation @ basis, images)
