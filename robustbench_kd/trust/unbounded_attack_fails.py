"""An attack without limit leaves images standing (IoAF I6)."""

from robustbench_kd.core.records import Finding
from robustbench_kd.tensors.short_attacks import ShortAttacks
from robustbench_kd.trust._grade import Limits, of_sample

_LIMITS = Limits(yellow=0.02, red=0.1)  # no image of any honest network stands


def search(trials: ShortAttacks) -> list[Finding]:
    """Returns a finding where ten steps of APGD from the clean image, free to go anywhere in the box, do not change the class.

    Every image can be made any other, so gradients that do not get there lead nowhere. Source:
    indicator I6 of Pintor et al. 2022 (arXiv 2106.09947).
    """
    return of_sample(
        "unbounded-attack-fails",
        trials.sample,
        trials.widened[trials.limit].standing,
        _LIMITS,
        message="unconstrained attack failure (IoAF I6): a gradient attack without limit on its size fails",
        advice="gradients lead nowhere: attack a stand-in, by transfer, or by queries",
    )
