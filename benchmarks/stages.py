"""Cost of an evaluation by the package, our engine and its fast mode, in turn, in one process.

Verdicts that differ. Run it by `make bench`. Every way is taken three times, in turn, and seconds
are medians: on shared or noisy machines only the ratios mean something. `attacks` is the sum of the
stages, the same budget for both engines; `total` has the checks of the model besides. Real networks
are measured too where `RKD_TEST_DATA` names their folder. Writes build/bench.csv.
"""

import csv
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from robustbench_kd.checkpoints.subject import Choices
from robustbench_kd.checkpoints.target import describe, load
from robustbench_kd.core.records import RunRecord
from robustbench_kd.core.rundir import EXAMPLES
from robustbench_kd.core.suites import parse_suite
from robustbench_kd.core.threat import Threat
from robustbench_kd.datasets import open_dataset
from robustbench_kd.engine.evaluate import Outcome, evaluate
from robustbench_kd.engine.passes.speedups import Speedups
from robustbench_kd.engine.run.request import Request

ROOT = Path(__file__).parent.parent
# What is measured: the engine and the suite. The first is what the others are held against.
WAYS = {
    "autoattack": ("autoattack", "standard"),
    "native": ("native", "standard"),
    "fast": ("native", "fast"),
}
TURNS = 3
COSTS = ("seconds", "forwards", "backwards")


@dataclass(frozen=True)
class Case:
    """One model under one threat."""

    name: str
    target: str
    dataset: str
    threat: str
    examples: int
    architecture: str = ""


def chosen(names: list[str]) -> list[Case]:
    """The cases of the named models, or all."""
    return [case for case in cases() if not names or case.name in names]


def cases() -> list[Case]:
    digits = [
        Case(
            "digits-plain",
            str(ROOT / "checkpoints" / "digits-plain.toml"),
            "digits",
            "linf:0.2",
            200,
        ),
        Case(
            "digits-small",
            str(ROOT / "checkpoints" / "digits-small.toml"),
            "digits",
            "linf:0.2",
            200,
        ),
    ]
    data = os.environ.get("RKD_TEST_DATA")
    if not data:
        return digits
    images, code, models = (
        f"npz:{data}/cifar10_test_1000.npz",
        f"{data}/real_models.py",
        f"{data}/models",
    )
    return [
        *digits,
        Case("resnet2b", f"{models}/resnet2b.pth", images, "linf:2/255", 100, f"{code}:resnet2b"),
        Case(
            "cifar_cnn_a_adv",
            f"{models}/cifar_cnn_a_adv.model",
            images,
            "linf:2/255",
            100,
            f"{code}:cnn_a",
        ),
        Case(
            "resnet20",
            f"{models}/resnet20-12fca82f.th",
            images,
            "linf:8/255",
            100,
            f"{code}:resnet20",
        ),
        Case(
            "resnet20",
            f"{models}/resnet20-12fca82f.th",
            images,
            "linf:2/255",
            300,
            f"{code}:resnet20",
        ),
    ]


def measure(
    case: Case, results: Path, *, engine: str, suite: str = "standard", seed: int = 0
) -> tuple[Outcome, float, float]:
    """Evaluates a case; returns the outcome with wall and CPU seconds."""
    (target,) = describe(case.target, Choices(architecture=case.architecture))
    data = open_dataset(case.dataset, limit=case.examples)
    channels, height, width = data.images.shape[1:]
    subject = load(target, classes=data.classes, shape=(channels, height, width))
    threat, chosen = Threat.parse(case.threat), parse_suite(suite)
    wall, cpu = time.perf_counter(), time.process_time()
    speedups = Speedups(fold=engine == "native")  # as the command line has it
    request = Request(
        subject,
        data,
        threat,
        chosen,
        torch.device("cpu"),
        seed=seed,
        engine=engine,
        speedups=speedups,
    )
    outcome = evaluate(request, results)
    return outcome, time.perf_counter() - wall, time.process_time() - cpu


def robust(outcome: Outcome) -> list[str]:
    with (outcome.folder / EXAMPLES).open() as file:
        return [row["robust"] for row in csv.DictReader(file)]


@dataclass(frozen=True)
class Taken:
    """What one evaluation said and cost."""

    record: RunRecord
    verdicts: list[str]
    wall: float
    cpu: float


def take(case: Case, engine: str, suite: str) -> Taken:
    with tempfile.TemporaryDirectory() as folder:
        outcome, wall, cpu = measure(case, Path(folder), engine=engine, suite=suite)
        return Taken(outcome.record, robust(outcome), wall, cpu)


def rows(case: Case) -> list[dict[str, Any]]:
    taken: dict[str, list[Taken]] = {way: [] for way in WAYS}
    for _ in range(TURNS):
        for way, (engine, suite) in WAYS.items():
            taken[way].append(take(case, engine, suite))
    reference = taken["autoattack"][0].verdicts
    shared = {"case": case.name, "threat": case.threat, "n": case.examples}
    return [
        {**shared, "way": way, **row}
        for way, turns in taken.items()
        for row in costs(turns, reference)
    ]


def costs(turns: list[Taken], reference: list[str]) -> Iterator[dict[str, Any]]:
    """Yields the costs of each stage, of all together, and of the whole evaluation."""
    first = turns[0]
    stages = [
        {
            "stage": stage.stage,
            "accuracy": stage.accuracy.value,
            "seconds": median(turn.record.stages[place].seconds for turn in turns),
            "forwards": stage.forwards,
            "backwards": stage.backwards,
        }
        for place, stage in enumerate(first.record.stages)
    ]
    yield from stages
    known = {"accuracy": first.record.robust.value if first.record.robust else None}
    yield {"stage": "attacks", **known, **{key: sum(row[key] for row in stages) for key in COSTS}}
    yield {
        "stage": "total",
        **known,
        "seconds": median(turn.wall for turn in turns),
        "cpu_seconds": median(turn.cpu for turn in turns),
        "forwards": first.record.forwards,
        "backwards": first.record.backwards,
        "differing": sum(
            one != other for one, other in zip(reference, first.verdicts, strict=True)
        ),
        "missed": first.record.missed,
    }


def show(table: list[dict[str, Any]]) -> None:
    """Prints every stage of the package beside that of our engine, and the totals of each way."""
    ways = {way: {row["stage"]: row for row in table if row["way"] == way} for way in WAYS}
    reference = ways["autoattack"]
    print(f"\n{table[0]['case']} {table[0]['threat']}, {table[0]['n']} examples")
    print(
        f"{'way':12}{'stage':10}{'accuracy':>10}{'seconds':>10}{'ratio':>8}{'passes':>12}{'ratio':>8}"
    )
    for way, stages in ways.items():
        for name, row in stages.items():
            if way == "fast" and name not in {"attacks", "total"}:
                continue
            other = reference.get(name, row)
            passes, theirs = (one["forwards"] + one["backwards"] for one in (row, other))
            faster, fewer = other["seconds"] / max(row["seconds"], 1e-9), theirs / max(passes, 1)
            spent = f"{row['seconds']:>10.2f}{faster:>8.2f}{passes:>12,}{fewer:>8.2f}"
            print(f"{way:12}{name:10}{row['accuracy']:>10.3f}{spent}")
        total = stages["total"]
        cpu = reference["total"]["cpu_seconds"] / total["cpu_seconds"]
        missed = (
            ""
            if total["missed"] is None
            else f", could have missed {100 * total['missed']:.1f} points"
        )
        print(f"{'':12}CPU time {cpu:.2f} : 1, {total['differing']} verdicts differ{missed}")


def main() -> None:
    torch.set_num_threads(1)
    found = []
    for case in chosen(sys.argv[1:]):
        table = rows(case)
        show(table)
        found += table
    path = ROOT / "build" / "bench.csv"
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, dict.fromkeys(key for row in found for key in row))
        writer.writeheader()
        writer.writerows(found)
    print(f"\n{path.relative_to(ROOT)} written; ways: {', '.join(WAYS)}")


if __name__ == "__main__":
    main()
