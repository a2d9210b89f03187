"""What a pickle of weights may call: tensors, and containers of no more than the file holds.

The safe reader of torch calls `bytearray`, `torch.FloatTensor` and others with any number that a
file names: a hundred bytes make gigabytes. While a file is read, its list of callables is replaced
by one whose callables copy at most a budget of elements and allocate nothing.
"""

import builtins
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

_MOST_COPIED = 10_000_000  # elements of containers that a file makes of other containers
_LONGEST_NAME = 1000
_SIZED = (list, tuple, dict, set, frozenset, str, bytes, bytearray)
# Files name these types as values; a call of one could print a long list again and again. No type
# of numpy is among them: its dtypes trust forged flags in a file, and arrays of such a dtype crash
# Python.
_NAMED = ("int", "float", "bool", "str", "object")
_UNBOUNDED = (list, tuple, dict, set, frozenset, bytearray, bytes)
# What allocates nothing, whatever it is called with.
_SMALL = (
    "torch.nn.parameter.Parameter", "torch.serialization._get_layout", "torch.device",
    "builtins.complex",
)  # fmt: skip
_REBUILDS = (
    "_rebuild_parameter", "_rebuild_parameter_with_state", "_rebuild_tensor", "_rebuild_tensor_v2",
    "_rebuild_tensor_v3", "_rebuild_sparse_tensor",
)  # fmt: skip


class GrowthError(Exception):
    """A file asks for more memory than it holds; the text says what it calls."""


class _Callables(dict[str, Any]):
    """What a file may name; `values` are those that it may call."""

    def __init__(self, named: dict[str, Any], called: dict[str, Any]) -> None:
        super().__init__({**named, **called})
        self._called = called

    def __contains__(self, name: object) -> bool:
        """Tells whether a file may name it; torch would search in a long name for minutes."""
        if isinstance(name, str) and len(name) > _LONGEST_NAME:
            raise GrowthError(f"a name of {len(name):,} characters")
        return super().__contains__(name)

    def values(self) -> Any:
        """Returns what may be called."""
        return self._called.values()


class _Copying:
    """Replaces what makes a container of another one, within one budget for all of a file."""

    def __init__(self, kind: Callable[..., Any], left: list[int]) -> None:
        self._kind = kind
        self._left = left

    def __call__(self, *arguments: Any) -> Any:
        """Makes the container; raises `GrowthError` of a number, or where too much was copied."""
        for argument in arguments:
            if not isinstance(argument, _SIZED):
                raise GrowthError(f"{self._kind.__name__}({type(argument).__name__})")
            self._left[0] -= len(argument)
        if self._left[0] < 0:
            raise GrowthError(f"{self._kind.__name__} again and again")
        return self._kind(*arguments)


@contextmanager
def bounded() -> Iterator[None]:
    """Replaces what torch lets a pickle name and call, and puts it back.

    The list of torch has no public name. `tests/unit/test_budgets.py` fails where it moves.
    """
    unpickler: Any = torch._weights_only_unpickler  # noqa: SLF001
    original = unpickler._get_allowed_globals  # noqa: SLF001
    replaced = _callables(original())
    unpickler._get_allowed_globals = lambda: replaced  # noqa: SLF001
    try:
        yield
    finally:
        unpickler._get_allowed_globals = original  # noqa: SLF001


def _callables(known: dict[str, Any]) -> _Callables:
    names = [*_SMALL, *(f"torch._utils.{name}" for name in _REBUILDS)]
    called = {name: known[name] for name in names if name in known}

    left = [_MOST_COPIED]
    called |= {f"builtins.{kind.__name__}": _Copying(kind, left) for kind in _UNBOUNDED}
    called["collections.OrderedDict"] = _Copying(OrderedDict, left)
    called["collections.Counter"] = _Copying(Counter, left)
    called["_codecs.encode"] = _Copying(known["_codecs.encode"], left)
    called["torch.Size"] = _Copying(torch.Size, left)
    called["builtins.range"] = _empty
    called["builtins.slice"] = _nothing
    called["torch._tensor._rebuild_from_type_v2"] = _rebuilder(called)
    named = {f"builtins.{name}": getattr(builtins, name) for name in _NAMED}
    return _Callables({**known, **named}, called)


def _empty(*_arguments: object) -> tuple[()]:
    """Replaces a range, which would be filled by what is made of it."""
    return ()


def _nothing(*_arguments: object) -> None:
    """Replaces a slice, which nothing needs."""


def _rebuilder(called: dict[str, Any]) -> Callable[..., Any]:
    """Returns torch's function for tensors with attributes, for functions that may be called."""
    allowed = list(called.values())

    def rebuild(function: Any, kind: type, arguments: Any, state: Any) -> Any:
        if not any(function is one for one in allowed):
            raise GrowthError(getattr(function, "__name__", "an unknown function"))
        whole: Any = torch._tensor  # noqa: SLF001
        return whole._rebuild_from_type_v2(function, kind, arguments, state)  # noqa: SLF001

    return rebuild
