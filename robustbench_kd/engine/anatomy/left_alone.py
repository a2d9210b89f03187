"""Leaves a model and torch as they were before a watched pass."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_HOOKS = ("_backward_hooks", "_backward_pre_hooks")


@contextmanager
def left_alone(model: nn.Module) -> Iterator[None]:
    """Puts the state of a model and the switch for gradients back; says no warning of the pass.

    A tensor of the pass that a model keeps would bring its graph into later passes. Hooks on the
    gradients of modules do not run.
    """
    was_enabled = torch.is_grad_enabled()
    restores = [
        _state_of(part) for part in model.modules() if not isinstance(part, torch.jit.ScriptModule)
    ]
    eager = torch.compiler.set_stance("force_eager")  # a compiled model has no calls to see
    try:
        with warnings.catch_warnings(action="ignore"), eager:
            yield
    finally:
        torch.set_grad_enabled(was_enabled)
        for restore in restores:
            restore()


def _state_of(part: nn.Module) -> Callable[[], None]:
    """Returns what puts the attributes of a module back; its hooks on gradients are taken away."""
    attributes = vars(part)
    before = dict(attributes)
    containers = [(one, one.copy()) for one in before.values() if isinstance(one, dict | list)]
    for name in _HOOKS:
        attributes[name] = type(before[name])()

    def restore() -> None:
        attributes.clear()
        attributes.update(before)
        for container, content in containers:
            container.clear()
            if isinstance(container, dict):
                container.update(content)
            else:
                container.extend(content)
        for name, buffer in before["_buffers"].items():
            before["_buffers"][name] = _cut(buffer)

    return restore


def _cut(buffer: Any) -> Any:
    """Returns a buffer without the graph that a pass has left in it."""
    has_graph = isinstance(buffer, Tensor) and buffer.requires_grad
    return buffer.detach() if has_graph else buffer
