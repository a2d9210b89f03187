"""Small changes of the input change nothing at all: it is rounded somewhere."""

from torch import Tensor

from robustbench_kd.core.records import Finding
from robustbench_kd.tensors.contracts import Images
from robustbench_kd.tensors.probe import Probe
from robustbench_kd.trust._grade import Limits, of_sample

_AROUND_IMAGES = 1e-4  # an eighth of what separates a pixel of 8 bits from the next rounding border
_ELSEWHERE = 1e-6
_LIMITS = Limits(yellow=0.1)  # no honest network does it on a single image, rounding on nearly all


def probe(sample: Probe) -> list[Finding]:
    """Returns a yellow finding where logits stay the same bit by bit under tiny noise.

    Stored images lie in the middle of what 8 bits round to the same value, but may lie on the
    border of coarser steps; so the same is tried with less noise around points in no special place.
    """
    elsewhere = sample.nearby("elsewhere", 0.3)
    still = _unmoved(sample, sample.images, _AROUND_IMAGES) | _unmoved(
        sample, elsewhere, _ELSEWHERE
    )
    return of_sample(
        "quantised-input",
        sample,
        sample.rows[still],
        _LIMITS,
        message=f"noise of {_AROUND_IMAGES:g} or {_ELSEWHERE:g} does not change a single bit of the logits",
        advice="gradients cannot see through rounding: attack straight through it, and by queries",
    )


def _unmoved(sample: Probe, points: Images, noise: float) -> Tensor:
    moved = (points + noise * sample.uniform("rounding", 0)).clamp(0, 1)
    return (sample.ask(points) == sample.ask(moved)).all(dim=1)
