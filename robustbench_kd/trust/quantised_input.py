"""Small changes of the input change nothing: the defence rounds it."""

from torch import Tensor

from robustbench_kd.core.records import Finding
from robustbench_kd.tensors.contracts import Images
from robustbench_kd.tensors.probe import Probe
from robustbench_kd.trust._grade import Limits, of_sample

# A twentieth of the distance between an 8-bit pixel and the next rounding border.
_AROUND_IMAGES = 1e-4
_ELSEWHERE = 1e-6
_LIMITS = Limits(yellow=0.1)  # no image of any honest network, nearly all behind rounding


def probe(sample: Probe) -> list[Finding]:
    """Returns a yellow finding if tiny noise does not change a bit of the logits.

    An 8-bit pixel lies in the middle between two rounding borders of 8 bits, but may lie on a
    border of coarser steps. Therefore the check also tries smaller noise around random points.
    """
    elsewhere = sample.nearby("elsewhere", 0.3)
    still = _unmoved(sample, sample.images, _AROUND_IMAGES)
    still |= _unmoved(sample, elsewhere, _ELSEWHERE)
    return of_sample(
        "quantised-input",
        sample,
        sample.rows[still],
        _LIMITS,
        message=f"noise of {_AROUND_IMAGES:g} or {_ELSEWHERE:g} does not change a bit of the "
        "logits",
        advice="gradients cannot see through rounding: attack with a straight-through gradient, "
        "and by queries",
    )


def _unmoved(sample: Probe, points: Images, noise: float) -> Tensor:
    """Returns the rows, bool `(n,)`, whose logits noise does not change."""
    moved = (points + noise * sample.uniform("rounding", 0)).clamp(0, 1)
    return (sample.ask(points) == sample.ask(moved)).all(dim=1)
