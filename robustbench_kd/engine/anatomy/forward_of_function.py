"""The gradient of what a function computes, in place of the gradient that it claims."""

from typing import Any

import torch
from torch import Tensor

from robustbench_kd.tensors.oracle import is_out_of_memory


class _Context:
    """Takes what a forward pass tells its backward pass, which is never run."""

    def __init__(self, args: tuple[Any, ...]) -> None:
        self.needs_input_grad = tuple(_has_gradient(value) for value in args)
        self.saved_tensors: tuple[Tensor, ...] = ()

    def save_for_backward(self, *tensors: Tensor) -> None:
        self.saved_tensors = tensors

    save_for_forward = save_for_backward

    def mark_dirty(self, *tensors: Tensor) -> None:
        """Does nothing."""

    mark_non_differentiable = mark_dirty

    def set_materialize_grads(self, value: Any) -> None:
        """Does nothing."""


def differentiable_forward(function: Any, args: tuple[Any, ...]) -> Tensor | None:
    """Returns what the forward pass of a `torch.autograd.Function` gives, differentiable by itself.

    It is None where the forward pass has no gradient or cannot be run in this way; the function is
    then to be asked as it is.
    """
    if not any(map(_has_gradient, args)):
        return None
    try:
        out = _forward(function, args)
    except Exception as error:  # a person's own code, called in a way that it does not expect
        if is_out_of_memory(error):
            raise
        return None
    return out if _has_gradient(out) else None


def is_function_of_a_person(value: Tensor) -> bool:
    """Returns whether a tensor came out of a `torch.autograd.Function`."""
    return isinstance(value.grad_fn, torch.autograd.function.BackwardCFunction)


def pass_zero_gradients(value: Tensor) -> None:
    """Lets the gradient of a function's output pass through it where its own backward gives none.

    The function was called in a way that no patch sees, so that only its node is known.
    """

    def passed(gradients: tuple[Any, ...], outputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        first = gradients[0] if gradients else None
        if first is not None and bool(first.any()):
            return None
        return (outputs[0], *gradients[1:])

    if value.grad_fn is not None:
        value.grad_fn.register_hook(passed)


def _forward(function: Any, args: tuple[Any, ...]) -> Any:
    if function.setup_context is not torch.autograd.Function.setup_context:
        return function.forward(*args)
    return function.forward(_Context(args), *args)


def _has_gradient(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad
