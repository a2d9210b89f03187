"""What a suite becomes for few classes: not every loss is defined for two or three logits."""

from dataclasses import replace

from robustbench_kd.core.errors import UsageError
from robustbench_kd.core.suites import Suite
from robustbench_kd.core.threat import Norm
from robustbench_kd.engine.run.stages import build_attack


def for_classes(suite: Suite, classes: int, norm: Norm) -> tuple[Suite, list[str]]:
    """Returns the suite that is defined for so many classes, and one sentence per changed attack.

    Raises `UsageError` where no attack is left: the number would be the clean accuracy.
    """
    attacks, changes = _defined(suite, classes, norm)
    adaptive = suite.adaptive
    if adaptive:
        adaptive_attacks, adaptive_changes = _defined(adaptive, classes, norm)
        adaptive = replace(adaptive, attacks=adaptive_attacks)
        changes += [change for change in adaptive_changes if change not in changes]

    if not attacks and not adaptive:
        raise UsageError(
            f"no attack of '{suite.name}' is defined for {classes} classes: use --suite standard"
        )
    return replace(suite, attacks=attacks, adaptive=adaptive), changes


def _defined(suite: Suite, classes: int, norm: Norm) -> tuple[tuple[str, ...], list[str]]:
    attacks: list[str] = []
    changes: list[str] = []
    for name in suite.attacks:
        chosen = _defined_name(name, suite, classes, norm)
        if chosen != name:
            instead = f"{chosen} runs instead" if chosen else "left out"
            changes.append(f"{name} is undefined for {classes} classes: {instead}")
        if chosen and chosen not in attacks:
            attacks.append(chosen)
    return tuple(attacks), changes


def _defined_name(name: str, suite: Suite, classes: int, norm: Norm) -> str:
    """Returns the attack itself, its substitute or the substitute's, or nothing."""
    while name:
        attack = build_attack(name, suite, norm)
        if classes >= attack.least_classes():
            return name
        name = attack.substitute()
    return ""
