"""ResNet-20, 32, 44 and 56 for CIFAR, whose shortcuts have no parameters.

Source: He et al. 2016, section 4.2.
"""

from torch import Tensor, nn
from torch.nn import functional

from robustbench_kd.core.errors import UsageError
from robustbench_kd.models._layers import convolution, pooled

VARIANTS = {
    "resnet20": {"depth": 20},
    "resnet32": {"depth": 32},
    "resnet44": {"depth": 44},
    "resnet56": {"depth": 56},
}


def build(*, classes: int = 10, channels: int = 3, depth: int = 20, width: int = 16) -> nn.Module:
    """Returns a small CIFAR ResNet with the parameter names of akamaster/pytorch_resnet_cifar10.

    ResNet-20, 32, 44 and 56 have 269,722, 464,154, 658,586 and 853,018 parameters. Weights of
    convolutions and of the linear layer start as Kaiming-normal with fan-in, as published.

    Args:
        classes: Number of logits.
        channels: Channels of the image.
        depth: Number of layers, 6n + 2 for n blocks in each of the three stages.
        width: Channels of the stem and of the first stage; each later stage doubles them.

    Raises:
        UsageError: If the depth is not 6n + 2.

    Source: He et al. 2016, arXiv 1512.03385, section 4.2, option A;
    akamaster/pytorch_resnet_cifar10 `resnet.py`.
    """
    if depth < 8 or depth % 6 != 2:
        raise UsageError(
            f"expected a CIFAR ResNet of depth 6n + 2 such as 20, 32, 44 or 56, got {depth}"
        )
    return CifarResNet((depth - 2) // 6, width, channels, classes)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut.

    The shortcut drops every other pixel and fills new channels with zeros.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = convolution(inputs, outputs, 3, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = convolution(outputs, outputs, 3)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride = stride
        before = (outputs - inputs) // 2
        self.padding = (0, 0, 0, 0, before, outputs - inputs - before)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the features of the block."""
        y = functional.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return functional.relu(
            y + functional.pad(x[:, :, :: self.stride, :: self.stride], self.padding)
        )


class CifarResNet(nn.Module):
    """A stem, three stages of residual blocks and a linear layer."""

    def __init__(self, blocks: int, width: int, channels: int, classes: int) -> None:
        super().__init__()
        self.conv1 = convolution(channels, width, 3)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _stage(blocks, width, width, 1)
        self.layer2 = _stage(blocks, width, 2 * width, 2)
        self.layer3 = _stage(blocks, 2 * width, 4 * width, 2)
        self.linear = nn.Linear(4 * width, classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits `(n, classes)` of normalised images `(n, channels, h, w)`."""
        x = functional.relu(self.bn1(self.conv1(images)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(pooled(x))
        return logits


def _stage(count: int, inputs: int, outputs: int, stride: int) -> nn.Sequential:
    rest = [BasicBlock(outputs, outputs, 1) for _ in range(count - 1)]
    return nn.Sequential(BasicBlock(inputs, outputs, stride), *rest)
