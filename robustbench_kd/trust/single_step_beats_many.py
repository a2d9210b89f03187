"""A single step breaks images that many steps do not."""

import torch

from robustbench_kd.core.records import Finding
from robustbench_kd.tensors.short_attacks import ShortAttacks
from robustbench_kd.trust._grade import Limits, of_sample

_LIMITS = Limits(
    yellow=0.02, red=0.1
)  # no image of any honest network; the share of one image in a sample is no evidence


def search(trials: ShortAttacks) -> list[Finding]:
    """Returns a finding where one step as long as the radius breaks images that iterated attacks leave standing.

    Source of the symptom: Athalye et al. 2018 (arXiv 1802.00420), section 3.1.
    """
    sample = trials.sample
    points = sample.ascent(1, sample.clean[1].nan_to_num())
    broken = sample.rows[sample.loss(points) > 0]
    return of_sample(
        "single-step-beats-many",
        sample,
        broken[torch.isin(broken, trials.standing)],
        _LIMITS,
        message="one step along the gradient breaks what many steps do not",
        advice="gradients mislead away from the image: average them, attack a stand-in, or by queries",
    )
