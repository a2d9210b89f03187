"""Runs the checks of `trust/` on a few images that a defence classifies rightly, and counts their passes apart.

A check is found by its file, like every component. What needs a gradient is left out where there is
none: that is a finding of its own.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from robustbench_kd.attacks.apgd import Apgd
from robustbench_kd.attacks.pgd import Pgd
from robustbench_kd.core.ledger import Entry, decisions_of
from robustbench_kd.core.plugins import components, module
from robustbench_kd.core.records import Finding, Severity
from robustbench_kd.core.threat import Norm, Threat
from robustbench_kd.engine.passes.batching import halved
from robustbench_kd.engine.probing.access import Meter, fixed, in_place
from robustbench_kd.engine.run.stages import Stage
from robustbench_kd.tensors import keyed_random
from robustbench_kd.tensors.contracts import Dataset
from robustbench_kd.tensors.oracle import Oracle, check_logits, full_precision, is_out_of_memory
from robustbench_kd.tensors.probe import Facts, FinishedStage, NoGradientError, Probe
from robustbench_kd.tensors.short_attacks import Attacking, ShortAttacks

PROBES = "probes"
_SAMPLE, _SCOUTED = 64, 12
# Steps; a robust image costs about 700 passes, 7 % of the standard suite.
_BRIEF, _THOROUGH = 10, 50


@dataclass(frozen=True, kw_only=True)
class Scope:
    """What is known of a defence before it is probed, and how far to go.

    Args:
        seed: Seed of all randomness.
        searches: Whether to run short attacks, too.
        parts: Whether these include attacks on what the defence declares in its own place; a run
            that does so needs none.
        right: Which images of one sample are classified rightly under usual normalisations, `(m,)`
            by name.
        normalisation: The name among them of the one in use.
        size: Most images to probe.
        scout: Whether to leave it at a few images where a short attack breaks all of these: a
            number near zero misleads nobody.
        on_pass: Is told the number of passes so far after each of them, for progress only.
    """

    seed: int = 0
    searches: bool = True
    parts: bool = True
    right: Mapping[str, Tensor] = field(default_factory=dict)
    normalisation: str = ""
    size: int = _SAMPLE
    scout: bool = False
    on_pass: Callable[[int], None] = lambda _passes: None


def checkup(
    oracle: Oracle, data: Dataset, rows: Sequence[int], threat: Threat, scope: Scope | None = None
) -> Entry:
    """Probes a defence on some of the given rows of a data set, which it classifies rightly; returns findings and costs.

    Which images are taken, and all noise, depend on the seed and their ids alone. Where memory runs
    out, fewer are taken. Raises `ModelError` where the defence fails on images, `IncompleteError`
    where even one does not fit in memory.
    """
    start, scope = time.perf_counter(), scope or Scope()
    meter, size = Meter(scope.on_pass), min(scope.size, len(rows))
    while True:
        try:
            with full_precision():
                findings = _findings(
                    oracle, _sampled(data, rows, size, scope.seed), threat, scope, meter
                )
            break
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            size = halved(size)
    seconds = time.perf_counter() - start
    return Entry(
        stage=PROBES,
        forwards=meter.forwards,
        backwards=meter.backwards,
        seconds=seconds,
        findings=findings,
    )


def review(facts: Facts) -> list[Finding]:
    """Returns what the facts of a finished run say of its number."""
    return [finding for check in offered("review") for finding in check(facts)]


def stage_facts(step: Stage, norm: Norm) -> FinishedStage:
    """Returns what is known of a stage before it runs."""
    guided = step.attack is not None and any(step.attack.schedule(norm))
    return FinishedStage(
        step.name, frozenset(), guided=guided, surface=step.surface.name, adaptive=step.adaptive
    )


def facts_of(
    stages: Iterable[FinishedStage], ledger: list[Entry], *, examples: int, composite: bool
) -> Facts:
    """Returns the facts of a run on so many examples: its stages, with what the ledger says of them."""
    known, margins = [], dict[int, float]()
    for stage in stages:
        broken = {
            example: one.margin
            for example, one in decisions_of(ledger, stage.name).items()
            if one.broken
        }
        margins |= broken
        refused = sum(
            entry.work.disagreements for entry in ledger if entry.stage == stage.name and entry.work
        )
        known.append(replace(stage, broken=frozenset(broken), refused=refused))
    return Facts(examples, tuple(known), margins, composite)


def offered(name: str) -> list[Callable[[Any], list[Finding]]]:
    """Returns the functions of a name, `probe`, `search` or `review`, that the files of `trust/` offer."""
    checks = [module("trust", component.stem) for component in components("trust").values()]
    return [getattr(check, name) for check in checks if hasattr(check, name)]


def probe_of(oracle: Oracle, sample: Dataset, threat: Threat, scope: Scope, meter: Meter) -> Probe:
    """Returns a probe of those images of a data set that the defence classifies rightly under the draw that is probed."""
    images, labels = sample.images.to(oracle.device), sample.labels.to(oracle.device)
    ids = torch.tensor(sample.ids, device=oracle.device)
    answer = meter.counted(fixed(oracle, ids, labels, scope.seed))
    with torch.no_grad():
        logits = check_logits(
            answer(images, torch.arange(len(ids), device=oracle.device)), len(ids)
        )
    kept = (logits.argmax(dim=1) == labels).nonzero()[:, 0]
    return Probe(
        answer=lambda points, rows: answer(points, kept[rows]),
        images=images[kept],
        labels=labels[kept],
        ids=ids[kept],
        logits=logits[kept],
        threat=threat,
        seed=scope.seed,
        randomized=oracle.randomized,
        was_training=oracle.was_training,
        right=scope.right,
        normalisation=scope.normalisation,
    )


def trials_of(sample: Probe, oracle: Oracle, *, parts: bool, meter: Meter) -> ShortAttacks:
    """Returns the attacks on a sample, none of which has run yet."""
    l1 = sample.threat.norm is Norm.L1
    plain: Attacking[Any] = Apgd(loss="ce", steps=_BRIEF) if l1 else Pgd(steps=_BRIEF)
    surfaces = in_place(oracle, sample.ids, sample.labels, sample.seed) if parts else {}
    return ShortAttacks(
        sample=sample,
        plain=plain,
        brief=Apgd(loss="margin", steps=_BRIEF),
        thorough=Apgd(loss="margin", steps=_THOROUGH),
        longer=Apgd(loss="margin", steps=2 * _THOROUGH),
        parts={name: meter.counted(ask, passes) for name, (ask, passes) in surfaces.items()},
    )


def _findings(
    oracle: Oracle, data: Dataset, threat: Threat, scope: Scope, meter: Meter
) -> list[Finding]:
    if scope.scout and (found := _scouted(oracle, data, threat, scope, meter)):
        return found
    sample = probe_of(oracle, data, threat, scope, meter) if len(data) else None
    if not sample or not len(sample):
        message = "no image is classified rightly, so nothing could be probed"
        return [Finding(check="no-sample", severity=Severity.INFO, message=message)]
    found = _said(offered("probe"), sample)
    if scope.searches:
        found += _said(offered("search"), trials_of(sample, oracle, parts=scope.parts, meter=meter))
    return found


def _scouted(
    oracle: Oracle, data: Dataset, threat: Threat, scope: Scope, meter: Meter
) -> list[Finding]:
    """Returns that a short attack breaks all of a few images, where it does; of one draw that would say little."""
    if oracle.randomized or len(data) < _SCOUTED:
        return []
    spread = torch.arange(_SCOUTED) * len(data) // _SCOUTED
    sample = probe_of(oracle, data.take(spread), threat, scope, meter)
    try:
        fallen = not len(trials_of(sample, oracle, parts=False, meter=meter).scouted.standing)
    except NoGradientError:
        return []
    message = f"all of {_SCOUTED} images fall within {_BRIEF} steps of PGD: there is no robustness to doubt"
    advice = "'rkd check' looks at the model itself"
    return (
        [Finding(check="falls-at-once", severity=Severity.INFO, message=message, advice=advice)]
        if fallen
        else []
    )


def _said(
    checks: Iterable[Callable[[Any], list[Finding]]], about: Probe | ShortAttacks
) -> list[Finding]:
    found: list[Finding] = []
    for check in checks:
        try:
            found += check(about)
        except NoGradientError:  # `zero-gradients` says so
            continue
    return found


def _sampled(data: Dataset, rows: Sequence[int], size: int, seed: int) -> Dataset:
    """Returns the images to probe, spread over the data set by chance."""
    chosen = torch.tensor(rows, dtype=torch.int64)
    ids = torch.tensor(data.ids)[chosen]
    order = keyed_random.uniform(seed, "trust/sample", ids, ids * 0, 0, 1)[:, 0].argsort()
    return data.take(chosen[order[:size]].sort().values)
