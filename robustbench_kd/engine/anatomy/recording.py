"""Records one forward pass: every tensor that comes out, where, and where gradients ended."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robustbench_kd.engine.anatomy.calls import Call
from robustbench_kd.engine.anatomy.gates import opened
from robustbench_kd.engine.anatomy.places import Site
from robustbench_kd.engine.anatomy.watcher import Watcher
from robustbench_kd.tensors.contracts import Images
from robustbench_kd.tensors.oracle import is_out_of_memory


@dataclass(frozen=True)
class Event:
    """A tensor that came out at a site, within the module of that path.

    `value` is the tensor as it was and `went_on` the one that the model goes on with. It is
    `opaque` if no gradient leads from it to anything.
    """

    site: Site
    module: str
    value: Tensor
    went_on: Tensor
    opaque: bool


@dataclass(frozen=True)
class Recording:
    """A forward pass on images `(n, c, h, w)`.

    `events` are in order; `repaired` says what needed a gradient within which module, by
    its site; `gates` says whether any function is a gate.
    """

    images: Images
    output: Tensor
    events: tuple[Event, ...]
    repaired: dict[Site, tuple[str, str]]
    gates: bool


class _Recorder(Watcher):
    def __init__(self, model: nn.Module, *, repairs: bool) -> None:
        super().__init__(model, repairs=repairs)
        self.events: list[Event] = []
        self.channels = {1, 3}
        self.gates = False

    def passed(self, site: Site, value: Tensor) -> Tensor:
        if value.ndim < 2 or not value.is_floating_point() or _is_mapped(value):
            return value
        opaque = not value.requires_grad
        if self.repairs and value.ndim == 4 and not value.requires_grad:
            value = value + torch.zeros_like(value, requires_grad=True)  # to see what depends on it
        if value.ndim == 4 and value.shape[1] not in self.channels:
            return value  # features in the middle of a network
        # What is written into the tensor later must not change what was seen.
        self.events.append(Event(site, self.where.module, value.detach().clone(), value, opaque))
        return value

    def gate(self, call: Call, out: Any) -> Any:
        if opened(call, out) is not out:
            self.gates = True
        return out


def _is_mapped(value: Tensor) -> bool:
    """Returns whether a tensor stands for many within `torch.vmap`, which nothing may look into."""
    wrapped: bool = torch._C._functorch.is_functorch_wrapped_tensor(value)  # noqa: SLF001
    return wrapped


def record(model: nn.Module, images: Images) -> Recording:
    """Returns what one forward pass of a model does, with repairs where it takes them."""
    try:
        return _recorded(model, images, repairs=True)
    except Exception as error:  # a person's own code, under other rules than it expects
        if is_out_of_memory(error):
            raise
        return _recorded(model, images, repairs=False)


def _recorded(model: nn.Module, images: Images, *, repairs: bool) -> Recording:
    recorder = _Recorder(model, repairs=repairs)
    recorder.channels.add(images.shape[1])
    points = images.detach().clone().requires_grad_()
    with torch.enable_grad():
        output: Any = recorder.run(points)
    return Recording(points, output, tuple(recorder.events), recorder.repaired, recorder.gates)
