"""The answer of a model under a wiring, safe to differentiate whatever happens inside."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from robustbench_kd.engine.anatomy.likeness import Reading, vote
from robustbench_kd.engine.anatomy.places import Place
from robustbench_kd.engine.anatomy.rewiring import Rewired, Wiring
from robustbench_kd.tensors.contracts import Classifier, Images, Logits
from robustbench_kd.tensors.oracle import is_out_of_memory


@dataclass(frozen=True)
class Tap:
    """Which tensors inside are taken as the answer, as a soft vote of all of them.

    With `last`, only the last one that comes by counts.
    """

    readings: Mapping[Place, Reading] = field(default_factory=dict)
    last: bool = False


@dataclass(frozen=True)
class RewiredAnswer:
    """A model that gives other gradients, and other answers where it has taps.

    Where the rewired pass fails, the model answers as it is, without a gradient.
    """

    model: nn.Module
    wiring: Wiring
    tap: Tap = field(default_factory=Tap)

    def __call__(self, images: Images) -> Logits:
        """Returns logits `(n, classes)`, differentiable by the images."""
        if not self.tap.readings and not (torch.is_grad_enabled() and images.requires_grad):
            plain: Logits = self.model(images)
            return plain
        isolated: Logits = _Isolated.apply(images, self._answer)
        return isolated if isolated.dtype == images.dtype else isolated.to(images.dtype)

    def _answer(self, images: Images) -> Logits:
        try:
            forward_pass = Rewired(self.model, self.wiring)
            output: Logits = forward_pass.run(images)
            return self._tapped(forward_pass, output)
        except Exception as error:  # a person's own code, under other rules than it expects
            if is_out_of_memory(error):
                raise
            failed: Logits = self.model(images.detach())
            return failed

    def _tapped(self, forward_pass: Rewired, output: Logits) -> Logits:
        readings = self.tap.readings
        if not readings:
            return output
        n, classes = output.shape
        found: list[Tensor] = []
        for place, value in _joined(forward_pass.tapped, n):
            answers = readings[place].answers(value, n, classes)
            if answers is not None:
                found.append(answers)
        if not found:
            return output
        return vote(torch.cat(found[-1:] if self.tap.last else found))


def _joined(tapped: list[tuple[Place, Tensor]], n: int) -> Iterator[tuple[Place, Tensor]]:
    """Yields tapped tensors, those of a loop over parts of a batch as one at its end."""
    parts: dict[tuple[Place, int], list[Tensor]] = {}
    for place, value in tapped:
        if value.ndim != 2 or len(value) >= n:
            yield place, value
            continue
        parts.setdefault((place, value.shape[1]), []).append(value)
    for (place, _), values in parts.items():
        yield place, torch.cat(values)


class _Isolated(torch.autograd.Function):
    """Keeps the graph of a pass to itself: what a defence differentiates inside stays inside."""

    @staticmethod
    def forward(ctx: Any, images: Images, ask: Classifier) -> Logits:
        with torch.enable_grad():
            leaf = images.detach().requires_grad_()
            answer = ask(leaf)
        ctx.leaf = leaf
        ctx.answer = answer
        return answer.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        zero = torch.zeros_like(ctx.leaf)
        if not ctx.answer.requires_grad:
            return zero, None
        try:
            (gradient,) = torch.autograd.grad(
                ctx.answer, ctx.leaf, gradients[0], retain_graph=True, allow_unused=True
            )
        except RuntimeError as error:  # a person's own backward pass
            if is_out_of_memory(error):
                raise
            return zero, None
        return zero if gradient is None else gradient.nan_to_num(0, 0, 0), None
