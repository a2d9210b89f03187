"""An attack passed a misclassified point and ended on a correctly classified one (IoAF I3)."""

from robustbench_kd.core.records import Finding
from robustbench_kd.core.threat import Norm
from robustbench_kd.tensors.short_attacks import ShortAttacks
from robustbench_kd.trust._grade import Limits, of_sample

_LIMITS = Limits(yellow=0.02)  # no image of any honest network, 3 to 8 % of masked ones


def search(attacks: ShortAttacks) -> list[Finding]:
    """Returns a yellow finding if plain steps break images on the way and end on no broken one.

    The attacks of a run lose no success, because each of their points is judged. But a loss that
    leads away from adversarial points may also miss others. There is no such attack for l1. Source:
    indicator I3 of Pintor et al. 2022 (arXiv 2106.09947).
    """
    if attacks.sample.threat.norm is Norm.L1:
        return []

    trace = attacks.first
    steps = len(trace.wrong) - 1
    return of_sample(
        "silent-success",
        attacks.sample,
        trace.rows[trace.wrong.any(dim=0) & ~trace.wrong[-1]],
        _LIMITS,
        message=f"silent success (IoAF I3): {steps} steps of PGD pass a misclassified point and "
        "end on a correctly classified one",
        advice="keep the best point of a path, and average gradients over noisy copies",
    )
