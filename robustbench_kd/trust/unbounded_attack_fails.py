"""An attack without limit does not break all images (IoAF I6)."""

from robustbench_kd.core.records import Finding
from robustbench_kd.tensors.short_attacks import ShortAttacks
from robustbench_kd.trust._grade import Limits, of_sample

_LIMITS = Limits(yellow=0.02, red=0.1)  # no image of any honest network survives


def search(attacks: ShortAttacks) -> list[Finding]:
    """Returns a finding if ten steps of APGD anywhere in the box do not change the class.

    They start from the clean image. Every image can be changed into any other, so gradients that do
    not reach another class are useless. Source: indicator I6 of Pintor et al. 2022 (arXiv
    2106.09947).
    """
    return of_sample(
        "unbounded-attack-fails",
        attacks.sample,
        attacks.widened[attacks.limit].survivors,
        _LIMITS,
        message="unconstrained attack failure (IoAF I6): a gradient attack without limit on its "
        "size fails",
        advice="gradients are useless: attack a stand-in, by transfer, or by queries",
    )
