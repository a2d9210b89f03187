"""An attack on a part of the defence breaks images that attacks on the whole do not."""

from robustbench_kd.core.records import Finding
from robustbench_kd.tensors.probe import WHOLE, Facts
from robustbench_kd.tensors.short_attacks import ShortAttacks
from robustbench_kd.trust._grade import Limits, of_examples, of_sample

_CHECK = "transfer-beats-white-box"
_ON_SAMPLE = Limits(yellow=0.02, red=0.1)
_IN_RUN = Limits(yellow=0.002)  # what AutoAttack allows Square
_SOURCE = "a white-box attack that loses to transfer lacks gradients"


def search(trials: ShortAttacks) -> list[Finding]:
    """Returns a finding for the declared part whose attack breaks most of what gradients on the whole leave standing.

    Nothing is found where the run attacks the parts itself. Source of the symptom: Carlini et al.
    2019 (arXiv 1902.06705).
    """
    if not trials.parts:
        return []
    name, broken = max(trials.transferred.items(), key=lambda found: len(found[1]))
    return of_sample(
        _CHECK,
        trials.sample,
        broken,
        _ON_SAMPLE,
        message=f"10 steps on '{name}' alone break what gradient attacks on the whole defence do not",
        advice=f"{_SOURCE}: run --suite standard+adaptive",
    )


def review(facts: Facts) -> list[Finding]:
    """Returns a yellow finding where adaptive attacks on parts and stand-ins broke what the standard ones left."""
    stages = [stage for stage in facts.stages if stage.adaptive and stage.surface not in WHOLE]
    broken = sorted(example for stage in stages for example in stage.broken)
    names = ", ".join(dict.fromkeys(stage.surface for stage in stages if stage.broken))
    share = len(broken) / facts.examples
    return of_examples(
        _CHECK,
        broken,
        facts.examples,
        _IN_RUN,
        message=f"attacks on {names} lowered the robust accuracy by {share:.1%} after the standard ones",
        advice=f"{_SOURCE}: quote the adaptive number, and look for stronger attacks still",
    )
