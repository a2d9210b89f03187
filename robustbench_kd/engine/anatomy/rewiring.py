"""Runs a forward pass with other gradients: ends repaired, gates open, parts of it bridged."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from robustbench_kd.engine.anatomy.calls import Call
from robustbench_kd.engine.anatomy.gates import opened
from robustbench_kd.engine.anatomy.places import Place, Site
from robustbench_kd.engine.anatomy.soft import with_gradient
from robustbench_kd.engine.anatomy.starts import Starts
from robustbench_kd.engine.anatomy.watcher import Watcher


@dataclass(frozen=True)
class Bridge:
    """Lets the gradient of a tensor pass straight to an earlier one of the same shape.

    `slopes` `(1, c, 1, 1)` are the change of the tensor per change of the earlier one, by turn. The
    bridge is `always` there, or at these turns alone.
    """

    slopes: Mapping[int, Tensor]
    always: bool

    def slope(self, turn: int) -> Tensor | None:
        """Returns the slope at a turn, None where there is no bridge."""
        if turn in self.slopes or not self.always:
            return self.slopes.get(turn)
        return self.slopes[max(self.slopes)]


@dataclass(frozen=True)
class Wiring:
    """What differs from the model's own gradients.

    Args:
        repairs: Whether operations that end a gradient get a stand-in for it.
        opens: Whether gates pass the gradient as if they were open.
        bridges: Tensors whose gradient passes straight to the image.
        taps: Places whose tensors are kept, to be read as answers.
    """

    repairs: bool = True
    opens: bool = False
    bridges: Mapping[Place, Bridge] = field(default_factory=dict)
    taps: frozenset[Place] = frozenset()


class Rewired(Watcher):
    """One forward pass with the gradients of a wiring; `tapped` are the tensors of its taps."""

    def __init__(self, model: nn.Module, wiring: Wiring) -> None:
        super().__init__(model, repairs=wiring.repairs)
        self.tapped: list[tuple[Place, Tensor]] = []
        self._wiring = wiring
        self._starts: Starts | None = None

    def passed(self, site: Site, value: Tensor) -> Tensor:
        """Returns the tensor with a bridge where there is one, and keeps what is tapped."""
        if site.place in self._wiring.taps:
            self.tapped.append((site.place, value))
        if not self._wiring.bridges or value.ndim != 4:
            return value
        if self._starts is None:
            self._starts = Starts(value)  # the images come first

        start = self._starts.of(value, opaque=not value.requires_grad)
        bridge = self._wiring.bridges.get(site.place)
        slope = bridge.slope(site.turn) if bridge else None
        if start is None or start is value or slope is None or slope.shape[1] != value.shape[1]:
            return value
        return with_gradient(value, slope * start)

    def gate(self, call: Call, out: Any) -> Any:
        """Returns what comes out of a gate."""
        return opened(call, out) if self._wiring.opens else out
