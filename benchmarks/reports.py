"""Seconds that a leaderboard and a report take from files alone.

200 made-up runs of 1,000 examples. Run it by `python benchmarks/reports.py [FOLDER]`; each command
is a process of its own, so that its start counts too. With a folder the runs and the report stay
there to be looked at.
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

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
from robustbench_kd.core.verdicts import verdict

MODELS, EXAMPLES = 50, 1000
RADII = ((2, "2/255"), (4, "4/255"), (8, "8/255"), (16, "16/255"))
ATTACKS = ("apgd-ce", "apgd-t", "fab-t", "square")
FORMATS = "csv,markdown,html,latex,json,robustbench,huggingface"


def accuracy(successes: int) -> Accuracy:
    low, high = interval(successes, EXAMPLES)
    return Accuracy(value=successes / EXAMPLES, n=EXAMPLES, ci_low=low, ci_high=high)


def identity(model: int, eps: int, eps_text: str) -> Identity:
    return Identity(
        model=f"student-{model:02d}",
        family="classifier" if model % 3 else "ensemble",
        architecture="resnet18 channels=3 classes=10",
        normalisation="none",
        checkpoint_sha256=f"{model:064x}",
        dataset="cifar10",
        data_fingerprint="0" * 64,
        examples=EXAMPLES,
        norm="linf",
        eps=eps / 255,
        eps_text=eps_text,
        suite="standard",
        attacks=list(ATTACKS),
        engine="native",
        seed=0,
        batch_size=0,
        device="cuda",
        versions={"torch": "2.15.0"},
    )


def rows(model: int, eps: int) -> list[ExampleRow]:
    """Examples that each attack breaks in turn, more of them the larger the radius."""
    found = []
    for index in range(EXAMPLES):
        hardness = (index * 7919 + model * 104729) % EXAMPLES / EXAMPLES
        clean = hardness > 0.04 + 0.004 * (model % 29)
        robust = hardness > min(1, 0.1 + 0.006 * (model % 37) + eps * (0.05 + 0.001 * (index % 10)))
        stage = "" if robust else "clean" if not clean else ATTACKS[(index + model) % 11 % 4]
        found.append(
            ExampleRow(
                index=index,
                label=index % 10,
                clean_prediction=index % 10 if clean else (index + 1) % 10,
                clean_correct=clean,
                robust=clean and robust,
                broken_by=stage if clean else "clean",
                adversarial_prediction=None if robust or not clean else (index + 2) % 10,
                distance=None if robust or not clean else eps / 255,
                margin=hardness,
                forwards=5000,
                backwards=400,
            )
        )
    return found


def record(model: int, eps: int, eps_text: str, examples: list[ExampleRow]) -> RunRecord:
    asked = identity(model, eps, eps_text)
    gone: set[str] = set()
    stages = []
    for number, name in enumerate(["clean", *ATTACKS]):
        gone.add(name)
        left = accuracy(sum(row.broken_by not in gone for row in examples))
        passes = EXAMPLES * (1, 120, 900, 1200, 5000)[number]
        stages.append(
            StageResult(
                stage=name,
                accuracy=left,
                forwards=passes,
                backwards=passes // 2,
                seconds=3.0 * number,
            )
        )
    findings = [] if model % 5 else [masked(model)]
    return RunRecord(
        run_id=asked.run_id(),
        status="complete",
        identity=asked,
        protocol_hash=asked.protocol_hash(),
        clean=stages[0].accuracy,
        robust=stages[-1].accuracy,
        stages=stages,
        forwards=sum(stage.forwards for stage in stages),
        backwards=sum(stage.backwards for stage in stages),
        seconds=30.0 + model,
        findings=findings,
        verdict=verdict(findings),
        parameters=11_173_962,
    )


def masked(model: int) -> Finding:
    severity = Severity.RED if model % 10 else Severity.YELLOW
    message = "gradients are zero on a third of the images"
    return Finding(
        check="zero-gradients",
        severity=severity,
        message=message,
        advice="attack the bare backbone",
    )


def make(results: Path, *, shift: int) -> None:
    """Stores all runs; with another shift each loses and gains some images."""
    for model in range(MODELS):
        for eps, text in RADII:
            examples = rows(model + shift, eps)
            made = record(model, eps, text, examples)
            write_record(run_folder(results, made.identity.model, made.run_id), made, examples)


def seconds(*arguments: str) -> tuple[float, float]:
    """Wall and processor time of one command.

    The latter does not depend on what else the machine does.
    """
    command = [sys.executable, "-m", "robustbench_kd", *arguments]
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        command, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(results: Path, baseline: Path) -> None:
    make(results, shift=0)
    make(baseline, shift=1)
    commands = {
        "rkd --help, for comparison": ("--help",),
        "leaderboard": ("leaderboard", str(results)),
        "leaderboard in all formats": ("leaderboard", str(results), "--format", FORMATS),
        "report": ("report", str(results)),
        "report against a baseline": ("report", str(results), "--baseline", str(baseline)),
    }
    print(f"{MODELS * len(RADII)} runs of {EXAMPLES} examples, the best of 3")
    print(f"{'':30}{'seconds':>10}{'of CPU':>10}")
    for name, arguments in commands.items():
        wall, cpu = map(min, zip(*(seconds(*arguments) for _ in range(3)), strict=True))
        print(f"{name:30}{wall:10.2f}{cpu:10.2f}")
    size = (results / "report.html").stat().st_size
    print(f"the report has {size / 1e6:.1f} MB")


def main() -> None:
    if len(sys.argv) > 1:
        measure(Path(sys.argv[1]), Path(sys.argv[1], "baseline"))
        return
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder, "results"), Path(folder, "baseline"))


if __name__ == "__main__":
    main()
