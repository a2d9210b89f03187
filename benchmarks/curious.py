"""Front ends on real CIFAR-10 networks.

What AutoAttack says of a randomized ensemble of them, and what adaptive attacks leave. Source of
the phenomenon: Boytsov et al. 2025 (arXiv 2402.17018). The front ends are not trained: random
convolutions whose batch norm is calibrated on training images, rescaled to change a pixel by 0.01
on average. Run it by `make curious`, with `RKD_TEST_DATA` naming the folder of the networks. Writes
build/curious.md; the runs stay in build/curious.
"""

import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from markdown_table import printed
from torch import nn

from robustbench_kd.checkpoints.composite import build_family
from robustbench_kd.checkpoints.subject import Choices, Subject
from robustbench_kd.checkpoints.target import describe, load
from robustbench_kd.core.records import Accuracy, RunRecord
from robustbench_kd.core.suites import parse_suite
from robustbench_kd.core.threat import Threat
from robustbench_kd.core.verdicts import verdict_words
from robustbench_kd.datasets import open_dataset
from robustbench_kd.engine.evaluate import evaluate
from robustbench_kd.engine.run.request import Request
from robustbench_kd.tensors.contracts import Dataset
from robustbench_kd.tensors.oracle import freeze

BUILD = Path(__file__).parent.parent / "build"
SHAPE = (3, 32, 32)
PACKAGE = "apgd-ce,apgd-t,square"  # AutoAttack without FAB-T, for its cost
HEADINGS = (
    "defence",
    "threat",
    "n",
    "clean %",
    "AutoAttack's own %",
    "expected on its images %",
    "adaptive %",
    "verdict",
)


@dataclass(frozen=True)
class Case:
    """A network and the radius at which it falls by itself; `width` is that of the front ends."""

    name: str
    weights: str
    threat: str
    width: int


CASES = (
    Case("resnet20", "resnet20-12fca82f.th", "linf:4/255", 16),
    Case("resnet2b", "resnet2b.pth", "linf:8/255", 8),
)


def backbone(case: Case, data: Path) -> Subject:
    architecture = f"{data / 'real_models.py'}:{case.name}"
    (target,) = describe(str(data / "models" / case.weights), Choices(architecture=architecture))
    return load(target, classes=10, shape=SHAPE)


def front_end(model: nn.Module, case: Case, train: Dataset, seed: int) -> nn.Module:
    """Returns a network behind an untrained front end of depth 33."""
    arguments = {"depth": 33, "width": case.width, "amplitude": 0.01}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        defence = build_family("frontend", [model], arguments, classes=10, shape=SHAPE)
    defence.fit(train.images, train.labels, train.images, train.labels)
    freeze(defence)
    return defence


def defences(case: Case, data: Path) -> list[Subject]:
    """Returns the network itself, one front end, and a randomized ensemble of five."""
    bare = backbone(case, data)
    freeze(bare.model)
    train = open_dataset(f"npz:{data / 'cifar10_train_8000.npz'}", limit=400)
    fronts = [front_end(bare.model, case, train, seed) for seed in range(5)]
    mixed = build_family("ensemble", fronts, {"mode": "randomized"}, classes=10, shape=SHAPE)
    freeze(mixed)
    named = {"frontend": ("front end", fronts[0]), "ensemble": ("ensemble of 5", mixed)}
    made = [
        replace(bare, name=f"{case.name} with {title}", family=family, model=model)
        for family, (title, model) in named.items()
    ]
    return [replace(bare, name=case.name), *made]


def run(subject: Subject, case: Case, images: Dataset, *, suite: str, engine: str) -> RunRecord:
    threat, chosen, cpu = Threat.parse(case.threat), parse_suite(suite), torch.device("cpu")
    asked = Request(subject, images, threat, chosen, cpu, engine=engine)
    return evaluate(asked, BUILD / "curious").record


def row(subject: Subject, case: Case, images: Dataset) -> tuple[str, ...]:
    package = run(subject, case, images, suite=PACKAGE, engine="autoattack")
    adaptive = run(subject, case, images, suite="adaptive", engine="native")
    expected = package.robust_draws.mean if package.robust_draws else package.robust
    shown = [
        percent(value) for value in (adaptive.clean, package.robust, expected, adaptive.robust)
    ]
    return subject.name, case.threat, str(len(images)), *shown, verdict_words(package.verdict or "")


def percent(accuracy: Accuracy) -> str:
    return f"{100 * accuracy.value:.1f} [{100 * accuracy.ci_low:.0f}, {100 * accuracy.ci_high:.0f}]"


def main() -> None:
    folder = os.environ.get("RKD_TEST_DATA")
    if not folder:
        sys.exit("RKD_TEST_DATA names no folder with the real networks")
    data, examples = Path(folder), int(sys.argv[1]) if len(sys.argv) > 1 else 20
    images = open_dataset(f"npz:{data / 'cifar10_test_1000.npz'}", limit=examples)
    rows = (row(subject, case, images) for case in CASES for subject in defences(case, data))
    table = printed(HEADINGS, ["---"] * len(HEADINGS), rows)
    BUILD.mkdir(exist_ok=True)
    (BUILD / "curious.md").write_text(table)


if __name__ == "__main__":
    main()
