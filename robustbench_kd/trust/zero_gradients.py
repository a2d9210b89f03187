"""Gradients are zero, not finite, or cannot be computed (IoAF I1)."""

from robustbench_kd.core.records import Finding, Severity
from robustbench_kd.tensors.probe import NoGradientError, Probe
from robustbench_kd.trust._grade import Limits, of_sample

_CHECK = "zero-gradients"
# One image is a flag in AutoAttack and IoAF; honest networks have none.
_LIMITS = Limits(yellow=0.0, red=0.1, least=1)
_ADVICE = (
    "use a straight-through or smooth stand-in for what cannot be differentiated, and attacks "
    "without gradients"
)


def probe(sample: Probe) -> list[Finding]:
    """Returns a finding if the margin has no usable gradient at clean images.

    It is red if this concerns more than a tenth of them. The margin counts, not the cross-entropy,
    whose saturation is another finding. Source: indicator I1 of Pintor et al. 2022 (arXiv
    2106.09947).
    """
    try:
        gradient = sample.clean[1].flatten(1)
    except NoGradientError as error:
        message = f"unavailable gradients (IoAF I1): autograd fails with '{error}'"
        return [Finding(check=_CHECK, severity=Severity.RED, message=message, advice=_ADVICE)]

    undefined = ~gradient.isfinite().all(dim=1)
    zero = (gradient == 0).all(dim=1)
    numbers = f"{int(zero.sum())} exactly zero, {int(undefined.sum())} not finite"
    return of_sample(
        _CHECK,
        sample,
        sample.rows[undefined | zero],
        _LIMITS,
        message=f"unavailable gradients (IoAF I1; {numbers})",
        advice=_ADVICE,
    )
