"""What the states of APGD have in common in all norms: the asked point and the loss."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, Self, TypeAlias

import torch
from torch import Tensor

from robustbench_kd.core.threat import Threat
from robustbench_kd.tensors import losses
from robustbench_kd.tensors.attack import Shared
from robustbench_kd.tensors.contracts import Images, Labels, Logits

Loss: TypeAlias = Literal["ce", "margin", "dlr", "targeted-dlr"]


@dataclass(frozen=True, kw_only=True)
class ApgdState(ABC):
    """The clean image, the label, the target and the asked point of each row."""

    centre: Images
    labels: Labels
    targets: Labels
    point: Images
    loss_name: Shared[Loss]
    threat: Shared[Threat]

    def ask(self) -> Images:
        """Returns the start points, then every iterate."""
        return self.point

    def objective(self, logits: Logits) -> Tensor:
        """Returns the loss to maximise, `(1, n)`."""
        return loss(self.loss_name, logits, self.labels, self.targets)[None]

    def tell(self, logits: Logits, values: Tensor, gradient: Tensor | None) -> Self:
        """Returns the state after one step."""
        direction = torch.zeros_like(self.point) if gradient is None else gradient[0]
        return self.advance(values[0], direction)

    @abstractmethod
    def advance(self, loss: Tensor, gradient: Tensor) -> Self:
        """Returns the state after one step, from the loss `(n,)` and its gradient at the point."""


def loss(name: Loss, logits: Logits, labels: Labels, targets: Labels) -> Tensor:
    """Returns the loss `(n,)` to maximise; raises `UsageError` for too few classes."""
    if name == "ce":
        return losses.cross_entropy(logits, labels)
    if name == "margin":
        return -losses.margin(logits, labels)
    if name == "dlr":
        return losses.dlr(logits, labels)
    return losses.targeted_dlr(logits, labels, targets)
