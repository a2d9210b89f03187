"""WideResNet for 32x32 images, in the form and with the names of TRADES."""

from torch import Tensor, nn
from torch.nn import functional

from robustbench_kd.core.errors import UsageError
from robustbench_kd.models._layers import convolution, pooled

VARIANTS = {
    "wide_resnet_28_10": {"depth": 28, "width": 10},
    "wide_resnet_34_10": {"depth": 34, "width": 10},
    "wide_resnet_34_20": {"depth": 34, "width": 20},
}


def build(
    *,
    classes: int = 10,
    channels: int = 3,
    depth: int = 28,
    width: int = 10,
    sub_block1: bool = False,
) -> nn.Module:
    """Returns a WideResNet with the parameter names of TRADES, which RobustBench and RSLAD share.

    WRN-28-10, 34-10 and 34-20 have 36,479,194, 46,160,474 and 184,531,674 parameters without
    `sub_block1`. Convolutions start as normal with deviation sqrt(2 / fan-out), the bias of the
    linear layer at zero, as published.

    Args:
        classes: Number of logits.
        channels: Channels of the image.
        depth: Number of layers, 6n + 4 for n blocks in each of the three groups.
        width: Widening factor k; the groups have 16k, 32k and 64k channels.
        sub_block1: Whether to hold a second group like the first that the forward pass never uses.
            The original code of TRADES registers one; set this where a state dict has `sub_block1`
            keys (Zhang2019, Carmon2019, Chen2020Efficient, Huang2020, the CIFAR-100 models of LTD
            and LBGAT).

    Raises:
        UsageError: If the depth is not 6n + 4.

    Source: Zagoruyko and Komodakis 2016, arXiv 1605.07146; yaodongyu/TRADES `models/wideresnet.py`.
    """
    if depth < 10 or depth % 6 != 4:
        raise UsageError(f"expected a WideResNet of depth 6n + 4 such as 28 or 34, got {depth}")
    return WideResNet((depth - 4) // 6, width, channels, classes, sub_block1)


class WideBlock(nn.Module):
    """Two 3x3 convolutions, each after its normalisation and activation, and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = convolution(inputs, outputs, 3, stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = convolution(outputs, outputs, 3)
        self.convShortcut = convolution(inputs, outputs, 1, stride) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        """Returns the features of the block.

        The convolution of a shortcut sees the activated input.
        """
        activated = functional.relu(self.bn1(x))
        shortcut: Tensor = x if self.convShortcut is None else self.convShortcut(activated)
        y: Tensor = self.conv1(activated)
        y = self.conv2(functional.relu(self.bn2(y)))
        return shortcut + y


class WideGroup(nn.Module):
    """Blocks of one width; holds them as `layer`, which is part of the published names."""

    def __init__(self, blocks: int, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        rest = [WideBlock(outputs, outputs, 1) for _ in range(blocks - 1)]
        self.layer = nn.Sequential(WideBlock(inputs, outputs, stride), *rest)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the features of the group."""
        features: Tensor = self.layer(x)
        return features


class WideResNet(nn.Module):
    """A bare convolution, three groups, a normalisation and a linear layer."""

    def __init__(
        self, blocks: int, width: int, channels: int, classes: int, sub_block1: bool
    ) -> None:
        super().__init__()
        self.conv1 = convolution(channels, 16, 3)
        self.block1 = WideGroup(blocks, 16, 16 * width, 1)
        if sub_block1:
            self.sub_block1 = WideGroup(blocks, 16, 16 * width, 1)
        self.block2 = WideGroup(blocks, 16 * width, 32 * width, 2)
        self.block3 = WideGroup(blocks, 32 * width, 64 * width, 2)
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.fc = nn.Linear(64 * width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits `(n, classes)` of normalised images `(n, channels, h, w)`."""
        x = self.block3(self.block2(self.block1(self.conv1(images))))
        x = functional.relu(self.bn1(x))
        logits: Tensor = self.fc(pooled(x))
        return logits
