"""Runs the checks of `trust/` on a few images that a defence classifies correctly.

A check is found by its file, like every component. A check that needs a gradient is left out where
there is none: that is a finding of its own.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from torch import Tensor

from robustbench_kd.attacks.apgd import Apgd
from robustbench_kd.attacks.pgd import Pgd
from robustbench_kd.core.ledger import Entry
from robustbench_kd.core.plugins import components, module
from robustbench_kd.core.records import Finding, Severity
from robustbench_kd.core.threat import Norm, Threat
from robustbench_kd.engine.passes.batching import with_fewer
from robustbench_kd.engine.passes.meter import EntryClock
from robustbench_kd.engine.probing.access import counted, declared_surfaces, one_draw
from robustbench_kd.engine.run.ledger_index import LedgerIndex
from robustbench_kd.engine.run.stages import Stage
from robustbench_kd.tensors import keyed_random
from robustbench_kd.tensors.attack import Attack
from robustbench_kd.tensors.contracts import Dataset
from robustbench_kd.tensors.defence import Batched
from robustbench_kd.tensors.oracle import (
    Oracle,
    check_logits,
    full_precision,
)
from robustbench_kd.tensors.probe import Facts, FinishedStage, NoGradientError, Probe
from robustbench_kd.tensors.short_attacks import ShortAttacks

PROBES = "probes"
_SAMPLE = 64
_SCOUTED = 12
_BRIEF = 10  # steps
_THOROUGH = 50  # steps; a robust image costs about 700 passes, 7 % of the standard suite

Evidence = TypeVar("Evidence")


@dataclass(frozen=True, kw_only=True)
class Scope:
    """What is known of a defence before it is probed, and how far to go.

    Args:
        seed: Seed of all randomness.
        searches: Whether to run short attacks, too.
        parts: Whether these include attacks on the surfaces that the defence declares; a run that
            attacks the surfaces itself needs none.
        correct: Which images of one sample are classified correctly under usual normalisations,
            `(m,)` by name.
        normalisation: The name among them of the one in use.
        size: Most images to probe.
        scout: Whether to stop where a short attack breaks all of the first few images: a number
            near zero misleads nobody.
    """

    seed: int = 0
    searches: bool = True
    parts: bool = True
    correct: Mapping[str, Tensor] = field(default_factory=dict)
    normalisation: str = ""
    size: int = _SAMPLE
    scout: bool = False


def checkup(
    oracle: Oracle,
    data: Dataset,
    rows: Sequence[int],
    threat: Threat,
    scope: Scope | None = None,
) -> Entry:
    """Probes a defence on some of the given rows of a data set; returns findings and costs.

    The defence must classify these rows correctly. The choice of images and all noise depend on the
    seed and the ids alone. Where memory runs out, fewer images are taken. Raises `ModelError` where
    the defence fails on images, `IncompleteError` where even one does not fit in memory.
    """
    scope = scope or Scope()
    clock = EntryClock(oracle.meter)

    def found(size: int) -> list[Finding]:
        with full_precision():
            sample = _sampled(data, rows, size, scope.seed)
            return _findings(oracle, sample, threat, scope)

    findings = with_fewer(min(scope.size, len(rows)), found)
    return clock.entry(PROBES, findings=findings)


def review(facts: Facts) -> list[Finding]:
    """Returns what the facts of a finished run say of its number."""
    findings: list[Finding] = []
    for check in offered("review"):
        findings += check(facts)
    return findings


def planned_stage(stage: Stage, norm: Norm) -> FinishedStage:
    """Returns what is known of a stage before it runs."""
    return FinishedStage(
        stage.name,
        frozenset(),
        guided=stage.uses_gradients(norm),
        surface=stage.surface.name,
        adaptive=stage.adaptive,
    )


def facts_of(
    stages: Iterable[FinishedStage], index: LedgerIndex, *, examples: int, composite: bool
) -> Facts:
    """Returns the facts of a run on so many examples: its stages, with what the ledger adds."""
    finished = []
    margins: dict[int, float] = {}
    for stage in stages:
        decisions = index.decisions(stage.name)
        broken = {example: one.margin for example, one in decisions.items() if one.broken}
        margins |= broken
        entries = index.entries(stage.name)
        work = [entry.work for entry in entries if entry.work]
        done = replace(
            stage,
            broken=frozenset(broken),
            refused=sum(one.disagreements for one in work),
            undefined=sum(one.undefined for one in work),
            computed=sum(one.computed for one in work),
        )
        finished.append(done)
    return Facts(examples, tuple(finished), margins, composite)


def offered(name: str) -> list[Callable[[object], list[Finding]]]:
    """Returns the functions of one name, such as `probe`, that the files of `trust/` offer."""
    checks = [module("trust", component.stem) for component in components("trust").values()]
    return [getattr(check, name) for check in checks if hasattr(check, name)]


def probe_of(oracle: Oracle, sample: Dataset, threat: Threat, scope: Scope) -> Probe:
    """Returns a probe of the images that the defence classifies correctly under the probed draw."""
    images = sample.images.to(oracle.device)
    labels = sample.labels.to(oracle.device)
    ids = torch.tensor(sample.ids, device=oracle.device)
    answer = counted(one_draw(oracle, ids, labels, scope.seed), oracle.meter)

    with torch.no_grad():
        all_rows = torch.arange(len(ids), device=oracle.device)
        logits = check_logits(answer(images, all_rows), len(ids))
    correct = (logits.argmax(dim=1) == labels).nonzero()[:, 0]

    return Probe(
        answer=lambda points, rows: answer(points, correct[rows]),
        images=images[correct],
        labels=labels[correct],
        ids=ids[correct],
        logits=logits[correct],
        threat=threat,
        seed=scope.seed,
        randomized=oracle.randomized,
        batched=isinstance(oracle.model, Batched),
        was_training=oracle.was_training,
        correct=scope.correct,
        normalisation=scope.normalisation,
    )


def short_attacks(sample: Probe, oracle: Oracle, *, parts: bool) -> ShortAttacks:
    """Returns the attacks on a sample, none of which has run yet."""
    is_l1 = sample.threat.norm is Norm.L1
    plain: Attack = Apgd(loss="ce", steps=_BRIEF) if is_l1 else Pgd(steps=_BRIEF)

    surfaces = {}
    if parts:
        declared = declared_surfaces(oracle, sample.ids, sample.labels, sample.seed)
        for name, (ask, passes) in declared.items():
            surfaces[name] = counted(ask, oracle.meter, passes)

    return ShortAttacks(
        sample=sample,
        plain=plain,
        brief=Apgd(loss="margin", steps=_BRIEF),
        thorough=Apgd(loss="margin", steps=_THOROUGH),
        longer=Apgd(loss="margin", steps=2 * _THOROUGH),
        parts=surfaces,
    )


def _findings(oracle: Oracle, data: Dataset, threat: Threat, scope: Scope) -> list[Finding]:
    if scope.scout:
        found = _scouted(oracle, data, threat, scope)
        if found:
            return found

    sample = probe_of(oracle, data, threat, scope) if len(data) else None
    if not sample or not len(sample):
        message = "no image is classified correctly, so nothing could be probed"
        if oracle.randomized:
            message = "the one draw that was to be probed classifies no image correctly"
        advice = "check the labels and the order of classes; 'rkd check' tries normalisations"
        return [
            Finding(check="no-sample", severity=Severity.YELLOW, message=message, advice=advice)
        ]

    found = _checked(offered("probe"), sample)
    if scope.searches:
        attacks = short_attacks(sample, oracle, parts=scope.parts)
        found += _checked(offered("search"), attacks)
    return found


def _scouted(oracle: Oracle, data: Dataset, threat: Threat, scope: Scope) -> list[Finding]:
    """Returns that a short attack breaks all of a few images, if it does.

    One draw of a randomized defence would say little.
    """
    if oracle.randomized or len(data) < _SCOUTED:
        return []

    spread = torch.arange(_SCOUTED) * len(data) // _SCOUTED
    sample = probe_of(oracle, data.take(spread), threat, scope)
    try:
        survivors = short_attacks(sample, oracle, parts=False).scouted.survivors
    except NoGradientError:
        return []
    if len(survivors):
        return []

    message = (
        f"all of {_SCOUTED} images are broken within {_BRIEF} steps of PGD: there is no robustness "
        "to doubt"
    )
    advice = "'rkd check' looks at the model itself"
    return [Finding(check="falls-at-once", severity=Severity.INFO, message=message, advice=advice)]


def _checked(
    checks: Iterable[Callable[[Evidence], list[Finding]]], evidence: Evidence
) -> list[Finding]:
    found: list[Finding] = []
    for check in checks:
        try:
            found += check(evidence)
        except NoGradientError:  # `zero-gradients` says so
            continue
    return found


def _sampled(data: Dataset, rows: Sequence[int], size: int, seed: int) -> Dataset:
    """Returns the images to probe, a random choice of the rows."""
    chosen = torch.tensor(rows, dtype=torch.int64)
    ids = torch.tensor(data.ids)[chosen]
    order = keyed_random.uniform(seed, "trust/sample", ids, ids * 0, 0, 1)[:, 0].argsort()
    return data.take(chosen[order[:size]].sort().values)
