"""Along its gradient the loss rises far less than the gradient promises: masked gradients."""

import torch
from torch import Tensor

from robustbench_kd.core.records import Finding
from robustbench_kd.tensors.probe import Probe
from robustbench_kd.trust._grade import median, too_low

_STEPS = (0.1, 1.0)  # of the radius
_YELLOW, _RED = 0.2, 0.1  # honest networks reach 0.77 to 1.02, masked ones 0.001 to 0.06


def probe(sample: Probe) -> list[Finding]:
    """Returns a finding where the margin gains little of what its gradient predicts, at a tenth of the radius and at all of it.

    Deep front ends have gradients that are right at a point and useless at any distance from it;
    zero gradients, unbounded attacks and large radii show nothing of it.
    """
    found = gains(sample)
    usable = found.isfinite().all(dim=0)
    if not bool(usable.any()):
        return []
    small, full = (median(gain[usable]) for gain in found)
    best = max(small, full)
    return too_low(
        "loss-gain",
        best,
        yellow=_YELLOW,
        red=_RED,
        message=f"along the gradient the margin falls by {small:.1%} of what was predicted at a tenth of the radius, and by "
        f"{full:.1%} at the radius (median of {int(usable.sum())} images)",
        advice="gradients are masked: attack through a stand-in (--suite standard+adaptive), by transfer, or by queries",
        examples=sample.examples(sample.rows[usable][found[:, usable].amax(dim=0) < _YELLOW]),
    )


def gains(sample: Probe) -> Tensor:
    """Returns the gain over its prediction `(2, n)` at a tenth of the radius and at all of it, NaN where none was predicted."""
    value, gradient = sample.clean
    return torch.stack([_gain(sample, share, value, gradient) for share in _STEPS])


def _gain(sample: Probe, share: float, value: Tensor, gradient: Tensor) -> Tensor:
    points = sample.ascent(share, gradient.nan_to_num())
    predicted = ((points - sample.images) * gradient).flatten(1).sum(dim=1)
    return ((sample.loss(points) - value) / predicted).masked_fill(~(predicted > 0), torch.nan)
