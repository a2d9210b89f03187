"""Balls, boxes and directions: the only code that knows the norms apart.

Every function takes float tensors of shape `(n, ...)`; images live in the box [0, 1]. A radius
`eps` is a number, or a tensor `(n,)` with one radius for each row.
"""

import torch
from torch import Tensor

from robustbench_kd.core.errors import UsageError
from robustbench_kd.core.threat import Norm
from robustbench_kd.tensors.contracts import Images
from robustbench_kd.tensors.hyperplane import length

_TOLERANCE = 1e-6
_SLACK = 2.0**-50  # of the target: what rounding leaves of a sum
_FREE = 8  # rounds before every third one halves the bracket
_ENOUGH = _FREE + 3 * 55  # rounds: after 55 halvings a bracket is as narrow as float64 allows
_BLIND = 24  # rounds where nobody looks whether they are needed


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
    and Hein 2021). A point that is inside already stays as it is, bit for bit. `centre` must lie in
    the box.
    """
    if norm is Norm.LINF:
        return points.clamp(*_bounds(centre, eps))
    onto = _scale_l2 if norm is Norm.L2 else _shrink_l1
    exact = onto(points.double().flatten(1), centre.double().flatten(1), _column(eps, 2))
    return _round_towards(centre, exact.view(centre.shape))


def inside(points: Tensor, centre: Images, eps: float | Tensor, norm: Norm) -> Tensor:
    """Returns which rows lie in the ball around `centre` and in the box, bool `(n,)`; NaN never does.

    The box is exact. `linf` compares pixels with the bounds `centre - eps` and `centre + eps`,
    rounded as the images are: comparing a measured norm with eps would refuse honest points by one
    unit in the last place. `l2` and `l1` are measured in float64 and may exceed eps by 1e-6 max(1,
    eps), the rounding of the points.
    """
    low, high = _bounds(centre, eps) if norm is Norm.LINF else (0.0, 1.0)
    in_box = ((points >= low) & (points <= high)).flatten(1).all(dim=1)
    if norm is Norm.LINF:
        return in_box
    slack = _TOLERANCE * (eps.clamp(min=1) if isinstance(eps, Tensor) else max(1.0, eps))
    return in_box & (distance(points.double(), centre.double(), norm) <= eps + slack)


def steepest(gradient: Tensor, norm: Norm) -> Tensor:
    """Returns the direction of steepest ascent per row: the sign for `linf`, the unit vector for `l2`.

    A zero gradient gives a zero direction. Raises `UsageError` for `l1`, whose steps are sparse and
    adaptive.
    """
    if norm is Norm.LINF:
        return gradient.sign()
    if norm is Norm.L2:
        return gradient / (_column(length(gradient.flatten(1), norm), gradient.ndim) + 1e-12)
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
    draw = torch.rand if norm is Norm.LINF else torch.randn
    noise = draw(centre.shape, generator=generator, dtype=centre.dtype, device=generator.device)
    if norm is Norm.LINF:
        unit = 2 * noise - 1
    else:
        share = torch.rand(
            len(centre), generator=generator, dtype=centre.dtype, device=generator.device
        )
        unit = steepest(noise, norm) * _column(share ** (1 / centre[0].numel()), centre.ndim)
    return project(centre + unit.to(centre.device) * _column(eps, centre.ndim), centre, eps, norm)


def _column(eps: float | Tensor, ndim: int) -> float | Tensor:
    # A number stays a number: making a tensor of it would stall a GPU at every call.
    return eps.reshape(-1, *[1] * (ndim - 1)) if isinstance(eps, Tensor) else eps


def _bounds(centre: Tensor, eps: float | Tensor) -> tuple[Tensor, Tensor]:
    radius = _column(eps, centre.ndim)
    radius = radius.to(centre.dtype) if isinstance(radius, Tensor) else radius
    return (centre - radius).clamp(min=0), (centre + radius).clamp(max=1)


def _scale_l2(points: Tensor, centre: Tensor, eps: float | Tensor) -> Tensor:
    offset = points - centre
    scale = eps / torch.linalg.vector_norm(offset, dim=1, keepdim=True)
    return torch.where(scale < 1, centre + offset * scale, points).clamp(0, 1)


def _shrink_l1(points: Tensor, centre: Tensor, eps: float | Tensor) -> Tensor:
    """Shrinks every offset by one common amount, no further than to zero and no less than into the box."""
    offset = points - centre
    size, room = offset.abs(), torch.where(offset > 0, 1 - centre, centre)
    shrinkage = _shrinkage(size, room, eps)
    shrunk = torch.minimum((size - shrinkage).clamp(min=0), room)
    return torch.where(shrinkage > 0, centre + offset.sign() * shrunk, points.clamp(0, 1))


def _shrinkage(size: Tensor, room: Tensor, eps: float | Tensor) -> Tensor:
    """Returns the s, `(n, 1)`, for which min(max(size - s, 0), room) sums to eps; 0 where the room itself is no more.

    The sum is piecewise linear and falls with s, so Newton's method ends once it is on the right
    piece, on images mostly in the fourth round. Because it could also go round in circles, a
    bracket of s is halved where a step leaves it, and in every third round after the first few:
    that proves that there are enough rounds.
    """
    left, kept, zero = torch.empty_like(size), torch.empty_like(size), size.new_zeros(())
    total = torch.minimum(size, room, out=kept).sum(dim=1, keepdim=True)
    target = torch.minimum(total, eps) if isinstance(eps, Tensor) else total.clamp(max=eps)
    low, high = torch.zeros_like(total), 2 * size.amax(dim=1, keepdim=True)
    s, slack = (total - target) / size.shape[1], _SLACK * target
    settled = torch.zeros_like(s, dtype=torch.bool)
    # A CPU may look whether all rows have settled. A GPU would have to stop for that: it does more
    # rounds than images need, and a row in need of still more gets the end of its bracket, which
    # lies inside the ball.
    looks = size.device.type == "cpu" and not torch.compiler.is_compiling()
    for turn in range(_ENOUGH if looks else _BLIND):
        torch.clamp(torch.sub(size, s, out=left), zero, room, out=kept)
        excess = kept.sum(dim=1, keepdim=True) - target
        slope = torch.eq(left, kept, out=kept).sum(dim=1, keepdim=True)
        rises, step = excess > zero, s + excess / slope
        low, high = torch.where(rises, s, low), torch.where(rises, high, s)
        middle = torch.lerp(low, high, 0.5)
        # A settled row repeats itself, so that its result does not depend on the rows beside it.
        settled = (excess.abs() <= slack) | (step == s) | (middle == s)
        if turn < _FREE or turn % 3:
            middle = torch.where((low < step) & (step < high), step, middle)
        s = torch.where(settled, s, middle)
        if looks and bool(settled.all()):
            break
    return torch.where(settled, s, high)


def _round_towards(centre: Tensor, exact: Tensor) -> Tensor:
    """Rounds float64 points to the precision of `centre` so that rounding never leaves the ball."""
    rounded, base = exact.to(centre.dtype), centre.double()
    further = (rounded.double() - base).abs() > (exact - base).abs()
    return torch.where(further, torch.nextafter(rounded, centre), rounded)


def _no_plain_steps(norm: Norm) -> UsageError:
    return UsageError(f"expected linf or l2 for steps along the gradient, got {norm}")
