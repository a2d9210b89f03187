"""The cross-entropy has no gradient in float32, or is too flat to have one."""

from robustbench_kd.core.records import Finding, Severity
from robustbench_kd.tensors.losses import cross_entropy
from robustbench_kd.tensors.probe import Probe
from robustbench_kd.trust._grade import Limits, median, of_sample

_CHECK = "saturated-loss"
# No image of any honest network, even if a third of its answers have confidence 1; all images if
# the logits are multiplied by 10,000.
_LIMITS = Limits(yellow=0.1)
_FLAT = 1e-3  # spread of the logits; honest ones above 1


def probe(sample: Probe) -> list[Finding]:
    """Returns a yellow finding if the margin has a gradient and the cross-entropy has none.

    It is never red: losses of differences of logits, as in APGD-T, FAB and Square, still work.
    """
    spread = median(sample.logits.amax(dim=1) - sample.logits.amin(dim=1))
    return [*_saturated(sample, spread), *_flat(spread)]


def _saturated(sample: Probe, spread: float) -> list[Finding]:
    _, gradient = sample.slope(sample.images, cross_entropy)
    _, of_margin = sample.clean
    is_zero = (gradient.flatten(1) == 0).all(dim=1)
    is_saturated = is_zero & (of_margin.flatten(1) != 0).any(dim=1)
    return of_sample(
        _CHECK,
        sample,
        sample.rows[is_saturated],
        _LIMITS,
        message=f"logits have a spread of {spread:.2g}, and the cross-entropy has a gradient of "
        "exactly zero in float32",
        advice="attack with margin losses (apgd-margin, apgd-t), or divide the logits by a "
        "constant",
    )


def _flat(spread: float) -> list[Finding]:
    if spread >= _FLAT:
        return []
    return [
        Finding(
            check=_CHECK,
            severity=Severity.YELLOW,
            message=f"the logits of an image differ by {spread:.2g} (median): their losses are "
            "nearly equal in float32",
            advice="multiply the logits by a constant; it changes no prediction",
            value=spread,
            threshold=_FLAT,
        )
    ]
