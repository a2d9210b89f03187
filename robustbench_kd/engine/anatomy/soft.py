"""Whole numbers and truth values that carry a gradient.

Torch has no gradients of whole numbers. Such a tensor carries a *soft* one beside it: a float
tensor of the same shape, which says how the numbers would move if they could move a little. What
becomes a float again takes its gradient from there.
"""

from typing import Any

import torch
from torch import Tensor

from robustbench_kd.engine.anatomy.calls import Call, any_tensor

_SOFT, _SCORES, _GATE = "_rkd_soft", "_rkd_scores", "_rkd_gate"
_WIDTH = 0.25  # how wide a step is softened, in standard deviations of what it compares


def with_gradient(value: Tensor, stand_in: Tensor) -> Tensor:
    """Returns the value, to the last bit, with the gradient of a stand-in of the same shape."""
    zero = (stand_in - stand_in.detach()).nan_to_num(0, 0, 0)  # infinity has no difference
    return value.detach() + zero.to(value.dtype)


def carrying(value: Tensor, stand_in: Any) -> Tensor:
    """Returns a value that takes its gradient from a stand-in, now or once it is a float.

    A stand-in of another shape, or without a gradient, is of no use.
    """
    if not isinstance(stand_in, Tensor) or stand_in.shape != value.shape:
        return value
    if not stand_in.requires_grad:
        return value
    if value.is_floating_point():
        return with_gradient(value, stand_in)
    setattr(value, _SOFT, stand_in)
    return value


def soft(value: Any) -> Any:
    """Returns what stands for a value in a differentiable calculation: often the value itself."""
    return getattr(value, _SOFT, value) if isinstance(value, Tensor) else value


def is_soft(value: Tensor) -> bool:
    """Returns whether a tensor carries a soft one."""
    return hasattr(value, _SOFT)


def any_soft(call: Call) -> bool:
    """Returns whether any argument carries a soft one."""
    return any_tensor(call.args, is_soft) or any_tensor(call.kwargs.values(), is_soft)


def mark_gate(value: Tensor) -> None:
    """Says that a value is the answer of a comparison, or a float cast of one."""
    setattr(value, _GATE, True)


def is_gate(value: Any) -> bool:
    """Returns whether a value is the answer of a comparison, or a float cast of one."""
    return isinstance(value, Tensor) and hasattr(value, _GATE)


def keep_scores(index: Tensor, scores: Tensor, dim: int) -> None:
    """Says by which scores an index was chosen."""
    setattr(index, _SCORES, (scores, dim))


def scores_of(index: Any) -> tuple[Tensor, int] | None:
    """Returns the scores that an index was chosen by, and along which dimension."""
    found: tuple[Tensor, int] | None = getattr(index, _SCORES, None)
    return found


def width(values: Tensor) -> Tensor:
    """Returns over which distance a step is softened."""
    deviation: Tensor = values.detach().nan_to_num(0, 0, 0).std(correction=0)
    return _WIDTH * deviation.clamp(min=1e-6)


def step(gap: Tensor) -> Tensor:
    """Returns a soft step: 0 far below zero, 1 far above."""
    return torch.sigmoid(gap / width(gap))
