"""Convolutions of few input channels with a faster gradient, for searches on a CPU.

The gradient is computed as a forward convolution.

The library's own gradient of such a layer takes 3 to 10 times as long as its forward pass: it
computes 16 channels of the result at once, of which only these few are wanted, or walks over the
gaps of a stride. Here the pixels of a square block of the image become channels: one convolution
gives the gradient of whole blocks, one and a half to five times as fast. The first layer of nearly
every network is such a layer. `benchmarks/input_convolution.py` measures it.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from robustbench_kd.engine.passes.batchnorm_folding import has_habits, replace_part

_FEW = 4  # input channels up to which blocks pay
_FEW_STRIDED = 8  # the same for a stride above 1


def rearrange(module: nn.Module) -> None:
    """Replaces the convolutions for which it pays, in place; the others stay as they are."""
    for name, part in list(module.named_modules()):
        if type(part) is nn.Conv2d and _pays(part) and not has_habits(part):
            replace_part(module, name, InputConvolution(part))


def _pays(layer: nn.Conv2d) -> bool:
    (kernel, _), (stride, _) = layer.kernel_size, layer.stride
    sides = (layer.kernel_size, layer.stride, layer.padding)
    # Padding may have a name.
    square = all(isinstance(side, tuple) and len(set(side)) == 1 for side in sides)
    plain = layer.padding_mode == "zeros" and layer.groups == 1 and layer.dilation == (1, 1)
    few = _FEW if stride == 1 else _FEW_STRIDED
    return square and plain and kernel > 1 and layer.in_channels <= few


class InputConvolution(nn.Module):
    """A convolution with the weights of another one, constant.

    It is differentiable once, by its input `(n, c, h, w)`.

    >>> layer = nn.Conv2d(1, 2, 3, padding=1).requires_grad_(False)
    >>> InputConvolution(layer)(torch.zeros(5, 1, 8, 8)).shape
    torch.Size([5, 2, 8, 8])
    """

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.layer = layer
        self._stride, self._block = layer.stride[0], max(2, layer.stride[0])
        self._taps, self._first = _by_block(layer, self._block)

    def forward(self, images: Tensor) -> Tensor:
        """Returns what the layer returns."""
        output: Tensor = _Once.apply(images, self) if images.requires_grad else self.layer(images)
        return output

    def gradient(self, output: Tensor, height: int, width: int) -> Tensor:
        """Returns the gradient by the input `(n, c, height, width)` from that by the output."""
        block, step = self._block, self._block // self._stride
        down, across = -(-height // block), -(-width // block)
        above, reach = -self._first, self._first + self._taps.shape[3] - 1
        below = step * (down - 1) + reach - (output.shape[2] - 1)
        right = step * (across - 1) + reach - (output.shape[3] - 1)
        padding = above
        if not 0 <= above == below == right:
            output, padding = functional.pad(output, [above, right, above, below]), 0

        pixels = functional.conv2d(output, self._taps, stride=step, padding=padding)
        pixels = pixels.view(len(output), -1, block, block, down, across)
        rows = pixels.permute(0, 1, 4, 2, 5, 3)
        whole = rows.reshape(len(output), -1, down * block, across * block)
        return whole[:, :, :height, :width]


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, narrow: InputConvolution) -> Tensor:
        ctx.narrow, ctx.size = narrow, images.shape[2:]
        output: Tensor = narrow.layer(images)
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, output: Tensor) -> tuple[Tensor, None]:
        return ctx.narrow.gradient(output, *ctx.size), None


def _by_block(layer: nn.Conv2d, block: int) -> tuple[Tensor, int]:
    """Returns the weights that map gradients to blocks, and the first output.

    The weights have shape `(channels x block x block, outputs, k, k)`.

    Pixel a of block 0 is seen by output d through tap a + padding - stride d of the kernel, where
    there is such a tap.
    """
    (kernel, _), (stride, _), padding = layer.kernel_size, layer.stride, int(layer.padding[0])
    first, last = -((kernel - 1 - padding) // stride), (block - 1 + padding) // stride
    taps = torch.arange(block)[:, None] + padding - stride * torch.arange(first, last + 1)
    there = ((taps >= 0) & (taps < kernel)).to(layer.weight)
    taps = taps.clamp(0, kernel - 1)
    weight = (
        layer.weight.detach()[:, :, taps[:, :, None, None], taps] * there[:, :, None, None] * there
    )
    return weight.permute(1, 2, 4, 0, 3, 5).reshape(
        -1, len(layer.weight), taps.shape[1], taps.shape[1]
    ), first
