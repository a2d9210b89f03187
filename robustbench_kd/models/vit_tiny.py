"""A tiny vision transformer for 8x8 to 32x32 images, with optional distillation tokens."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from robustbench_kd.core.errors import UsageError


def build(
    *,
    classes: int = 10,
    channels: int = 3,
    size: int = 32,
    patch: int = 0,
    width: int = 192,
    depth: int = 12,
    heads: int = 3,
    distillation_tokens: int = 0,
) -> nn.Module:
    """Returns a ViT with learned positions, pre-normalised blocks and the size of DeiT-Ti.

    Each distillation token has a head of its own; the answer is the mean of all heads, and the
    module `heads` shows them apart, `(n, 1 + distillation_tokens, classes)`, the class token's
    first. With two tokens for 32x32 images and 10 classes there are 5,367,390 parameters.

    Args:
        classes: Number of logits.
        channels: Channels of the image.
        size: Side of the square images in pixels.
        patch: Side of a patch in pixels; 0 takes the divisor of `size` nearest to 4, for images
            below 24 pixels to 2.
        width: Length of a token, a multiple of `heads`.
        depth: Number of blocks.
        heads: Heads of attention in a block.
        distillation_tokens: Tokens besides the class token; 1 as in DeiT, 2 for the convolution and
            the involution token.

    Raises:
        UsageError: If the image is no whole number of patches, or the width no multiple of the
            heads.

    Source: Dosovitskiy et al. 2021, arXiv 2010.11929; Touvron et al. 2021 (DeiT), arXiv 2012.12877;
    Ren et al. 2022 (Co-advise), arXiv 2106.12378, for two tokens and the mean of the heads.
    Parameter names are our own.
    """
    side = patch or _usual_patch(size)
    if size % side:
        raise UsageError(
            f"expected a patch that divides the image's side of {size} pixels, got {side}"
        )
    if width % heads:
        raise UsageError(f"expected a width that is a multiple of the {heads} heads, got {width}")
    patches = nn.Conv2d(channels, width, side, side)
    blocks = [Block(width, heads) for _ in range(depth)]
    return VisionTransformer(
        patches, (size // side) ** 2, blocks, Heads(width, classes, 1 + distillation_tokens)
    )


class Block(nn.Module):
    """Attention and a perceptron, each after its normalisation and beside a shortcut.

    The perceptron has two layers and four times the width.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Returns tokens `(n, tokens, width)`."""
        tokens = tokens + self.proj(self._attended(self.norm1(tokens)))
        mixed: Tensor = tokens + self.mlp(self.norm2(tokens))
        return mixed

    def _attended(self, tokens: Tensor) -> Tensor:
        query, key, value = (
            self.qkv(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        )
        return functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


class Heads(nn.Module):
    """One linear layer for each token."""

    def __init__(self, width: int, classes: int, tokens: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, classes) for _ in range(tokens))

    def forward(self, tokens: Tensor) -> Tensor:
        """Returns logits `(n, tokens, classes)` of tokens `(n, tokens, width)`."""
        pairs = zip(self.layers, tokens.unbind(dim=1), strict=True)
        return torch.stack([layer(token) for layer, token in pairs], dim=1)


class VisionTransformer(nn.Module):
    """Patches and tokens with their positions, blocks, a normalisation and the heads."""

    def __init__(self, patches: nn.Conv2d, count: int, blocks: list[Block], heads: Heads) -> None:
        super().__init__()
        width, tokens = patches.out_channels, len(heads.layers)
        self.patches = patches
        self.tokens = nn.Parameter(torch.zeros(1, tokens, width))
        self.positions = nn.Parameter(torch.zeros(1, tokens + count, width))
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.heads = heads
        nn.init.trunc_normal_(self.tokens, std=0.02)
        nn.init.trunc_normal_(self.positions, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits `(n, classes)` of normalised images `(n, channels, h, w)`."""
        patches = self.patches(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.tokens.expand(len(images), -1, -1), patches], dim=1)
        tokens = self.norm(self.blocks(tokens + self.positions))
        logits: Tensor = self.heads(tokens[:, : self.tokens.shape[1]]).mean(dim=1)
        return logits


def _usual_patch(size: int) -> int:
    goal = 4 if size >= 24 else 2
    near = range(1, min(size, 2 * goal) + 1)  # 1 divides every size, so no other one is nearer
    return min((side for side in near if size % side == 0), key=lambda side: abs(side - goal))
