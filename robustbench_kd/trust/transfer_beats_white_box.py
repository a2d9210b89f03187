"""An attack on a part of the defence breaks images that attacks on the whole do not break."""

from robustbench_kd.core.records import Finding
from robustbench_kd.tensors.probe import DEFENCE_ITSELF, Facts
from robustbench_kd.tensors.short_attacks import ShortAttacks
from robustbench_kd.trust._grade import Limits, of_examples, of_sample

_CHECK = "transfer-beats-white-box"
_ON_SAMPLE = Limits(yellow=0.02, red=0.1)
_IN_RUN = Limits(yellow=0.002)  # the limit of AutoAttack for Square
_CAUSE = "a white-box attack that is weaker than transfer lacks gradients"


def search(attacks: ShortAttacks) -> list[Finding]:
    """Returns a finding for the declared part whose attack breaks most of the survivors.

    Survivors are the images that gradient attacks on the whole defence do not break. There is no
    finding if the run attacks the parts itself. Source of the symptom: Carlini et al. 2019 (arXiv
    1902.06705).
    """
    if not attacks.parts:
        return []

    name = max(attacks.transferred, key=lambda part: len(attacks.transferred[part]))
    return of_sample(
        _CHECK,
        attacks.sample,
        attacks.transferred[name],
        _ON_SAMPLE,
        message=f"10 steps on '{name}' alone break what gradient attacks on the whole defence do "
        "not",
        advice=f"{_CAUSE}: run --suite standard+adaptive",
    )


def review(facts: Facts) -> list[Finding]:
    """Returns a yellow finding if adaptive attacks on stand-ins broke survivors of the others."""
    names: list[str] = []
    broken: list[int] = []
    for stage in facts.stages:
        if stage.adaptive and stage.surface not in DEFENCE_ITSELF and stage.broken:
            names.append(stage.surface)
            broken += stage.broken

    fraction = len(broken) / facts.examples
    surfaces = ", ".join(dict.fromkeys(names))
    return of_examples(
        _CHECK,
        sorted(broken),
        facts.examples,
        _IN_RUN,
        message=f"attacks on {surfaces} lowered the robust accuracy by {fraction:.1%} after the "
        "standard ones",
        advice=f"{_CAUSE}: report the adaptive number, and look for still stronger attacks",
    )
