"""A plain classifier, with its input normalisation inside."""

from torch import Tensor, nn, tensor

from robustbench_kd.tensors.contracts import Images, Logits


class Classifier(nn.Module):
    """`network((images - mean) / std)`; the statistics are constants and part of no state dict."""

    def __init__(self, network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", tensor(std).view(1, -1, 1, 1), persistent=False)
        self.mean: Tensor
        self.std: Tensor

    def forward(self, images: Images) -> Logits:
        """Maps images `(n, c, h, w)` in [0, 1] to logits `(n, classes)`."""
        logits: Logits = self.network((images - self.mean) / self.std)
        return logits


def assemble(network: nn.Module, mean: tuple[float, ...] = (), std: tuple[float, ...] = ()) -> nn.Module:
    """Returns the network itself, or with its normalisation in front where there is one."""
    return Classifier(network, mean, std) if mean else network
