"""Base classes of the defences around frozen parts."""

from collections.abc import Sequence
from typing import Self

from torch import nn

from robustbench_kd.core.errors import ModelError
from robustbench_kd.tensors.contracts import Images, Logits


class Defence(nn.Module):
    """Layers and tensors around frozen parts, which always stay in evaluation mode."""

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.parts.eval()

    @property
    def part(self) -> nn.Module:
        """The first part, for a defence that has one."""
        return self.parts[0]

    def train(self, mode: bool = True) -> Self:
        """Sets the mode of everything except the parts."""
        super().train(mode)
        self.parts.eval()
        return self


class Sampled(Defence):
    """A randomized defence: it offers `draw(images, key)` instead of a forward pass."""

    def forward(self, images: Images) -> Logits:
        """Raises `ModelError`: there is no answer without a key."""
        raise ModelError(
            f"{type(self).__name__} is randomized: expected draw(images, key) for {len(images)} "
            "images, got a call without a key"
        )
