"""Cost of an evaluation by both engines, in turn, in one process: seconds and passes, and verdicts that differ.

Run it by `make bench`. On shared or noisy machines only the ratios mean something. Real networks are measured too where
`RKD_TEST_DATA` names their folder. Writes build/bench.csv.
"""

import csv
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from robustbench_kd.checkpoints.subject import Choices
from robustbench_kd.checkpoints.target import describe, load
from robustbench_kd.core.rundir import EXAMPLES
from robustbench_kd.core.suites import parse_suite
from robustbench_kd.core.threat import Threat
from robustbench_kd.datasets import open_dataset
from robustbench_kd.engine.evaluate import Outcome, evaluate
from robustbench_kd.engine.request import Request

ROOT = Path(__file__).parent.parent
ENGINES = ("autoattack", "native")


@dataclass(frozen=True)
class Case:
    """One model under one threat."""

    name: str
    target: str
    dataset: str
    threat: str
    examples: int
    architecture: str = ""


def cases() -> list[Case]:
    digits = [
        Case("digits-plain", str(ROOT / "checkpoints" / "digits-plain.toml"), "digits", "linf:0.2", 200),
        Case("digits-small", str(ROOT / "checkpoints" / "digits-small.toml"), "digits", "linf:0.2", 200),
    ]
    data = os.environ.get("RKD_TEST_DATA")
    if not data:
        return digits
    images, code, models = f"npz:{data}/cifar10_test_1000.npz", f"{data}/real_models.py", f"{data}/models"
    return [
        *digits,
        Case("resnet2b", f"{models}/resnet2b.pth", images, "linf:2/255", 100, f"{code}:resnet2b"),
        Case("resnet20", f"{models}/resnet20-12fca82f.th", images, "linf:8/255", 100, f"{code}:resnet20"),
    ]


def measure(case: Case, engine: str, results: Path) -> tuple[Outcome, float, float]:
    (target,) = describe(case.target, Choices(architecture=case.architecture))
    data = open_dataset(case.dataset, limit=case.examples)
    channels, height, width = data.images.shape[1:]
    subject = load(target, classes=data.classes, shape=(channels, height, width))
    threat, suite = Threat.parse(case.threat), parse_suite("standard")
    wall, cpu = time.perf_counter(), time.process_time()
    outcome = evaluate(Request(subject, data, threat, suite, torch.device("cpu"), engine=engine), results)
    return outcome, time.perf_counter() - wall, time.process_time() - cpu


def robust(outcome: Outcome) -> list[str]:
    with (outcome.folder / EXAMPLES).open() as file:
        return [row["robust"] for row in csv.DictReader(file)]


def rows(case: Case) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        measured = {engine: measure(case, engine, Path(folder)) for engine in ENGINES}
        verdicts = {engine: robust(outcome) for engine, (outcome, _, _) in measured.items()}
    differing = sum(one != other for one, other in zip(*verdicts.values(), strict=True))
    table = []
    for engine, (outcome, wall, cpu) in measured.items():
        shared = {"case": case.name, "threat": case.threat, "n": case.examples, "engine": engine}
        total = {"stage": "total", "accuracy": outcome.record.robust.value, "seconds": wall, "cpu_seconds": cpu}
        passes = {"forwards": outcome.record.forwards, "backwards": outcome.record.backwards}
        table.append({**shared, **total, **passes, "differing": differing})
        for stage in outcome.record.stages:
            cost = {"seconds": stage.seconds, "forwards": stage.forwards, "backwards": stage.backwards}
            table.append({**shared, "stage": stage.stage, "accuracy": stage.accuracy.value, **cost})
    return table


def show(table: list[dict[str, Any]]) -> None:
    reference, native = ({row["stage"]: row for row in table if row["engine"] == engine} for engine in ENGINES)
    print(f"\n{table[0]['case']} {table[0]['threat']}, {table[0]['n']} examples")
    print(f"{'stage':10}{'accuracy':>20}{'seconds':>20}{'ratio':>8}{'passes':>24}{'ratio':>8}")
    for stage, one in reference.items():
        other = native[stage]
        spent = [row["forwards"] + row["backwards"] for row in (one, other)]
        accuracies, seconds = (
            f"{one['accuracy']:.3f} {other['accuracy']:.3f}",
            f"{one['seconds']:.2f} {other['seconds']:.2f}",
        )
        ratios = one["seconds"] / max(other["seconds"], 1e-9), spent[0] / max(spent[1], 1)
        print(f"{stage:10}{accuracies:>20}{seconds:>20}{ratios[0]:8.2f}{spent[0]:>12,}{spent[1]:>12,}{ratios[1]:8.2f}")
    total, ours = reference["total"], native["total"]
    print(f"CPU time {total['cpu_seconds'] / ours['cpu_seconds']:.2f} : 1, {total['differing']} verdicts differ")


def main() -> None:
    torch.set_num_threads(1)
    found = []
    for case in cases():
        table = rows(case)
        show(table)
        found += table
    path = ROOT / "build" / "bench.csv"
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, dict.fromkeys(key for row in found for key in row))
        writer.writeheader()
        writer.writerows(found)
    print(f"\n{path.relative_to(ROOT)} written; columns: {', '.join(ENGINES)}")


if __name__ == "__main__":
    main()
