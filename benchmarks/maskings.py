"""Masked gradients that nobody declares: what each number says, and what the network inside keeps.

Puts a network behind every masking of `tests/maskings.py` and evaluates it with
`standard+adaptive`. None of them declares a surface or a key. `own gradients` is what APGD on the
cross-entropy leaves, `AutoAttack` what the suite `standard` leaves, `found surfaces` what all
leave. `declared surface` is the suite `adaptive` alone on the same defence that declares what its
author knows: the network inside, activations that pass every gradient, distances to stored
examples. Run it by `make maskings`; NETWORK is `digits`, or `resnet2b` with `RKD_TEST_DATA` naming
its folder. Writes build/maskings-NETWORK.md; the runs stay in build/maskings, and finished ones are
not repeated.
"""

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from markdown_table import printed
from torch import nn

from robustbench_kd.checkpoints.subject import Choices, Subject
from robustbench_kd.checkpoints.target import describe, load
from robustbench_kd.core.records import RunRecord
from robustbench_kd.core.suites import parse_suite
from robustbench_kd.core.threat import Threat
from robustbench_kd.core.verdicts import verdict_words
from robustbench_kd.datasets import open_dataset
from robustbench_kd.engine.evaluate import evaluate
from robustbench_kd.engine.run.request import Request
from robustbench_kd.tensors.contracts import Dataset
from robustbench_kd.tensors.defence import Surface
from robustbench_kd.tensors.oracle import freeze

ROOT = Path(__file__).parent.parent
BUILD = ROOT / "build"
sys.path.insert(0, str(ROOT / "tests"))

from maskings import (  # noqa: E402  # the tests' own maskings
    CHANCES,
    MASKINGS,
    WITHIN,
    DeepFront,
    MeanSparse,
    MemberPerCall,
    MemberPerImage,
    Nearest,
    StraightThrough,
    Vote,
    everywhere,
    within,
)

HEADINGS = (
    "masking",
    "clean %",
    "own gradients %",
    "AutoAttack %",
    "found surfaces %",
    "surfaces",
    "declared surface %",
    "passes",
    "verdict",
)
RULE = ("---", *["--:"] * 4, "---", "--:", "--:", "---")
INSIDE = "network inside"
NEAREST = "nearest stored example"
STORED = 300
DEVICE = torch.device("cpu")
SPARSE = "mean sparsifier everywhere"


@dataclass(frozen=True)
class Case:
    """A network with its images, and the radius at which some of them stand."""

    subject: Callable[[], Subject]
    threat: str
    images: Dataset
    train: Dataset
    amplitude: float


def digits() -> Case:
    def subject() -> Subject:
        (target,) = describe(str(ROOT / "checkpoints" / "digits-teacher.toml"), Choices())
        return load(target, classes=10, shape=(1, 8, 8))

    images = open_dataset("digits", limit=60)
    return Case(subject, "linf:0.2", images, open_dataset("digits", split="train"), 0.05)


def resnet2b() -> Case:
    folder = os.environ.get("RKD_TEST_DATA")
    if not folder:
        sys.exit("RKD_TEST_DATA names no folder with the real networks")
    data = Path(folder)

    def subject() -> Subject:
        choices = Choices(architecture=f"{data / 'real_models.py'}:resnet2b")
        (target,) = describe(str(data / "models" / "resnet2b.pth"), choices)
        return load(target, classes=10, shape=(3, 32, 32))

    images = open_dataset(f"npz:{data / 'cifar10_test_1000.npz'}", limit=40)
    train = open_dataset(f"npz:{data / 'cifar10_train_8000.npz'}", limit=400)
    return Case(subject, "linf:6/255", images, train, 0.01)


def builders(case: Case) -> dict[str, Callable[[], nn.Module]]:
    """Returns what builds each masked network; every call builds the network anew."""

    def inside() -> nn.Module:
        return case.subject().model

    def front(seed: int = 0, *, bare: bool = False) -> nn.Module:
        images = case.train.images[:300]
        return DeepFront(inside(), images, bare=bare, amplitude=case.amplitude, seed=seed)

    def fronts() -> list[nn.Module]:
        return [front(seed) for seed in range(3)]

    stored = case.train.take(torch.arange(STORED))
    around = {
        name: lambda mask=mask: mask(inside()) for name, mask in {**MASKINGS, **CHANCES}.items()
    }
    return {
        INSIDE: inside,
        **around,
        SPARSE: lambda: everywhere(MeanSparse, inside(), case.train.images),
        "deep front end": front,
        "deep front end of functions": lambda: front(bare=True),
        "one of three front ends per call": lambda: MemberPerCall(fronts()),
        "one of three front ends per image": lambda: MemberPerImage(fronts()),
        "majority of three networks": lambda: Vote([inside(), *fronts()[:2]]),
        NEAREST: lambda: Nearest(inside(), stored.images, stored.labels),
    }


class Declaring(nn.Module):
    """A defence with the surface that its author would declare."""

    def __init__(self, defence: nn.Module, surface: nn.Module) -> None:
        super().__init__()
        self.defence = defence
        self.surface = surface

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Returns the logits of the defence."""
        return self.defence(images)

    def surfaces(self) -> list[Surface]:
        """Returns the one surface."""
        return [Surface(name="declared", answer=lambda images, _key: self.surface(images))]


class Closest(nn.Module):
    """Minus the distance to the nearest stored example of each class."""

    def __init__(self, nearest: Nearest) -> None:
        super().__init__()
        self.nearest = nearest

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Returns `(n, 10)`."""
        stored, labels = self.nearest.stored, self.nearest.labels
        apart = torch.cdist(self.nearest.network(images), stored)
        of_class = [apart[:, labels == label].amin(dim=1) for label in range(10)]
        return -torch.stack(of_class, dim=1)


def declared(case: Case, name: str, defence: nn.Module) -> nn.Module | None:
    """Returns the surface that the author of a defence would declare; None if it hides chance."""
    network = case.subject().model
    if name in CHANCES or "one of three" in name:
        return None
    if name in WITHIN:
        return within(lambda: StraightThrough(WITHIN[name]()))(network)
    if name == SPARSE:
        return everywhere(lambda: StraightThrough(MeanSparse()), network, case.train.images)
    return Closest(defence) if isinstance(defence, Nearest) else network


def run(case: Case, slug: str, model: nn.Module, suite: str) -> RunRecord:
    model.eval()
    freeze(model)
    subject = replace(case.subject(), name=slug, model=model, network=model)
    asked = Request(subject, case.images, Threat.parse(case.threat), parse_suite(suite), DEVICE)
    return evaluate(asked, BUILD / "maskings").record


def row(name: str, record: RunRecord, known: RunRecord | None) -> tuple[str, ...]:
    stages = {stage.stage: stage.accuracy.value for stage in record.stages}
    standard = record.standard.value if record.standard else record.robust.value
    surfaces = {stage.partition(":")[0] for stage in stages if stage.startswith("found-")}
    shown = (record.clean.value, stages["apgd-ce"], standard, record.robust.value)
    return (
        name,
        *(f"{100 * value:.1f}" for value in shown),
        ", ".join(sorted(one.removeprefix("found-") for one in surfaces)) or "-",
        f"{100 * known.robust.value:.1f}" if known else "-",
        f"{record.forwards + record.backwards:,}",
        verdict_words(record.verdict or ""),
    )


def rows(case: Case, network: str, chosen: list[str]) -> Iterator[tuple[str, ...]]:
    for name, build in builders(case).items():
        if name in chosen or not chosen:
            slug = f"{network}-{name.replace(' ', '-').replace('.', '')}"
            record = run(case, slug, build(), "standard+adaptive")
            surface = declared(case, name, defence := build())
            known = surface and run(
                case, f"{slug}-declared", Declaring(defence, surface), "adaptive"
            )
            yield row(name, record, known)


def main() -> None:
    network, *chosen = sys.argv[1:] or ["digits"]
    case = {"digits": digits, "resnet2b": resnet2b}[network]()
    BUILD.mkdir(exist_ok=True)
    table = printed(HEADINGS, RULE, rows(case, network, chosen))
    if not chosen:
        (BUILD / f"maskings-{network}.md").write_text(table)


if __name__ == "__main__":
    main()
