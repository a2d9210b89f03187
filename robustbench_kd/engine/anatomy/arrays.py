"""Numpy arrays that remember which tensor they stand for, so that gradients go through numpy.

Every numpy function computes what it always computes. Beside that, torch's own form of it computes
the same from the tensors behind its arguments, where torch has one; its result carries the
gradient. What torch does not know ends the trace, as does every library that wants bare memory.
"""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch import _numpy as torch_numpy

from robustbench_kd.engine.anatomy.calls import UNTRACED
from robustbench_kd.engine.anatomy.soft import with_gradient

_array_of: Callable[[Tensor], Any] = vars(torch_numpy)["ndarray"]  # torch does not export it

_ROUNDING = frozenset({"rint", "round", "around", "floor", "ceil", "trunc", "fix", "round_"})
_REDUCTIONS = {"add": "sum", "maximum": "max", "minimum": "min"}
_METHODS = (
    "reshape",
    "transpose",
    "astype",
    "sum",
    "mean",
    "max",
    "min",
    "flatten",
    "ravel",
    "squeeze",
    "swapaxes",
    "clip",
    "round",
    "copy",
    "dot",
    "repeat",
    "std",
    "var",
)


class TracedArray(np.ndarray[Any, Any]):
    """An array with a tensor of the same shape and numbers, None where the trace ended."""

    soft: Tensor | None = None

    def __array_finalize__(self, _array: Any) -> None:
        """Starts without a tensor: whoever makes a new array says which one belongs to it."""
        self.soft = None

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        """Applies a function to bare arrays, and its form in torch to the tensors."""
        outputs = kwargs.pop("out", ())
        call = getattr(ufunc, method)
        plain = [_bare(value) for value in inputs]
        if outputs:
            kwargs["out"] = tuple(_bare(value) for value in outputs)
        hard = call(*plain, **kwargs)

        kwargs.pop("out", None)
        twin = _twin(ufunc.__name__) if method == "__call__" else None
        if method == "reduce":
            twin = _twin(_REDUCTIONS.get(ufunc.__name__, ""))
        traced = _traced(hard, twin, ufunc.__name__, inputs, kwargs)
        if outputs and isinstance(outputs[0], TracedArray):
            outputs[0].soft = traced.soft if isinstance(traced, TracedArray) else None
            return outputs[0]
        return traced

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        """Applies a function to bare arrays, and its form in torch to the tensors."""
        hard = func(*_bare(args), **{key: _bare(value) for key, value in kwargs.items()})
        return _traced(hard, _twin_of(func), func.__name__, args, kwargs)

    def __getitem__(self, index: Any) -> Any:
        """Returns a part of the array with that part of the tensor."""
        hard = _bare(self)[_bare(index)]
        return _traced(hard, lambda array, place: array[place], "item", (self, index), {})

    def __setitem__(self, index: Any, value: Any) -> None:
        """Changes a part of the array, and that part of a copy of the tensor."""
        _bare(self)[_bare(index)] = _bare(value)
        soft = self.soft
        self.soft = None
        if soft is None:
            return
        try:
            with UNTRACED():
                changed = soft.clone()
                changed[_bare(index)] = _tensor_of(value).to(changed.dtype)
            self.soft = changed
        except (RuntimeError, TypeError, IndexError, ValueError, AttributeError):
            return

    @property
    def T(self) -> Any:  # noqa: N802  # numpy's name
        """Returns the transposed array."""
        return self.transpose()


def _method(name: str) -> Callable[..., Any]:
    def call(self: TracedArray, *args: Any, **kwargs: Any) -> Any:
        hard = getattr(_bare(self), name)(*_bare(args), **kwargs)

        def twin(array: Any, *rest: Any, **options: Any) -> Any:
            if name == "astype":
                return array
            return getattr(array, name)(*rest, **options)

        return _traced(hard, twin, name, (self, *args), kwargs)

    return call


for _name in _METHODS:
    setattr(TracedArray, _name, _method(_name))


def as_traced(array: Any, soft: Tensor | None) -> Any:
    """Returns an array that stands for a tensor."""
    traced = np.asarray(array).view(TracedArray)
    traced.soft = soft
    return traced


def as_tensor(convert: Callable[..., Tensor], value: Any, kwargs: Any) -> Tensor:
    """Returns what an array or tensor becomes as a new tensor, with the gradient of its origin."""
    with UNTRACED():
        return _as_tensor(convert, value, kwargs)


def _as_tensor(convert: Callable[..., Tensor], value: Any, kwargs: Any) -> Tensor:
    if isinstance(value, TracedArray):
        soft = value.soft
        tensor = convert(_bare(value), **kwargs)
    elif isinstance(value, Tensor):
        soft = value
        with warnings.catch_warnings(action="ignore"):  # torch prefers another way to copy
            tensor = convert(value.detach(), **kwargs)
    else:
        return convert(value, **kwargs)
    if soft is None or not soft.requires_grad or not tensor.is_floating_point():
        return tensor
    if soft.shape != tensor.shape:
        return tensor
    return with_gradient(tensor, soft)


def _traced(hard: Any, twin: Any, name: str, args: Any, kwargs: Any) -> Any:
    """Returns a result with the tensor that the twin of its function gives."""
    if not isinstance(hard, np.ndarray | np.generic):
        return hard
    soft = None
    if name in _ROUNDING:
        soft = args[0].soft if isinstance(args[0], TracedArray) else None
    elif twin is not None:
        try:
            with UNTRACED():
                result = twin(*_soft(args), **{key: _soft(value) for key, value in kwargs.items()})
            soft = getattr(result, "tensor", None)
        except Exception:  # noqa: BLE001  # torch's form may refuse anything that numpy takes
            soft = None
    if soft is not None and tuple(soft.shape) != np.shape(hard):
        soft = None
    return as_traced(hard, soft)


def _tensor_of(value: Any) -> Tensor:
    if isinstance(value, TracedArray) and value.soft is not None:
        return value.soft
    return torch.as_tensor(_bare(value))


def _twin_of(func: Any) -> Any:
    """Returns torch's form of a function of numpy, or of one of its parts such as `linalg`."""
    part = getattr(torch_numpy, func.__module__.rpartition(".")[2], torch_numpy)
    return getattr(part, func.__name__, None)


def _twin(name: str) -> Any:
    return getattr(torch_numpy, name, None)


def _bare(value: Any) -> Any:
    if isinstance(value, TracedArray):
        return value.view(np.ndarray)
    if isinstance(value, tuple | list):
        return type(value)(_bare(part) for part in value)
    return value


def _soft(value: Any) -> Any:
    """Returns the argument of a function of torch that stands for an argument of numpy's."""
    if isinstance(value, TracedArray) and value.soft is not None:
        return _array_of(value.soft)
    if isinstance(value, np.ndarray):
        bare = _bare(value)
        return _array_of(torch.from_numpy(np.ascontiguousarray(bare)))
    if isinstance(value, tuple | list):
        return type(value)(_soft(part) for part in value)
    return value
