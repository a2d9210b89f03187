"""Convolutions of few channels.

The same answers to the last bit, the same gradients up to rounding.
"""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from robustbench_kd.engine.passes.input_convolution import InputConvolution, rearrange
from robustbench_kd.engine.passes.speedups import Speedups, search_model

sides = st.integers(1, 13)


def convolution(channels, outputs, kernel, stride, padding, **others):
    torch.manual_seed(0)
    return (
        nn.Conv2d(channels, outputs, kernel, stride, padding, **others)
        .double()
        .requires_grad_(False)
    )


def answered(layer, images):
    images = images.clone().requires_grad_()
    output = layer(images)
    weights = torch.randn(
        output.shape, generator=torch.Generator().manual_seed(2), dtype=output.dtype
    )
    (gradient,) = torch.autograd.grad(output, images, weights)
    return output, gradient


@given(
    st.integers(1, 8),
    st.integers(1, 5),
    st.integers(1, 6),
    st.integers(1, 4),
    st.integers(0, 5),
    sides,
    sides,
)
@settings(max_examples=200, deadline=None)
def test_it_says_what_the_layer_says_whatever_the_shapes(
    channels, outputs, kernel, stride, padding, height, width
):
    assume(min(height, width) + 2 * padding >= kernel)
    layer, images = (
        convolution(channels, outputs, kernel, stride, padding),
        torch.rand(3, channels, height, width).double(),
    )
    (output, gradient), (expected, slope) = (
        answered(InputConvolution(layer), images),
        answered(layer, images),
    )
    assert torch.equal(output, expected)
    assert gradient.shape == slope.shape
    assert torch.allclose(gradient, slope, rtol=0, atol=1e-12)


def test_without_gradient_it_is_the_layer_itself():
    layer, images = convolution(3, 4, 3, 1, 1), torch.rand(2, 3, 8, 8).double()
    assert torch.equal(InputConvolution(layer)(images), layer(images))


def test_a_second_derivative_is_refused():
    images = torch.rand(2, 1, 8, 8, dtype=torch.double, requires_grad=True)
    (gradient,) = torch.autograd.grad(
        InputConvolution(convolution(1, 2, 3, 1, 1))(images).square().sum(),
        images,
        create_graph=True,
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


PAYS = {
    "a first layer": convolution(3, 16, 3, 1, 1),
    "a grey one": convolution(1, 6, 5, 1, 2),
    "with a stride": convolution(8, 16, 3, 2, 1),
    "patches": convolution(3, 16, 4, 4, 0),
}
DOES_NOT = {
    "many channels": convolution(16, 16, 3, 1, 1),
    "many channels and a stride": convolution(16, 32, 3, 2, 1),
    "single pixels": convolution(3, 16, 1, 1, 0),
    "groups": convolution(4, 4, 3, 1, 1, groups=4),
    "gaps": convolution(3, 4, 3, 1, 1, dilation=2),
    "unequal sides": convolution(3, 4, (3, 5), 1, 1),
    "another border": convolution(3, 4, 3, 1, 1, padding_mode="reflect"),
    "padding by name": convolution(3, 4, 3, 1, "same"),
    "a class of its own": type("Own", (nn.Conv2d,), {})(3, 4, 3, padding=1),
}


@pytest.mark.parametrize("layer", PAYS.values(), ids=PAYS)
def test_where_it_pays_a_layer_is_replaced(layer):
    network = nn.Sequential(layer, nn.ReLU())
    rearrange(network)
    assert isinstance(network[0], InputConvolution)


@pytest.mark.parametrize("layer", DOES_NOT.values(), ids=DOES_NOT)
def test_every_other_layer_stays(layer):
    network = nn.Sequential(layer, nn.ReLU())
    rearrange(network)
    assert network[0] is layer


def test_a_layer_with_a_hook_stays():
    layer = convolution(3, 4, 3, 1, 1)
    layer.register_forward_hook(lambda _module, _given, output: 2 * output)
    network = nn.Sequential(layer)
    rearrange(network)
    assert network[0] is layer


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), nn.Flatten(), nn.Linear(128, 3)
    ).requires_grad_(False)


def has_narrow(speedups, device="cpu"):
    """Whether a search under these levers goes through `InputConvolution`, seen in the graph of its
    answer."""
    ask = search_model(
        network(), torch.device(device), speedups, size=4, probe=torch.rand(2, 1, 8, 8)
    )
    node, names = ask(torch.rand(2, 1, 8, 8, requires_grad=True)).grad_fn, []
    while node:
        names.append(node.name())
        node = next(
            (
                before
                for before, _ in node.next_functions
                if before and "Accumulate" not in before.name()
            ),
            None,
        )
    return any("Once" in name for name in names)


def test_a_search_in_fp32_on_a_cpu_goes_through_it():
    assert has_narrow(Speedups(fold=True))


@pytest.mark.parametrize(
    "speedups", [Speedups(), Speedups("bf16", fold=True), Speedups(fold=True, channels_last=True)]
)
def test_no_other_search_does(speedups):
    assert not has_narrow(speedups)
