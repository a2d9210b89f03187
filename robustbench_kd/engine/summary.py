"""Turns a ledger into a record: accuracies after each stage, costs, findings, one row per example.

Of a randomized defence an accuracy is the expected one, on the worst image found so far of each example. Only the AutoAttack
package counts otherwise: for it an example is broken once a single draw was wrong.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from robustbench_kd.core.ledger import Decision, Entry, decided
from robustbench_kd.core.records import (
    Accuracy,
    DrawRow,
    Draws,
    ExampleRow,
    Finding,
    Identity,
    RunRecord,
    Stage,
    Work,
    verdict,
)
from robustbench_kd.core.statistics import interval
from robustbench_kd.core.threat import Norm
from robustbench_kd.engine import detection
from robustbench_kd.engine.checkup import facts_of, judge
from robustbench_kd.engine.job import CLEAN, SMALLER
from robustbench_kd.engine.plan import Step
from robustbench_kd.engine.sample import SAMPLED
from robustbench_kd.engine.scoring import DRAWS, SCORE
from robustbench_kd.tensors.contracts import Dataset
from robustbench_kd.tensors.defence import Surfaced
from robustbench_kd.tensors.oracle import Oracle
from robustbench_kd.tensors.probe import Facts


@dataclass(frozen=True)
class Summary:
    """What a record says beside the ledger."""

    identity: Identity
    data: Dataset
    steps: tuple[Step, ...]
    parameters: int
    environment: dict[str, str]
    oracle: Oracle

    @property
    def one_draw(self) -> bool:
        """Returns whether a single wrong draw counts as broken."""
        return self.identity.engine == "autoattack"


@dataclass(frozen=True)
class _Fate:
    """What became of one example: the decision on its clean image and the worst one, with the stage that made it."""

    clean: Decision
    worst: Decision
    stage: str


def summarise(about: Summary, ledger: list[Entry], findings: list[Finding], *, complete: bool) -> RunRecord:
    """Returns the record of a ledger; an interrupted one says what is known so far, and no robust accuracy."""
    stages = _stages(about, ledger)
    known = [*findings, *(finding for entry in ledger for finding in entry.findings)]
    if complete:
        known += judge(_facts(about, ledger))
    known = _merged(known)
    record = RunRecord(
        run_id=about.identity.run_id(),
        status="complete" if complete else "interrupted",
        identity=about.identity,
        protocol_hash=about.identity.protocol_hash(),
        clean=stages[0].accuracy if stages else None,
        robust=stages[-1].accuracy if complete else None,
        stages=stages,
        forwards=sum(entry.forwards for entry in ledger),
        backwards=sum(entry.backwards for entry in ledger),
        seconds=sum(entry.seconds for entry in ledger),
        findings=known,
        verdict=verdict(known) if complete else None,
        parameters=about.parameters,
        environment=about.environment,
    )
    if not complete:
        return record
    fates = {example: (fate.clean, fate.worst) for example, fate in _fates(about, ledger).items()}
    detected = {"detection": detection.report(ledger, fates)}
    return record.model_copy(update={"missed": _missed(about, known), **_drawn(about, ledger, stages), **detected})


def example_rows(about: Summary, ledger: list[Entry]) -> list[ExampleRow]:
    """Returns one row per example, in the order of the data set."""
    fates, costs = _fates(about, ledger), _costs(about, ledger)
    labels = dict(zip(about.data.ids, about.data.labels.tolist(), strict=True))
    return [_row(example, labels[example], fates[example], costs.get(example)) for example in about.data.ids]


def draw_rows(about: Summary, ledger: list[Entry]) -> list[DrawRow]:
    """Returns one row per example of a randomized defence, none for others."""
    if not about.oracle.randomized:
        return []
    fates = _fates(about, ledger)
    return [
        DrawRow(index=example, clean_wrong=fates[example].clean.share, wrong=fates[example].worst.share)
        for example in about.data.ids
    ]


def _stages(about: Summary, ledger: list[Entry]) -> list[Stage]:
    carried = [SMALLER] if any(entry.stage == SMALLER for entry in ledger) else []
    lost: dict[int, float] = dict.fromkeys(about.data.ids, 0.0)
    stages: list[Stage] = []
    for name in (CLEAN, *carried, *about.identity.stages):
        found = decided(ledger, name)
        if name != SMALLER and not {example for example, share in lost.items() if share < 1} <= found.keys():
            return stages  # its accuracy is not known yet, nor is any later one
        for example, decision in found.items():
            lost[example] = max(lost[example], float(decision.broken) if about.one_draw else decision.share)
        costs = [entry for entry in ledger if entry.stage == name]
        stages.append(
            Stage(
                stage=name,
                accuracy=_mean(1 - share for share in lost.values()),
                forwards=sum(entry.forwards for entry in costs),
                backwards=sum(entry.backwards for entry in costs),
                seconds=sum(entry.seconds for entry in costs),
                work=_work([entry.work for entry in costs if entry.work]),
            )
        )
    return stages


def _facts(about: Summary, ledger: list[Entry]) -> Facts:
    model, norm = about.oracle.model, Norm(about.identity.norm)
    composite = about.identity.family != "classifier" or isinstance(model, Surfaced) or about.oracle.randomized
    return facts_of(about.steps, ledger, examples=len(about.data), norm=norm, composite=composite)


def _missed(about: Summary, findings: Sequence[Finding]) -> float | None:
    """Returns what the samples of a fast run could have missed in all, as a fraction."""
    if about.identity.mode == "exact":
        return None
    return sum(finding.value or 0.0 for finding in findings if finding.check == SAMPLED)


def _drawn(about: Summary, ledger: list[Entry], stages: list[Stage]) -> dict[str, object]:
    """Returns the fields of a record that adaptive attacks and chance add."""
    adaptive = {step.name for step in about.steps if step.adaptive}
    before = [stage.accuracy for stage in stages if stage.stage not in adaptive]
    standard = before[-1] if adaptive and len(before) > 1 else None
    if not about.oracle.randomized:
        return {"standard": standard}
    fates = _fates(about, ledger).values()
    labels = about.data.labels.tolist()
    clean = _draws(about, [fate.clean for fate in fates], labels)
    robust = _draws(about, [fate.worst for fate in fates], labels)
    headline = {} if about.one_draw else {"robust": robust.mean}
    return {"standard": standard, "clean": clean.mean, "clean_draws": clean, "robust_draws": robust, **headline}


def _draws(about: Summary, found: Sequence[Decision], labels: Sequence[int]) -> Draws:
    exact = about.oracle.exact
    return Draws(
        exact=exact,
        draws=len(about.oracle.weights(0)) if exact else DRAWS,
        mean=_mean(1 - decision.share for decision in found),
        all_correct=_mean(float(decision.share == 0) for decision in found),
        majority=_mean(float(decision.prediction == label) for decision, label in zip(found, labels, strict=True)),
    )


def _fates(about: Summary, ledger: list[Entry]) -> dict[int, _Fate]:
    """Returns the fate of each example, in the order of the data set."""
    clean, scored = decided(ledger, CLEAN), decided(ledger, SCORE)
    fates = {
        example: _Fate(clean[example], clean[example], CLEAN if clean[example].broken else "")
        for example in about.data.ids
    }
    for stage in (SMALLER, *about.identity.stages):
        for example, decision in decided(ledger, stage).items():
            before = fates[example]
            if (decision.broken, decision.share) > (before.worst.broken, before.worst.share):
                fates[example] = _Fate(before.clean, decision, stage)
    return {example: _Fate(fate.clean, scored.get(example, fate.worst), fate.stage) for example, fate in fates.items()}


def _work(parts: list[Work]) -> Work | None:
    if not parts:
        return None
    return Work(
        computed=sum(part.computed for part in parts),
        live=sum(part.live for part in parts),
        disagreements=sum(part.disagreements for part in parts),
        marginal=sum(part.marginal for part in parts),
        model_seconds=sum(part.model_seconds for part in parts),
    )


def _mean(values: Iterable[float]) -> Accuracy:
    """Returns a mean of fractions; the interval of a fraction is wide enough for it."""
    known = list(values)
    total, n = sum(known), len(known)
    low, high = interval(total, n)
    return Accuracy(value=total / n, n=n, ci_low=low, ci_high=high)


def _costs(about: Summary, ledger: list[Entry]) -> dict[int, tuple[int, int]]:
    """Returns the forwards and backwards that attacks spent on each example, where the engine counted them."""
    costs: dict[int, tuple[int, int]] = {}
    for stage in about.identity.stages:
        for example, decision in decided(ledger, stage).items():
            if decision.forwards is not None and decision.backwards is not None:
                forwards, backwards = costs.get(example, (0, 0))
                costs[example] = forwards + decision.forwards, backwards + decision.backwards
    return costs


def _row(example: int, label: int, fate: _Fate, cost: tuple[int, int] | None) -> ExampleRow:
    clean, worst = fate.clean, fate.worst
    attacked = worst is not clean
    return ExampleRow(
        index=example,
        label=label,
        clean_prediction=clean.prediction,
        clean_correct=clean.prediction == label,
        robust=not worst.broken if worst.wrong is None else worst.prediction == label,
        broken_by=fate.stage,
        adversarial_prediction=worst.prediction if attacked and worst.share else None,
        distance=worst.distance if attacked else None,
        margin=worst.margin,
        forwards=cost[0] if cost else None,
        backwards=cost[1] if cost else None,
    )


def _merged(findings: Sequence[Finding]) -> list[Finding]:
    """Joins what several batches said in the same words."""
    merged: dict[tuple[str, str], Finding] = {}
    for finding in findings:
        key = finding.check, finding.message
        earlier = merged.get(key)
        examples = sorted({*(earlier.examples if earlier else ()), *finding.examples})
        merged[key] = finding.model_copy(update={"examples": examples})
    return list(merged.values())
