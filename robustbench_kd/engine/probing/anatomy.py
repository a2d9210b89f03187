"""Looks into a defence that declares no surface: what masks its gradients, and what to attack.

One forward pass under a mode of torch shows where gradients end, where something like the image is
seen last and something like the logits first. What follows from that are surfaces; a short attack
on a few images says which of them are worth an attack of full length. Nothing is found in an honest
classifier, because its own gradients are those of every surface.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from robustbench_kd.attacks.apgd import Apgd
from robustbench_kd.core.errors import reason
from robustbench_kd.core.records import Finding, Severity
from robustbench_kd.core.threat import Threat
from robustbench_kd.engine.anatomy.candidates import Findings, candidates, read
from robustbench_kd.engine.anatomy.chance import Unkeyed, expected
from robustbench_kd.engine.anatomy.recording import record
from robustbench_kd.engine.anatomy.rewired_answer import RewiredAnswer
from robustbench_kd.engine.passes.batching import with_fewer
from robustbench_kd.engine.probing.checkup import Scope, probe_of
from robustbench_kd.tensors.contracts import Dataset, Images, Logits
from robustbench_kd.tensors.defence import OWN, Key, Surface, Surfaced, is_randomized
from robustbench_kd.tensors.oracle import Oracle, is_out_of_memory
from robustbench_kd.tensors.probe import (
    Ask,
    NoGradientError,
    Probe,
    differentiated,
    reversed_margin,
)
from robustbench_kd.tensors.seeds import seed_of, seeded
from robustbench_kd.tensors.short_attacks import ShortAttacks
from robustbench_kd.tensors.undefined import settled
from robustbench_kd.trust.loss_gain import gains

FOUND = "found-"
_IMAGES = 24
_STEPS = 15
_RADII = (1, 2)  # in radii of the threat
_SAME = 0.98  # cosine from which two gradients are the same, if they are zero at the same pixels
_MOST = 2  # surfaces that are attacked at full length
_MOST_PARTS = 6  # places that a finding names
_STREAM = "anatomy"


@dataclass(frozen=True)
class Part:
    """A line of the anatomy: what happens at a place of a defence."""

    module: str
    line: str
    what: str


@dataclass(frozen=True)
class Found:
    """A surface with how well a short attack did on it.

    `broken` counts images and radii out of `tried`; `gain` is the loss gained per loss that the
    gradient predicted, median over images.
    """

    surface: Surface
    broken: int
    tried: int
    gain: float


@dataclass(frozen=True)
class Anatomy:
    """What was found in a defence.

    `own` is the defence itself under the same short attack, None where nothing had to be compared;
    `passes` is what it all cost. `failure` says why a defence could not be looked into.
    """

    parts: tuple[Part, ...] = ()
    own: Found | None = None
    found: tuple[Found, ...] = ()
    passes: int = 0
    failure: str = ""

    @property
    def surfaces(self) -> list[Surface]:
        """Returns the surfaces, the most promising first."""
        return [one.surface for one in self.found]


def is_undeclared(model: nn.Module) -> bool:
    """Returns whether a defence offers no surface of its own, so that its anatomy is of use."""
    return isinstance(model, Unkeyed) or not (isinstance(model, Surfaced) or is_randomized(model))


def examine(oracle: Oracle, data: Dataset, threat: Threat, seed: int) -> Anatomy:
    """Returns the anatomy of a defence, from a few images that it classifies correctly."""
    if not is_undeclared(oracle.model) or oracle.abstains:
        return Anatomy()
    before = oracle.meter.passes

    def look(size: int) -> Anatomy:
        sample = probe_of(oracle, _spread(data, size), threat, Scope(seed=seed))
        if not len(sample):
            return Anatomy()
        try:
            return _Examination(oracle, sample).anatomy()
        except (
            Exception,
            SystemExit,
        ) as error:  # a person's own code, watched in a way it did not expect
            if is_out_of_memory(error):
                raise
            return Anatomy(failure=reason(error))

    anatomy = with_fewer(min(_IMAGES, len(data)), look)
    return replace(anatomy, passes=oracle.meter.passes - before)


class _Examination:
    """One defence and one sample."""

    def __init__(self, oracle: Oracle, sample: Probe) -> None:
        model = oracle.model
        self._oracle = oracle
        self._sample = sample
        self._chance = model.chance if isinstance(model, Unkeyed) else None
        self._network = model.model if isinstance(model, Unkeyed) else model
        self._seed = seed_of(sample.seed, _STREAM)

    def anatomy(self) -> Anatomy:
        found = self._read()
        parts = tuple(_parts(found))
        rewired = list(self._different(candidates(self._network, found)))
        if not rewired:
            return Anatomy(parts)

        own = self._tried(self._own_surface())
        tried = [self._tried(self._surface(name, form)) for name, form in rewired]
        better = [one for one in tried if one.broken > own.broken]
        better.sort(key=lambda one: -one.broken)
        return Anatomy(parts, own, tuple(better[:_MOST]))

    def _read(self) -> Findings:
        images = self._sample.images
        with seeded(self._seed, self._network):
            recording = record(self._network, images)
        self._oracle.meter.add(forwards=len(images))
        return read(self._network, recording)

    def _own_surface(self) -> Surface:
        if self._chance:
            return expected(self._network, self._network, self._chance, OWN)
        return Surface(name=OWN, answer=lambda images, _key: self._network(images))

    def _different(
        self, forms: Iterable[tuple[str, RewiredAnswer]]
    ) -> Iterator[tuple[str, RewiredAnswer]]:
        """Yields the forms whose gradients differ from those of the defence and of each other."""
        known = [self._gradient(self._network)]
        for name, form in forms:
            gradient = self._gradient(form)
            if gradient.any() and not any(_same(gradient, other) for other in known):
                known.append(gradient)
                yield name, form

    def _gradient(self, ask: object) -> Tensor:
        sample = self._sample

        def answer(images: Images) -> Logits:
            with seeded(self._seed, self._network):
                logits: Logits = ask(images)  # type: ignore[operator]
            return logits

        self._oracle.meter.add(forwards=len(sample), backwards=len(sample))
        try:
            _, _, gradient = differentiated(
                answer, sample.images, lambda logits: reversed_margin(logits, sample.labels)
            )
        except NoGradientError:
            return torch.zeros_like(sample.images)
        return gradient.nan_to_num(0, 0, 0)

    def _surface(self, name: str, form: RewiredAnswer) -> Surface:
        full_name = f"{FOUND}{name}"
        if self._chance:
            return expected(form, self._network, self._chance, full_name)
        return Surface(
            name=full_name,
            answer=lambda images, _key: form(images),
            same_outputs=not form.tap.readings,
        )

    def _tried(self, surface: Surface) -> Found:
        """Returns how a short attack does on a surface, judged by the defence itself."""
        sample = self._sample
        ask = _mean(surface, sample)
        attack = Apgd(loss="margin", steps=_STEPS)
        broken = 0
        for factor in _RADII:
            threat = replace(sample.threat, eps=factor * sample.threat.eps)
            attacks = ShortAttacks(
                sample=replace(sample, threat=threat),
                plain=attack,
                brief=attack,
                thorough=attack,
                longer=attack,
            )
            broken += self._broken(attacks, ask)
        return Found(surface, broken, len(_RADII) * len(sample), self._gain(ask))

    def _broken(self, attacks: ShortAttacks, ask: Ask) -> int:
        try:
            trace = attacks.on(ask)
        except NoGradientError:
            return 0
        evaluated = int(trace.losses.isfinite().sum())
        self._oracle.meter.add(forwards=evaluated, backwards=evaluated)
        return len(trace.broken)

    def _gain(self, ask: Ask) -> float:
        try:
            by_step = gains(replace(self._sample, answer=ask))
        except NoGradientError:
            return 0.0
        best = by_step.nan_to_num(0).amax(dim=0)
        return float(best.median())


def _mean(surface: Surface, sample: Probe) -> Ask:
    """Returns the mean answer of a surface as a function of points and rows."""

    def ask(points: Images, rows: Tensor) -> Logits:
        ids = sample.ids[rows]
        key = Key(sample.seed, _STREAM, ids=ids, draw=torch.zeros_like(ids))
        answers = surface.answer(points, key)
        answers = answers.to(points.dtype)
        mean = answers.mean(dim=0) if answers.ndim == 3 else answers
        return settled(mean, sample.labels[rows])[0]

    return ask


def _spread(data: Dataset, count: int) -> Dataset:
    """Returns so many images, spread over the data set."""
    return data.take(torch.arange(count) * len(data) // count)


def _same(one: Tensor, other: Tensor) -> bool:
    units = [functional.normalize(_scaled(gradient), dim=1) for gradient in (one, other)]
    cosine = (units[0] * units[1]).sum(dim=1)
    equal_zeros = ((units[0] == 0) == (units[1] == 0)).float().mean(dim=1)
    return bool(torch.minimum(cosine, equal_zeros).median() > _SAME)


def _scaled(gradient: Tensor) -> Tensor:
    """Returns flat gradients whose largest number is 1: squares of tiny ones would vanish."""
    flat = gradient.flatten(1)
    return flat / flat.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(flat.dtype).tiny)


def _parts(found: Findings) -> Iterator[Part]:
    for place, (what, module) in found.repaired.items():
        yield Part(module, place.line, f"{what} ends or changes the gradient")
    for one in found.followers:
        place = one.event.site.place
        what = f"{place.function} gives the last tensor like the image"
        yield Part(one.event.module, place.line, what)
    for voter in found.voters:
        place = voter.event.site.place
        count = len(voter.answers)
        kind = "the first logits" if count == 1 else f"the answers of {count} voters"
        yield Part(voter.event.module, place.line, f"{place.function} gives {kind}")


def findings(anatomy: Anatomy) -> list[Finding]:
    """Returns what masks the gradients, and one line for each surface that was found."""
    if anatomy.failure:
        return [_not_looked_into(anatomy.failure)]
    own = anatomy.own
    if own is None or not anatomy.found:
        return []
    places = "; ".join(f"{place_text(part)}: {part.what}" for part in anatomy.parts[:_MOST_PARTS])
    masked_by = Finding(
        check="masked-by",
        severity=Severity.INFO,
        message=f"what the images go through: {places}",
        advice="differentiate these parts, or declare surfaces that go past them",
    )
    return [masked_by, *(_surface_finding(one, own) for one in anatomy.found)]


def _not_looked_into(failure: str) -> Finding:
    return Finding(
        check="look-failed",
        severity=Severity.INFO,
        message=f"the defence could not be looked into: {failure}",
        advice="declare its surfaces, if a part of it masks gradients",
    )


def place_text(part: Part) -> str:
    """Returns the module and the line of code of a part, in short."""
    file, _, number = part.line.rpartition(":")
    line = f"{Path(file).name}:{number}" if file else ""
    return ", ".join(text for text in (part.module or "the model", line) if text)


def _surface_finding(one: Found, own: Found) -> Finding:
    return Finding(
        check="surface-found",
        severity=Severity.INFO,
        message=f"{one.surface.name}: a short attack on it breaks {one.broken} of {one.tried} "
        f"tries, on the defence itself {own.broken}; a step gains {one.gain:.0%} of what the "
        f"gradient promises, {own.gain:.0%} by the defence's own",
        advice="the gradients of the defence are masked: run --suite standard+adaptive",
    )
