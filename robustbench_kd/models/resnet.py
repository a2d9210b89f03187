"""ResNet-18, 34 and 50 in the CIFAR form: a 3x3 stem at stride 1 and no max-pooling."""

from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional

from robustbench_kd.core.errors import UsageError
from robustbench_kd.models._layers import convolution, pooled

VARIANTS = {"resnet18": {"depth": 18}, "resnet34": {"depth": 34}, "resnet50": {"depth": 50}}

_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}


def build(*, classes: int = 10, channels: int = 3, depth: int = 18, width: int = 64) -> nn.Module:
    """Returns a CIFAR ResNet with the parameter names of kuangliu/pytorch-cifar.

    The students of ARD, IAD, RSLAD, AdaAD, MTARD and IGDM are this ResNet-18. Weights start at the
    defaults of torch, as published. ResNet-18, 34 and 50 have 11,173,962, 21,282,122 and 23,520,842
    parameters.

    Args:
        classes: Number of logits.
        channels: Channels of the image.
        depth: 18 or 34 (basic blocks), or 50 (bottlenecks).
        width: Channels of the stem and of the first stage; each later stage doubles them.

    Raises:
        UsageError: If the depth is not one of these.

    Source: He et al. 2016, arXiv 1512.03385; kuangliu/pytorch-cifar `models/resnet.py`.
    """
    if depth not in _BLOCKS:
        raise UsageError(
            f"expected a ResNet of depth 18, 34 or 50, got {depth}; cifar_resnet has the depths 6n "
            "+ 2"
        )
    return ResNet(
        _BLOCKS[depth], Bottleneck if depth >= 50 else BasicBlock, width, channels, classes
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, with the activation after the sum."""

    expansion: ClassVar[int] = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = convolution(inputs, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = convolution(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = _shortcut(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the features of the block."""
        y = functional.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return functional.relu(y + self.shortcut(x))


class Bottleneck(nn.Module):
    """A 3x3 convolution between two 1x1 ones, of which the last widens by four, and a shortcut."""

    expansion: ClassVar[int] = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = convolution(inputs, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = convolution(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = convolution(width, 4 * width, 1)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.shortcut = _shortcut(inputs, 4 * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the features of the block."""
        y = functional.relu(self.bn1(self.conv1(x)))
        y = functional.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return functional.relu(y + self.shortcut(x))


class ResNet(nn.Module):
    """A stem, four stages of residual blocks and a linear layer.

    Each stage from the second on halves the image.
    """

    def __init__(
        self,
        blocks: tuple[int, int, int, int],
        block: type[BasicBlock] | type[Bottleneck],
        width: int,
        channels: int,
        classes: int,
    ) -> None:
        super().__init__()
        wide = width * block.expansion
        self.conv1 = convolution(channels, width, 3)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _stage(block, blocks[0], width, width, 1)
        self.layer2 = _stage(block, blocks[1], wide, 2 * width, 2)
        self.layer3 = _stage(block, blocks[2], 2 * wide, 4 * width, 2)
        self.layer4 = _stage(block, blocks[3], 4 * wide, 8 * width, 2)
        self.linear = nn.Linear(8 * wide, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits `(n, classes)` of normalised images `(n, channels, h, w)`."""
        x = functional.relu(self.bn1(self.conv1(images)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.linear(pooled(x))
        return logits


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    if stride == 1 and inputs == outputs:
        return nn.Sequential()
    return nn.Sequential(convolution(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))


def _stage(
    block: type[BasicBlock] | type[Bottleneck], count: int, inputs: int, width: int, stride: int
) -> nn.Sequential:
    rest = [block(width * block.expansion, width, 1) for _ in range(count - 1)]
    return nn.Sequential(block(inputs, width, stride), *rest)
