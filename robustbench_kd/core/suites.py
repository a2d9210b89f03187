"""Suites: ordered lists of attacks, a TOML file in `suites/` or names typed with commas, or two of these joined by `+`."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from robustbench_kd.core.errors import UsageError, unknown_name
from robustbench_kd.core.plugins import components, files
from robustbench_kd.core.threat import Norm

ADAPTIVE = "adaptive"


@dataclass(frozen=True)
class Suite:
    """Attacks in the order they run.

    `settings` names the set of budgets in force, one of AutoAttack's or our own. `draws` is over
    how many draws of a randomized defence each step averages. The attacks of an `adaptive` suite
    run afterwards, on every surface of a defence.
    """

    name: str
    attacks: tuple[str, ...]
    settings: str
    summary: str = ""
    budgets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False)
    draws: int = 1
    adaptive: "Suite | None" = field(default=None, repr=False)

    @property
    def mode(self) -> str:
        """Returns `fast` where an attack may run on a sample of the survivors only, `exact` otherwise."""
        return "fast" if "sample" in self.budgets else "exact"

    def share(self, attack: str) -> float:
        """Returns the share of the survivors that an attack runs on first."""
        return float(self.budgets.get("sample", {}).get(attack, 1))

    def budget(self, attack: str, norm: Norm) -> dict[str, Any]:
        """Returns the hyper-parameters that the suite gives an attack under a norm; raises `UsageError` where it has none."""
        general = self.budgets.get("budget", {})
        return {**general.get(attack, {}), **self.budgets.get(str(norm), {}).get(attack, {})}

    def on(self, surface: str) -> "Suite":
        """Returns the suite for a surface: where a table bears its name, only the attacks and budgets in it."""
        own = self.budgets.get(surface)
        if own is None:
            return self
        return replace(self, attacks=tuple(own), budgets={"budget": own})


def parse_suite(text: str) -> Suite:
    """Reads `standard`, a list such as `apgd-ce,square`, which runs with the budgets of `standard`, or `standard+adaptive`.

    >>> parse_suite("apgd-ce,square").attacks
    ('apgd-ce', 'square')
    """
    first, plus, second = text.partition("+")
    if plus:
        return _joined(text, parse_suite(first.strip()), parse_suite(second.strip()))
    known = files("suites", ".toml")
    if text in known:
        content = tomllib.loads(known[text].read_text(encoding="utf-8"))
        budgets = {name: table for name, table in content.items() if isinstance(table, dict)}
        attacks, draws = tuple(content["attacks"]), content.get("draws", 1)
        suite = Suite(text, attacks, content["settings"], content["summary"], budgets, draws)
        return replace(suite, attacks=(), adaptive=suite) if suite.settings == ADAPTIVE else suite
    attacks, existing = tuple(name.strip() for name in text.split(",")), components("attacks")
    for name in attacks:
        if name not in existing:
            alone = len(attacks) == 1
            raise unknown_name(
                "suite or attack" if alone else "attack",
                name,
                [*(known if alone else ()), *existing],
            )
    if len(set(attacks)) < len(attacks):
        raise UsageError(f"expected every attack once, got '{text}'")
    return replace(parse_suite("standard"), name=",".join(attacks), attacks=attacks, summary="")


def _joined(text: str, first: Suite, second: Suite) -> Suite:
    if first.adaptive or not second.adaptive or second.attacks:
        raise UsageError(
            f"expected a suite and then the adaptive one, such as standard+adaptive, got '{text}'"
        )
    return replace(first, name=f"{first.name}+{second.name}", adaptive=second.adaptive)


def for_classes(suite: Suite, classes: int) -> tuple[Suite, list[str]]:
    """Returns the suite that is defined for so few classes, and a sentence for each attack that had to change.

    Raises `UsageError` where none is left: a number that no attack has tested would be the clean
    accuracy. The DLR loss needs three logits and the targeted one four (Croce & Hein 2020, section
    4).
    """
    attacks, changes = _defined_attacks(suite.attacks, classes)
    adaptive = suite.adaptive
    if adaptive:
        kept, more = _defined_attacks(adaptive.attacks, classes)
        adaptive, changes = replace(adaptive, attacks=kept), list(dict.fromkeys([*changes, *more]))
    if not attacks and not adaptive:
        raise UsageError(
            f"no attack of '{suite.name}' is defined for {classes} classes: use --suite standard"
        )
    return replace(suite, attacks=attacks, adaptive=adaptive), changes


def _defined_attacks(names: tuple[str, ...], classes: int) -> tuple[tuple[str, ...], list[str]]:
    attacks: list[str] = []
    changes: list[str] = []
    for attack in names:
        chosen = _defined(attack, classes)
        if chosen != attack:
            changes.append(
                f"{attack} is undefined for {classes} classes: "
                + (f"{chosen} runs instead" if chosen else "left out")
            )
        if chosen and chosen not in attacks:
            attacks.append(chosen)
    return tuple(attacks), changes


def _defined(attack: str, classes: int) -> str | None:
    if attack == "apgd-t" and classes < 4:
        return "apgd-dlr" if classes == 3 else None
    if attack == "apgd-dlr" and classes < 3:
        return None
    return attack
