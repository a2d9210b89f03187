"""What an attack may search on in place of the defence.

The surfaces that it declares, and those that any defence has. Sources: straight-through and
averaged gradients are BPDA and EOT of Athalye et al. 2018 (arXiv 1802.00420, sections 4.1 and 4.2),
noisy copies are Pintor et al. 2022 (arXiv 2106.09947, mitigation M2), gradients from queries alone
are those of Chen et al. 2017 (arXiv 1708.03999) with pixels in groups.
"""

import torch
from torch import Tensor

from robustbench_kd.tensors.contracts import Classifier, Images, Logits
from robustbench_kd.tensors.defence import (
    EXPECTED,
    OWN,
    Answer,
    Batched,
    Key,
    Mixture,
    Randomized,
    Surface,
    Surfaced,
    is_randomized,
)
from robustbench_kd.tensors.oracle import Oracle, guarded

_COPIES = 10  # noisy copies whose gradients are averaged
_NOISE = 0.25  # their noise, in radii
_GROUPS = 16  # groups of pixels that are moved together for a gradient from queries
_STEP = 0.5  # the length of the move, in radii


def own(oracle: Oracle, draws: int, ask: Classifier | None = None) -> Surface:
    """Returns the defence itself; every step sees `draws` fresh draws of a randomized defence.

    A search may `ask` a faster form of a deterministic defence; the defence still judges success.
    """
    model = oracle.model
    if not is_randomized(model):
        if ask is None:
            ask = model
        return Surface(name=OWN, answer=lambda images, _key: ask(images.clone()), same_outputs=True)
    return Surface(name=OWN, answer=drawn(model, draws), passes=draws, same_outputs=True)


def drawn(model: Randomized, draws: int) -> Answer:
    """Returns the answers `(draws, n, classes)` of independent draws, computed as one batch."""

    def answer(images: Images, key: Key) -> Logits:
        if draws == 1:
            return model.draw(images.clone(), key)
        if isinstance(model, Batched):
            return model.batch_draws(images, key, draws)
        repeated = images.repeat(draws, 1, 1, 1)
        logits = model.draw(repeated, key.repeated(draws))
        return logits.view(draws, len(images), logits.shape[1])

    return answer


def adaptive_surfaces(oracle: Oracle, eps: float) -> list[Surface]:
    """Returns all surfaces for adaptive attacks at a radius, the declared ones first."""
    declared: list[Surface] = []
    if isinstance(oracle.model, Surfaced):
        with guarded("the surfaces of the model cannot be had"):
            declared += oracle.model.surfaces()
    expected = [surface for surface in declared if surface.name == EXPECTED]
    if not expected:
        expected = [_expected(oracle)]
        declared += expected
    if oracle.abstains:
        return declared
    return [*declared, smoothed(expected[0], eps), queried(expected[0], eps)]


def _expected(oracle: Oracle) -> Surface:
    """Returns the mean over answers, for a defence that declares no such surface."""
    if isinstance(oracle.model, Mixture):
        return _members(oracle.model)
    # A rejection may take many steps inside: many draws cost too much there.
    return own(oracle, 1 if oracle.abstains else _COPIES)


def _members(model: Mixture) -> Surface:
    """Returns all answers of a finite ensemble at once."""
    with guarded("the members of the model cannot be had"):
        members = model.members()

    def answer(images: Images, _key: Key) -> Logits:
        return torch.stack([member(images.clone()) for member in members])

    return Surface(
        name=EXPECTED, answer=answer, weights=model.weights, passes=len(members), same_outputs=True
    )


def smoothed(base: Surface, eps: float) -> Surface:
    """Returns a surface whose loss is the mean over copies with uniform noise.

    It smooths what is rough in the small.
    """

    def answer(images: Images, key: Key) -> Logits:
        many = key.repeated(_COPIES)
        noise = (2 * many.uniform("noise", images[0].numel()) - 1).view(-1, *images.shape[1:])
        noisy = images.repeat(_COPIES, 1, 1, 1) + _NOISE * eps * noise.to(images.dtype)
        return _stacked(base.answer(noisy, many), _COPIES)

    weights = base.weights
    if weights is not None:
        weights = weights.repeat(_COPIES) / _COPIES
    return Surface(
        name="noisy-copies", answer=answer, weights=weights, passes=_COPIES * base.passes
    )


def queried(base: Surface, eps: float) -> Surface:
    """Returns a surface with a gradient estimated from queries, for a defence that has none."""

    def answer(images: Images, key: Key) -> Logits:
        directions = _directions(images, key)
        with torch.no_grad():
            here = base.answer(images, key)
            if not images.requires_grad:
                return here
            slopes = [_slope(base, images, key, direction, _STEP * eps) for direction in directions]

        # The answers as they are, with the estimated Jacobian as their gradient.
        zero = images - images.detach()
        for slope, direction in zip(slopes, directions, strict=True):
            here = here + slope * (zero * direction).flatten(1).sum(dim=1)[:, None]
        return here

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
    pixels = height * width
    groups = min(_GROUPS, pixels)
    ranks = key.uniform("groups", pixels).argsort(dim=1).argsort(dim=1)
    group_of = ranks * groups // pixels
    signs = (key.uniform("signs", pixels) > 0.5).to(images.dtype) * 2 - 1

    masks = []
    for group in range(groups):
        mask = (group_of == group) * signs
        masks.append(mask.view(n, 1, height, width).to(images.dtype))
    return masks


def _slope(base: Surface, images: Images, key: Key, direction: Tensor, step: float) -> Tensor:
    """Returns the change of all answers per unit of a direction, by a central difference."""
    forth = base.answer(images + step * direction, key)
    back = base.answer(images - step * direction, key)
    size = images.shape[1] * direction.square().flatten(1).sum(dim=1)
    return (forth - back) / (2 * step * size[:, None])


def _stacked(answers: Tensor, copies: int) -> Tensor:
    """Returns answers of copies, with or without members, as `(copies * k, n, classes)`."""
    if answers.ndim == 2:
        answers = answers[None]
    kinds, rows, classes = answers.shape
    return answers.reshape(kinds, copies, rows // copies, classes).transpose(0, 1).flatten(0, 1)
