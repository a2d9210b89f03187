"""The stages of a run in order: which attack, on what it searches, on which examples."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from robustbench_kd.core.plugins import find, module
from robustbench_kd.core.suites import Suite
from robustbench_kd.core.threat import Norm, Threat
from robustbench_kd.engine.passes import surfaces
from robustbench_kd.tensors.contracts import Classifier
from robustbench_kd.tensors.defence import EXPECTED, OWN, Adversary, Answer, Armed, Surface
from robustbench_kd.tensors.oracle import Oracle

_SURROGATE = "surrogate-"
_FIRST = "apgd-margin"  # what goes on from the images of a surrogate


@dataclass(frozen=True)
class Extra:
    """What a person adds to the adaptive attacks: stand-in models by name, and attacks that call the defence themselves."""

    surrogates: Mapping[str, Classifier] = field(default_factory=dict)
    attacks: Mapping[str, Callable[..., Adversary]] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """One stage: an attack that searches on a surface, or one that calls the defence itself.

    Its name is the attack's, after the surface's where that is not the defence itself. `adaptive`
    steps follow the standard ones. `starts_from` names an earlier stage whose images it starts from;
    `feeds_later_stage` says that a later one will. `share` is the part of the survivors that it runs on first.
    """

    name: str
    attack: Any
    surface: Surface
    adaptive: bool = False
    adversary: Callable[..., Adversary] | None = None
    starts_from: str = ""
    feeds_later_stage: bool = False
    share: float = 1.0

    def passes(self, norm: Norm, classes: int) -> int:
        """Returns the forward and backward passes that one surviving example costs, 0 where nobody can know."""
        if self.adversary:
            return 0
        schedule = self.attack.schedule(norm)
        return int(
            self.surface.passes * self.attack.jobs(norm, classes) * (len(schedule) + sum(schedule))
        )


def plan(
    suite: Suite,
    oracle: Oracle,
    threat: Threat,
    extra: Extra | None = None,
    *,
    ask: Classifier | None = None,
) -> tuple[Stage, ...]:
    """Returns the stages of a suite against a defence, which the standard ones `ask` in a faster form where there is one."""
    defence = surfaces.own(oracle, suite.draws if oracle.randomized else 1, ask)
    standard = [
        Stage(name, build(name, suite, threat.norm), defence, share=suite.share(name))
        for name in suite.attacks
    ]
    if suite.adaptive is None:
        return tuple(standard)
    return (*standard, *_adaptive(suite.adaptive, oracle, threat, extra or Extra()))


def build(name: str, suite: Suite, norm: Norm) -> Any:
    """Returns an attack with the budget that the suite gives it."""
    component = find("attacks", name, "attack")
    return module("attacks", component.stem).component(
        **component.arguments, **suite.budget(name, norm)
    )


def _adaptive(suite: Suite, oracle: Oracle, threat: Threat, extra: Extra) -> list[Stage]:
    """Returns each gradient attack on every surface, attacks that search for themselves, and those without gradients."""
    known, norm = surfaces.adaptive(oracle, threat.eps), threat.norm
    truest = next(surface for surface in known if surface.name in {OWN, EXPECTED})
    steps = _transfers(suite, extra, truest, norm)
    for surface in known:
        steps += [
            Stage(f"{surface.name}:{name}", attack, surface, adaptive=True)
            for name, attack in _attacks(suite.on(surface.name), norm)
            if any(attack.schedule(norm))
        ]
    own = oracle.model.attacks() if isinstance(oracle.model, Armed) else {}
    steps += [
        Stage(name, None, truest, adaptive=True, adversary=make)
        for name, make in {**own, **extra.attacks}.items()
    ]
    blind = [
        Stage(f"{truest.name}:{name}", attack, truest, adaptive=True)
        for name, attack in _attacks(suite, norm)
        if not any(attack.schedule(norm))
    ]
    return [*steps, *blind]


def _transfers(suite: Suite, extra: Extra, truest: Surface, norm: Norm) -> list[Stage]:
    """Returns attacks on each surrogate, and one on the defence that goes on from their best images."""
    steps = []
    for name, model in extra.surrogates.items():
        surface = Surface(name=f"{_SURROGATE}{name}", answer=_keyless(model))
        stages = [
            (f"{surface.name}:{attack}", built)
            for attack, built in _attacks(suite.on(surface.name), norm)
        ]
        steps += [
            Stage(stage, built, surface, adaptive=True, feeds_later_stage=True)
            for stage, built in stages
            if any(built.schedule(norm))
        ]
        onward = build(_FIRST, suite, norm)
        steps.append(
            Stage(
                f"from-{surface.name}:{_FIRST}",
                onward,
                truest,
                adaptive=True,
                starts_from=steps[-1].name,
            )
        )
    return steps


def _keyless(model: Classifier) -> Answer:
    return lambda images, _key: model(images)


def _attacks(suite: Suite, norm: Norm) -> Sequence[tuple[str, Any]]:
    return [(name, build(name, suite, norm)) for name in suite.attacks]
