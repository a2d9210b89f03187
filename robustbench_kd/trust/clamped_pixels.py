"""Black and white pixels have no gradient: a clamp within the model ends it."""

from robustbench_kd.core.records import Finding
from robustbench_kd.tensors.probe import Probe
from robustbench_kd.trust._grade import Limits, of_sample

_INSIDE = 1e-4  # distance from black and white at which a clamp lets the gradient through
_SHARE = 0.02  # of the pixels of an image
_LIMITS = Limits(yellow=0.1, red=0.5)  # no image of any honest network


def probe(sample: Probe) -> list[Finding]:
    """Returns a finding if the gradient of many pixels is zero exactly where they are 0 or 1.

    Newer versions of torch give `clamp(x, 0, 1)` no gradient at its bounds. An attack that has
    brought a pixel there, or finds it there, cannot move it again. The check looks at random
    corners of the ball, as attacks do.
    """
    points = sample.corners("clamped")
    saturated = (points == 0) | (points == 1)
    if not saturated.any():
        return []

    _, inside = sample.slope(points.clamp(_INSIDE, 1 - _INSIDE))
    _, there = sample.slope(points)
    dead = saturated & (there == 0) & (inside != 0)
    share = dead.flatten(1).float().mean(dim=1)
    return of_sample(
        "clamped-pixels",
        sample,
        sample.rows[share > _SHARE],
        _LIMITS,
        message=f"the gradient of {float(share.mean()):.0%} of the pixels is zero only because "
        "they are exactly 0 or 1",
        advice="leave clamp(x, 0, 1) out of the model, images lie in [0, 1] anyway, or run "
        "--suite standard+adaptive",
    )
