"""Adds noise, removes it, then classifies (De^3, You et al. 2023).

Source: "Beyond Pretrained Features: Noisy Image Modeling Provides Adversarial Defense", NeurIPS
2023, arXiv 2302.01056: the image is degraded by Gaussian noise, reconstructed by an auto-encoder
that learned to remove it, and classified. The paper's auto-encoder is a masked-autoencoder
transformer; here it is a small convolutional one, and its only input is the noisy image.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from robustbench_kd.defences._arguments import (
    only_part,
    require_flag,
    require_number,
    require_whole,
)
from robustbench_kd.defences._defence import Defence, Sampled
from robustbench_kd.defences._gradients import with_gradient_of
from robustbench_kd.defences._surfaces import backbone, expected, gaussian, shared_noise
from robustbench_kd.tensors.contracts import Images, Logits
from robustbench_kd.tensors.defence import Key, Surface


class AutoEncoder(nn.Module):
    """Convolutions down to half the resolution and back, without skip connections."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            *_layer(channels, width),
            *_layer(width, 2 * width, stride=2),
            *_layer(2 * width, 2 * width),
        )
        last = nn.Conv2d(width, channels, 3, padding=1)
        # Grey: clipped pixels would have no gradient to learn from.
        nn.init.constant_(last.get_parameter("bias"), 0.5)
        self.decoder = nn.Sequential(*_layer(2 * width, width), last)

    def forward(self, noisy: Tensor) -> Tensor:
        """Maps noisy images `(n, c, h, w)` to clean ones; sides may be odd."""
        code = self.encoder(noisy)
        enlarged = functional.interpolate(
            code, size=noisy.shape[2:], mode="bilinear", align_corners=False
        )
        clean: Tensor = self.decoder(enlarged)
        return clean


class Denoising(Defence):
    """A denoiser before one part, and the size of the noise, which both kinds share."""

    def __init__(self, part: nn.Module, denoiser: AutoEncoder, sigma: float) -> None:
        super().__init__([part])
        self.denoiser = denoiser
        self.sigma = sigma

    def reconstruct(self, noisy: Images) -> Images:
        """Returns the denoised images, not yet clipped; training compares these."""
        clean: Images = self.denoiser(noisy)
        return clean

    def answer(self, images: Images, noise: Tensor, *, straight: bool = False) -> Logits:
        """Returns the logits of the denoised images, clipped to [0, 1].

        The noise is in standard deviations, of the images' shape. Clipping has no gradient beyond
        the box; with `straight` the gradient is that of the part, taken at the denoised images.
        """
        clean = self.reconstruct(images + self.sigma * noise).clamp(0, 1)
        if straight:
            clean = with_gradient_of(clean, images)
        logits: Logits = self.part(clean)
        return logits


class FreshNoise(Denoising, Sampled):
    """Every draw has noise of its own, which the attacker cannot know."""

    def draw(self, images: Images, key: Key) -> Logits:
        """Returns the logits `(n, classes)` of one draw of each row."""
        return self.answer(images, gaussian(images, key))

    def surfaces(self) -> Sequence[Surface]:
        """Returns the part, fixed noise, and ten draws with and without the denoiser's gradient."""
        return [
            backbone(self.part),
            shared_noise(self.draw),
            expected(self.draw),
            expected(self._straight, "expected-straight-through"),
        ]

    def _straight(self, images: Images, key: Key) -> Logits:
        return self.answer(images, gaussian(images, key), straight=True)


class KnownNoise(Denoising):
    """Every image gets the same noise at every call, and the attacker knows it."""

    def forward(self, images: Images) -> Logits:
        """Maps images `(n, c, h, w)` in [0, 1] to logits `(n, classes)`."""
        return self.answer(images, _constant_noise(images))

    def surfaces(self) -> Sequence[Surface]:
        """Returns the part, and the defence without the gradient of the denoiser."""
        straight = Surface(
            name="straight-through",
            answer=lambda images, _key: self._straight(images),
            same_outputs=True,
        )
        return [backbone(self.part), straight]

    def _straight(self, images: Images) -> Logits:
        return self.answer(images, _constant_noise(images), straight=True)


def assemble(
    parts: Sequence[nn.Module],
    *,
    shape: tuple[int, int, int],
    width: int = 32,
    sigma: float = 0.1,
    known: bool = False,
) -> nn.Module:
    """Returns one part behind a denoiser, whose random weights come from torch's global generator.

    Args:
        parts: The classifier.
        shape: Channels, height and width of the images; only the channels matter.
        width: Channels of the first convolution; at half the resolution there are twice as many.
        sigma: Standard deviation of the noise, in pixels of [0, 1].
        known: Whether the noise is a constant, which makes the defence deterministic.

    Raises:
        UsageError: If an argument is impossible.
    """
    part = only_part(parts, "denoiser")
    require_whole("width", width, 1)
    require_number("sigma", sigma, 0, 10)
    require_flag("known", known)
    kind = KnownNoise if known else FreshNoise
    return kind(part, AutoEncoder(shape[0], width), sigma)


def _constant_noise(images: Images) -> Tensor:
    """Returns the same noise `(1, c, h, w)` at every call."""
    zero = torch.zeros(1, dtype=torch.int64, device=images.device)
    return gaussian(images[:1], Key(0, "denoiser", ids=zero, draw=zero))


def _layer(inputs: int, outputs: int, *, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, stride, padding=1), nn.ReLU()]
