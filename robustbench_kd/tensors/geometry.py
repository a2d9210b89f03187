"""Balls, boxes and directions of the norms.

Every function takes float tensors of shape `(n, ...)`; images live in the box [0, 1]. A radius
`eps` is a number, or a tensor `(n,)` with one radius for each row.
"""

import torch
from torch import Tensor

from robustbench_kd.core.errors import UsageError
from robustbench_kd.core.threat import Norm
from robustbench_kd.tensors.contracts import Images
from robustbench_kd.tensors.hyperplane import is_cheap_to_read, length

_TOLERANCE = 1e-6
_SLACK = 2.0**-50  # of the target: the rounding error that a sum may keep
_FREE = 8  # rounds before every third one halves the bracket
_ENOUGH = _FREE + 3 * 55  # rounds: after 55 halvings a bracket is as narrow as float64 allows
_BLIND = 24  # rounds where the values are not read, and so never end early


def distance(a: Tensor, b: Tensor, norm: Norm) -> Tensor:
    """Returns the distance of each row of `a` from the same row of `b`, `(n,)`.

    >>> distance(torch.zeros(1, 1, 1, 2), torch.tensor([[[[3.0, 4.0]]]]), Norm.L2)
    tensor([5.])
    """
    return length((a - b).flatten(1), norm)


def project(points: Tensor, centre: Images, eps: float | Tensor, norm: Norm) -> Images:
    """Returns the points moved into the ball around `centre` and the box [0, 1].

    `linf` and `l2` clip to the ball and then to the box, as AutoAttack does (Croce and Hein 2020);
    for `linf` that is the nearest point. `l1` gives the nearest point of the intersection (Croce
    and Hein 2021). A point that is already inside stays the same, bit for bit. `centre` must lie in
    the box.
    """
    if norm is Norm.LINF:
        return points.clamp(*_bounds(centre, eps))

    onto = _scale_l2 if norm is Norm.L2 else _shrink_l1
    exact = onto(points.double().flatten(1), centre.double().flatten(1), _column(eps, 2))
    return _round_towards(centre, exact.view(centre.shape))


def inside(points: Tensor, centre: Images, eps: float | Tensor, norm: Norm) -> Tensor:
    """Returns which rows lie in the ball around `centre` and in the box, bool `(n,)`.

    A row with NaN lies outside. The box is exact. `linf` compares pixels with the bounds `centre -
    eps` and `centre + eps`, rounded as the images are: a comparison of the measured norm with eps
    would refuse honest points by one unit in the last place. `l2` and `l1` are measured in float64
    and may exceed eps by 1e-6 max(1, eps), the rounding of the points.
    """
    if norm is Norm.LINF:
        low, high = _bounds(centre, eps)
        return ((points >= low) & (points <= high)).flatten(1).all(dim=1)

    in_box = ((points >= 0) & (points <= 1)).flatten(1).all(dim=1)
    scale = eps.clamp(min=1) if isinstance(eps, Tensor) else max(1.0, eps)
    away = distance(points.double(), centre.double(), norm)
    return in_box & (away <= eps + _TOLERANCE * scale)


def steepest(gradient: Tensor, norm: Norm) -> Tensor:
    """Returns the direction of steepest ascent of each row.

    It is the sign of the gradient for `linf`, and its unit vector for `l2`. A zero gradient gives a
    zero direction. Raises `UsageError` for `l1`, whose steps are sparse and adaptive.
    """
    if norm is Norm.LINF:
        return gradient.sign()
    if norm is Norm.L2:
        size = _column(length(gradient.flatten(1), norm), gradient.ndim)
        return gradient / (size + 1e-12)
    raise _no_plain_steps(norm)


def random_start(
    centre: Images, eps: float | Tensor, norm: Norm, generator: torch.Generator
) -> Images:
    """Returns points drawn uniformly from the ball around `centre`, clipped to the box.

    The numbers are drawn on the generator's device, so a CPU generator gives a GPU the same points.
    Raises `UsageError` for `l1`.
    """
    if norm is Norm.L1:
        raise _no_plain_steps(norm)

    dtype = centre.dtype
    device = generator.device
    if norm is Norm.LINF:
        noise = torch.rand(centre.shape, generator=generator, dtype=dtype, device=device)
        unit = 2 * noise - 1
    else:
        noise = torch.randn(centre.shape, generator=generator, dtype=dtype, device=device)
        volume = torch.rand(len(centre), generator=generator, dtype=dtype, device=device)
        radius = volume ** (1 / centre[0].numel())
        unit = steepest(noise, norm) * _column(radius, centre.ndim)
    points = centre + unit.to(centre.device) * _column(eps, centre.ndim)
    return project(points, centre, eps, norm)


def _column(eps: float | Tensor, ndim: int) -> float | Tensor:
    """Returns radii `(n,)` with `ndim` dimensions, to broadcast over rows."""
    # A number stays a number: making a tensor of it would stall a GPU at every call.
    if isinstance(eps, Tensor):
        return eps.reshape(-1, *[1] * (ndim - 1))
    return eps


def _bounds(centre: Tensor, eps: float | Tensor) -> tuple[Tensor, Tensor]:
    """Returns the least and the largest pixels of the `linf` ball within the box."""
    radius = _column(eps, centre.ndim)
    if isinstance(radius, Tensor):
        radius = radius.to(centre.dtype)
    low = (centre - radius).clamp(min=0)
    high = (centre + radius).clamp(max=1)
    return low, high


def _scale_l2(points: Tensor, centre: Tensor, eps: float | Tensor) -> Tensor:
    """Returns the points with offsets of at most eps, clipped to the box."""
    offset = points - centre
    scale = eps / torch.linalg.vector_norm(offset, dim=1, keepdim=True)
    return torch.where(scale < 1, centre + offset * scale, points).clamp(0, 1)


def _shrink_l1(points: Tensor, centre: Tensor, eps: float | Tensor) -> Tensor:
    """Returns the points with every offset shrunk by one common amount of its row.

    An offset shrinks at most to zero, and at least until it lies in the box.
    """
    offset = points - centre
    size = offset.abs()
    room = torch.where(offset > 0, 1 - centre, centre)
    shrinkage = _shrinkage(size, room, eps)
    shrunk = torch.minimum((size - shrinkage).clamp(min=0), room)
    return torch.where(shrinkage > 0, centre + offset.sign() * shrunk, points.clamp(0, 1))


def _shrinkage(size: Tensor, room: Tensor, eps: float | Tensor) -> Tensor:
    """Returns the s, `(n, 1)`, for which min(max(size - s, 0), room) sums to eps.

    s is 0 where the sum without any shrinkage is at most eps. The sum is piecewise linear and falls
    with s, so Newton's method ends once it is on the right piece, for most images in the fourth
    round. Because Newton's method could also cycle, a bracket of s is halved where a step leaves
    it, and in every third round after the first few: this bounds the number of rounds.
    """
    zero = size.new_zeros(())
    left = torch.empty_like(size)
    kept = torch.empty_like(size)

    total = torch.minimum(size, room, out=kept).sum(dim=1, keepdim=True)
    target = torch.minimum(total, eps) if isinstance(eps, Tensor) else total.clamp(max=eps)
    slack = _SLACK * target
    low = torch.zeros_like(total)
    high = 2 * size.amax(dim=1, keepdim=True)
    s = (total - target) / size.shape[1]
    settled = torch.zeros_like(s, dtype=torch.bool)

    # A CPU ends when all rows have settled. A GPU does more rounds than images need; a row that
    # needs still more gets the end of its bracket, which lies inside the ball.
    may_end_early = is_cheap_to_read(size)
    for count in range(_ENOUGH if may_end_early else _BLIND):
        torch.clamp(torch.sub(size, s, out=left), zero, room, out=kept)
        excess = kept.sum(dim=1, keepdim=True) - target
        slope = torch.eq(left, kept, out=kept).sum(dim=1, keepdim=True)
        step = s + excess / slope

        rises = excess > zero
        low = torch.where(rises, s, low)
        high = torch.where(rises, high, s)
        middle = torch.lerp(low, high, 0.5)
        # A settled row repeats itself, so that its result does not depend on the other rows.
        settled = (excess.abs() <= slack) | (step == s) | (middle == s)
        if count < _FREE or count % 3:
            middle = torch.where((low < step) & (step < high), step, middle)
        s = torch.where(settled, s, middle)
        if may_end_early and bool(settled.all()):
            break
    return torch.where(settled, s, high)


def _round_towards(centre: Tensor, exact: Tensor) -> Tensor:
    """Returns float64 points in the precision of `centre`, rounded so that none leaves the ball."""
    rounded = exact.to(centre.dtype)
    base = centre.double()
    is_further = (rounded.double() - base).abs() > (exact - base).abs()
    return torch.where(is_further, torch.nextafter(rounded, centre), rounded)


def _no_plain_steps(norm: Norm) -> UsageError:
    return UsageError(f"expected linf or l2 for steps along the gradient, got {norm}")
