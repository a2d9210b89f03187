"""Makes the record of a ledger: accuracies after each stage, costs, findings.

The accuracy of a randomized defence is the expected one, on the worst image found so far of each
example. Only the AutoAttack package counts in another way: for it an example is broken after a
single wrong draw.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from robustbench_kd.core.errors import RecordError
from robustbench_kd.core.ledger import Decision, Entry
from robustbench_kd.core.records import (
    Accuracy,
    Draws,
    Finding,
    RunRecord,
    Severity,
    StageResult,
    Work,
)
from robustbench_kd.core.statistics import mean_accuracy
from robustbench_kd.core.verdicts import UNCHECKED, missed, verdict
from robustbench_kd.engine.autoattack.cascade import CHECKS
from robustbench_kd.engine.judging import rejection
from robustbench_kd.engine.judging.packing import unpack
from robustbench_kd.engine.judging.rescore import DRAWS
from robustbench_kd.engine.judging.rescore import STANDARD as STANDARD_SCORE
from robustbench_kd.engine.probing.checkup import PROBES, facts_of, review
from robustbench_kd.engine.record.fates import Fate, fates
from robustbench_kd.engine.record.header import RunHeader
from robustbench_kd.engine.run.ledger_index import LedgerIndex
from robustbench_kd.engine.run.run import CLEAN, RESUMED, SMALLER
from robustbench_kd.tensors.contracts import Dataset
from robustbench_kd.tensors.stored_images import SHOWN, StoredImages


class _DrawnResults(NamedTuple):
    """The accuracies that change for a randomized defence."""

    clean: Accuracy | None
    robust: Accuracy | None
    clean_draws: Draws | None = None
    robust_draws: Draws | None = None


class _Costs(NamedTuple):
    """What some entries of a ledger cost together."""

    forwards: int
    backwards: int
    seconds: float
    work: Work | None


def interrupted_record(header: RunHeader, ledger: Sequence[Entry]) -> RunRecord:
    """Returns the record of an unfinished run: what is known so far, and no robust accuracy."""
    stages = _stages(header, LedgerIndex(ledger))
    findings = _merged([*header.findings, *_entry_findings(ledger)])
    return _record(header, ledger, stages, findings)


def finished_record(header: RunHeader, ledger: Sequence[Entry]) -> RunRecord:
    """Returns the record of a ledger in which everything is decided.

    Raises `RecordError` where it is not, or where the ledger is about other examples.
    """
    index = LedgerIndex(ledger)
    stages = _stages(header, index)
    _require_complete(header, ledger, stages)
    facts = facts_of(header.stages, index, examples=len(header.labels), composite=header.composite)
    reviewed = [*review(facts), *_unchecked(index)]
    findings = _merged([*header.findings, *_entry_findings(ledger), *reviewed])

    found = fates(header, index)
    drawn = _drawn_results(header, found, stages)
    pairs = {example: (fate.clean, fate.worst) for example, fate in found.items()}
    return _record(header, ledger, stages, findings).model_copy(
        update={
            "status": "complete",
            "clean": drawn.clean,
            "robust": drawn.robust,
            "standard": _standard(header, index, stages),
            "clean_draws": drawn.clean_draws,
            "robust_draws": drawn.robust_draws,
            "detection": rejection.report(index, pairs),
            "missed": missed(header.identity.mode, findings),
            "verdict": verdict(findings),
        }
    )


def _require_complete(
    header: RunHeader, ledger: Sequence[Entry], stages: Sequence[StageResult]
) -> None:
    """Raises `RecordError` for a ledger that no run of ours has closed."""
    names = {stage.stage for stage in stages}
    missing = [name for name in (CLEAN, *header.attacks) if name not in names]
    unknown = [one for one in _examples(ledger) if one not in header.labels]
    if missing or unknown:
        problem = f"has no result of '{missing[0]}'" if missing else f"has example {unknown[0]}"
        raise RecordError(
            f"the ledger of run {header.identity.run_id()} {problem}, which no evaluation can have "
            "written: run it again with --fresh"
        )


def _examples(ledger: Iterable[Entry]) -> Iterator[int]:
    for entry in ledger:
        yield from (decision.index for decision in entry.decisions)
        yield from (score.index for score in entry.scores)


def adversarial_images(header: RunHeader, data: Dataset, ledger: Sequence[Entry]) -> StoredImages:
    """Returns the image that decided each example that attacks made worse, in the data's order."""
    identity = header.identity
    found = fates(header, LedgerIndex(ledger))
    rows: list[int] = []
    deciding: list[Decision] = []
    for row, example in enumerate(data.ids):
        if example in found and found[example].worst.image:
            rows.append(row)
            deciding.append(found[example].worst)

    texts = [decision.image for decision in deciding]
    images = unpack(texts, tuple(data.images.shape[1:]))
    return StoredImages(
        run=identity.run_id(),
        threat=f"{identity.norm}:{identity.eps_text}",
        ids=np.array([decision.index for decision in deciding], dtype=np.int64),
        labels=data.labels[rows].numpy(),
        predictions=np.array([decision.prediction for decision in deciding], dtype=np.int64),
        images=images.numpy(),
        originals=data.images[rows[:SHOWN]].numpy(),
    )


def _record(
    header: RunHeader,
    ledger: Sequence[Entry],
    stages: list[StageResult],
    findings: list[Finding],
) -> RunRecord:
    costs = _costs(ledger)
    return RunRecord(
        run_id=header.identity.run_id(),
        status="interrupted",
        identity=header.identity,
        protocol_hash=header.identity.protocol_hash(),
        clean=stages[0].accuracy if stages else None,
        stages=stages,
        forwards=costs.forwards,
        backwards=costs.backwards,
        seconds=costs.seconds,
        findings=findings,
        parameters=header.parameters,
        environment=_environment(header, ledger),
        source=header.source,
        claim=header.claim,
    )


def _stages(header: RunHeader, index: LedgerIndex) -> list[StageResult]:
    """Returns the accuracy after each stage, as far as the stages are decided."""
    carried = [SMALLER] if index.entries(SMALLER) else []
    error_rates: dict[int, float] = dict.fromkeys(header.labels, 0.0)
    results: list[StageResult] = []
    for name in (CLEAN, *carried, *header.attacks):
        decisions = index.decisions(name)
        survivors = {example for example, rate in error_rates.items() if rate < 1}
        if name != SMALLER and not survivors <= decisions.keys():
            return results  # this accuracy is not known yet, nor is any later one

        for example, decision in decisions.items():
            if example not in error_rates:
                continue  # a resumed claim has decided examples that it has not looked at yet
            rate = decision.error_rate
            if header.one_draw_breaks:
                rate = float(decision.broken)
            error_rates[example] = max(error_rates[example], rate)
        accuracy = mean_accuracy(1 - rate for rate in error_rates.values())
        results.append(_stage_result(name, accuracy, index.entries(name)))
    return results


def _stage_result(name: str, accuracy: Accuracy, entries: list[Entry]) -> StageResult:
    costs = _costs(entries)
    return StageResult(
        stage=name,
        accuracy=accuracy,
        forwards=costs.forwards,
        backwards=costs.backwards,
        seconds=costs.seconds,
        work=costs.work,
    )


def _costs(entries: Iterable[Entry]) -> _Costs:
    forwards = backwards = 0
    seconds = 0.0
    work: Work | None = None
    for entry in entries:
        forwards += entry.forwards
        backwards += entry.backwards
        seconds += entry.seconds
        if entry.work:
            work = work.plus(entry.work) if work else entry.work
    return _Costs(forwards, backwards, seconds, work)


def _drawn_results(
    header: RunHeader, found: Mapping[int, Fate], stages: Sequence[StageResult]
) -> _DrawnResults:
    if not header.randomized:
        return _DrawnResults(clean=stages[0].accuracy, robust=stages[-1].accuracy)

    clean = _draws(header, {example: fate.clean for example, fate in found.items()})
    robust = _draws(header, {example: fate.worst for example, fate in found.items()})
    headline = stages[-1].accuracy if header.one_draw_breaks else robust.mean
    return _DrawnResults(clean.mean, headline, clean, robust)


def _draws(header: RunHeader, decisions: Mapping[int, Decision]) -> Draws:
    correct: list[float] = []
    all_correct: list[float] = []
    majority: list[float] = []
    for example, decision in decisions.items():
        correct.append(1 - decision.error_rate)
        all_correct.append(float(decision.error_rate == 0))
        majority.append(float(decision.prediction == header.labels[example]))

    return Draws(
        exact=header.members > 0,
        draws=header.members or DRAWS,
        mean=mean_accuracy(correct),
        all_correct=mean_accuracy(all_correct),
        majority=mean_accuracy(majority),
    )


def _standard(
    header: RunHeader, index: LedgerIndex, stages: Sequence[StageResult]
) -> Accuracy | None:
    """Returns what the standard attacks left, if adaptive ones followed.

    It rests on the same draws as the final accuracy.
    """
    standard = {CLEAN, SMALLER, *header.identity.attacks}
    before = [stage.accuracy for stage in stages if stage.stage in standard]
    if not header.identity.adaptive or len(before) < 2:  # the clean stage alone is no attack
        return None
    if not index.decisions(STANDARD_SCORE):
        return before[-1]
    found = fates(header, index, header.identity.attacks, STANDARD_SCORE)
    return mean_accuracy(1 - fate.worst.error_rate for fate in found.values())


def was_checked(index: LedgerIndex) -> bool:
    """Returns whether the model was probed, by us or by the AutoAttack package."""
    return bool(index.entries(PROBES) or index.entries(CHECKS))


def _unchecked(index: LedgerIndex) -> Iterator[Finding]:
    """Yields that the model was not checked."""
    if not was_checked(index):
        message = "the model itself was not checked: --no-probes"
        advice = "the same command without --no-probes evaluates it again, with the checks"
        yield Finding(check=UNCHECKED, severity=Severity.INFO, message=message, advice=advice)


def _environment(header: RunHeader, ledger: Iterable[Entry]) -> dict[str, str]:
    """Returns where and when a run happened.

    Passes on examples that were in flight when a process stopped are lost, or counted twice.
    """
    times = sum(entry.stage == RESUMED for entry in ledger)
    if not times:
        return header.environment
    said = "once" if times == 1 else f"{times} times"
    return {**header.environment, RESUMED: f"{said}: passes and seconds are not exact"}


def _entry_findings(ledger: Iterable[Entry]) -> list[Finding]:
    return [finding for entry in ledger for finding in entry.findings]


def _merged(findings: Iterable[Finding]) -> list[Finding]:
    """Joins findings of several batches that have the same words."""
    merged: dict[tuple[str, str], Finding] = {}
    for finding in findings:
        key = (finding.check, finding.message)
        earlier = merged[key].examples if key in merged else []
        examples = sorted({*earlier, *finding.examples})
        merged[key] = finding.model_copy(update={"examples": examples})
    return list(merged.values())
