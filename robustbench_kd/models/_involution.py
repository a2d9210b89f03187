"""Involution (Li et al. 2021): each pixel has its own kernel, shared by a group of channels."""

from torch import Tensor, nn
from torch.nn import functional

from robustbench_kd.core.errors import UsageError
from robustbench_kd.models._layers import convolution

_GROUP = 16  # channels that share a kernel
_REDUCTION = 4


class Involution(nn.Module):
    """Weighs the window around each pixel by a kernel that the pixel itself defines.

    Two 1x1 convolutions compute the kernel.

    Y_c(i, j) = sum over (u, v) of H_g(c)(i, j, u, v) X_c(i + u, j + v) with H =
    span(relu(bn(reduce(X)))), padded with zeros; at a stride, X is pooled to the size of Y before
    it makes kernels. Narrow layers of fewer than 16 channels have one group. Images need not be
    multiples of the stride.

    Raises:
        UsageError: If the channels are no whole number of groups.

    Source: arXiv 2103.06255, section 3; d-li14/involution `cls/mmcls/models/backbones/rednet.py`
    (commit c1f7936).
    """

    def __init__(self, channels: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.groups = max(1, channels // _GROUP)
        if channels % self.groups:
            raise UsageError(
                f"expected channels of an involution that are multiples of {_GROUP}, got {channels}"
            )
        self.kernel, self.stride = kernel, stride
        inner = max(1, channels // _REDUCTION)
        self.reduce = convolution(channels, inner, 1)
        self.bn = nn.BatchNorm2d(inner)
        self.span = nn.Conv2d(inner, kernel**2 * self.groups, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Returns features `(n, channels, h / stride, w / stride)`, rounded up."""
        pooled = x if self.stride == 1 else functional.avg_pool2d(x, self.stride, ceil_mode=True)
        kernels: Tensor = self.span(functional.relu(self.bn(self.reduce(pooled))))
        n, channels, (height, width) = len(x), x.shape[1], pooled.shape[2:]
        windows = functional.unfold(x, self.kernel, padding=self.kernel // 2, stride=self.stride)
        split = windows.view(n, self.groups, channels // self.groups, self.kernel**2, height, width)
        weighed = split * kernels.view(n, self.groups, 1, self.kernel**2, height, width)
        return weighed.sum(dim=3).view(n, channels, height, width)
