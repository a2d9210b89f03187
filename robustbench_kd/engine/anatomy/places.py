"""Where an operation of a forward pass stands: module, line of code, function, and which time."""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)

ARRIVES = "arrives"  # stands for a function where a tensor comes from outside of torch
_FOREIGN = tuple(str(Path(library.__file__ or "").parent) for library in (torch, np))
_OURS = str(Path(__file__).parent)


@dataclass(frozen=True)
class Place:
    """A line of code that calls a function on tensors.

    `line` is `file.py:12` of the innermost code outside of torch and numpy, or empty where there is
    none. `module` is only set then: members of an ensemble share their code, so that a place in the
    code stands for all of them.
    """

    function: str
    line: str
    module: str = ""

    def __str__(self) -> str:
        name = Path(self.line).name or f"module '{self.module}'"
        return f"{self.function} at {name}"


@dataclass(frozen=True)
class Site:
    """A place at one of the times that a forward pass comes by it; `turn` counts from 0."""

    place: Place
    turn: int


class Whereabouts:
    """Follows one forward pass and names the place of every operation."""

    def __init__(self, model: nn.Module) -> None:
        self.names = MappingProxyType({module: name for name, module in model.named_modules()})
        self._stack: list[str] = []
        self._turns: Counter[Place] = Counter()

    @property
    def module(self) -> str:
        """Returns the path of the innermost module that is being called; empty for the model."""
        return self._stack[-1] if self._stack else ""

    def site(self, function: str) -> Site:
        """Returns where the function is called, and counts the call."""
        line = _line()
        place = Place(function, line, "" if line else self.module)
        turn = self._turns[place]
        self._turns[place] += 1
        return Site(place, turn)

    @contextmanager
    def followed(self) -> Iterator[None]:
        """Keeps the stack of modules while a model runs."""

        def enter(module: nn.Module, _arguments: Any) -> None:
            self._stack.append(self.names.get(module, self.module))

        def leave(_module: nn.Module, _arguments: Any, _output: Any) -> None:
            self._stack.pop()

        handles = [
            register_module_forward_pre_hook(enter),
            register_module_forward_hook(leave, always_call=True),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _line() -> str:
    frame: FrameType | None = sys._getframe(2)  # noqa: SLF001  # `inspect` reads source files
    while frame is not None and _is_ours(frame):
        frame = frame.f_back
    while frame is not None and not _is_ours(frame):
        if not frame.f_code.co_filename.startswith(_FOREIGN):
            return f"{frame.f_code.co_filename}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


def _is_ours(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith(_OURS)
