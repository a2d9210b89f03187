"""Random noise breaks images that gradient attacks do not break."""

from robustbench_kd.core.records import Finding
from robustbench_kd.tensors.short_attacks import ShortAttacks
from robustbench_kd.trust._grade import Limits, of_sample

# At most one image of 64 of an honest network, masked ones up to eight.
_LIMITS = Limits(yellow=0.02, red=0.05)


def search(attacks: ShortAttacks) -> list[Finding]:
    """Returns a finding if 200 random points in the ball break images that gradients do not.

    Source of the symptom: Athalye et al. 2018 (arXiv 1802.00420), section 3.1; Carlini et al. 2019
    (arXiv 1902.06705) ask for far more points to decide a single image.
    """
    return of_sample(
        "noise-beats-gradients",
        attacks.sample,
        attacks.broken_by_noise,
        _LIMITS,
        message="200 random points in the ball break what gradient attacks do not",
        advice="gradients are masked: attack a stand-in, by transfer, or by queries",
    )
