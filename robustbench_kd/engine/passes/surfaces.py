"""What an attack may search on in place of the defence: the surfaces that it declares, and those that any defence has.

Sources: straight-through and averaged gradients are BPDA and EOT of Athalye et al. 2018 (arXiv
1802.00420, sections 4.1 and 4.2), noisy copies are Pintor et al. 2022 (arXiv 2106.09947, mitigation
M2), gradients from queries alone are those of Chen et al. 2017 (arXiv 1708.03999) with pixels in
groups.
"""

import torch
from torch import Tensor

from robustbench_kd.tensors.attack import per_row
from robustbench_kd.tensors.contracts import Classifier, Images, Logits
from robustbench_kd.tensors.defence import (
    EXPECTED,
    OWN,
    Answer,
    Key,
    Mixture,
    Randomized,
    Surface,
    Surfaced,
)
from robustbench_kd.tensors.oracle import Oracle

_COPIES = 10  # noisy copies whose gradients are averaged
_NOISE = 0.25  # their noise, in radii
_GROUPS = 16  # groups of pixels that are moved together for a gradient from queries
_STEP = 0.5  # by which they are moved, in radii


def own(oracle: Oracle, draws: int, ask: Classifier | None = None) -> Surface:
    """Returns the defence itself; of a randomized one every step sees `draws` fresh draws.

    Of a deterministic one a search may `ask` a faster form; success is judged by the defence all
    the same.
    """
    model = oracle.model
    if not isinstance(model, Randomized):
        asked = model if ask is None else ask  # a compiled module must not be asked for its truth
        return Surface(name=OWN, answer=lambda images, _key: asked(images), same_outputs=True)
    return Surface(name=OWN, answer=drawn(model, draws), passes=draws, same_outputs=True)


def drawn(model: Randomized, draws: int) -> Answer:
    """Returns the answers `(draws, n, classes)` of independent draws, computed as one batch."""

    def answer(images: Images, key: Key) -> Logits:
        if draws == 1:
            return model.draw(images, key)
        repeated = images.repeat(draws, 1, 1, 1)
        logits = model.draw(repeated, key.repeated(draws))
        return logits.view(draws, len(images), logits.shape[1])

    return answer


def adaptive(oracle: Oracle, eps: float) -> list[Surface]:
    """Returns all surfaces for adaptive attacks at a radius, the declared ones first."""
    declared = list(oracle.model.surfaces()) if isinstance(oracle.model, Surfaced) else []
    mean = next((surface for surface in declared if surface.name == EXPECTED), None)
    if mean is None:
        # Whether to reject may take many steps inside: one draw is dear, and the declared surfaces
        # stand for it.
        draws = 1 if oracle.abstains else _COPIES
        mean = _members(oracle.model) if isinstance(oracle.model, Mixture) else own(oracle, draws)
        declared.append(mean)
    if oracle.abstains:
        return declared
    return [*declared, smoothed(mean, eps), queried(mean, eps)]


def _members(model: Mixture) -> Surface:
    """Returns all answers of a finite ensemble at once, for one that declares no such surface."""
    members = model.members()

    def answer(images: Images, _key: Key) -> Logits:
        return torch.stack([member(images) for member in members])

    return Surface(
        name=EXPECTED, answer=answer, weights=model.weights, passes=len(members), same_outputs=True
    )


def smoothed(base: Surface, eps: float) -> Surface:
    """Returns a surface whose loss is the mean over copies with uniform noise: it smooths what is rough in the small."""

    def answer(images: Images, key: Key) -> Logits:
        many = key.repeated(_COPIES)
        noise = (2 * many.uniform("noise", images[0].numel()) - 1).view(-1, *images.shape[1:])
        noisy = images.repeat(_COPIES, 1, 1, 1) + _NOISE * eps * noise.to(images.dtype)
        return _stacked(base.answer(noisy, many), _COPIES)

    weights = None if base.weights is None else base.weights.repeat(_COPIES) / _COPIES
    return Surface(
        name="noisy-copies", answer=answer, weights=weights, passes=_COPIES * base.passes
    )


def queried(base: Surface, eps: float) -> Surface:
    """Returns a surface whose gradient is estimated from queries alone, for a defence that has none."""

    def answer(images: Images, key: Key) -> Logits:
        directions = _directions(images, key)
        with torch.no_grad():
            here = base.answer(images, key)
            if not images.requires_grad:
                return here
            slopes = [_slope(base, images, key, direction, _STEP * eps) for direction in directions]
        # The answers as they are, with the estimated Jacobian as their gradient.
        change = sum(
            slope * ((images - images.detach()) * direction).flatten(1).sum(dim=1)[:, None]
            for slope, direction in zip(slopes, directions, strict=True)
        )
        return here + change

    return Surface(
        name="queries",
        answer=answer,
        weights=base.weights,
        passes=(2 * _GROUPS + 1) * base.passes,
        same_outputs=base.same_outputs,
    )


def _directions(images: Images, key: Key) -> list[Tensor]:
    """Returns for each row a random division of the pixels into groups, as masks `(n, 1, h, w)`."""
    n, _, height, width = images.shape
    groups = min(_GROUPS, height * width)
    order = (
        key.uniform("groups", height * width).argsort(dim=1).argsort(dim=1)
        * groups
        // (height * width)
    )
    signs = (key.uniform("signs", height * width) > 0.5).to(images.dtype) * 2 - 1
    return [
        ((order == group) * signs).view(n, 1, height, width).to(images.dtype)
        for group in range(groups)
    ]


def _slope(base: Surface, images: Images, key: Key, direction: Tensor, step: float) -> Tensor:
    """Returns the change of all answers per unit of a direction, by a central difference."""
    channels = images.shape[1]
    forth, back = (base.answer(images + sign * step * direction, key) for sign in (1, -1))
    size = (
        channels * per_row(direction.square().flatten(1).sum(dim=1), direction).flatten()[:, None]
    )
    return (forth - back) / (2 * step * size)


def _stacked(answers: Tensor, copies: int) -> Tensor:
    """Returns answers `(k, copies * n, classes)` or `(copies * n, classes)` as `(copies * k, n, classes)`."""
    apart = answers if answers.ndim == 3 else answers[None]
    kinds, rows, classes = apart.shape
    return apart.reshape(kinds, copies, rows // copies, classes).transpose(0, 1).flatten(0, 1)
