"""What every defence around frozen parts shares."""

from collections.abc import Sequence
from typing import Self

from torch import nn

from robustbench_kd.core.errors import ModelError
from robustbench_kd.tensors.contracts import Images, Logits


class Defence(nn.Module):
    """Layers and tensors of its own around frozen parts, which stay in evaluation mode whatever mode it is put in."""

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.parts.eval()

    @property
    def part(self) -> nn.Module:
        """The first part, for a defence that has one."""
        return self.parts[0]

    def train(self, mode: bool = True) -> Self:
        """Sets the mode of all but the parts."""
        super().train(mode)
        self.parts.eval()
        return self


class Sampled(Defence):
    """A defence that answers by chance: it offers `draw(images, key)` in place of a forward pass."""

    def forward(self, images: Images) -> Logits:
        """Raises `ModelError`: without a key there is no answer."""
        raise ModelError(
            f"{type(self).__name__} answers {len(images)} images by chance: expected draw(images, key), got a call "
            "without a key"
        )
