"""Turns a ledger into a record: accuracies after each stage, costs, findings, one row per example.

Of a randomized defence an accuracy is the expected one, on the worst image found so far of each
example. Only the AutoAttack package counts otherwise: for it an example is broken once a single
draw was wrong.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from robustbench_kd.core.errors import RecordError
from robustbench_kd.core.ledger import Decision, Entry, decisions_of
from robustbench_kd.core.records import (
    Accuracy,
    Claim,
    DrawRow,
    Draws,
    ExampleRow,
    Finding,
    Frozen,
    Identity,
    RunRecord,
    StageResult,
    Work,
    verdict,
)
from robustbench_kd.core.rundir import JOB
from robustbench_kd.core.statistics import mean_accuracy
from robustbench_kd.engine.judging import rejection as detection
from robustbench_kd.engine.judging.packing import unpacked
from robustbench_kd.engine.judging.rescore import DRAWS, SCORE
from robustbench_kd.engine.judging.rescore import STANDARD as STANDARD_SCORE
from robustbench_kd.engine.native.subsampling import SAMPLED
from robustbench_kd.engine.probing.checkup import facts_of, review, stage_facts
from robustbench_kd.engine.run.identity import environment
from robustbench_kd.engine.run.request import Request
from robustbench_kd.engine.run.run import CLEAN, SMALLER
from robustbench_kd.engine.run.stages import Stage
from robustbench_kd.tensors.contracts import Dataset
from robustbench_kd.tensors.defence import Surfaced
from robustbench_kd.tensors.oracle import Oracle
from robustbench_kd.tensors.probe import Facts, FinishedStage
from robustbench_kd.tensors.stored_images import SHOWN, StoredImages


class RunHeader(Frozen):
    """What a record says beside the ledger; as `job.json` it lies beside the ledgers of shards.

    `labels` are by example id, in the order of the data set. A finite ensemble has so many
    `members`, whose answers are exact; `composite` says whether the defence is more than a plain
    classifier.
    """

    identity: Identity
    labels: dict[int, int]
    stages: tuple[FinishedStage, ...]
    parameters: int
    environment: dict[str, str]
    findings: list[Finding]
    randomized: bool = False
    members: int = 0
    composite: bool = False
    claim: Claim | None = None

    @property
    def one_draw(self) -> bool:
        """Returns whether a single wrong draw counts as broken."""
        return self.identity.engine == "autoattack"


def summary_of(
    identity: Identity,
    request: Request,
    oracle: Oracle,
    steps: Iterable[Stage],
    findings: list[Finding],
) -> RunHeader:
    """Returns what is known of a run before it starts; `findings` are what its model and suite gave rise to."""
    data, norm = request.data, request.threat.norm
    return RunHeader(
        identity=identity,
        labels=dict(zip(data.ids, data.labels.tolist(), strict=True)),
        stages=tuple(stage_facts(step, norm) for step in steps),
        parameters=request.subject.parameters,
        environment=environment(request.device),
        findings=findings,
        randomized=oracle.randomized,
        members=len(oracle.weights(1)) if oracle.randomized and oracle.exact else 0,
        composite=identity.family != "classifier"
        or isinstance(oracle.model, Surfaced)
        or oracle.randomized,
    )


def read_summary(folder: Path) -> RunHeader:
    """Reads the `job.json` of a run; raises `RecordError` where there is none, or it is damaged."""
    path = folder / JOB
    try:
        return RunHeader.model_validate_json(path.read_bytes())
    except OSError as error:
        raise RecordError(f"cannot read '{path}': {error.strerror}") from error
    except ValidationError as error:
        raise RecordError(
            f"'{path}' is no job: {error.errors()[0]['msg']}; run a shard again to write it anew"
        ) from error


@dataclass(frozen=True)
class _Fate:
    """What became of one example: the decision on its clean image and the worst one, with the stage that made it."""

    clean: Decision
    worst: Decision
    stage: str


def summarise(about: RunHeader, ledger: list[Entry], *, complete: bool) -> RunRecord:
    """Returns the record of a ledger; an interrupted one says what is known so far, and no robust accuracy."""
    stages = _stages(about, ledger)
    known = [*about.findings, *(finding for entry in ledger for finding in entry.findings)]
    if complete:
        known += review(_facts(about, ledger))
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
        claim=about.claim,
    )
    if not complete:
        return record
    fates = {example: (fate.clean, fate.worst) for example, fate in _fates(about, ledger).items()}
    detected = {"detection": detection.report(ledger, fates)}
    return record.model_copy(
        update={"missed": _missed(about, known), **_drawn(about, ledger, stages), **detected}
    )


def standing(about: RunHeader, ledger: list[Entry]) -> int:
    """Returns how many examples nothing has broken."""
    return sum(not fate.worst.broken for fate in _fates(about, ledger).values())


def example_rows(about: RunHeader, ledger: list[Entry]) -> list[ExampleRow]:
    """Returns one row per example, in the order of the data set."""
    fates, costs = _fates(about, ledger), _costs(about, ledger)
    return [
        _row(example, label, fates[example], costs.get(example))
        for example, label in about.labels.items()
    ]


def draw_rows(about: RunHeader, ledger: list[Entry]) -> list[DrawRow]:
    """Returns one row per example of a randomized defence, none for others."""
    if not about.randomized:
        return []
    return [
        DrawRow(index=example, clean_wrong=fate.clean.share, wrong=fate.worst.share)
        for example, fate in _fates(about, ledger).items()
    ]


def adversarial(about: RunHeader, data: Dataset, ledger: list[Entry]) -> StoredImages:
    """Returns the image that decided each example that attacks made worse, in the order of the data set."""
    identity, fates = about.identity, _fates(about, ledger)
    rows = [
        row
        for row, example in enumerate(data.ids)
        if example in fates and fates[example].worst.image
    ]
    decided_by = [fates[data.ids[row]].worst for row in rows]
    images = unpacked([decision.image for decision in decided_by], tuple(data.images.shape[1:]))
    return StoredImages(
        run=identity.run_id(),
        threat=f"{identity.norm}:{identity.eps_text}",
        ids=np.array([decision.index for decision in decided_by], dtype=np.int64),
        labels=data.labels[rows].numpy(),
        predictions=np.array([decision.prediction for decision in decided_by], dtype=np.int64),
        images=images.numpy(),
        originals=data.images[rows[:SHOWN]].numpy(),
    )


def _stages(about: RunHeader, ledger: list[Entry]) -> list[StageResult]:
    carried = [SMALLER] if any(entry.stage == SMALLER for entry in ledger) else []
    lost: dict[int, float] = dict.fromkeys(about.labels, 0.0)
    stages: list[StageResult] = []
    for name in (CLEAN, *carried, *about.identity.stages):
        found = decisions_of(ledger, name)
        if (
            name != SMALLER
            and not {example for example, share in lost.items() if share < 1} <= found.keys()
        ):
            return stages  # its accuracy is not known yet, nor is any later one
        for example, decision in found.items():
            lost[example] = max(
                lost[example], float(decision.broken) if about.one_draw else decision.share
            )
        costs = [entry for entry in ledger if entry.stage == name]
        stages.append(
            StageResult(
                stage=name,
                accuracy=mean_accuracy(1 - share for share in lost.values()),
                forwards=sum(entry.forwards for entry in costs),
                backwards=sum(entry.backwards for entry in costs),
                seconds=sum(entry.seconds for entry in costs),
                work=_work([entry.work for entry in costs if entry.work]),
            )
        )
    return stages


def _facts(about: RunHeader, ledger: list[Entry]) -> Facts:
    return facts_of(about.stages, ledger, examples=len(about.labels), composite=about.composite)


def _missed(about: RunHeader, findings: Sequence[Finding]) -> float | None:
    """Returns what the samples of a fast run could have missed in all, as a fraction."""
    if about.identity.mode != "fast":
        return None
    return min(1.0, sum(finding.value or 0.0 for finding in findings if finding.check == SAMPLED))


def _drawn(about: RunHeader, ledger: list[Entry], stages: list[StageResult]) -> dict[str, object]:
    """Returns the fields of a record that adaptive attacks and chance add."""
    standard = _standard(about, ledger, stages)
    if not about.randomized:
        return {"standard": standard}
    fates = _fates(about, ledger)
    clean = _draws(about, {example: fate.clean for example, fate in fates.items()})
    robust = _draws(about, {example: fate.worst for example, fate in fates.items()})
    headline = {} if about.one_draw else {"robust": robust.mean}
    return {
        "standard": standard,
        "clean": clean.mean,
        "clean_draws": clean,
        "robust_draws": robust,
        **headline,
    }


def _standard(about: RunHeader, ledger: list[Entry], stages: list[StageResult]) -> Accuracy | None:
    """Returns what the standard attacks left where adaptive ones followed, by the same draws as the final accuracy."""
    before = [stage.accuracy for stage in stages if stage.stage not in about.identity.adaptive]
    if not about.identity.adaptive or len(before) < 2:  # the clean stage alone is no attack
        return None
    if not decisions_of(ledger, STANDARD_SCORE):
        return before[-1]
    fates = _fates(about, ledger, about.identity.attacks, STANDARD_SCORE)
    return mean_accuracy(1 - fate.worst.share for fate in fates.values())


def _draws(about: RunHeader, found: Mapping[int, Decision]) -> Draws:
    return Draws(
        exact=about.members > 0,
        draws=about.members or DRAWS,
        mean=mean_accuracy(1 - decision.share for decision in found.values()),
        all_correct=mean_accuracy(float(decision.share == 0) for decision in found.values()),
        majority=mean_accuracy(
            float(one.prediction == about.labels[example]) for example, one in found.items()
        ),
    )


def _fates(
    about: RunHeader, ledger: list[Entry], attacks: Sequence[str] | None = None, score: str = SCORE
) -> dict[int, _Fate]:
    """Returns the fate of each example under some attacks, or all, in the order of the data set."""
    clean, scored = decisions_of(ledger, CLEAN), decisions_of(ledger, score)
    fates = {
        example: _Fate(clean[example], clean[example], CLEAN if clean[example].broken else "")
        for example in about.labels
    }
    for stage in (SMALLER, *(about.identity.stages if attacks is None else attacks)):
        for example, decision in decisions_of(ledger, stage).items():
            before = fates[example]
            if (decision.broken, decision.share) > (before.worst.broken, before.worst.share):
                fates[example] = _Fate(before.clean, decision, stage)
    return {
        example: _Fate(fate.clean, scored.get(example, fate.worst), fate.stage)
        for example, fate in fates.items()
    }


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


def _costs(about: RunHeader, ledger: list[Entry]) -> dict[int, tuple[int, int]]:
    """Returns the forwards and backwards that attacks spent on each example, where the engine counted them."""
    costs: dict[int, tuple[int, int]] = {}
    for stage in about.identity.stages:
        for example, decision in decisions_of(ledger, stage).items():
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
