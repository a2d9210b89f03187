"""Layers that several architectures share."""

from torch import Tensor, nn
from torch.nn import functional


def convolution(
    inputs: int, outputs: int, kernel: int, stride: int = 1, *, groups: int = 1
) -> nn.Conv2d:
    """Returns a convolution without bias that keeps the image size at stride 1 (odd `kernel`)."""
    return nn.Conv2d(
        inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False
    )


def pooled(features: Tensor) -> Tensor:
    """Returns the mean over space, `(n, c, h, w)` to `(n, c)`.

    The window is the whole map, so every image size works. On a 4x4 map the result is that of
    `avg_pool2d(features, 4)` bit for bit, which the adaptive pooling of torch does not promise.

    >>> import torch
    >>> pooled(torch.ones(2, 8, 4, 4)).shape
    torch.Size([2, 8])
    """
    return functional.avg_pool2d(features, features.shape[2:]).flatten(1)
