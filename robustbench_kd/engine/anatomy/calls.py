"""A call of a function of torch, as a mode sees it."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

UNTRACED = torch._C.DisableTorchFunction  # noqa: SLF001  # no mode sees what runs within


@dataclass(frozen=True)
class Call:
    """A function with its arguments; `name` is the function's own, `round_` for one in place."""

    name: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @property
    def first(self) -> Any:
        """Returns the first argument, None where there is none."""
        return self.args[0] if self.args else None

    @property
    def tensor(self) -> Tensor | None:
        """Returns the first argument if it is a tensor that gradients lead through."""
        first = self.first
        return first if isinstance(first, Tensor) and first.requires_grad else None

    @property
    def in_place(self) -> bool:
        """Returns whether the function changes its first argument."""
        return self.name.endswith("_") and not self.name.endswith("__")

    @property
    def plain_name(self) -> str:
        """Returns the name of the same function that is not in place."""
        return self.name[:-1] if self.in_place else self.name

    def argument(self, position: int, name: str) -> Any:
        """Returns an argument by its position or its name, None where it is not given."""
        if position < len(self.args):
            return self.args[position]
        return self.kwargs.get(name)

    def run(self) -> Any:
        """Returns what the function returns."""
        return self.function(*self.args, **self.kwargs)

    def of(self, change: Callable[[Any], Any]) -> "Call":
        """Returns the call with every argument changed, also within lists and tuples."""
        args = tuple(_changed(value, change) for value in self.args)
        kwargs = {key: _changed(value, change) for key, value in self.kwargs.items()}
        return replace(self, args=args, kwargs=kwargs)

    def having(self, first: Any) -> "Call":
        """Returns the call with another first argument."""
        return replace(self, args=(first, *self.args[1:]))


def any_tensor(values: Iterable[Any], holds: Callable[[Tensor], bool]) -> bool:
    """Returns whether something holds for any tensor among values, also within lists and tuples."""
    for value in values:
        if isinstance(value, Tensor) and holds(value):
            return True
        if type(value) in {list, tuple} and any_tensor(value, holds):
            return True
    return False


def _changed(value: Any, change: Callable[[Any], Any]) -> Any:
    if type(value) in {list, tuple}:
        return type(value)(_changed(part, change) for part in value)
    return change(value)
