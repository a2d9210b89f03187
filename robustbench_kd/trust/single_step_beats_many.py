"""A single step breaks images that many steps do not break."""

import torch

from robustbench_kd.core.records import Finding
from robustbench_kd.tensors.short_attacks import ShortAttacks
from robustbench_kd.trust._grade import Limits, of_sample

# No image of any honest network; a single image is no evidence, however small the sample.
_LIMITS = Limits(yellow=0.02, red=0.1)


def search(attacks: ShortAttacks) -> list[Finding]:
    """Returns a finding if one step as long as the radius breaks images that iterations do not.

    Source of the symptom: Athalye et al. 2018 (arXiv 1802.00420), section 3.1.
    """
    sample = attacks.sample
    _, gradient = sample.clean
    points = sample.ascent(1, gradient.nan_to_num())
    broken = sample.rows[sample.loss(points) > 0]
    return of_sample(
        "single-step-beats-many",
        sample,
        broken[torch.isin(broken, attacks.survivors)],
        _LIMITS,
        message="one step along the gradient breaks what many steps do not",
        advice="gradients mislead away from the image: average them, attack a stand-in, or by "
        "queries",
    )
