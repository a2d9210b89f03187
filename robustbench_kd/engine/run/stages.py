"""The stages of an evaluation in order: which attack, on which surface, on which examples."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from robustbench_kd.core.plugins import find, module
from robustbench_kd.core.suites import Suite
from robustbench_kd.core.threat import Norm, Threat
from robustbench_kd.engine.passes import surfaces
from robustbench_kd.engine.run.request import Extra
from robustbench_kd.tensors.attack import Attack
from robustbench_kd.tensors.contracts import Classifier, Images, Logits
from robustbench_kd.tensors.defence import EXPECTED, OWN, Adversary, Armed, Key, Surface
from robustbench_kd.tensors.oracle import Oracle

_SURROGATE = "surrogate-"
_FOLLOWING = "apgd-margin"  # the attack that goes on from the images of a surrogate


@dataclass(frozen=True)
class Stage:
    """One attack in its place in the order.

    Args:
        name: The attack's name, after the surface's name where the attack searches on a stand-in.
        surface: What the attack searches on.
        attack: The attack; None where `adversary` takes its place.
        adversary: Makes an attack that calls the defence itself.
        adaptive: Whether the stage follows the standard ones.
        starts_from: The name of an earlier stage from whose images this one starts; often empty.
        feeds_later_stage: Whether a later stage starts from the images of this one.
        fraction: The fraction of the survivors that the stage attacks first.
    """

    name: str
    surface: Surface
    attack: Attack | None = None
    adversary: Callable[..., Adversary] | None = None
    adaptive: bool = False
    starts_from: str = ""
    feeds_later_stage: bool = False
    fraction: float = 1.0

    def costs(self, norm: Norm, classes: int) -> tuple[int, int]:
        """Returns the forward and backward passes of one survivor at most; 0 if nobody can know."""
        if self.attack is None:
            return 0, 0
        schedule = self.attack.schedule(norm)
        restarts = self.surface.passes * self.attack.restart_count(norm, classes)
        return restarts * len(schedule), restarts * sum(schedule)

    def passes(self, norm: Norm, classes: int) -> int:
        """Returns the passes of one survivor at most, forward and backward ones together."""
        return sum(self.costs(norm, classes))

    def uses_gradients(self, norm: Norm) -> bool:
        """Returns whether the attack follows gradients."""
        return self.attack is not None and any(self.attack.schedule(norm))


def plan_stages(
    suite: Suite, oracle: Oracle, threat: Threat, extra: Extra, found: Sequence[Surface] = ()
) -> tuple[Stage, ...]:
    """Returns the stages of a suite against a defence, with surfaces that were found in it."""
    defence = surfaces.own(oracle, suite.draws if oracle.randomized else 1)
    standard = [
        Stage(name, defence, attack, fraction=suite.fraction(name))
        for name, attack in _attacks(suite, threat.norm).items()
    ]
    if suite.adaptive is None:
        return tuple(standard)
    return (*standard, *_adaptive_stages(suite.adaptive, oracle, threat, extra, found))


def with_search_model(
    stages: Sequence[Stage], oracle: Oracle, search_model: Classifier
) -> tuple[Stage, ...]:
    """Returns the stages with a faster form of a deterministic defence for the standard ones."""
    if oracle.randomized:
        return tuple(stages)

    faster = surfaces.own(oracle, 1, search_model)
    return tuple(stage if stage.adaptive else replace(stage, surface=faster) for stage in stages)


def build_attack(name: str, suite: Suite, norm: Norm) -> Attack:
    """Returns an attack with the budget that the suite gives it."""
    component = find("attacks", name, "attack")
    make: Callable[..., Attack] = module("attacks", component.stem).component
    return make(**component.arguments, **suite.budget(name, norm))


def _attacks(suite: Suite, norm: Norm) -> dict[str, Attack]:
    return {name: build_attack(name, suite, norm) for name in suite.attacks}


def _adaptive_stages(
    suite: Suite, oracle: Oracle, threat: Threat, extra: Extra, found: Sequence[Surface]
) -> Iterator[Stage]:
    """Yields the adaptive stages.

    First come attacks on surrogates, then each gradient attack on every surface, found ones before
    declared ones, then attacks that call the defence themselves, at last attacks without gradients.
    """
    norm = threat.norm
    known = surfaces.adaptive_surfaces(oracle, threat.eps)
    defence = next(surface for surface in known if surface.name in {OWN, EXPECTED})

    for name, model in extra.surrogates.items():
        yield from _transfer_stages(name, model, suite, defence, norm)

    for surface in (*found, *known):
        yield from _stages_on(surface, suite.on(surface.name), norm, gradients=True)

    own = oracle.model.attacks() if isinstance(oracle.model, Armed) else {}
    adversaries: Mapping[str, Callable[..., Adversary]] = {**own, **extra.attacks}
    for name, make in adversaries.items():
        yield Stage(name, defence, adversary=make, adaptive=True)

    yield from _stages_on(defence, suite, norm, gradients=False)


def _stages_on(surface: Surface, suite: Suite, norm: Norm, *, gradients: bool) -> Iterator[Stage]:
    """Yields the attacks of a suite on a surface, those that use gradients or the others."""
    for name, attack in _attacks(suite, norm).items():
        stage = Stage(f"{surface.name}:{name}", surface, attack, adaptive=True)
        if stage.uses_gradients(norm) == gradients:
            yield stage


def _transfer_stages(
    name: str, model: Classifier, suite: Suite, defence: Surface, norm: Norm
) -> Iterator[Stage]:
    """Yields attacks on a surrogate, and one on the defence that starts from their best images."""

    def answer(images: Images, _key: Key) -> Logits:
        return model(images)

    surface = Surface(name=f"{_SURROGATE}{name}", answer=answer)
    last = ""
    for stage in _stages_on(surface, suite.on(surface.name), norm, gradients=True):
        yield replace(stage, feeds_later_stage=True)
        last = stage.name

    following = build_attack(_FOLLOWING, suite, norm)
    yield Stage(
        f"from-{surface.name}:{_FOLLOWING}", defence, following, adaptive=True, starts_from=last
    )
