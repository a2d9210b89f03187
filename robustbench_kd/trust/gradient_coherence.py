"""Gradients of neighbouring points point in unrelated directions: shattered gradients."""

import torch
from torch import Tensor
from torch.nn import functional

from robustbench_kd.core.records import Finding
from robustbench_kd.tensors.probe import Probe
from robustbench_kd.trust._grade import median, too_low

_NOISE = 0.1  # of the radius
_YELLOW = 0.3  # honest networks have 0.93 or more, masked ones at most 0.18


def probe(sample: Probe) -> list[Finding]:
    """Returns a yellow finding if a little noise turns the gradient into another direction.

    The gradient is that of the margin, and the median of the cosines over images counts. If this is
    the only finding, averaged gradients may still help. Source of the symptom: Athalye et al. 2018
    (arXiv 1802.00420), section 4.
    """
    cosine = cosines(sample)
    usable = cosine.isfinite()
    if not bool(usable.any()):
        return []

    value = median(cosine[usable])
    return too_low(
        "gradient-coherence",
        value,
        yellow=_YELLOW,
        message="the gradients with and without noise of a tenth of the radius have a cosine of "
        f"{value:.2f} (median of {int(usable.sum())} images)",
        advice="average gradients over noisy copies (noisy-copies:apgd-margin of --suite "
        "standard+adaptive)",
        examples=sample.examples(sample.rows[cosine < _YELLOW]),
    )


def cosines(sample: Probe) -> Tensor:
    """Returns the cosine `(n,)` of gradients at and near each image, NaN for zero gradients."""
    _, here = sample.clean
    _, there = sample.slope(sample.nearby("coherence", _NOISE))
    cosine = functional.cosine_similarity(here.flatten(1), there.flatten(1))
    return cosine.masked_fill((here == 0).flatten(1).all(dim=1), torch.nan)
