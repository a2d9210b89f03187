"""Runs with planted answers, for tests of what reads them: no model is ever evaluated."""

from dataclasses import dataclass

from robustbench_kd.analysis.runs import Run
from robustbench_kd.core.records import (
    Accuracy,
    Finding,
    Identity,
    RunRecord,
    Severity,
    StageResult,
)
from robustbench_kd.core.rows import ExampleRow
from robustbench_kd.core.rundir import run_folder, write_record
from robustbench_kd.core.statistics import interval

CLASSES = 10


@dataclass(frozen=True)
class Planted:
    """Which of `n` examples are wrong on clean images, and which are broken by which attack."""

    n: int = 100
    wrong: frozenset[int] = frozenset()
    broken: frozenset[int] = frozenset()
    by: str = "apgd-ce"


def planted(n=1000, robust=500, wrong=100, lost=(), gained=()):
    """Of `n` images the first `robust` stand and the last `wrong` are misclassified.

    `lost` and `gained` ids flip.
    """
    broken = {*range(robust, n - wrong), *lost} - {*gained}
    return Planted(n, frozenset(range(n - wrong, n)), frozenset(broken))


def accuracy(correct, n):
    low, high = interval(correct, n)
    return Accuracy(value=correct / n, n=n, ci_low=low, ci_high=high)


def identity(n=100, **fields):
    known = {
        "model": "net",
        "family": "classifier",
        "architecture": "small_cnn",
        "normalisation": "none",
        "checkpoint_sha256": "0",
        "dataset": "digits",
        "data_fingerprint": f"{n}",
        "examples": n,
        "norm": "linf",
        "eps": 8 / 255,
        "eps_text": "8/255",
        "suite": "standard",
        "attacks": ["apgd-ce", "square"],
        "engine": "autoattack",
        "seed": 0,
        "batch_size": 250,
        "device": "cpu",
        "versions": {"torch": "2.10.0"},
    }
    return Identity.model_validate(known | fields)


def rows(plan):
    def row(index):
        broken_by = "clean" if index in plan.wrong else plan.by if index in plan.broken else ""
        return ExampleRow(
            index=index,
            label=index % CLASSES,
            clean_prediction=(index + (index in plan.wrong)) % CLASSES,
            clean_correct=index not in plan.wrong,
            robust=not broken_by,
            broken_by=broken_by,
            adversarial_prediction=(index + 1) % CLASSES if broken_by == plan.by else None,
            distance=8 / 255 if broken_by == plan.by else None,
            margin=-0.25 if broken_by else 1.5,
            forwards=None,
            backwards=None,
        )

    return [row(index) for index in range(plan.n)]


def record(asked, examples, **fields):
    gone, stages = {"clean"}, []
    for name in ("clean", *asked.attacks):
        gone.add(name)
        left = accuracy(sum(row.broken_by not in gone for row in examples), len(examples))
        stages.append(
            StageResult(stage=name, accuracy=left, forwards=len(examples), backwards=0, seconds=1.5)
        )
    known = {
        "run_id": asked.run_id(),
        "status": "complete",
        "identity": asked,
        "protocol_hash": asked.protocol_hash(),
        "clean": stages[0].accuracy,
        "robust": stages[-1].accuracy,
        "stages": stages,
        "forwards": sum(stage.forwards for stage in stages),
        "seconds": sum(stage.seconds for stage in stages),
        "verdict": "consistent",
    }
    return RunRecord.model_validate(known | {"findings": reasons(fields)} | fields)


def reasons(fields):
    """Findings that explain a verdict."""
    severity = {"unreliable": Severity.RED, "suspicious": Severity.YELLOW}.get(
        fields.get("verdict")
    )
    if severity is None:
        return []
    return [Finding(check="planted", severity=severity, message="a planted finding")]


USUAL = Planted()


def made(results, plan=USUAL, *, verdict="consistent", **fields):
    """Returns a run with planted answers as if read from under `results`.

    `fields` are those of its identity.
    """
    asked = identity(plan.n, **fields)
    examples = rows(plan)
    folder = run_folder(results, asked.model, asked.run_id())
    return Run(
        folder, record(asked, examples, verdict=verdict), {row.index: row for row in examples}
    )


def store(results, plan=USUAL, *, verdict="consistent", **fields):
    """Writes the same run and returns its folder."""
    run = made(results, plan, verdict=verdict, **fields)
    write_record(run.folder, run.record, list(run.examples.values()))
    return run.folder
