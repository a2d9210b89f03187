"""A plain classifier, with its input normalisation inside."""

from collections.abc import Sequence

from torch import Tensor, nn, tensor

from robustbench_kd.core.errors import UsageError
from robustbench_kd.defences._arguments import require_positive
from robustbench_kd.tensors.contracts import Images, Logits


class Classifier(nn.Module):
    """`network((images - mean) / std)`; the state dict does not hold the two constants."""

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", tensor(tuple(mean)).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", tensor(tuple(std)).view(1, -1, 1, 1), persistent=False)
        self.mean: Tensor
        self.std: Tensor

    def forward(self, images: Images) -> Logits:
        """Maps images `(n, c, h, w)` in [0, 1] to logits `(n, classes)`."""
        logits: Logits = self.network((images - self.mean) / self.std)
        return logits


def assemble(
    parts: Sequence[nn.Module], *, mean: Sequence[float] = (), std: Sequence[float] = ()
) -> nn.Module:
    """Returns the one network itself, or behind its normalisation if means are given.

    Raises `UsageError` for any other number of networks, or statistics that do not fit together.
    """
    if len(parts) != 1:
        raise UsageError(f"expected one network for the family 'classifier', got {len(parts)}")
    if len(mean) != len(std):
        raise UsageError(
            f"expected as many deviations as means, got {len(mean)} means and {len(std)} deviations"
        )
    for value in std:
        require_positive("std", value)
    return Classifier(parts[0], mean, std) if mean else parts[0]
