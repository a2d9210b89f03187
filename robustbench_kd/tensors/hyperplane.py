"""Shortest steps onto a hyperplane within the box [0, 1], for FAB (Croce and Hein 2020).

A hyperplane has `weights` w `(n, d)`, and the `excess` of a point x says how far w . x is above the
plane's value. A step moves coordinate i against the sign of w_i, or along it if the excess is
negative, by at most the `room` up to the wall of the box.
"""

import torch
from torch import Tensor
from torch.nn import functional

from robustbench_kd.core.threat import Norm

_DUAL = {Norm.LINF: Norm.L1, Norm.L2: Norm.L2, Norm.L1: Norm.LINF}
_WEIGHTLESS = {Norm.LINF: 0.0, Norm.L2: 1e-8, Norm.L1: 1e-8}
_REFINEMENTS = 12
_HALVINGS = 32


def length(steps: Tensor, norm: Norm) -> Tensor:
    """Returns the norm of each step, `(..., d)` to `(...)`.

    >>> length(torch.tensor([3.0, -4.0]), Norm.LINF)
    tensor(4.)
    """
    if norm is Norm.L2:
        euclidean: Tensor = torch.linalg.vector_norm(steps, dim=-1)
        return euclidean

    # `vector_norm` of these orders runs one number at a time on a CPU.
    size = steps.abs()
    if norm is Norm.LINF:
        return size.amax(dim=-1)
    return size.sum(dim=-1)


def dual_length(weights: Tensor, norm: Norm) -> Tensor:
    """Returns the dual norm of w, `(..., d)` to `(...)`.

    This is how much a step of length 1 can change w . x at most.

    >>> dual_length(torch.tensor([3.0, -4.0]), Norm.LINF)
    tensor(7.)
    """
    return length(weights, _DUAL[norm])


def is_cheap_to_read(values: Tensor) -> bool:
    """Tells whether a loop may end early by what the values are.

    A GPU would have to stop to read them, and a compiler cannot know them. Ending early changes no
    result; on a CPU it makes a projection two to three times as fast.
    """
    return values.device.type == "cpu" and not torch.compiler.is_compiling()


def step_to_hyperplane(points: Tensor, weights: Tensor, excess: Tensor, norm: Norm) -> Tensor:
    """Returns the shortest step, `(..., n, d)`, from each point to its hyperplane within the box.

    `points` `(..., n, d)` in [0, 1] and `excess` `(..., n)` may have leading dimensions that share
    `weights` `(n, d)`. If the plane does not meet the box, the step goes as far as the box allows.
    Coordinates without weight do not move; for `l2` and `l1` a weight of at most 1e-8 counts as
    none. Source: Croce and Hein 2020, "Minimally distorted adversarial examples with a fast
    adaptive boundary attack"; `fab_projections.py` of fra31/auto-attack at a392200, which sorts.

    >>> point, weights = torch.tensor([[0.5, 0.5]]), torch.tensor([[3.0, 1.0]])
    >>> step_to_hyperplane(point, weights, torch.tensor([1.0]), Norm.LINF)
    tensor([[-0.2500, -0.2500]])
    """
    weights = functional.hardshrink(weights, _WEIGHTLESS[norm])
    sign = torch.where(excess < 0, -1.0, 1.0).to(weights.dtype)
    turned = weights * sign.unsqueeze(-1)
    room = torch.lt(turned, 0, out=torch.empty_like(turned)).sub_(points).abs_()
    size = weights.abs()
    target = excess.abs()

    if norm is Norm.L1:
        moved = _steepest_first(size, room, target)
    elif norm is Norm.L2:
        moved = size * _multiplier(room / size, size * room, size.square(), target)
        torch.minimum(moved, room, out=moved)
    else:
        moved = torch.minimum(room, _multiplier(room, size * room, size, target))
    return moved.mul_(turned.sign_().neg_())


def _multiplier(full_at: Tensor, most: Tensor, rate: Tensor, target: Tensor) -> Tensor:
    """Returns the t, `(..., n, 1)`, at which the sum of min(t rate, most) is `target`.

    Coordinate i is full from t = `full_at`. The sum is concave in t, so Newton's method from t = 0
    never overshoots and ends when no coordinate fills up any more, mostly after two or three steps.
    Twelve leave 2e-4 of the target even when it is 0.99999 of what can be reached. t is the largest
    number where the target cannot be reached.
    """
    target = target.unsqueeze(-1)
    reachable = target < most.sum(dim=-1, keepdim=True)
    t = target / rate.sum(dim=-1, keepdim=True)
    t = torch.where(reachable, t, torch.finfo(t.dtype).max)

    chosen = torch.empty_like(most)
    part = torch.empty_like(most)
    for _ in range(_REFINEMENTS):
        # Comparisons into floats: a CPU is ten times slower at writing and using bools.
        torch.le(full_at, t, out=chosen)
        left = target - torch.mul(chosen, most, out=part).sum(dim=-1, keepdim=True)
        torch.gt(full_at, t, out=chosen)
        slope = torch.mul(chosen, rate, out=part).sum(dim=-1, keepdim=True)

        before = t
        t = torch.where(slope > 0, torch.maximum(t, left / slope), t)
        # If the same coordinates are full, t repeats for ever.
        if is_cheap_to_read(t) and torch.equal(before, t):
            break
    return t


def _steepest_first(size: Tensor, room: Tensor, target: Tensor) -> Tensor:
    """Returns how far each coordinate moves if those of the largest weight move first.

    Each moves up to its wall. Bisection finds the smallest weight that moves. Weights that differ
    by less than 2^-32 of the largest move together, by the same fraction of their room.
    """
    most = size * room
    target = target.unsqueeze(-1)
    chosen = torch.empty_like(most)
    part = torch.empty_like(most)

    def above(weight: Tensor) -> Tensor:
        torch.gt(size, weight, out=chosen)
        return torch.mul(chosen, most, out=part).sum(dim=-1, keepdim=True)

    low = torch.zeros_like(target)
    high = size.amax(dim=-1, keepdim=True).expand_as(target)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        too_much = above(middle) > target
        low = torch.where(too_much, middle, low)
        high = torch.where(too_much, high, middle)

    first = above(high)
    both = above(low)
    # The two are equal only where the target is out of reach.
    fraction = torch.where(both > first, (target - first) / (both - first), 1).clamp(max=1)
    moved = torch.lerp(torch.gt(size, high, out=chosen), torch.gt(size, low, out=part), fraction)
    return moved.mul_(room)
