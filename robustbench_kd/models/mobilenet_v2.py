"""MobileNetV2 in the CIFAR form: strides fit 32x32 images and ReLU takes the place of ReLU6."""

from torch import Tensor, nn
from torch.nn import functional

from robustbench_kd.models._layers import convolution, pooled

# Expansion, channels, blocks, stride of the first block: Table 2 of the paper, less two strides.
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def build(*, classes: int = 10, channels: int = 3, width: float = 1.0) -> nn.Module:
    """Returns a CIFAR MobileNetV2 with the parameter names of kuangliu/pytorch-cifar.

    The students of ARD, RSLAD and IGDM are this network (2,296,922 parameters). It differs from the
    network of torchvision in strides, activation and shortcuts: every block at stride 1 has one,
    with a 1x1 convolution where the channels differ. Weights start at the defaults of torch, as
    published.

    Args:
        classes: Number of logits.
        channels: Channels of the image.
        width: Multiplier of all channels, rounded to multiples of 8; below 1 it spares the last
            convolution, as in the paper. The published CIFAR students have 1.

    Source: Sandler et al. 2018, arXiv 1801.04381; kuangliu/pytorch-cifar `models/mobilenetv2.py`.
    """
    return MobileNetV2(width, channels, classes)


class InvertedResidual(nn.Module):
    """A 1x1 convolution that widens, a 3x3 one per channel, and a linear 1x1 one that narrows."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int) -> None:
        super().__init__()
        inner = expansion * inputs
        self.conv1 = convolution(inputs, inner, 1)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = convolution(inner, inner, 3, stride, groups=inner)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = convolution(inner, outputs, 1)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.residual = stride == 1
        projects = self.residual and inputs != outputs
        projection = [convolution(inputs, outputs, 1), nn.BatchNorm2d(outputs)] if projects else []
        self.shortcut = nn.Sequential(*projection)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the features of the block."""
        y = functional.relu(self.bn1(self.conv1(x)))
        y = functional.relu(self.bn2(self.conv2(y)))
        narrow: Tensor = self.bn3(self.conv3(y))
        if self.residual:
            narrow = narrow + self.shortcut(x)
        return narrow


class MobileNetV2(nn.Module):
    """A stem, 17 inverted residuals, a wide 1x1 convolution and a linear layer."""

    def __init__(self, width: float, channels: int, classes: int) -> None:
        super().__init__()
        stem, last = _scaled(32, width), _scaled(1280, max(1.0, width))
        self.conv1 = convolution(channels, stem, 3)
        self.bn1 = nn.BatchNorm2d(stem)
        blocks: list[nn.Module] = []
        inputs = stem
        for expansion, base, count, stride in _STAGES:
            outputs = _scaled(base, width)
            for index in range(count):
                blocks.append(
                    InvertedResidual(inputs, outputs, expansion, stride if index == 0 else 1)
                )
                inputs = outputs
        self.layers = nn.Sequential(*blocks)
        self.conv2 = convolution(inputs, last, 1)
        self.bn2 = nn.BatchNorm2d(last)
        self.linear = nn.Linear(last, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits `(n, classes)` of normalised images `(n, channels, h, w)`."""
        x = functional.relu(self.bn1(self.conv1(images)))
        x = functional.relu(self.bn2(self.conv2(self.layers(x))))
        logits: Tensor = self.linear(pooled(x))
        return logits


def _scaled(channels: int, width: float) -> int:
    return max(8, 8 * round(channels * width / 8))
