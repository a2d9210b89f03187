"""An attack passed over points that were misclassified, and ended on one that was not (IoAF I3)."""

from robustbench_kd.core.records import Finding
from robustbench_kd.core.threat import Norm
from robustbench_kd.tensors.short_attacks import ShortAttacks
from robustbench_kd.trust._grade import Limits, of_sample

_LIMITS = Limits(yellow=0.02)  # no image of any honest network, 3 to 8 % of masked ones


def search(trials: ShortAttacks) -> list[Finding]:
    """Returns a yellow finding where plain steps break images on the way and lose them again.

    Every point that an attack of a run asks about is judged, so no success is lost; but a loss that
    leads away from adversarial points may not lead there at all. There is no such attack for l1.
    Source: indicator I3 of Pintor et al. 2022 (arXiv 2106.09947).
    """
    if trials.sample.threat.norm is Norm.L1:
        return []
    trace = trials.first
    return of_sample(
        "silent-success",
        trials.sample,
        trace.rows[trace.wrong.any(dim=0) & ~trace.wrong[-1]],
        _LIMITS,
        message=f"silent success (IoAF I3): {len(trace.wrong) - 1} steps of PGD pass a misclassified point and end on a right one",
        advice="keep the best point of a path, and average gradients over noisy copies",
    )
