"""What a student has of its teacher: answers, weaknesses, invariances, attention and gradients, example by example.

Source: Ojha et al. 2023, "What knowledge gets distilled in knowledge distillation?", arXiv
2205.16004; the distance and the cosine of input gradients are those of IGDM (Lee et al. 2025, arXiv
2312.03286, table 4). The reference throughout is an independent network: one trained like the
student, but without a teacher.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity
from torch.utils.flop_counter import FlopCounterMode

from robustbench_kd.checkpoints.subject import Subject
from robustbench_kd.core.errors import ModelError, UsageError
from robustbench_kd.core.threat import Threat
from robustbench_kd.similarity.bootstrap import Series
from robustbench_kd.similarity.gradcam import gradcam, last_map
from robustbench_kd.similarity.transformations import DOMAINS, INVARIANCES
from robustbench_kd.tensors.contracts import Dataset, Images, Labels
from robustbench_kd.tensors.geometry import project, steepest
from robustbench_kd.tensors.losses import cross_entropy
from robustbench_kd.tensors.oracle import Oracle, full_precision
from robustbench_kd.tensors.probe import NoGradientError, differentiated

STEPS = 5  # of the transferred attack, as in the paper
_STEP = 0.5  # in radii; the paper does not say
TEACHER, STUDENT, INDEPENDENT = 0, 1, 2  # places among the networks

Observer = Callable[[int, int], None]


@dataclass(frozen=True)
class Comparison:
    """What is compared: the teacher, the student, and independent networks, and on what.

    Args:
        networks: The teacher, the student, perhaps an independent network, and perhaps a second
            one: the null.
        data: The images that all of them answer.
        threat: Bounds the transferred attacks.
        device: Where it is done.
        seed: Keys the changes of images.
        batch_size: Images per batch.
    """

    networks: tuple[Subject, ...]
    data: Dataset
    threat: Threat
    device: torch.device
    seed: int = 0
    batch_size: int = 250


@dataclass(frozen=True, eq=False)
class _Network:
    """A network with the layer that Grad-CAM looks at, if it has one."""

    name: str
    oracle: Oracle
    layer: nn.Module | None

    def predict(self, images: Images) -> Labels:
        """Returns the classes `(n,)` of images."""
        with torch.no_grad():
            return self.oracle(images).argmax(dim=1)

    def slope(self, images: Images, labels: Labels) -> Tensor:
        """Returns the gradient of the cross-entropy; raises `ModelError` where there is none."""
        try:
            return differentiated(self.oracle, images, partial(cross_entropy, labels=labels))[2]
        except NoGradientError as error:
            raise ModelError(
                f"'{self.name}' cannot be compared, as it gives no gradient: {error}"
            ) from error


@dataclass(frozen=True, eq=False)
class _Seen:
    """What one network makes of a batch; predictions are on images by name, `attacked` are its own adversarial images."""

    predictions: dict[str, Labels]
    gradient: Tensor
    attention: Tensor | None
    attacked: Images


def compare(asked: Comparison, observer: Observer = lambda _done, _all: None) -> list[Series]:
    """Returns every measure of every network, one value per example.

    Raises `UsageError` for `l1`, for a randomized network and for one of too few classes,
    `ModelError` where a network cannot take the images or gives no gradient.
    """
    # Refuses a norm without plain steps before any work is done.
    steepest(torch.zeros(1, 1), asked.threat.norm)
    networks = [_network(subject, asked) for subject in asked.networks]
    parts: list[list[Series]] = []
    with full_precision():
        for rows in torch.split(torch.arange(len(asked.data)), asked.batch_size):
            parts.append(list(_batch(asked, asked.data.take(rows), networks)))
            observer(sum(len(part[0].values) for part in parts), len(asked.data))
    return [_joined(alike) for alike in zip(*parts, strict=True)]


def flops(subject: Subject, shape: Sequence[int]) -> int:
    """Returns the floating-point operations of one image's forward pass, multiplications and additions apart."""
    parameter = next(subject.model.parameters(), None)
    device = parameter.device if parameter is not None else torch.device("cpu")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        subject.model.eval()(torch.zeros(1, *shape, device=device))
    return int(counter.get_total_flops())


def fool(slope: Callable[[Images], Tensor], images: Images, threat: Threat) -> Images:
    """Returns images inside the ball that iterative FGSM moved up a slope; Kurakin et al. 2017."""
    points = images
    for _ in range(STEPS):
        step = _STEP * threat.eps * steepest(slope(points), threat.norm)
        points = project(points + step, images, threat.eps, threat.norm)
    return points


def _network(subject: Subject, asked: Comparison) -> _Network:
    oracle, first = Oracle(subject.model, asked.device), asked.data.images[:2]
    if oracle.randomized:
        raise UsageError(
            f"'{subject.name}' answers by chance: similarity compares deterministic networks"
        )
    classes = oracle.logits(first).shape[1]
    if classes < asked.data.classes:
        raise UsageError(
            f"'{subject.name}' tells {classes} classes apart, the data set has {asked.data.classes}"
        )
    return _Network(subject.name, oracle, last_map(oracle.model, first.to(asked.device)))


def _batch(asked: Comparison, data: Dataset, networks: Sequence[_Network]) -> Iterator[Series]:
    images, labels = data.images.to(asked.device), data.labels.to(asked.device)
    ids = torch.tensor(data.ids, device=asked.device)
    copies = {
        name: change(images, ids, asked.seed) for name, change in {**INVARIANCES, **DOMAINS}.items()
    }
    seen = [_look(network, {"": images, **copies}, labels, asked.threat) for network in networks]
    teacher = seen[TEACHER].predictions
    for place, own in enumerate(seen):
        yield _share("accuracy", place, own.predictions[""] == labels)
        for name in INVARIANCES:
            yield _share(
                f"same answer under other {name}",
                place,
                own.predictions[name] == own.predictions[""],
            )
        if place == TEACHER:
            continue
        for name in ("", *DOMAINS):
            same = own.predictions[name] == teacher[name]
            yield _share(f"teacher's answer on {name}" if name else "teacher's answer", place, same)
        yield from _transfer(place, (networks[TEACHER], seen[TEACHER]), (networks[place], own))
        yield from _gradients(place, seen[TEACHER].gradient, own.gradient)
    yield from _attention(seen)


def _look(network: _Network, copies: dict[str, Images], labels: Labels, threat: Threat) -> _Seen:
    images, predictions = copies[""], {name: network.predict(copy) for name, copy in copies.items()}
    gradient = network.slope(images, labels).flatten(1)
    layer, model = network.layer, network.oracle.model
    attention = None if layer is None else gradcam(model, layer, images, labels).flatten(1)
    return _Seen(
        predictions,
        gradient,
        attention,
        fool(partial(network.slope, labels=predictions[""]), images, threat),
    )


def _transfer(
    place: int, teacher: tuple[_Network, _Seen], network: tuple[_Network, _Seen]
) -> Iterator[Series]:
    """Yields fooling rates both ways, of the attacks that change the answer of the network they were made on."""
    for name, (maker, own), (victim, other) in (
        ("fooled by attacks on the teacher", teacher, network),
        ("attacks on it fool the teacher", network, teacher),
    ):
        worked = maker.predict(own.attacked) != own.predictions[""]
        fooled = victim.predict(own.attacked) != other.predictions[""]
        yield replace(_share(name, place, fooled & worked), weights=worked.double().cpu())


def _gradients(place: int, teacher: Tensor, network: Tensor) -> Iterator[Series]:
    yield _number("gradient distance", place, (network - teacher).norm(dim=1))
    yield _number("gradient cosine", place, cosine_similarity(network, teacher, dim=1))


def _attention(seen: Sequence[_Seen]) -> Iterator[Series]:
    """Yields how alike Grad-CAM's maps are, and how often more alike than the independent network's, ties half."""
    teacher, maps = seen[TEACHER].attention, [network.attention for network in seen]
    cosines = [
        None if own is None or teacher is None else cosine_similarity(own, teacher, dim=1)
        for own in maps
    ]
    for place, cosine in enumerate(cosines):
        if place == TEACHER or cosine is None:
            continue
        yield _number("attention cosine", place, cosine)
        rival = cosines[INDEPENDENT] if len(cosines) > INDEPENDENT else None
        if place != INDEPENDENT and rival is not None:
            wins = (1 + (cosine - rival).sign()) / 2
            yield replace(_number("attention nearer than independent", place, wins), share=True)


def _share(measure: str, place: int, holds: Tensor) -> Series:
    return replace(_number(measure, place, holds), share=True)


def _number(measure: str, place: int, values: Tensor) -> Series:
    kept = values.double().cpu()
    return Series(measure, place, values=kept, weights=torch.ones_like(kept))


def _joined(alike: Sequence[Series]) -> Series:
    values, weights = (
        torch.cat([getattr(one, name) for one in alike]) for name in ("values", "weights")
    )
    return replace(alike[0], values=values, weights=weights)
