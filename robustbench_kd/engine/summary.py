"""Turns a ledger into a record: accuracies after each stage, costs, findings, one row per example."""

from collections.abc import Sequence
from dataclasses import dataclass

from robustbench_kd.core.ledger import Decision, Entry, decided
from robustbench_kd.core.records import Accuracy, ExampleRow, Finding, Identity, RunRecord, Stage, Work, verdict
from robustbench_kd.core.statistics import interval
from robustbench_kd.engine.autoattack import square_gain
from robustbench_kd.tensors.contracts import Dataset


@dataclass(frozen=True)
class Summary:
    """What a record says beside the ledger."""

    identity: Identity
    data: Dataset
    parameters: int
    environment: dict[str, str]


def summarise(about: Summary, ledger: list[Entry], findings: list[Finding], *, complete: bool) -> RunRecord:
    """Returns the record of a ledger; an interrupted one says what is known so far, and no robust accuracy."""
    stages = _stages(about, ledger)
    known = [*findings, *(finding for entry in ledger for finding in entry.findings)]
    if complete:
        known += square_gain({stage.stage: stage.accuracy.value for stage in stages})
    known = _merged(known)
    return RunRecord(
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


def example_rows(about: Summary, ledger: list[Entry]) -> list[ExampleRow]:
    """Returns one row per example, in the order of the data set."""
    clean = decided(ledger, "clean")
    broken = _broken(about, ledger)
    labels = dict(zip(about.data.ids, about.data.labels.tolist(), strict=True))
    costs = _costs(about, ledger)
    return [
        _row(example, labels[example], clean[example], broken.get(example), costs.get(example))
        for example in about.data.ids
    ]


def _stages(about: Summary, ledger: list[Entry]) -> list[Stage]:
    n, alive, stages = len(about.data), set(about.data.ids), list[Stage]()
    for name in ("clean", *about.identity.attacks):
        found = decided(ledger, name)
        if not alive <= found.keys():
            return stages  # its accuracy is not known yet, nor is any later one
        alive -= {example for example, decision in found.items() if decision.broken}
        costs = [entry for entry in ledger if entry.stage == name]
        stages.append(
            Stage(
                stage=name,
                accuracy=_accuracy(len(alive), n),
                forwards=sum(entry.forwards for entry in costs),
                backwards=sum(entry.backwards for entry in costs),
                seconds=sum(entry.seconds for entry in costs),
                work=_work([entry.work for entry in costs if entry.work]),
            )
        )
    return stages


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


def _accuracy(successes: int, n: int) -> Accuracy:
    low, high = interval(successes, n)
    return Accuracy(value=successes / n, n=n, ci_low=low, ci_high=high)


def _broken(about: Summary, ledger: list[Entry]) -> dict[int, tuple[str, Decision]]:
    return {
        example: (stage, decision)
        for stage in about.identity.attacks
        for example, decision in decided(ledger, stage).items()
        if decision.broken
    }


def _costs(about: Summary, ledger: list[Entry]) -> dict[int, tuple[int, int]]:
    """Returns the forwards and backwards that attacks spent on each example, where the engine counted them."""
    costs: dict[int, tuple[int, int]] = {}
    for stage in about.identity.attacks:
        for example, decision in decided(ledger, stage).items():
            if decision.forwards is not None and decision.backwards is not None:
                forwards, backwards = costs.get(example, (0, 0))
                costs[example] = forwards + decision.forwards, backwards + decision.backwards
    return costs


def _row(
    example: int,
    label: int,
    clean: Decision,
    broken: tuple[str, Decision] | None,
    cost: tuple[int, int] | None,
) -> ExampleRow:
    stage, fatal = broken or ("clean" if clean.broken else "", None)
    return ExampleRow(
        index=example,
        label=label,
        clean_prediction=clean.prediction,
        clean_correct=not clean.broken,
        robust=not stage,
        broken_by=stage,
        adversarial_prediction=fatal.prediction if fatal else None,
        distance=fatal.distance if fatal else None,
        margin=(fatal or clean).margin,
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
