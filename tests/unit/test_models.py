"""Architectures: the contract every one keeps, and published sizes, names and outputs of each."""

import importlib.util
import inspect
import os
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from robustbench_kd.core.errors import UsageError
from robustbench_kd.core.plugins import components, module
from robustbench_kd.models import (
    cifar_resnet,
    mobilenet_v2,
    preact_resnet,
    resnet,
    small_cnn,
    wide_resnet,
)
from robustbench_kd.models._layers import pooled

MODELS = components("models")
DATA = os.environ.get("RKD_TEST_DATA")


def build(name, **arguments):
    """Builds an architecture by name, as published where nothing else is asked."""
    component = MODELS[name]
    return module("models", component.stem).build(**{**component.arguments, **arguments})


def build_small(name, size=16, **arguments):
    """Builds an architecture with an eighth of its width for images of one size, in eval mode, with
    seeded weights."""
    component = MODELS[name]
    accepted = inspect.signature(module("models", component.stem).build).parameters
    if "width" in accepted:
        width = component.arguments.get("width", accepted["width"].default)
        arguments["width"] = max(1, width // 8) if isinstance(width, int) else width / 8
    if "size" in accepted:
        arguments["size"] = size
    torch.manual_seed(0)
    return build(name, **arguments).eval()


def build_meta(name, **arguments):
    with torch.device("meta"):
        return build(name, **arguments)


def size_of(network):
    return sum(weight.numel() for weight in network.parameters())


def scramble(network):
    """Gives every weight and running statistic another random value, so that no layer is close to
    the identity."""
    generator = torch.Generator().manual_seed(1)
    for key, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            random = torch.randn(tensor.shape, generator=generator)
            tensor.copy_(random.abs() + 0.1 if key.endswith("running_var") else random)
    return network.eval()


def images(n=2, channels=3, size=16):
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("name", sorted(MODELS))
class TestEveryArchitecture:
    @pytest.mark.parametrize("classes", [10, 7])
    def test_gives_one_logit_per_class(self, name, classes):
        assert build_small(name, classes=classes)(images()).shape == (2, classes)

    def test_takes_grey_images_where_it_is_built_for_them(self, name):
        assert build_small(name, channels=1)(images(channels=1)).shape == (2, 10)

    @pytest.mark.parametrize("size", [8, 28, 32])
    def test_takes_other_image_sizes(self, name, size):
        assert build_small(name, size)(images(size=size)).shape == (2, 10)

    def test_passes_gradients_to_every_image(self, name):
        x = images().requires_grad_()
        build_small(name)(x).square().sum().backward()
        assert x.grad.isfinite().all()
        assert (x.grad.flatten(1).norm(dim=1) > 0).all()

    def test_judges_an_image_the_same_in_any_batch(self, name):
        network, x = build_small(name), images(3)
        alone = torch.cat([network(x[row : row + 1]) for row in range(3)])
        torch.testing.assert_close(network(x), alone, rtol=1e-4, atol=1e-5)

    def test_tells_images_apart(self, name):
        network = build_small(name)
        first, second = network(torch.cat([images(1), 1 - images(1)]))
        assert not torch.allclose(first, second)


@pytest.mark.parametrize(
    ("name", "arguments", "parameters"),
    [
        ("resnet18", {}, 11_173_962),
        ("resnet18", {"classes": 100}, 11_220_132),
        ("resnet34", {}, 21_282_122),
        ("resnet50", {}, 23_520_842),
        ("resnet20", {}, 269_722),
        ("resnet32", {}, 464_154),
        ("resnet44", {}, 658_586),
        ("resnet56", {}, 853_018),
        ("preact_resnet18", {}, 11_171_146),
        ("preact_resnet18", {"final_bn": True}, 11_172_170),
        ("wide_resnet_28_10", {}, 36_479_194),
        ("wide_resnet_34_10", {}, 46_160_474),
        ("wide_resnet_34_10", {"sub_block1": True}, 48_262_586),
        ("wide_resnet_34_20", {}, 184_531_674),
        ("mobilenet_v2", {}, 2_296_922),
    ],
)
def test_the_parameter_count_is_the_published_one(name, arguments, parameters):
    assert size_of(build_meta(name, **arguments)) == parameters


@pytest.mark.parametrize(
    ("name", "present", "absent"),
    [
        (
            "resnet18",
            "conv1 bn1 layer1.1.conv2 layer2.0.shortcut.0 layer2.0.shortcut.1 linear",
            "layer1.0.shortcut.0",
        ),
        (
            "resnet50",
            "layer1.0.shortcut.0 layer1.0.conv3 layer3.5.bn3 layer4.2.bn3",
            "layer1.1.shortcut.0",
        ),
        ("resnet56", "conv1 bn1 layer1.8.conv1 layer3.8.bn2 linear", "layer2.0.shortcut.0"),
        (
            "preact_resnet18",
            "conv1 layer1.0.bn1 layer4.1.conv2 layer2.0.shortcut.0 linear",
            "bn bn1 layer2.0.shortcut.1",
        ),
        (
            "wide_resnet_34_10",
            "conv1 block1.layer.0.convShortcut block2.layer.4.bn2 block3.layer.0.conv1 bn1 fc",
            "block1.layer.1.convShortcut sub_block1.layer.0.bn1",
        ),
        (
            "mobilenet_v2",
            (
                "conv1 bn1 layers.0.shortcut.0 layers.0.shortcut.1 layers.16.conv3 layers.16.bn3 "
                "conv2 bn2 linear"
            ),
            "layers.2.shortcut.0 layers.3.shortcut.0 layers.17.conv1",
        ),
    ],
)
def test_parameters_have_the_published_names(name, present, absent):
    keys = set(build_meta(name).state_dict())
    assert {f"{layer}.weight" for layer in present.split()} <= keys
    assert keys.isdisjoint({f"{layer}.weight" for layer in absent.split()})


@pytest.mark.parametrize(
    ("name", "last", "side"),
    [
        ("resnet18", "layer4", 4),
        ("resnet20", "layer3", 8),
        ("preact_resnet18", "layer4", 4),
        ("wide_resnet_28_10", "block3", 8),
        ("mobilenet_v2", "bn2", 4),
    ],
)
def test_the_last_feature_map_has_the_size_of_the_published_pooling(name, last, side):
    network, sides = build_small(name), []
    network.get_submodule(last).register_forward_hook(
        lambda _, __, output: sides.append(output.shape[2:])
    )
    network(images(size=32))
    assert sides == [(side, side)]


@pytest.mark.parametrize(
    ("name", "head", "arguments"),
    [
        ("resnet18", "linear", {}),
        ("preact_resnet18", "linear", {"final_bn": True}),
        ("wide_resnet_28_10", "fc", {}),
        ("mobilenet_v2", "linear", {}),
    ],
)
def test_the_features_are_activated_before_they_are_pooled(name, head, arguments):
    network, lowest = scramble(build_small(name, **arguments)), []
    network.get_submodule(head).register_forward_pre_hook(
        lambda _, inputs: lowest.append(inputs[0].min().item())
    )
    network(images())
    assert lowest[0] >= 0


@pytest.mark.parametrize("side", [4, 8])
def test_pooling_equals_the_published_window_bit_for_bit(side):
    features = images(3, channels=6, size=side)
    assert torch.equal(pooled(features), functional.avg_pool2d(features, side).flatten(1))


def test_resnet_agrees_with_the_published_network_on_its_weights_bit_for_bit():
    """The weights and the network that ship with the reference attack package."""
    published = pytest.importorskip("pyautoattack.examples.resnet").ResNet18().eval()
    weights = resources.files("pyautoattack.examples") / "model_test.pt"
    published.load_state_dict(torch.load(str(weights), weights_only=True, map_location="cpu"))
    network = build("resnet18").eval()
    network.load_state_dict(published.state_dict())
    x = images(size=32)
    assert torch.equal(network(x), published(x))


def test_bottlenecks_agree_with_the_published_network_bit_for_bit():
    published = pytest.importorskip("pyautoattack.examples.resnet")
    expected = scramble(published.Bottleneck(8, 4, 2))
    block = resnet.Bottleneck(8, 4, 2).eval()
    block.load_state_dict(expected.state_dict())
    x = images(channels=8, size=6)
    assert torch.equal(block(x), expected(x))


@pytest.mark.data
@pytest.mark.skipif(
    DATA is None, reason="RKD_TEST_DATA does not name the folder of real images and checkpoints"
)
def test_cifar_resnet_agrees_with_a_published_checkpoint_bit_for_bit():
    folder = Path(DATA)
    spec = importlib.util.spec_from_file_location("real_models", folder / "real_models.py")
    real = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(real)
    wrapped = torch.load(
        folder / "models" / "resnet20-12fca82f.th", weights_only=True, map_location="cpu"
    )["state_dict"]
    weights = {key.removeprefix("module."): value for key, value in wrapped.items()}
    published, network = real.resnet20().eval(), build("resnet20").eval()
    published.load_state_dict(weights)
    network.load_state_dict(weights)
    with np.load(folder / "cifar10_test_1000.npz") as archive:
        pixels, labels = archive["images"][:200], archive["labels"][:200]
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.inference_mode():
        logits = network((x - mean.view(3, 1, 1)) / std.view(3, 1, 1))
        assert torch.equal(logits, published(x))
    assert (logits.argmax(1).numpy() == labels).mean() > 0.88


def test_the_small_resnet_pads_new_channels_with_zeros_on_both_sides():
    block = cifar_resnet.BasicBlock(4, 8, 2).eval()
    nn.init.zeros_(block.bn2.weight)
    x = images(channels=4, size=6)
    expected = torch.zeros(2, 8, 3, 3)
    expected[:, 2:6] = x[:, :, ::2, ::2]
    assert torch.equal(block(x), expected)


@pytest.mark.parametrize("activated", [True, False])
def test_the_shortcut_of_a_preactivation_block_sees_what_its_form_says(activated):
    block = scramble(preact_resnet.PreActBlock(3, 4, 2, activated))
    x = images(size=6) - 0.5
    first = functional.relu(block.bn1(x))
    inner = block.conv2(functional.relu(block.bn2(block.conv1(first))))
    expected = block.shortcut[0](first if activated else x) + inner
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize("activated", [True, False])
def test_the_identity_of_a_preactivation_block_is_the_raw_input(activated):
    block = preact_resnet.PreActBlock(3, 3, 1, activated).eval()
    nn.init.zeros_(block.conv2.weight)
    x = images(size=6) - 0.5
    assert torch.equal(block(x), x)


def test_the_final_normalisation_of_preact_resnet_is_the_only_new_name():
    plain, final = (
        set(preact_resnet.build(width=8, final_bn=bn).state_dict()) for bn in (False, True)
    )
    assert {key.rpartition(".")[0] for key in final - plain} == {"bn"}
    assert plain <= final


def test_a_wide_block_that_changes_shape_feeds_its_shortcut_the_activated_input():
    block = scramble(wide_resnet.WideBlock(3, 4, 2))
    x = images(size=6) - 0.5
    first = functional.relu(block.bn1(x))
    inner = block.conv2(functional.relu(block.bn2(block.conv1(first))))
    torch.testing.assert_close(block(x), block.convShortcut(first) + inner)


def test_a_wide_block_that_keeps_shape_adds_the_raw_input():
    block = wide_resnet.WideBlock(3, 3, 1).eval()
    nn.init.zeros_(block.conv2.weight)
    x = images(size=6) - 0.5
    assert torch.equal(block(x), x)


def test_sub_block1_has_the_names_of_the_first_group_and_is_never_used():
    network = wide_resnet.build(depth=10, width=1, sub_block1=True).eval()
    keys = {
        key.removeprefix("sub_block1.")
        for key in network.state_dict()
        if key.startswith("sub_block1.")
    }
    assert keys == set(network.block1.state_dict())
    before = network(images())
    for parameter in network.sub_block1.parameters():
        nn.init.constant_(parameter, float("nan"))
    after = network(images())
    after.sum().backward()
    assert torch.equal(before, after)
    assert all(parameter.grad is None for parameter in network.sub_block1.parameters())


@pytest.mark.parametrize(
    ("inputs", "outputs", "stride", "keys"), [(4, 4, 1, 0), (4, 8, 1, 2), (4, 4, 2, 0)]
)
def test_an_inverted_residual_has_a_shortcut_at_stride_1_only(inputs, outputs, stride, keys):
    block = mobilenet_v2.InvertedResidual(inputs, outputs, 2, stride).eval()
    nn.init.zeros_(block.bn3.weight)
    x = images(channels=inputs, size=6)
    expected = block.shortcut(x) if stride == 1 else torch.zeros(2, outputs, 3, 3)
    assert torch.equal(block(x), expected)
    assert len(block.shortcut) == keys


def test_an_inverted_residual_activates_twice_and_ends_linear():
    block = scramble(mobilenet_v2.InvertedResidual(3, 4, 2, 2))
    x = images(size=6) - 0.5
    widened = functional.relu(block.bn1(block.conv1(x)))
    filtered = functional.relu(block.bn2(block.conv2(widened)))
    torch.testing.assert_close(block(x), block.bn3(block.conv3(filtered)))
    assert block.conv2.groups == 6


def test_narrow_mobile_nets_keep_the_last_convolution_wide():
    network = mobilenet_v2.build(width=0.5)
    assert (network.conv1.out_channels, network.layers[-1].conv3.out_channels) == (16, 160)
    assert network.linear.in_features == 1280


@pytest.mark.parametrize(("width", "limit"), [(12, 40_000), (32, 240_000)])
def test_small_networks_for_digits_are_small(width, limit):
    assert size_of(small_cnn.build(channels=1, size=8, width=width)) < limit


@pytest.mark.parametrize(("size", "convolutions"), [(8, 3), (28, 5), (32, 5)])
def test_the_small_network_halves_images_down_to_four_pixels(size, convolutions):
    network = small_cnn.build(size=size, width=4)
    assert sum(isinstance(layer, nn.Conv2d) for layer in network) == convolutions
    assert next(layer for layer in network if isinstance(layer, nn.Linear)).in_features == 8 * 4 * 4


def test_wide_networks_start_with_the_published_deviations():
    torch.manual_seed(0)
    network = wide_resnet.build(depth=10, width=2)
    assert network.block3.layer[0].conv2.weight.std().item() == pytest.approx(
        (2 / (9 * 128)) ** 0.5, rel=0.02
    )
    assert not network.fc.bias.any()


def test_small_resnets_start_with_the_published_deviations():
    torch.manual_seed(0)
    convolution = cifar_resnet.build(depth=8).layer3[0].conv1
    assert convolution.weight.std().item() == pytest.approx((2 / (9 * 32)) ** 0.5, rel=0.02)


@pytest.mark.parametrize(
    ("make", "depth", "hint"),
    [
        (resnet.build, 20, "18, 34 or 50"),
        (cifar_resnet.build, 18, "6n \\+ 2"),
        (wide_resnet.build, 30, "6n \\+ 4"),
    ],
)
def test_an_impossible_depth_names_the_possible_ones(make, depth, hint):
    with pytest.raises(UsageError, match=hint):
        make(depth=depth)
