"""Along its gradient the loss rises far less than the gradient predicts: masked gradients."""

import torch
from torch import Tensor

from robustbench_kd.core.records import Finding
from robustbench_kd.tensors.probe import Probe
from robustbench_kd.trust._grade import median, too_low

_STEPS = (0.1, 1.0)  # of the radius
_YELLOW, _RED = 0.2, 0.1  # honest networks reach 0.77 to 1.02, masked ones 0.001 to 0.06


def probe(sample: Probe) -> list[Finding]:
    """Returns a finding if the margin falls far less than its gradient predicts.

    The better of two steps counts, of a tenth of the radius and of all of it. Deep front ends have
    gradients that are correct at a point and useless at any distance from it. Such gradients are
    neither zero nor stop unbounded attacks or attacks at large radii.
    """
    by_step = gains(sample)
    usable = by_step.isfinite().all(dim=0)
    if not bool(usable.any()):
        return []

    small, full = (median(gain[usable]) for gain in by_step)
    return too_low(
        "loss-gain",
        max(small, full),
        yellow=_YELLOW,
        red=_RED,
        message=f"along the gradient the margin falls by {small:.1%} of the prediction at a tenth "
        f"of the radius, and by {full:.1%} at the radius (median of {int(usable.sum())} images)",
        advice="gradients are masked: attack a stand-in (--suite standard+adaptive), by transfer, "
        "or by queries",
        examples=sample.examples(sample.rows[usable][by_step[:, usable].amax(dim=0) < _YELLOW]),
    )


def gains(sample: Probe) -> Tensor:
    """Returns the gain over its prediction `(2, n)`, NaN where the gradient predicts none.

    The two steps are a tenth of the radius and all of it.
    """
    value, gradient = sample.clean
    return torch.stack([_gain(sample, step, value, gradient) for step in _STEPS])


def _gain(sample: Probe, step: float, value: Tensor, gradient: Tensor) -> Tensor:
    points = sample.ascent(step, gradient.nan_to_num())
    predicted = ((points - sample.images) * gradient).flatten(1).sum(dim=1)
    gain = (sample.loss(points) - value) / predicted
    return gain.masked_fill(~(predicted > 0), torch.nan)
