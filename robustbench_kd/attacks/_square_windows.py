"""Windows of the Square Attack: their sizes, places and bumps.

Source: Andriushchenko et al. 2020, algorithms 2 and 3; `square.py` of fra31/auto-attack at a392200.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from robustbench_kd.core.threat import Norm
from robustbench_kd.tensors.contracts import Images

# The fraction of the image that a window covers halves after each of these iterations.
_HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
_ORDER = {Norm.L2: 2, Norm.L1: 1}
_DECAY = {Norm.L2: 2, Norm.L1: 4}


class Windows(NamedTuple):
    """The sizes that windows go through, the same for all rows.

    `halved_after` `(9,)` are the iterations that end a size, `sides` `(10,)` the sizes in pixels.
    `bumps` `(10, 2, s + 2, s + 2)` are for l2 and l1 the bump of each size, upright and transposed,
    within zeros.
    """

    halved_after: Tensor
    sides: Tensor
    bumps: Tensor


def windows(images: Images, norm: Norm, p_init: float) -> Windows:
    """Returns the sizes for images `(n, c, h, w)`; the first windows cover `p_init` of them."""
    height, width = images.shape[2:]
    levels = range(len(_HALVED_AFTER) + 1)
    sides = [side_at(p_init / 2**level, height, width, norm) for level in levels]

    padded = images.new_zeros(0)
    if norm is not Norm.LINF:
        widest = max(sides)
        framed = [functional.pad(bumps(side, norm), [1, widest - side + 1] * 2) for side in sides]
        padded = torch.stack(framed)

    halved_after = torch.tensor(_HALVED_AFTER, device=images.device)
    return Windows(halved_after, torch.tensor(sides, device=images.device), padded.to(images))


def side_at(fraction: float, height: int, width: int, norm: Norm) -> int:
    """Returns the side in pixels of windows that cover a fraction of the image.

    For l2 and l1 it is odd, unless the image is too small.
    """
    side = round(math.sqrt(fraction * height * width))
    side = max(side, 1) if norm is Norm.LINF else max(side, 3) // 2 * 2 + 1
    return min(side, height, width)


def bumps(side: int, norm: Norm) -> Tensor:
    """Returns a positive bump over a negative one, upright and transposed, `(2, side, side)`.

    Together they have length 1. Each fills half of the square and falls off in square rings around
    its centre: ring k and all within it are raised by 1 / (k + 1)^2 for l2 and 1 / (k + 1)^4 for
    l1.
    """
    half = side // 2
    line = torch.arange(side)
    is_upper = line < half

    centres = torch.where(is_upper, half // 2, half + (side - half) // 2)
    rings = torch.maximum((line - centres).abs()[:, None], (line - half).abs())
    raised = 1 / torch.arange(1, half + 2, dtype=torch.float64) ** _DECAY[norm]
    heights = raised.flip(0).cumsum(0).flip(0)[rings]

    halves = torch.stack([heights * is_upper[:, None], -heights * ~is_upper[:, None]])
    both = functional.normalize(halves.flatten(1), p=_ORDER[norm]).sum(dim=0)
    upright = functional.normalize(both, p=_ORDER[norm], dim=0).view(side, side)
    return torch.stack([upright, upright.T])


def bump_at(
    framed: Tensor, level: Tensor, transposed: Tensor, rows: Tensor, columns: Tensor
) -> Tensor:
    """Returns the bump of each row of the batch at its place in the image, `(n, 1, h, w)`."""
    outside = framed.shape[2] - 2
    rows = rows.clamp(-1, outside) + 1
    columns = columns.clamp(-1, outside) + 1
    orientation = transposed.long()
    pixels = (
        level[:, None, None],
        orientation[:, None, None],
        rows[:, :, None],
        columns[:, None, :],
    )
    return framed[pixels][:, None]


def offsets(draws: Tensor, side: Tensor, size: int) -> Tensor:
    """Returns where each of `size` lines lies in a random window, `(n, size)`.

    Lines inside the window are 0 to side - 1. The last position is never drawn, as in AutoAttack,
    unless the window fills the image.
    """
    corner = (draws * (size - side)).long()
    return torch.arange(size, device=draws.device) - corner[:, None]


def window(rows: Tensor, columns: Tensor, side: Tensor, like: Tensor) -> Tensor:
    """Returns 1 inside the windows and 0 outside, `(n, 1, h, w)`, from the offsets of lines."""
    inside_rows = within(rows, side, like)
    inside_columns = within(columns, side, like)
    return inside_rows[:, None, :, None] * inside_columns[:, None, None, :]


def within(offsets: Tensor, side: Tensor, like: Tensor) -> Tensor:
    """Returns 1 for the lines inside a window, 0 for others."""
    return ((offsets >= 0) & (offsets < side[:, None])).to(like.dtype)


def signs(draws: Tensor, like: Tensor) -> Tensor:
    """Returns -1 or 1 for random numbers below or above one half."""
    return (draws > 0.5).to(like.dtype) * 2 - 1


def length(change: Tensor, norm: Norm, dims: tuple[int, ...] = (2, 3)) -> Tensor:
    """Returns the l2 or l1 norm over some dimensions, which are kept."""
    norms: Tensor = torch.linalg.vector_norm(change, ord=_ORDER[norm], dim=dims, keepdim=True)
    return norms
