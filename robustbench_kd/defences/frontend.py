"""A front end with a skip connection before a frozen backbone (Boytsov et al. 2025).

Source: "A Curious Case of Remarkable Resilience to Gradient Attacks via Fully Convolutional and
Differentiable Front End with a Skip Connection", arXiv 2402.17018. Layers and initialisation follow
`bcai_art/models/dncnn.py` of boschresearch/bcai_art at 4ab5cc8; here the front end stands before
the normalisation of the backbone instead of after it, and scales the pixels itself. Deep front ends
mask the gradients of the backbone, trained or not.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from robustbench_kd.core.errors import ModelError
from robustbench_kd.defences._arguments import (
    only_part,
    require_choice,
    require_number,
    require_whole,
)
from robustbench_kd.defences._batches import spread
from robustbench_kd.defences._defence import Defence
from robustbench_kd.defences._gradients import with_gradient_of
from robustbench_kd.defences._reversal import Reversal
from robustbench_kd.defences._surfaces import backbone
from robustbench_kd.tensors.contracts import Images, Labels, Logits
from robustbench_kd.tensors.defence import Surface

_CENTRE, _SCALE = 0.5, 0.25
_CALIBRATION, _PIECES = 400, 4
_DAMPING = (0.03, 0.1)
_STAGES = 5


class UNet(nn.Module):
    """Convolutions at full, half and quarter resolution and back, with skips that add."""

    def __init__(self, channels: int, depth: int, width: int) -> None:
        super().__init__()
        each, rest = divmod(depth - 2, _STAGES)
        self.first = nn.Sequential(*_first(channels, width))
        self.fine = _stage(each, width)
        self.middle = _stage(each, width)
        self.bottom = _stage(each + rest, width)
        self.middle_up = _stage(each, width)
        self.fine_up = _stage(each, width)

    def forward(self, images: Tensor) -> Tensor:
        """Maps images `(n, c, h, w)` to features `(n, width, h, w)`; sides may be odd."""
        fine = self.fine(self.first(images))
        middle = self.middle(_halved(fine))
        below = self.bottom(_halved(middle))
        raised = self.middle_up(middle + _raised(below, middle))
        features: Tensor = self.fine_up(fine + _raised(raised, fine))
        return features


class FrontEnd(Defence):
    """Answers with `backbone(x - 0.25 h((x - 0.5) / 0.25))`.

    This is exactly the backbone while the last convolution of h is zero.
    """

    def __init__(self, part: nn.Module, body: nn.Module, last: nn.Conv2d, amplitude: float) -> None:
        super().__init__([part])
        self.body = body
        self.last = last
        self.amplitude = amplitude
        for module in (*body.modules(), last):
            if isinstance(module, nn.Conv2d):
                nn.init.orthogonal_(module.weight)
        if not amplitude:
            nn.init.zeros_(last.weight)

    def residual(self, images: Images) -> Tensor:
        """Returns what the front end subtracts from the images."""
        change: Tensor = self.last(self.body((images - _CENTRE) / _SCALE))
        return _SCALE * change

    def front(self, images: Images) -> Tensor:
        """Returns the input of the backbone, which may leave [0, 1] a little."""
        return images - self.residual(images)

    def forward(self, images: Images) -> Logits:
        """Maps images `(n, c, h, w)` in [0, 1] to logits `(n, classes)`."""
        logits: Logits = self.part(self.front(images))
        return logits

    @torch.no_grad()
    def fit(
        self,
        images: Images,
        labels: Labels,
        held_out: Images,
        held_out_labels: Labels,
    ) -> None:
        """Fills the statistics of h from at most 400 images, then scales h to the amplitude.

        The scale does not change if the amplitude is 0. The images are evenly spaced over the
        training split. The last convolution is scaled until the front end changes one of their
        pixels by `amplitude` on average. Raises `ModelError` if it changes none.
        """
        chosen = images[spread(len(images), _CALIBRATION)]
        pieces = chosen.to(self.last.weight.device).chunk(_PIECES)
        was_training = self.training
        self._calibrate(pieces)
        self.eval()
        if self.amplitude:
            self._rescale(pieces)
        self.train(was_training)

    def surfaces(self) -> Sequence[Surface]:
        """Returns the backbone, and the front end with no or a small part of its own gradient."""
        straight = self._damped_surface("straight-through", 0)
        damped = [self._damped_surface(f"damped-{fraction:g}", fraction) for fraction in _DAMPING]
        return [backbone(self.part), straight, *damped]

    def attacks(self) -> dict[str, type[Reversal]]:
        """Returns the attacks made for this family."""
        return {"reversal": Reversal}

    def _damped_surface(self, name: str, fraction: float) -> Surface:
        return Surface(
            name=name,
            answer=lambda images, _key: self._damped(images, fraction),
            same_outputs=True,
        )

    def _damped(self, images: Images, fraction: float) -> Logits:
        """Returns the answer, with a fraction of the gradient that comes through h."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and fraction > 0):
            residual = self.residual(images)
        stand_in = images - fraction * residual
        logits: Logits = self.part(with_gradient_of(images - residual, stand_in))
        return logits

    def _calibrate(self, pieces: Sequence[Images]) -> None:
        """Sets the statistics of all batch normalisations of h to the mean over all pieces."""
        norms = [module for module in self.body.modules() if isinstance(module, nn.BatchNorm2d)]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
        self.body.train()
        for piece in pieces:
            self.residual(piece)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum

    def _rescale(self, pieces: Sequence[Images]) -> None:
        """Scales the last convolution so that the mean change of a pixel is the amplitude."""
        changes = [self.residual(piece).abs().flatten(1).mean(dim=1) for piece in pieces]
        change = torch.cat(changes).mean()
        if not change > 0:
            raise ModelError(
                "the front end changes no pixel, so that its amplitude cannot be set: assemble it "
                "again"
            )
        self.last.weight.mul_(self.amplitude / change)


def assemble(
    parts: Sequence[nn.Module],
    *,
    shape: tuple[int, int, int],
    kind: str = "dncnn",
    depth: int = 33,
    width: int = 16,
    amplitude: float = 0.0,
) -> nn.Module:
    """Returns one part behind a front end, whose random weights come from torch's global generator.

    Args:
        parts: The backbone.
        shape: Channels, height and width of the images; only the channels matter.
        kind: `dncnn`, or `unet` for a U-Net whose long skips add.
        depth: Convolutions between the image and the residual. From about 25 the gradients are
            noise.
        width: Channels of the hidden layers.
        amplitude: 0 makes the front end the identity until it is trained. Otherwise its last
            convolution is random, and `fit` scales it until a pixel of a training image changes by
            this much on average.

    Raises:
        UsageError: If an argument is impossible.
    """
    part = only_part(parts, "frontend")
    require_choice("kind of front end", kind, ("dncnn", "unet"))
    require_whole("depth", depth, 2 + _STAGES if kind == "unet" else 2)
    require_whole("width", width, 1)
    require_number("amplitude", amplitude, 0, 1)

    channels = shape[0]
    body = UNet(channels, depth, width) if kind == "unet" else _dncnn(channels, depth, width)
    return FrontEnd(part, body, nn.Conv2d(width, channels, 3, padding=1, bias=False), amplitude)


def _dncnn(channels: int, depth: int, width: int) -> nn.Sequential:
    return nn.Sequential(*_first(channels, width), *_stage(depth - 2, width))


def _first(channels: int, width: int) -> list[nn.Module]:
    return [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]


def _stage(count: int, width: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(count):
        convolution = nn.Conv2d(width, width, 3, padding=1, bias=False)
        layers += [convolution, nn.BatchNorm2d(width, eps=1e-4), nn.ReLU()]
    return nn.Sequential(*layers)


def _halved(features: Tensor) -> Tensor:
    return functional.avg_pool2d(features, 2, ceil_mode=True)


def _raised(features: Tensor, like: Tensor) -> Tensor:
    return functional.interpolate(
        features, size=like.shape[2:], mode="bilinear", align_corners=False
    )
