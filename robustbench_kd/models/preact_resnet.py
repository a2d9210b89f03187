"""PreActResNet-18 in the CIFAR form, with the three published variations of its blocks and head."""

from torch import Tensor, nn
from torch.nn import functional

from robustbench_kd.models._layers import convolution, pooled

VARIANTS: dict[str, dict[str, int]] = {"preact_resnet18": {}}


def build(
    *,
    classes: int = 10,
    channels: int = 3,
    width: int = 64,
    final_bn: bool = False,
    activated_shortcut: bool = True,
) -> nn.Module:
    """Returns a PreActResNet-18 with the parameter names of kuangliu/pytorch-cifar.

    Two details differ between code bases that share the names; the defaults are those of kuangliu.
    The second leaves no trace in a state dict: weights load strictly with the wrong choice and lose
    accuracy.

    | form | `final_bn` | `activated_shortcut` | parameters | | --- | --- | --- | --- | |
    kuangliu/pytorch-cifar | False | True | 11,171,146 | | Rice 2020, AWP, and RobustBench's
    Rice2020 (L2, CIFAR-100), Addepalli2021, Kireev2021 | True | True | 11,172,170 | | Wong 2020
    (fast), Andriushchenko 2020 | False | False | 11,171,146 |

    Args:
        classes: Number of logits.
        channels: Channels of the image.
        width: Channels of the stem and of the first stage; each later stage doubles them.
        final_bn: Whether a batch normalisation `bn` and a ReLU come before the pooling, as He et
            al. describe.
        activated_shortcut: Whether the 1x1 convolution of a shortcut sees the activated input of
            its block; if not, it sees the raw one.

    Source: He et al. 2016, arXiv 1603.05027; kuangliu/pytorch-cifar `models/preact_resnet.py`;
    RobustBench `architectures/resnet.py` (`PreActBlock` is the raw form, `PreActBlockV2` the
    activated one).
    """
    return PreActResNet(width, channels, classes, final_bn, activated_shortcut)


class PreActBlock(nn.Module):
    """Two 3x3 convolutions, each after its normalisation and activation, and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, activated_shortcut: bool) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = convolution(inputs, outputs, 3, stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = convolution(outputs, outputs, 3)
        identity = stride == 1 and inputs == outputs
        self.shortcut = (
            nn.Sequential() if identity else nn.Sequential(convolution(inputs, outputs, 1, stride))
        )
        self.activated_shortcut = activated_shortcut and not identity

    def forward(self, x: Tensor) -> Tensor:
        """Returns the features of the block."""
        activated = functional.relu(self.bn1(x))
        shortcut: Tensor = self.shortcut(activated if self.activated_shortcut else x)
        y: Tensor = self.conv1(activated)
        y = self.conv2(functional.relu(self.bn2(y)))
        return shortcut + y


class PreActResNet(nn.Module):
    """A convolution, four stages of two blocks, an optional normalisation and a linear layer."""

    def __init__(
        self, width: int, channels: int, classes: int, final_bn: bool, activated_shortcut: bool
    ) -> None:
        super().__init__()
        self.conv1 = convolution(channels, width, 3)
        self.layer1 = _stage(width, width, 1, activated_shortcut)
        self.layer2 = _stage(width, 2 * width, 2, activated_shortcut)
        self.layer3 = _stage(2 * width, 4 * width, 2, activated_shortcut)
        self.layer4 = _stage(4 * width, 8 * width, 2, activated_shortcut)
        self.bn = nn.BatchNorm2d(8 * width) if final_bn else None
        self.linear = nn.Linear(8 * width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits `(n, classes)` of normalised images `(n, channels, h, w)`."""
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(images)))))
        if self.bn is not None:
            x = functional.relu(self.bn(x))
        logits: Tensor = self.linear(pooled(x))
        return logits


def _stage(inputs: int, outputs: int, stride: int, activated_shortcut: bool) -> nn.Sequential:
    first = PreActBlock(inputs, outputs, stride, activated_shortcut)
    return nn.Sequential(first, PreActBlock(outputs, outputs, 1, activated_shortcut))
