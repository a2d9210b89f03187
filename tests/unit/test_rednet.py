"""Involution against a loop over pixels, and the published sizes of RedNet."""

import pytest
import torch
from torch.nn import functional

from robustbench_kd.core.errors import UsageError
from robustbench_kd.models import rednet
from robustbench_kd.models._involution import Involution


def by_hand(layer, x):
    """The sum of the paper, pixel by pixel and channel by channel."""
    n, channels, height, width = x.shape
    reach, stride, groups = layer.kernel // 2, layer.stride, layer.groups
    pooled = functional.avg_pool2d(x, stride, ceil_mode=True) if stride > 1 else x
    y = torch.zeros(n, channels, *pooled.shape[2:], dtype=x.dtype)
    for image in range(n):
        for i in range(y.shape[2]):
            for j in range(y.shape[3]):
                pixel = pooled[image, :, i, j][None, :, None, None]
                kernel = layer.span(functional.relu(layer.bn(layer.reduce(pixel)))).flatten()
                for c in range(channels):
                    own = kernel.view(groups, layer.kernel, layer.kernel)[c // (channels // groups)]
                    for u in range(-reach, reach + 1):
                        for v in range(-reach, reach + 1):
                            row, column = stride * i + u, stride * j + v
                            if 0 <= row < height and 0 <= column < width:
                                y[image, c, i, j] += (
                                    own[u + reach, v + reach] * x[image, c, row, column]
                                )
    return y


@pytest.mark.parametrize(
    ("channels", "kernel", "stride", "shape"),
    [
        (32, 3, 1, (4, 5)),
        (4, 7, 1, (3, 3)),
        (4, 3, 2, (4, 6)),
        (4, 3, 2, (5, 3)),
        (2, 3, 3, (4, 4)),
    ],
)
@torch.no_grad()
def test_involution_equals_a_loop_over_pixels(channels, kernel, stride, shape):
    layer = Involution(channels, kernel, stride).double().eval()
    layer.bn.running_mean.normal_()
    layer.bn.running_var.uniform_(0.5, 2)
    x = torch.randn(2, channels, *shape, dtype=torch.float64)
    torch.testing.assert_close(layer(x), by_hand(layer, x))


def test_channels_of_a_group_share_their_kernels():
    layer = Involution(32, 3).eval()
    x = torch.rand(1, 1, 5, 5).expand(1, 32, 5, 5)
    y = layer(x)
    torch.testing.assert_close(y[:, :16], y[:, :1].expand(1, 16, 5, 5))
    torch.testing.assert_close(y[:, 16:], y[:, 16:17].expand(1, 16, 5, 5))
    assert not torch.allclose(y[:, 0], y[:, 16])


def test_channels_that_cannot_be_grouped_are_refused():
    with pytest.raises(
        UsageError, match="expected channels of an involution that are multiples of 16, got 50"
    ):
        Involution(50, 3)


@pytest.mark.parametrize(("depth", "millions"), [(26, 9.23), (38, 12.39), (50, 15.54)])
def test_parameters_are_the_published_ones_for_a_thousand_classes(depth, millions):
    with torch.device("meta"):
        network = rednet.build(depth=depth, classes=1000)
    assert round(sum(weight.numel() for weight in network.parameters()) / 1e6, 2) == millions


@pytest.mark.parametrize(
    ("depth", "blocks"), [(26, (1, 2, 4, 1)), (38, (2, 3, 5, 2)), (50, (3, 4, 6, 3))]
)
def test_the_depth_counts_layers(depth, blocks):
    with torch.device("meta"):
        network = rednet.build(depth=depth)
    stages = (network.layer1, network.layer2, network.layer3, network.layer4)
    assert tuple(map(len, stages)) == blocks
    assert 3 * sum(blocks) + 2 == depth


def test_stages_halve_the_image_from_the_second_on():
    network, sides = rednet.build(width=8).eval(), []
    for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
        stage.register_forward_hook(lambda _, __, output: sides.append(output.shape[2]))
    network(torch.rand(1, 3, 32, 32))
    assert sides == [32, 16, 8, 4]


def test_an_impossible_depth_names_the_possible_ones():
    with pytest.raises(UsageError, match="expected a RedNet of depth 26, 38 or 50, got 101"):
        rednet.build(depth=101)
