"""The parts of `make gpu`: each returns rows of one table, and stands alone in a process."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from stages import robust
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from robustbench_kd.checkpoints.subject import Choices, Subject
from robustbench_kd.checkpoints.target import describe, load
from robustbench_kd.core.records import RunRecord
from robustbench_kd.core.suites import parse_suite
from robustbench_kd.core.threat import Threat
from robustbench_kd.datasets import open_dataset
from robustbench_kd.engine.evaluate import evaluate
from robustbench_kd.engine.passes.speedups import Speedups
from robustbench_kd.engine.run.request import Request
from robustbench_kd.tensors.contracts import Dataset

ROOT = Path(__file__).parent.parent
FACTORIES = ROOT / "benchmarks" / "gpu_networks.py"
DIGITS = str(ROOT / "checkpoints" / "digits-small.toml")
NETWORKS = {  # in gpu_networks.py, in full and at toy size
    "resnet18": ("resnet18", "toy_resnet18"),
    "wide_resnet": ("random_wide_resnet", "toy_wide_resnet"),
    "vit": ("random_vit", "toy_vit"),
}
# Tried from the largest.
RADII = ("8/255", "4/255", "2/255", "1/255", "1/510", "1/1020", "1/2040", "1/4080")
STANDING = 0.3  # the least fraction that survives a short attack at the radius that is taken
WAYS: dict[str, tuple[str, str, Speedups]] = {
    "autoattack": ("autoattack", "standard", Speedups()),
    "native": ("native", "standard", Speedups(fold=True)),
    "native, no speedup": ("native", "standard", Speedups()),
    "native, channels-last": ("native", "standard", Speedups(fold=True, channels_last=True)),
    "native, tf32": ("native", "standard", Speedups("tf32", fold=True)),
    "native, bf16": ("native", "standard", Speedups("bf16", fold=True, channels_last=True)),
    "native, compile": ("native", "standard", Speedups(fold=True, compile=True)),
    "fast": ("native", "fast", Speedups(fold=True)),
}
ENGINES = ("native", "autoattack", "fast")
LEVERS = tuple(name for name in WAYS if name not in ENGINES)
FEW = ("native", "native, bf16", "fast")
Row = dict[str, Any]


@dataclass(frozen=True)
class Taken:
    """What one evaluation said, image by image, and how long it took."""

    record: RunRecord
    verdicts: list[str]
    seconds: float


@dataclass(frozen=True)
class Scale:
    """How large the parts are; `dry` is the toy size for a CPU."""

    dry: bool

    @property
    def device(self) -> torch.device:
        """Where the parts run."""
        return torch.device("cpu" if self.dry else "cuda")

    def pick(self, full: int, toy: int) -> int:
        """Returns the first number, or the second at toy size."""
        return toy if self.dry else full


def gpu_tests(scale: Scale) -> list[Row]:
    """Runs the tests that are marked gpu; on a CPU they are skipped."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
    if scale.dry:
        command += ["--collect-only"]
    found = subprocess.run(
        [*command, "tests/unit"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    lines = (found.stdout + found.stderr).strip().splitlines()
    if found.returncode:
        raise RuntimeError("\n".join(lines[-25:]))
    return [{"tests": lines[-1]}]


def verdicts(scale: Scale) -> list[Row]:
    """Compares verdicts with those of the CPU, and those of batch sizes with each other."""
    rows = []
    for name, subject, data, threat in verdict_cases(scale):
        expected = taken(subject, data, threat, torch.device("cpu"))
        for size in (64, 512, 4096):
            outcome = taken(subject, data, threat, scale.device, size=size)
            pairs = zip(expected.verdicts, outcome.verdicts, strict=True)
            differing = sum(one != other for one, other in pairs)
            rows.append({"case": name, "batch size": size, **spent(outcome), "differ": differing})
    return rows


def verdict_cases(scale: Scale) -> list[tuple[str, Subject, Dataset, str]]:
    digits = open_dataset("digits", limit=scale.pick(100, 8))
    cases = [("digits-small", opened(DIGITS, digits), digits, "linf:0.2")]
    folder = os.environ.get("RKD_TEST_DATA")
    if folder and not scale.dry:
        images = open_dataset(f"npz:{folder}/cifar10_test_1000.npz", limit=50)
        network = f"{folder}/models/resnet2b.pth"
        subject = opened(network, images, f"{folder}/real_models.py:resnet2b")
        cases.append(("resnet2b", subject, images, "linf:2/255"))
    return cases


def ways(network: str, scale: Scale, examples: int, names: tuple[str, ...]) -> Iterator[Row]:
    """Evaluates a network by each way in turn; a way that fails says why in its row."""
    subject, data, threat = with_survivors(network, scale, examples)
    flops, ceiling = flops_of(subject.model, data), matmul_ceiling(scale)
    for name in names:
        row: Row = {"network": network, "threat": threat, "n": examples, "way": name}
        try:
            row |= spent(taken(subject, data, threat, scale.device, way=name), flops, ceiling)
        except Exception as error:  # noqa: BLE001  # the other ways are measured all the same
            row["error"] = f"{type(error).__name__}: {error}"[:300]
        yield row


def memory(scale: Scale) -> list[Row]:
    """Doubles the batch until memory ends, then evaluates with a batch that is too large."""
    subject, data, threat = with_survivors("resnet18", scale, scale.pick(256, 4))
    model, size = subject.model.to(scale.device), 64
    fits = 0
    while size <= scale.pick(2**20, 128):
        try:
            points = torch.rand(size, *data.images.shape[1:], device=scale.device)
            model(points.requires_grad_()).sum().backward()
        except torch.OutOfMemoryError:
            break
        fits, size = size, 2 * size
    if not scale.dry:  # less memory than a batch of all images needs
        del points
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(0.015)
    outcome = taken(subject, data, threat, scale.device, size=len(data), suite="quick")
    return [{"largest batch": fits, "asked for in little memory": len(data), **spent(outcome)}]


def scaling(scale: Scale) -> list[Row]:
    """Evaluates more and more images by the fast suite."""
    rows = []
    for examples in (scale.pick(1_000, 4), scale.pick(10_000, 8)):
        subject, data, threat = with_survivors("resnet18", scale, examples)
        outcome = taken(subject, data, threat, scale.device, suite="quick")
        rows.append({"images": examples, "threat": threat, **spent(outcome)})
    return rows


def distillation(scale: Scale) -> list[Row]:
    """Trains a teacher and distils two students for a few epochs, then evaluates all of them."""
    with tempfile.TemporaryDirectory() as folder:
        shared = ["--out", folder, "--device", scale.device.type, *training_data(scale)]
        small = ["--arch-arg", f"width={scale.pick(32, 2)}"]
        epochs = ["--set", f"epochs={scale.pick(3, 1)}"]
        network = ["--name", "teacher", "--arch", "small_cnn", *small]
        rkd("train", "digits-pgd-at", *network, *epochs, *shared)
        teacher = f"{folder}/teacher.toml"
        family = "digits" if "digits" in shared else "cifar10"
        for method in ("rslad", "ard"):
            recipe = ["--recipe", f"{family}-{method}", "--teacher", teacher, *epochs]
            student = ["--name", method, "--student", "small_cnn", *small]
            rkd("distill", method, *recipe, *student, *shared)
        return [evaluated(folder, name, scale) for name in ("teacher", "rslad", "ard")]


def training_data(scale: Scale) -> list[str]:
    folder = os.environ.get("RKD_TEST_DATA")
    if scale.dry or not folder:
        return ["--dataset", "digits", "--threat", "linf:0.2"]
    return ["--dataset", f"npz:{folder}/cifar10_train_8000.npz", "--threat", "linf:8/255"]


def evaluated(folder: str, name: str, scale: Scale) -> Row:
    source = training_data(scale)[1].replace("train_8000", "test_1000")
    data = open_dataset(source, limit=scale.pick(200, 8))
    threat = training_data(scale)[3]
    subject = opened(f"{folder}/{name}.toml", data)
    return {"name": name, **spent(taken(subject, data, threat, scale.device))}


def rkd(*arguments: str) -> None:
    """Runs the command line, and raises with the end of what it said where it fails."""
    command = [sys.executable, "-m", "robustbench_kd", *arguments]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if found.returncode:
        raise RuntimeError((found.stdout + found.stderr)[-1500:])


def opened(target: str, data: Dataset, architecture: str = "") -> Subject:
    (described,) = describe(target, Choices(architecture=architecture))
    channels, height, width = data.images.shape[1:]
    return load(described, classes=data.classes, shape=(channels, height, width))


def with_survivors(network: str, scale: Scale, examples: int) -> tuple[Subject, Dataset, str]:
    """Returns a network with its own labels, and the largest radius at which some images stand."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(examples, 3, 32, 32, generator=generator)
    blank = Dataset("noise", images, torch.zeros(examples).long(), tuple(range(examples)), 10)
    subject = opened(f"{FACTORIES}:{NETWORKS[network][scale.dry]}", blank)
    data = labelled(subject.model, blank, scale)
    few = data.take(torch.arange(min(64, examples)))
    for radius in RADII:
        threat = f"linf:{radius}"
        record = taken(subject, few, threat, scale.device, suite="apgd-ce").record
        if record.robust and record.robust.value >= STANDING:
            break
    return subject, data, threat


def labelled(model: nn.Module, data: Dataset, scale: Scale) -> Dataset:
    """Returns the data with the answers of the model as labels."""
    model.to(scale.device)
    with torch.no_grad():
        answers = [model(part.to(scale.device)).argmax(1).cpu() for part in data.images.split(250)]
    return Dataset(data.name, data.images, torch.cat(answers), data.ids, data.classes)


def taken(
    subject: Subject,
    data: Dataset,
    threat: str,
    device: torch.device,
    *,
    way: str = "native",
    size: int = 0,
    suite: str = "",
) -> Taken:
    engine, usual, speedups = WAYS[way]
    request = Request(
        subject,
        data,
        Threat.parse(threat),
        parse_suite(suite or usual),
        device,
        batch_size=size,
        speedups=speedups,
        engine=engine,
        probes=False,
    )
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        outcome = evaluate(request, Path(folder))
        return Taken(outcome.record, robust(outcome), time.perf_counter() - start)


def flops_of(model: nn.Module, data: Dataset) -> int:
    """Returns the floating-point operations of one forward pass of one image."""
    device = next(model.parameters()).device
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(data.images[:1].to(device))
    return int(counter.get_total_flops())


def matmul_ceiling(scale: Scale) -> float:
    """Returns the floating-point operations per second of a large product in fp32."""
    side = scale.pick(8192, 128)
    one = torch.rand(side, side, device=scale.device)
    one @ one
    wait(scale)
    start = time.perf_counter()
    for _ in range(5):
        one @ one
    wait(scale)
    return 5 * 2 * side**3 / (time.perf_counter() - start)


def wait(scale: Scale) -> None:
    if not scale.dry:
        torch.cuda.synchronize()


def spent(taken: Taken, flops: int = 0, ceiling: float = 0.0) -> Row:
    """Returns what an evaluation said and cost; a backward pass counts as a forward pass."""
    record = taken.record
    passes = record.forwards + record.backwards
    row: Row = {
        "robust": record.robust.value if record.robust else None,
        "seconds": round(taken.seconds, 2),
        "passes": passes,
    }
    # Of seconds of the host, which on a GPU says only who waits.
    work = [stage for stage in record.stages if stage.work and stage.seconds]
    if work:
        inside = sum(stage.work.model_seconds for stage in work if stage.work)
        row["host in model"] = round(inside / sum(stage.seconds for stage in work), 3)
    if flops:
        rate = flops * passes / taken.seconds
        row |= {"GFLOP/s": round(rate / 1e9, 1), "of fp32 product": round(rate / ceiling, 3)}
    return row


PARTS: dict[str, Callable[[Scale], Iterable[Row]]] = {
    "tests": gpu_tests,
    "verdicts": verdicts,
    "resnet18": lambda scale: ways("resnet18", scale, scale.pick(64, 2), ENGINES),
    "levers": lambda scale: ways("resnet18", scale, scale.pick(64, 2), LEVERS),
    "wide_resnet": lambda scale: ways("wide_resnet", scale, scale.pick(32, 2), FEW),
    "vit": lambda scale: ways("vit", scale, scale.pick(64, 2), FEW),
    "memory": memory,
    "scaling": scaling,
    "distillation": distillation,
}
