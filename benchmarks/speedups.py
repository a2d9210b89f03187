"""Seconds per image of forward and backward passes under each speedup of the search.

All variants of a model are measured in turn, in one process, again and again: on shared or noisy
machines only the ratios mean something. Real networks are measured where `RKD_TEST_DATA` names
their folder, a ResNet-18 where there is a GPU. Writes build/speedups.csv.
"""

import csv
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from robustbench_kd.checkpoints.subject import Choices
from robustbench_kd.checkpoints.target import describe, load
from robustbench_kd.engine.passes.batch_size import batch_size
from robustbench_kd.engine.passes.speedups import (
    SearchModel,
    Speedups,
    reduced_precision,
    search_model,
)
from robustbench_kd.models import resnet
from robustbench_kd.tensors.oracle import freeze, full_precision

ROOT = Path(__file__).parent.parent
GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
ROWS = 512 if GPU else 64
SECONDS = 12.0  # for each model, compilation not counted
LEAST = 0.02  # seconds of one measurement
PLAIN = Speedups()
VARIANTS = [
    PLAIN,
    Speedups(fold=True),
    Speedups(channels_last=True),
    Speedups(fold=True, channels_last=True),
    *([Speedups("tf32"), Speedups("tf32", fold=True, channels_last=True)] if GPU else []),
    Speedups("bf16"),
    Speedups("bf16", fold=True),
    Speedups("bf16", fold=True, channels_last=True),
    *([Speedups(compile=True)] if GPU else []),
    Speedups(fold=True, compile=True),
    Speedups("bf16", fold=True, compile=True),
    *([Speedups("bf16", fold=True, channels_last=True, compile=True)] if GPU else []),
]


@dataclass(frozen=True)
class Case:
    """One model and the shape of its images."""

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, int, int]


@dataclass(frozen=True)
class Variant:
    """What a search would ask, and what it took to make it."""

    speedups: Speedups
    ask: SearchModel
    prepared: float


def cases() -> Iterator[Case]:
    yield Case(
        "digits-small",
        stored(str(ROOT / "checkpoints" / "digits-small.toml"), (1, 8, 8)),
        (1, 8, 8),
    )
    if data := os.environ.get("RKD_TEST_DATA"):
        for name, file in {"resnet2b": "resnet2b.pth", "resnet20": "resnet20-12fca82f.th"}.items():
            target, architecture = f"{data}/models/{file}", f"{data}/real_models.py:{name}"
            yield Case(name, stored(target, (3, 32, 32), architecture), (3, 32, 32))
    if GPU:
        yield Case("resnet18", resnet.build, (3, 32, 32))


def stored(
    target: str, shape: tuple[int, int, int], architecture: str = ""
) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        (described,) = describe(target, Choices(architecture=architecture))
        return load(described, classes=10, shape=shape).model

    return build


def forward(ask: SearchModel, images: Tensor) -> None:
    with torch.no_grad():
        ask(images)


def both(ask: SearchModel, images: Tensor) -> None:
    points = images.detach().requires_grad_()
    torch.autograd.grad(ask(points).logsumexp(dim=1).sum(), points)


PASSES = {"forward": forward, "forward+backward": both}


def prepare(model: nn.Module, speedups: Speedups, images: Tensor) -> Variant:
    start = time.perf_counter()
    ask = search_model(model, DEVICE, speedups, size=ROWS, probe=images[:4])
    with reduced_precision(speedups, DEVICE):
        for run in PASSES.values():
            run(ask, images)
    wait()
    return Variant(speedups, ask, time.perf_counter() - start)


def wait() -> None:
    if GPU:
        torch.cuda.synchronize()


@contextmanager
def timed(into: list[tuple[float, float]], images: int) -> Iterator[None]:
    wait()
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    wait()
    into.append(((time.perf_counter() - wall) / images, (time.process_time() - cpu) / images))


def measure(
    variants: list[Variant], images: Tensor
) -> dict[tuple[str, str], list[tuple[float, float]]]:
    found: dict[tuple[str, str], list[tuple[float, float]]] = {
        (variant.speedups.label, name): [] for variant in variants for name in PASSES
    }
    trial: list[tuple[float, float]] = []
    with timed(trial, 1):
        both(variants[0].ask, images)
    times = max(1, int(LEAST / trial[0][0]))
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        for variant in variants:
            for name, run in PASSES.items():
                with (
                    reduced_precision(variant.speedups, DEVICE),
                    timed(found[variant.speedups.label, name], times * ROWS),
                ):
                    for _ in range(times):
                        run(variant.ask, images)
    return found


def table(case: Case) -> list[dict[str, Any]]:
    model = case.build().to(DEVICE)
    freeze(model)
    images = torch.rand(ROWS, *case.shape).to(DEVICE)
    start = time.perf_counter()
    size = batch_size(
        search_model(model, DEVICE, PLAIN, size=0, probe=images[:4]), images, DEVICE, most=4096
    )
    print(
        f"\n{case.name}: batch size {size} chosen in {time.perf_counter() - start:.1f} s; {ROWS} "
        "rows measured"
    )
    variants = [prepare(model, speedups, images) for speedups in VARIANTS]
    for variant in variants:
        for note in variant.ask.notes:
            print(f"  {variant.speedups.label}: {note}")
    found = measure(variants, images)
    rows = []
    for variant in variants:
        for name in PASSES:
            wall, cpu = (
                median(values) for values in zip(*found[variant.speedups.label, name], strict=True)
            )
            plain = [median(values) for values in zip(*found[PLAIN.label, name], strict=True)]
            rows.append(
                {
                    "case": case.name,
                    "device": torch.cuda.get_device_name() if GPU else "cpu",
                    "torch": torch.__version__,
                    "rows": ROWS,
                    "speedups": variant.speedups.label,
                    "passes": name,
                    "measurements": len(found[variant.speedups.label, name]),
                    "wall_us": 1e6 * wall,
                    "cpu_us": 1e6 * cpu,
                    "wall_ratio": plain[0] / wall,
                    "cpu_ratio": plain[1] / cpu,
                    "prepared_s": variant.prepared,
                    "batch_size": size,
                }
            )
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    key = "wall" if GPU else "cpu"
    print(
        f"{'speedups':32}{'forward us':>12}{'ratio':>8}{'both us':>12}{'ratio':>8}"
        f"{'prepared s':>12}"
    )
    for one, other in zip(rows[::2], rows[1::2], strict=True):
        values = "".join(
            f"{row[f'{key}_us']:12.1f}{row[f'{key}_ratio']:8.2f}" for row in (one, other)
        )
        print(f"{one['speedups']:32}{values}{one['prepared_s']:12.1f}")


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    found: list[dict[str, Any]] = []
    with full_precision():
        for case in cases():
            rows = table(case)
            show(rows)
            found += rows
    path = ROOT / "build" / "speedups.csv"
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, found[0])
        writer.writeheader()
        writer.writerows(found)
    print(f"\n{path.relative_to(ROOT)} written; ratios of {'wall' if GPU else 'CPU'} time")


if __name__ == "__main__":
    main()
