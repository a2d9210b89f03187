"""Suites: ordered lists of attacks with their budgets.

A suite is a TOML file in `suites/`, a list of attacks typed with commas, or two of these joined by
`+`.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NotRequired, TypeAlias, TypedDict, cast

from robustbench_kd.core.errors import UsageError, unknown_name
from robustbench_kd.core.plugins import components, files
from robustbench_kd.core.threat import Norm

ADAPTIVE = "adaptive"

Setting: TypeAlias = int | float | bool
Budgets: TypeAlias = Mapping[str, Mapping[str, Setting]]  # hyper-parameters by attack


class _File(TypedDict):
    """What a file of `suites/` holds."""

    summary: str
    attacks: list[str]
    settings: str
    draws: NotRequired[int]
    budget: NotRequired[Budgets]
    norms: NotRequired[Mapping[str, Budgets]]
    surfaces: NotRequired[Mapping[str, Budgets]]
    sample: NotRequired[Mapping[str, float]]


@dataclass(frozen=True)
class Suite:
    """Attacks in the order they run.

    Args:
        name: As it is typed.
        attacks: Names of attacks.
        settings: The name of the set of budgets in force, one of AutoAttack's or our own.
        summary: One line for `rkd list`.
        budgets: Hyper-parameters by attack.
        norms: Hyper-parameters by norm and attack; they replace single values of `budgets`.
        surfaces: Hyper-parameters by surface and attack; on such a surface only these attacks run.
        sample: The fraction of the survivors that an attack runs on first, by attack.
        draws: Over how many draws of a randomized defence each step averages.
        adaptive: Attacks that run afterwards, on every surface of a defence.
    """

    name: str
    attacks: tuple[str, ...]
    settings: str
    summary: str = ""
    budgets: Budgets = field(default_factory=dict, repr=False)
    norms: Mapping[str, Budgets] = field(default_factory=dict, repr=False)
    surfaces: Mapping[str, Budgets] = field(default_factory=dict, repr=False)
    sample: Mapping[str, float] = field(default_factory=dict, repr=False)
    draws: int = 1
    adaptive: "Suite | None" = field(default=None, repr=False)

    @property
    def mode(self) -> str:
        """Returns `fast` where an attack may run on a sample of the survivors, else `exact`."""
        return "fast" if self.sample else "exact"

    def fraction(self, attack: str) -> float:
        """Returns the fraction of the survivors that an attack runs on first."""
        return float(self.sample.get(attack, 1))

    def budget(self, attack: str, norm: Norm) -> dict[str, Setting]:
        """Returns the hyper-parameters that the suite gives an attack under a norm."""
        of_norm = self.norms.get(str(norm), {})
        return {**self.budgets.get(attack, {}), **of_norm.get(attack, {})}

    def on(self, surface: str) -> "Suite":
        """Returns the suite for a surface, which may have fewer attacks and budgets of its own."""
        budgets = self.surfaces.get(surface)
        if budgets is None:
            return self
        return replace(self, attacks=tuple(budgets), budgets=budgets, norms={})


def parse_suite(text: str) -> Suite:
    """Reads `standard`, `standard+adaptive`, or a list with the budgets of `standard`.

    >>> parse_suite("apgd-ce,square").attacks
    ('apgd-ce', 'square')
    """
    first, plus, second = text.partition("+")
    if plus:
        return _joined(text, parse_suite(first.strip()), parse_suite(second.strip()))
    if text in files("suites", ".toml"):
        return _read(text)
    return _listed(text)


def _read(name: str) -> Suite:
    path = files("suites", ".toml")[name]
    content = cast("_File", tomllib.loads(path.read_text(encoding="utf-8")))
    suite = Suite(
        name=name,
        attacks=tuple(content["attacks"]),
        settings=content["settings"],
        summary=content["summary"],
        budgets=content.get("budget", {}),
        norms=content.get("norms", {}),
        surfaces=content.get("surfaces", {}),
        sample=content.get("sample", {}),
        draws=content.get("draws", 1),
    )
    if suite.settings == ADAPTIVE:
        return replace(suite, attacks=(), adaptive=suite)
    return suite


def _listed(text: str) -> Suite:
    attacks = tuple(name.strip() for name in text.split(","))
    existing = components("attacks")
    for name in attacks:
        if name in existing:
            continue
        if len(attacks) == 1:
            raise unknown_name("suite or attack", name, [*files("suites", ".toml"), *existing])
        raise unknown_name("attack", name, existing)

    if len(set(attacks)) < len(attacks):
        raise UsageError(f"expected every attack once, got '{text}'")
    return replace(parse_suite("standard"), name=",".join(attacks), attacks=attacks, summary="")


def _joined(text: str, first: Suite, second: Suite) -> Suite:
    if first.adaptive or not second.adaptive or second.attacks:
        raise UsageError(
            f"expected a suite and then the adaptive one, such as standard+adaptive, got '{text}'"
        )
    return replace(first, name=f"{first.name}+{second.name}", adaptive=second.adaptive)
