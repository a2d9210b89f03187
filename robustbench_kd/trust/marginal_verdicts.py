"""Rounding could change the verdict on an example."""

from robustbench_kd.core.records import Finding
from robustbench_kd.tensors.probe import Facts
from robustbench_kd.trust._grade import Limits, of_examples

_MARGIN = 1e-3
_LIMITS = Limits(yellow=0.01)  # honest runs have 0.2 % at most


def review(facts: Facts) -> list[Finding]:
    """Returns a yellow finding if many examples are broken by a margin below 0.001."""
    marginal = sorted(example for example, margin in facts.margins.items() if abs(margin) < _MARGIN)
    return of_examples(
        "marginal-verdicts",
        marginal,
        facts.examples,
        _LIMITS,
        message=f"{len(marginal)} examples are broken by a margin below {_MARGIN:g}, which another "
        "device could change",
        advice="store the images (--save-adversarial) and verify them elsewhere",
    )
