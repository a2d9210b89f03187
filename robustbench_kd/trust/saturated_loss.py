"""The cross-entropy has no gradient left in float32, or is too flat for it."""

from robustbench_kd.core.records import Finding, Severity
from robustbench_kd.tensors.losses import cross_entropy
from robustbench_kd.tensors.probe import Probe
from robustbench_kd.trust._grade import Limits, median, of_sample

_CHECK = "saturated-loss"
_SHARE = Limits(
    yellow=0.1
)  # none on honest networks, even where a third of them answers with confidence 1; all at x 1e4
_FLAT = 1e-3  # spread of the logits; honest ones above 1


def probe(sample: Probe) -> list[Finding]:
    """Returns a yellow finding where the cross-entropy gives nothing to follow although the margin does.

    Only yellow: losses of differences of logits, as in APGD-T, FAB and Square, see through both.
    """
    spread = median(sample.logits.amax(dim=1) - sample.logits.amin(dim=1))
    return [*_saturated(sample, spread), *_flat(spread)]


def _saturated(sample: Probe, spread: float) -> list[Finding]:
    _, gradient = sample.slope(sample.images, cross_entropy)
    lost = (gradient.flatten(1) == 0).all(dim=1) & (sample.clean[1].flatten(1) != 0).any(dim=1)
    return of_sample(
        _CHECK,
        sample,
        sample.rows[lost],
        _SHARE,
        message=f"logits are spread over {spread:.2g}, and the cross-entropy has a gradient of exactly zero in float32",
        advice="judge by margin losses (apgd-margin, apgd-t), or divide the logits by a constant",
    )


def _flat(spread: float) -> list[Finding]:
    if spread >= _FLAT:
        return []
    return [
        Finding(
            check=_CHECK,
            severity=Severity.YELLOW,
            message=f"the logits of an image differ by {spread:.2g} (median): float32 hardly tells losses apart",
            advice="multiply the logits by a constant; it changes no prediction",
            value=spread,
            threshold=_FLAT,
        )
    ]
