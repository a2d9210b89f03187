"""Suites: ordered lists of attacks, either a TOML file in `suites/` or names typed with commas."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from robustbench_kd.core.errors import UsageError, unknown_name
from robustbench_kd.core.plugins import files
from robustbench_kd.core.threat import Norm

ATTACKS = ("apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square")


@dataclass(frozen=True)
class Suite:
    """Attacks in the order they run; `settings` names the published set of budgets in force."""

    name: str
    attacks: tuple[str, ...]
    settings: str
    summary: str = ""
    budgets: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict, repr=False)

    def budget(self, attack: str, norm: Norm) -> dict[str, Any]:
        """Returns the hyper-parameters that the suite gives an attack under a norm; raises `UsageError` where it has none."""
        general = self.budgets.get("budget", {})
        if attack not in general:
            raise UsageError(f"suite '{self.name}' sets no budget for {attack}: run it with --engine autoattack")
        return {**general[attack], **self.budgets.get(str(norm), {}).get(attack, {})}


def parse_suite(text: str) -> Suite:
    """Reads `standard` or a list such as `apgd-ce,square`, which runs with the budgets of `standard`.

    >>> parse_suite("apgd-ce,square").attacks
    ('apgd-ce', 'square')
    """
    known = files("suites", ".toml")
    if text in known:
        content = tomllib.loads(known[text].read_text(encoding="utf-8"))
        budgets = {name: table for name, table in content.items() if isinstance(table, dict)}
        return Suite(text, tuple(content["attacks"]), content["settings"], content["summary"], budgets)
    attacks = tuple(name.strip() for name in text.split(","))
    for name in attacks:
        if name not in ATTACKS:
            alone = len(attacks) == 1
            raise unknown_name("suite or attack" if alone else "attack", name, [*(known if alone else ()), *ATTACKS])
    if len(set(attacks)) < len(attacks):
        raise UsageError(f"expected every attack once, got '{text}'")
    return replace(parse_suite("standard"), name=",".join(attacks), attacks=attacks, summary="")


def for_classes(suite: Suite, classes: int) -> tuple[Suite, list[str]]:
    """Returns the suite that is defined for so few classes, and a sentence for each attack that had to change.

    Raises `UsageError` where none is left: a number that no attack has tested would be the clean accuracy. The DLR loss needs three logits and the targeted one four (Croce & Hein 2020, section 4).
    """
    attacks: list[str] = []
    changes: list[str] = []
    for attack in suite.attacks:
        chosen = _defined(attack, classes)
        if chosen != attack:
            changes.append(
                f"{attack} is undefined for {classes} classes: " + (f"{chosen} runs instead" if chosen else "left out")
            )
        if chosen and chosen not in attacks:
            attacks.append(chosen)
    if not attacks:
        raise UsageError(f"no attack of '{suite.name}' is defined for {classes} classes: use --suite standard")
    return replace(suite, attacks=tuple(attacks)), changes


def _defined(attack: str, classes: int) -> str | None:
    if attack == "apgd-t" and classes < 4:
        return "apgd-dlr" if classes == 3 else None
    if attack == "apgd-dlr" and classes < 3:
        return None
    return attack
