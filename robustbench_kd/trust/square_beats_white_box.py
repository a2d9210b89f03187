"""Attacks without gradients break images that gradient attacks do not break."""

from robustbench_kd.core.records import Finding
from robustbench_kd.tensors.probe import Facts
from robustbench_kd.trust._grade import Limits, of_examples

# Yellow as in AutoAttack; honest networks reach 0.2 %, masked ones up to 36 %.
_LIMITS = Limits(yellow=0.002, red=0.02)


def review(facts: Facts) -> list[Finding]:
    """Returns a finding if queries alone broke examples after gradient attacks had failed.

    Only standard attacks are compared. A single example is no evidence, however small the run.
    """
    broken = _broken_after_gradients(facts)
    fraction = len(broken) / facts.examples
    return of_examples(
        "square-beats-white-box",
        broken,
        facts.examples,
        _LIMITS,
        message=f"attacks without gradients lowered the robust accuracy by {fraction:.1%} after "
        "the gradient attacks",
        advice="gradients may mislead: run more queries and an adaptive attack",
    )


def _broken_after_gradients(facts: Facts) -> list[int]:
    """Returns the examples that a stage without gradients broke after a stage with gradients."""
    follows_gradients = False
    broken = set[int]()
    for stage in facts.stages:
        if stage.adaptive:
            break
        if stage.guided:
            follows_gradients = True
        elif follows_gradients:
            broken |= stage.broken
    return sorted(broken)
