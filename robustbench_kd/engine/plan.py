"""The stages of a run in order: which attack, on what it searches, on which examples."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from robustbench_kd.core.plugins import find, module
from robustbench_kd.core.suites import Suite
from robustbench_kd.core.threat import Norm, Threat
from robustbench_kd.engine import surfaces
from robustbench_kd.tensors.defence import Surface
from robustbench_kd.tensors.oracle import Oracle


@dataclass(frozen=True)
class Step:
    """One stage: an attack that searches on a surface.

    Its name is the attack's, after the surface's where that is not the defence itself. `adaptive` steps follow the standard
    ones. `share` is the part of the survivors that a fast run attacks first.
    """

    name: str
    attack: Any
    surface: Surface
    adaptive: bool = False
    share: float = 1.0

    def passes(self, norm: Norm, classes: int) -> int:
        """Returns the forward and backward passes that one surviving example costs."""
        schedule = self.attack.schedule(norm)
        return int(self.surface.passes * self.attack.jobs(norm, classes) * (len(schedule) + sum(schedule)))


def plan(suite: Suite, oracle: Oracle, threat: Threat, extra: Sequence[Surface] = ()) -> tuple[Step, ...]:
    """Returns the stages of a suite against a defence; `extra` surfaces join those it declares."""
    defence = surfaces.own(oracle, suite.draws if oracle.randomized else 1)
    standard = [Step(name, build(name, suite, threat.norm), defence) for name in suite.attacks]
    if suite.adaptive is None:
        return tuple(standard)
    return (*standard, *_adaptive(suite.adaptive, [*extra, *surfaces.adaptive(oracle, threat.eps)], threat.norm))


def build(name: str, suite: Suite, norm: Norm) -> Any:
    """Returns an attack with the budget that the suite gives it."""
    component = find("attacks", name, "attack")
    return module("attacks", component.stem).component(**component.arguments, **suite.budget(name, norm))


def _adaptive(suite: Suite, known: Sequence[Surface], norm: Norm) -> list[Step]:
    """Returns each gradient attack on every surface, then what needs no gradient on the defence itself."""
    attacks = [(name, build(name, suite, norm)) for name in suite.attacks]
    guided = [(name, attack) for name, attack in attacks if any(attack.schedule(norm))]
    blind = [(name, attack) for name, attack in attacks if not any(attack.schedule(norm))]
    steps = [
        Step(f"{surface.name}:{name}", attack, surface, adaptive=True) for surface in known for name, attack in guided
    ]
    truest = next(surface for surface in known if surface.name in {surfaces.OWN, "expected"})
    return [*steps, *(Step(f"{truest.name}:{name}", attack, truest, adaptive=True) for name, attack in blind)]
