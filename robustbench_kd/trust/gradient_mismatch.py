"""The gradient is not that of the function, or not for long: finite differences say otherwise."""

import torch
from torch import Tensor
from torch.nn import functional

from robustbench_kd.core.records import Finding
from robustbench_kd.tensors.probe import Probe
from robustbench_kd.trust._grade import too_low

_CHECK = "gradient-mismatch"
_DIRECTIONS = 6
# Of the radius: what is rounded agrees in large steps, what is rough in small ones.
SCALES = (0.003, 0.1, 1.0)
_YELLOW, _RED = 0.9, 0.5  # at the best scale; honest networks agree to 0.99 there
_ROUGH = 0.5  # at the middle scale; honest networks agree to 0.95 at usual radii


def probe(sample: Probe) -> list[Finding]:
    """Returns a finding where slopes along random directions do not agree with the gradient at any of three scales.

    Agreement is the cosine between the slopes that the gradient predicts and central differences of
    the margin, in six random directions at each image; the median over images counts. A yellow
    finding says that they do not agree at a tenth of the radius only, as where activations jump.
    """
    agreed = torch.stack([agreement(sample, share) for share in SCALES])
    usable = agreed.isfinite().all(dim=0)
    if not bool(usable.any()):
        return []
    found = [float(cosines.median()) for cosines in agreed[:, usable]]
    told = ", ".join(
        f"{cosine:.2f} within {share:g}" for share, cosine in zip(SCALES, found, strict=True)
    )
    numbers = f"{told} of the radius (median of {int(usable.sum())} images)"
    wrong = too_low(
        _CHECK,
        max(found),
        yellow=_YELLOW,
        red=_RED,
        message=f"the gradient is not that of the function: it agrees with finite differences to a cosine of {numbers}",
        advice="something is detached, or has a gradient that is not its own: differentiate all of it, or attack by queries",
        examples=sample.examples(sample.rows[usable][agreed[:, usable].amax(dim=0) < _YELLOW]),
    )
    return wrong or too_low(
        _CHECK,
        found[1],
        yellow=_ROUGH,
        message=f"the function is rough or jumps: its gradient agrees with finite differences to a cosine of {numbers}",
        advice="average gradients over noisy copies (--suite standard+adaptive), or attack by queries",
        examples=sample.examples(sample.rows[usable][agreed[1, usable] < _ROUGH]),
    )


def agreement(sample: Probe, share: float) -> Tensor:
    """Returns the cosine `(n,)` between predicted and measured slopes in steps of a share of the radius, NaN without any."""
    steps = [
        share * sample.threat.eps * sample.noise("slopes", turn, sample.rows)
        for turn in range(_DIRECTIONS)
    ]
    room = min(0.5, max(float(step.abs().max()) for step in steps))
    centre = sample.images.clamp(room, 1 - room)  # so far inside the box that no step leaves it
    _, gradient = sample.slope(centre)
    predicted, measured = [], []
    for step in steps:
        predicted.append((gradient * step).flatten(1).sum(dim=1))
        measured.append((sample.loss(centre + step) - sample.loss(centre - step)) / 2)
    cosine = functional.cosine_similarity(
        torch.stack(predicted), torch.stack(measured), dim=0, eps=1e-30
    )
    return cosine.masked_fill((gradient == 0).flatten(1).all(dim=1), torch.nan)
