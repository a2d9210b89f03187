"""Finite differences contradict the gradient at a point, or a short way from it."""

import torch
from torch import Tensor
from torch.nn import functional

from robustbench_kd.core.records import Finding
from robustbench_kd.tensors.probe import Probe
from robustbench_kd.trust._grade import too_low

_CHECK = "gradient-mismatch"
_DIRECTIONS = 6
# In radii: a rounded function agrees in large steps, a rough one in small steps.
SCALES = (0.003, 0.1, 1.0)
_YELLOW, _RED = 0.9, 0.5  # at the best scale; honest networks agree to 0.99 there
_ROUGH = 0.5  # at the middle scale; honest networks agree to 0.95 at usual radii


def probe(sample: Probe) -> list[Finding]:
    """Returns a finding if slopes along random directions agree with the gradient at no scale.

    Agreement is the cosine between the slopes that the gradient predicts and central differences of
    the margin, in six random directions at each image; the median over images counts. A yellow
    finding of roughness says that they only disagree at a tenth of the radius, for example because
    activations jump.
    """
    agreed = torch.stack([agreement(sample, scale) for scale in SCALES])
    usable = agreed.isfinite().all(dim=0)
    if not bool(usable.any()):
        return []

    agreed = agreed[:, usable]
    rows = sample.rows[usable]
    medians = [float(cosines.median()) for cosines in agreed]
    numbers = _described(medians, len(rows))
    mismatch = too_low(
        _CHECK,
        max(medians),
        yellow=_YELLOW,
        red=_RED,
        message="the gradient is not that of the function: it agrees with finite differences to a "
        f"cosine of {numbers}",
        advice="a part is detached, or has a gradient that is not its own: differentiate all "
        "parts, or attack by queries",
        examples=sample.examples(rows[agreed.amax(dim=0) < _YELLOW]),
    )
    if mismatch:
        return mismatch
    return too_low(
        _CHECK,
        medians[1],
        yellow=_ROUGH,
        message="the function is rough or jumps: its gradient agrees with finite differences to a "
        f"cosine of {numbers}",
        advice="average gradients over noisy copies (--suite standard+adaptive), or attack by "
        "queries",
        examples=sample.examples(rows[agreed[1] < _ROUGH]),
    )


def agreement(sample: Probe, scale: float) -> Tensor:
    """Returns the cosine `(n,)` between predicted and measured slopes, NaN for zero gradients.

    Steps are as long as `scale` times the radius.
    """
    eps = scale * sample.threat.eps
    steps = [eps * sample.noise("slopes", index, sample.rows) for index in range(_DIRECTIONS)]
    room = min(0.5, max(float(step.abs().max()) for step in steps))
    centre = sample.images.clamp(room, 1 - room)  # so far inside the box that no step leaves it
    _, gradient = sample.slope(centre)

    predicted = []
    measured = []
    for step in steps:
        predicted.append((gradient * step).flatten(1).sum(dim=1))
        measured.append((sample.loss(centre + step) - sample.loss(centre - step)) / 2)
    cosine = functional.cosine_similarity(
        torch.stack(predicted), torch.stack(measured), dim=0, eps=1e-30
    )
    return cosine.masked_fill((gradient == 0).flatten(1).all(dim=1), torch.nan)


def _described(medians: list[float], images: int) -> str:
    """Returns the text of the median cosine at each scale."""
    pairs = zip(SCALES, medians, strict=True)
    texts = [f"{cosine:.2f} within {scale:g}" for scale, cosine in pairs]
    return f"{', '.join(texts)} of the radius (median of {images} images)"
