"""The tiny ViT: sizes, tokens and heads, and an answer written out by hand."""

import pytest
import torch
from torch.nn import functional

from robustbench_kd.core.errors import UsageError
from robustbench_kd.models import vit_tiny


def build(**arguments):
    torch.manual_seed(0)
    return vit_tiny.build(
        **{"width": 12, "depth": 2, "size": 8, "channels": 1, "classes": 5, **arguments}
    ).eval()


def size_of(network):
    return sum(weight.numel() for weight in network.parameters())


def test_parameters_are_those_of_deit_tiny_for_small_images():
    """Per block 12 w^2 + 13 w.

    Patches, positions, tokens, the last normalisation and the heads around them.
    """
    w, blocks = 192, 12 * (12 * 192**2 + 13 * 192)
    with torch.device("meta"):
        for tokens in (0, 2):
            around = (
                (48 * w + w)
                + (64 + 1 + tokens) * w
                + (1 + tokens) * w
                + 2 * w
                + (1 + tokens) * 10 * (w + 1)
            )
            assert size_of(vit_tiny.build(distillation_tokens=tokens)) == blocks + around
    assert blocks + around == 5_367_390


@pytest.mark.parametrize(
    ("size", "patch", "tokens"),
    [
        (8, 0, 16),
        (16, 0, 64),
        (24, 0, 36),
        (28, 0, 49),
        (32, 0, 64),
        (30, 0, 100),
        (13, 0, 169),
        (32, 8, 16),
    ],
)
def test_the_patch_follows_the_image(size, patch, tokens):
    assert build(size=size, patch=patch).positions.shape[1] == tokens + 1


@pytest.mark.parametrize("tokens", [0, 1, 2])
def test_the_answer_is_the_mean_of_the_heads(tokens):
    network, seen = build(distillation_tokens=tokens), []
    network.heads.register_forward_hook(lambda _, __, output: seen.append(output))
    logits = network(torch.rand(3, 1, 8, 8))
    assert seen[0].shape == (3, 1 + tokens, 5)
    torch.testing.assert_close(logits, seen[0].mean(dim=1))


def test_every_head_reads_a_token_of_its_own():
    network = build(distillation_tokens=2)
    tokens = torch.rand(3, 3, 12)
    before = network.heads(tokens)
    changed = tokens.clone()
    changed[:, 1] += 1
    after = network.heads(changed)
    assert torch.equal(after[:, [0, 2]], before[:, [0, 2]])
    assert not torch.allclose(after[:, 1], before[:, 1])


def test_positions_tell_patches_apart():
    network = build()
    torch.nn.init.normal_(network.positions)
    image = torch.rand(1, 1, 8, 8)
    swapped = torch.cat([image[..., 4:], image[..., :4]], dim=-1)
    assert not torch.allclose(network(image), network(swapped), atol=1e-4)
    torch.nn.init.zeros_(network.positions)
    torch.testing.assert_close(network(image), network(swapped), rtol=1e-4, atol=1e-5)


def test_attention_is_the_softmax_of_scaled_products():
    block = vit_tiny.Block(12, 3).double()
    x = torch.rand(2, 5, 12, dtype=torch.float64)
    query, key, value = block.qkv(block.norm1(x)).chunk(3, dim=2)
    parts = []
    for head in range(3):
        part = slice(4 * head, 4 * head + 4)
        weights = (query[..., part] @ key[..., part].transpose(1, 2) / 2).softmax(dim=2)
        parts.append(weights @ value[..., part])
    y = x + block.proj(torch.cat(parts, dim=2))
    hidden = functional.gelu(block.mlp[0](block.norm2(y)))
    torch.testing.assert_close(block(x), y + block.mlp[2](hidden))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"size": 30, "patch": 4},
            "expected a patch that divides the image's side of 30 pixels, got 4",
        ),
        ({"width": 16}, "expected a width that is a multiple of the 3 heads, got 16"),
    ],
)
def test_impossible_sizes_are_refused(arguments, message):
    with pytest.raises(UsageError, match=message):
        build(**arguments)
