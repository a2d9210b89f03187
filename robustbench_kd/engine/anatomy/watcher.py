"""Watches one forward pass of a model: every call of a torch function from Python.

No source code is read and no module changed. A mode of torch sees the calls; patches stand for the
few that no mode sees.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from robustbench_kd.engine.anatomy.arrays import TracedArray, as_tensor, as_traced
from robustbench_kd.engine.anatomy.calls import UNTRACED, Call
from robustbench_kd.engine.anatomy.forward_of_function import (
    differentiable_forward,
    is_function_of_a_person,
    pass_zero_gradients,
)
from robustbench_kd.engine.anatomy.left_alone import left_alone
from robustbench_kd.engine.anatomy.places import ARRIVES, Place, Site, Whereabouts
from robustbench_kd.engine.anatomy.repairs import assigned, assigns_by_soft_mask, repaired
from robustbench_kd.engine.anatomy.soft import carrying
from robustbench_kd.tensors.contracts import Images

_SEEN = "_rkd_seen"
_FROM_TENSORS = {"tensor", "as_tensor", "asarray"}
_DATA = torch.Tensor.data.__get__  # type: ignore[attr-defined]
_HANDLED = object()


class Watcher(TorchFunctionMode):
    """Watches one forward pass; subclasses may change what comes out.

    With `repairs`, what ends or changes a gradient gets a stand-in for it, and `repaired` says what
    that was and within which module.
    """

    def __init__(self, model: nn.Module, *, repairs: bool) -> None:
        super().__init__()
        self.repairs = repairs
        self.repaired: dict[Site, tuple[str, str]] = {}
        self.where = Whereabouts(model)
        self._model = model

    def run(self, images: Images) -> Any:
        """Returns the model's output for images, which it may change in place."""
        start = self.passed(Site(Place(ARRIVES, ""), 0), images.view_as(images))
        _mark(start)
        with left_alone(self._model), _patched(self), self.where.followed(), self:
            return self._model(start)

    def passed(self, site: Site, value: Tensor) -> Tensor:  # noqa: ARG002  # for subclasses
        """Returns what goes on in place of a tensor that came out at a site."""
        return value

    def gate(self, call: Call, out: Any) -> Any:  # noqa: ARG002  # for subclasses
        """Returns what comes out of a call that may be a gate."""
        return out

    def note(self, what: str, site: Site | None = None) -> Site:
        """Notes that something ends or changes the gradient, and returns where."""
        site = site or self.where.site(what)
        self.repaired[site] = (what, self.where.module)
        return site

    def __torch_function__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        call = Call(name, func, args, kwargs or {})
        if name == "__get__" and func != _DATA:
            return call.run()

        call = self._arrived(call)
        if self.repairs:
            out = self._in_place_of(call)
            if out is not _HANDLED:
                return out
        return self._seen(call)

    def _seen(self, call: Call) -> Any:
        """Returns what a call gives, after everything that may change it."""
        if self.repairs and assigns_by_soft_mask(call):
            return self._assigned(call)
        lost = call.tensor.clone() if call.in_place and call.tensor is not None else None
        out = call.run()
        if not isinstance(out, Tensor):
            _mark_all(out)
            return out

        given = call if lost is None else call.having(lost)
        site = self.where.site(call.name)
        new = repaired(given, out) if self.repairs else out
        if new is not out:
            self.note(call.plain_name, site)
        new = self.passed(site, self.gate(given, new))
        if call.in_place and new is not out:
            new = call.args[0].copy_(new)
        _mark(new)
        return new

    def _assigned(self, call: Call) -> None:
        target = call.args[0]
        before = target.clone()
        call.run()
        new = carrying(target, assigned(call, before))
        if new is not target:
            self.note("assignment by a mask")
            target.copy_(new)
            _mark(target)

    def _arrived(self, call: Call) -> Call:
        """Returns the call after tensors from outside of torch went through `passed`."""
        if not any(_is_new(value) for value in call.args):
            return call
        return Call(call.name, call.function, tuple(map(self._arrival, call.args)), call.kwargs)

    def _arrival(self, value: Any) -> Any:
        if not _is_new(value):
            return value
        new = value
        if self.repairs and is_function_of_a_person(value):
            pass_zero_gradients(value)
            self.note("gradient of a function")
        if value.ndim > 1 and not isinstance(value, nn.Parameter):
            new = self.passed(self.where.site(ARRIVES), value)
        _mark(value)
        _mark(new)
        return new

    def _in_place_of(self, call: Call) -> Any:
        """Returns what stands for a call that is not made, `_HANDLED` where it is made."""
        name = call.name
        if name == "_set_grad_enabled":
            return self._switched(call)
        if name in {"backward", "grad"}:  # the graph must outlive what a defence differentiates
            return call.function(*call.args, **{**call.kwargs, "retain_graph": True})
        if name in _FROM_TENSORS and isinstance(call.first, Tensor | TracedArray):
            value = as_tensor(call.function, call.first, call.kwargs)
            value = self.passed(self.where.site(name), value)
            _mark(value)
            return value
        if name == "__get__" and not isinstance(call.first, nn.Parameter):
            return self._alias(call.first)
        return _HANDLED if call.tensor is None else self._kept(call, call.tensor)

    def _kept(self, call: Call, tensor: Tensor) -> Any:
        """Returns what stands for a call that would cut a tensor off from its gradient."""
        name = call.name
        if name in {"detach", "detach_", "__deepcopy__"}:
            return self._alias(tensor)
        if name in {"numpy", "__array__"}:
            self.note("numpy")
            array = call.having(tensor.detach()).run()
            return as_traced(array, tensor)
        if name == "register_hook":
            self.note("hook on a gradient")
            return _NoHandle()
        if name == "requires_grad_" and not tensor.is_leaf:
            tensor.retain_grad()
            return tensor
        return _HANDLED

    def _alias(self, tensor: Tensor) -> Tensor:
        """Returns the same tensor with its gradient, in place of one that is cut off."""
        if tensor.requires_grad:
            self.note("detach")
        alias = tensor.view_as(tensor)
        _mark(alias)
        return alias

    def _switched(self, call: Call) -> Any:
        if call.first or not torch.is_grad_enabled():
            return call.run()
        self.note("no_grad")
        return None


class _NoHandle:
    """What the registration of a hook returns that is never called."""

    def remove(self) -> None:
        """Does nothing."""


def _mark(value: Any) -> None:
    if isinstance(value, Tensor):
        setattr(value, _SEEN, value.grad_fn is None)


def _is_new(value: Any) -> bool:
    """Returns whether a value is a tensor that no call has given.

    A function of a person's own gives tensors that were seen within it, with another gradient.
    """
    if not isinstance(value, Tensor):
        return False
    seen: bool | None = getattr(value, _SEEN, None)
    return seen is None or seen != (value.grad_fn is None)


def _mark_all(values: Any) -> None:
    if isinstance(values, tuple | list):
        for value in values:
            _mark(value)


@contextmanager
def _patched(watcher: Watcher) -> Iterator[None]:
    """Stands for the calls that a mode does not see."""
    if not watcher.repairs:
        yield
        return

    from_numpy = torch.from_numpy

    def from_array(array: Any) -> Tensor:
        site = watcher.where.site("from_numpy")
        with UNTRACED():
            value = watcher.passed(site, as_tensor(from_numpy, array, {}))
        _mark(value)
        return value

    def apply(function: Any, *args: Any) -> Any:
        out = differentiable_forward(function, args)
        if out is None:
            return super(torch.autograd.Function, function).apply(*args)
        site = watcher.note(f"gradient of {function.__name__}")
        with UNTRACED():
            return watcher.passed(site, out)

    with (
        mock.patch.object(torch, "from_numpy", from_array),
        mock.patch.object(torch.autograd.Function, "apply", classmethod(apply)),
        mock.patch.multiple(
            torch.inference_mode,
            __enter__=lambda _self: watcher.note("inference_mode"),
            __exit__=lambda _self, *_error: None,
        ),
    ):
        yield
