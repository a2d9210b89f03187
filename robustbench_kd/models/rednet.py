"""RedNet-26, 38 and 50 for CIFAR: residual networks of involutions.

Involutions take the place of 3x3 convolutions.
"""

from torch import Tensor, nn
from torch.nn import functional

from robustbench_kd.core.errors import UsageError
from robustbench_kd.models._involution import Involution
from robustbench_kd.models._layers import convolution, pooled

VARIANTS = {"rednet26": {"depth": 26}, "rednet38": {"depth": 38}, "rednet50": {"depth": 50}}

_BLOCKS = {26: (1, 2, 4, 1), 38: (2, 3, 5, 2), 50: (3, 4, 6, 3)}
_KERNEL = 7


def build(*, classes: int = 10, channels: int = 3, depth: int = 26, width: int = 64) -> nn.Module:
    """Returns a RedNet whose stem keeps the image size.

    The published networks are made for ImageNet; this form differs as CIFAR ResNets do, in the
    stem's stride 1 and no max-pooling, which leaves the number of parameters as it is: 9.23 and
    15.54 million for RedNet-26 and 50 with 1,000 classes. Parameter names are our own.

    Args:
        classes: Number of logits.
        channels: Channels of the image.
        depth: 26, 38 or 50.
        width: Channels of the first stage's involutions; each later stage doubles them, and every
            stage puts out four times as many. 64 as published; a multiple of 32, or less for
            digits.

    Raises:
        UsageError: If the depth is not one of these, or the channels cannot be grouped by 16.

    Source: Li et al. 2021, arXiv 2103.06255; d-li14/involution
    `cls/mmcls/models/backbones/rednet.py` (commit c1f7936).
    """
    if depth not in _BLOCKS:
        raise UsageError(f"expected a RedNet of depth 26, 38 or 50, got {depth}")
    return RedNet(_BLOCKS[depth], width, channels, classes)


class Bottleneck(nn.Module):
    """An involution between two 1x1 convolutions, the last four times as wide, and a shortcut."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.conv1 = convolution(inputs, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.involution = Involution(width, _KERNEL, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = convolution(width, outputs, 1)
        self.bn3 = nn.BatchNorm2d(outputs)
        changes = stride > 1 or inputs != outputs
        projection = (
            [convolution(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)] if changes else []
        )
        self.shortcut = nn.Sequential(*projection)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the features of the block."""
        y = functional.relu(self.bn1(self.conv1(x)))
        y = functional.relu(self.bn2(self.involution(y)))
        y = self.bn3(self.conv2(y))
        return functional.relu(y + self.shortcut(x))


class RedNet(nn.Module):
    """A stem of two convolutions around an involution, four stages and a linear layer."""

    def __init__(
        self, blocks: tuple[int, int, int, int], width: int, channels: int, classes: int
    ) -> None:
        super().__init__()
        half = max(1, width // 2)
        self.stem = nn.Sequential(
            *_layer(convolution(channels, half, 3), half),
            *_layer(Involution(half, 3), half),
            *_layer(convolution(half, width, 3), width),
        )
        self.layer1 = _stage(blocks[0], width, width, 1)
        self.layer2 = _stage(blocks[1], 4 * width, 2 * width, 2)
        self.layer3 = _stage(blocks[2], 8 * width, 4 * width, 2)
        self.layer4 = _stage(blocks[3], 16 * width, 8 * width, 2)
        self.linear = nn.Linear(32 * width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits `(n, classes)` of normalised images `(n, channels, h, w)`."""
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.stem(images)))))
        logits: Tensor = self.linear(pooled(x))
        return logits


def _layer(operator: nn.Module, channels: int) -> list[nn.Module]:
    return [operator, nn.BatchNorm2d(channels), nn.ReLU()]


def _stage(count: int, inputs: int, width: int, stride: int) -> nn.Sequential:
    rest = [Bottleneck(4 * width, width, 1) for _ in range(count - 1)]
    return nn.Sequential(Bottleneck(inputs, width, stride), *rest)
