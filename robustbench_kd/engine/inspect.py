"""Looks at a loaded defence before any attack.

It shows the answers, whether the input is correct, and the cost of an evaluation.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from robustbench_kd.checkpoints.subject import Subject
from robustbench_kd.checkpoints.target import assemble
from robustbench_kd.core.errors import ModelError
from robustbench_kd.core.plugins import files
from robustbench_kd.core.records import Accuracy, Finding
from robustbench_kd.core.statistics import accuracy
from robustbench_kd.core.suites import ADAPTIVE, parse_suite
from robustbench_kd.core.threat import Threat
from robustbench_kd.engine import clean_pass as preflight
from robustbench_kd.engine.probing.anatomy import Anatomy, examine
from robustbench_kd.engine.probing.anatomy import findings as anatomy_findings
from robustbench_kd.engine.probing.checkup import Scope, checkup
from robustbench_kd.engine.probing.mismatch import (
    clean_checks,
    normalisation_name,
    usual_normalisations,
)
from robustbench_kd.engine.probing.undeclared import first_logits, with_chance
from robustbench_kd.engine.run.few_classes import for_classes
from robustbench_kd.engine.run.request import Extra
from robustbench_kd.engine.run.stages import plan_stages
from robustbench_kd.tensors.contracts import Dataset, Images, Logits
from robustbench_kd.tensors.oracle import Oracle, full_precision, guarded, is_out_of_memory

_REPEATS = 3


@dataclass(frozen=True)
class Cost:
    """What one suite costs for an image that no attack breaks: passes, and model seconds."""

    suite: str
    passes: int
    seconds: float


@dataclass(frozen=True)
class Speed:
    """Seconds per image of a pass of a batch: the median of three, and their relative spread.

    `megabytes` is what autograd keeps of one image between a forward and a backward pass; None
    where it is not known.
    """

    batch: int
    forward: float
    backward: float
    spread: float
    megabytes: float | None


@dataclass(frozen=True)
class Inspection:
    """What is known of a defence before any attack.

    `outputs` says what kind of numbers it gives, `pixels` the range of those of the images,
    `normalisation` the usual name of the one in use and `normalisations` the clean accuracy under
    others, best first; there are none where the defence is no plain classifier. `anatomy` says what
    masks its gradients.
    """

    classes: int
    pixels: tuple[float, float]
    outputs: str
    clean: Accuracy
    normalisation: str
    normalisations: dict[str, float]
    findings: list[Finding]
    anatomy: Anatomy
    speed: Speed
    costs: list[Cost]


def inspect(
    subject: Subject,
    data: Dataset,
    threat: Threat,
    *,
    device: torch.device,
    seed: int = 0,
    batch_size: int = 250,
) -> Inspection:
    """Inspects a defence on the images of a data set, in seconds.

    The threat sets the scale of probes. Raises `ModelError` where the defence does not give finite
    logits for these images and labels.
    """
    with full_precision():
        oracle = Oracle(subject.model, device, seed=seed)
        oracle, _ = first_logits(oracle, data.images[:1], data.classes)
        oracle, chance = with_chance(oracle, data.images)
        logits = _answers(oracle, data.images, batch_size)
        classes = preflight.count_classes(oracle, logits, data)
        by_normalisation = {}
        if subject.family == "classifier":
            by_normalisation = _usual(subject, data, device, batch_size)
        used = normalisation_name(subject.normalisation)
        correct = logits.argmax(dim=1) == data.labels
        scope = Scope(seed=seed, searches=False, correct=by_normalisation, normalisation=used)
        found = checkup(oracle, data, correct.nonzero()[:, 0].tolist(), threat, scope).findings
        anatomy = examine(oracle, data, threat, seed)
        mismatch = clean_checks(oracle, logits[:, :classes], data, subject.normalisation).findings
        if mismatch:  # it tries the same normalisations, and more
            found = [one for one in found if one.check != "normalisation"]
        found = [*chance, *mismatch, *anatomy_findings(anatomy), *found]
        with guarded("the model failed while it was timed"):
            speed = _speed(oracle, data.images[:batch_size])
    return Inspection(
        classes=classes,
        pixels=(float(data.images.min()), float(data.images.max())),
        outputs=_kind(logits),
        clean=accuracy(int(correct.sum()), len(correct)),
        normalisation=used,
        normalisations=_ranked(by_normalisation, used),
        findings=found,
        anatomy=anatomy,
        speed=speed,
        costs=_costs(oracle, threat, classes, speed),
    )


def _answers(oracle: Oracle, images: Images, batch_size: int) -> Logits:
    return torch.cat([oracle.logits(batch) for batch in torch.split(images, batch_size)])


def _usual(
    subject: Subject, data: Dataset, device: torch.device, batch_size: int
) -> dict[str, Tensor]:
    """Returns which images are correct under each usual normalisation, and under the one in use."""
    usual = usual_normalisations(subject.normalisation, data.images.shape[1])
    found = {}
    for name, normalisation in usual.items():
        oracle = Oracle(assemble(subject.network, normalisation), device)
        try:
            oracle, _ = first_logits(oracle, data.images[:1], data.classes)
            found[name] = _answers(oracle, data.images, batch_size).argmax(dim=1) == data.labels
        except ModelError:  # no finite logits: it is the wrong one
            found[name] = torch.zeros_like(data.labels, dtype=torch.bool)
    return found


def _ranked(right: dict[str, Tensor], used: str) -> dict[str, float]:
    clean = {name: float(correct.float().mean()) for name, correct in right.items()}
    return dict(sorted(clean.items(), key=lambda pair: (-pair[1], pair[0] != used)))


def _kind(logits: Logits) -> str:
    def sum_to_one(values: Tensor) -> bool:
        return bool(((values.sum(dim=1) - 1).abs() < 1e-4).all())

    if bool((logits >= 0).all()) and sum_to_one(logits):
        return "probabilities"
    if sum_to_one(logits.exp()):
        return "log-probabilities"
    return "logits"


def _speed(oracle: Oracle, images: Images) -> Speed:
    images = images.to(oracle.device)
    kept = _kept(oracle, images)
    forward = both = _times(oracle, images, backwards=False)
    megabytes = None
    if kept is not None:
        both = _times(oracle, images, backwards=True)
        megabytes = kept / len(images) / 2**20
    once, twice = sorted(forward)[_REPEATS // 2], sorted(both)[_REPEATS // 2]
    return Speed(
        batch=len(images),
        forward=once / len(images),
        backward=max(twice - once, 0) / len(images),
        spread=(max(both) - min(both)) / twice,
        megabytes=megabytes,
    )


def _times(oracle: Oracle, images: Images, *, backwards: bool) -> list[float]:
    work = partial(_pass, oracle, images, backwards=backwards)
    return [_timed(work, oracle.device) for _ in range(_REPEATS)]


def _kept(oracle: Oracle, images: Images) -> int | None:
    """Returns the bytes that autograd keeps for a backward pass; None without such a pass."""
    sizes: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        sizes[tensor.data_ptr()] = tensor.nbytes
        return tensor

    try:
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            _pass(oracle, images, backwards=True)
    # A model is a person's own code and can raise anything; `zero-gradients` says so.
    except (Exception, SystemExit) as error:
        if is_out_of_memory(error):
            raise
        return None
    return sum(sizes.values())


def _pass(oracle: Oracle, images: Images, *, backwards: bool) -> None:
    with torch.set_grad_enabled(backwards):
        points = images.detach().requires_grad_(backwards)
        logits = oracle(points)
        if backwards:
            torch.autograd.grad(logits.sum(), points)


def _timed(work: Callable[[], None], device: torch.device) -> float:
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _costs(oracle: Oracle, threat: Threat, classes: int, speed: Speed) -> list[Cost]:
    """Returns what each suite costs for an image that survives all attacks, the cheapest first."""
    costs = []
    for name in files("suites", ".toml"):
        if name == "rand" and not oracle.randomized:
            continue
        suite = f"standard+{ADAPTIVE}" if name == ADAPTIVE else name
        costs.append(_cost(oracle, suite, threat, classes, speed))
    return sorted(costs, key=lambda cost: cost.passes)


def _cost(oracle: Oracle, name: str, threat: Threat, classes: int, speed: Speed) -> Cost:
    suite, _ = for_classes(parse_suite(name), classes, threat.norm)
    forwards = backwards = 0
    for stage in plan_stages(suite, oracle, threat, Extra()):
        forward, backward = stage.costs(threat.norm, classes)
        forwards += forward
        backwards += backward
    seconds = forwards * speed.forward + backwards * speed.backward
    return Cost(suite=name, passes=forwards + backwards, seconds=seconds)
