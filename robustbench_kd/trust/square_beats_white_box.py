"""Attacks without gradients break images that gradient attacks do not."""

from robustbench_kd.core.records import Finding
from robustbench_kd.tensors.probe import Facts
from robustbench_kd.trust._grade import Limits, of_examples

# Yellow as in AutoAttack; honest networks reach 0.2 %, masked ones up to 36 %.
_LIMITS = Limits(yellow=0.002, red=0.02)


def review(facts: Facts) -> list[Finding]:
    """Returns a finding where queries alone broke examples after gradient attacks of the same kind had failed.

    Standard attacks are held against standard ones. A single example is no evidence, whatever its
    share.
    """
    blind = _after_guided(facts)
    share = len(blind) / facts.examples
    return of_examples(
        "square-beats-white-box",
        blind,
        facts.examples,
        _LIMITS,
        message=f"attacks without gradients lowered the robust accuracy by {share:.1%} after the gradient attacks",
        advice="gradients may mislead: run more queries and an adaptive attack",
    )


def _after_guided(facts: Facts) -> list[int]:
    guided, found = False, set[int]()
    for stage in facts.stages:
        if stage.adaptive:
            break
        guided = guided or stage.guided
        if guided and not stage.guided:
            found |= stage.broken
    return sorted(found)
