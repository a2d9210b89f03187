"""Compares a student with its teacher: answers, attacks, invariances, attention and gradients.

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
from robustbench_kd.tensors.ascent import ascend
from robustbench_kd.tensors.contracts import Dataset, Images, Labels
from robustbench_kd.tensors.geometry import steepest
from robustbench_kd.tensors.losses import cross_entropy
from robustbench_kd.tensors.oracle import Oracle, changes_argument, full_precision
from robustbench_kd.tensors.probe import NoGradientError, differentiated

STEPS = 5  # of the transferred attack, as in the paper
_STEP = 0.5  # in radii; the paper does not say
TEACHER, STUDENT, INDEPENDENT = 0, 1, 2  # indices of the networks
_CLEAN = ""  # the name of the images without a change

Observer = Callable[[int, int], None]


@dataclass(frozen=True)
class Comparison:
    """The networks to compare, and the images and the threat to compare them on.

    Args:
        networks: The teacher, the student, perhaps an independent network, and perhaps a second
            one: the null.
        data: The images that all of them classify.
        threat: Bounds the transferred attacks.
        device: The device of all computations.
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
    """A network, and the layer for Grad-CAM if there is one."""

    name: str
    oracle: Oracle
    layer: nn.Module | None

    def predict(self, images: Images) -> Labels:
        """Returns the classes `(n,)` of images."""
        with torch.no_grad():
            return self.oracle(images).argmax(dim=1)

    def slope(self, images: Images, labels: Labels) -> Tensor:
        """Returns the gradient of the cross-entropy; raises `ModelError` if there is none."""
        try:
            return differentiated(self.oracle, images, partial(cross_entropy, labels=labels))[2]
        except NoGradientError as error:
            raise ModelError(
                f"'{self.name}' cannot be compared, as it gives no gradient: {error}"
            ) from error


@dataclass(frozen=True, eq=False)
class _Response:
    """The answers of one network to a batch.

    `predictions` are by the name of the change of the images, `attacked` the network's own
    adversarial images.
    """

    network: _Network
    predictions: dict[str, Labels]
    gradient: Tensor
    attention: Tensor | None
    attacked: Images


def compare(comparison: Comparison, observer: Observer = lambda _done, _all: None) -> list[Series]:
    """Returns every measure of every network, one value per example.

    Raises `UsageError` for `l1`, for a randomized network and for one of too few classes,
    `ModelError` where a network cannot take the images or gives no gradient.
    """
    # Refuses a norm without plain steps before any work is done.
    steepest(torch.zeros(1, 1), comparison.threat.norm)

    networks = [_network(subject, comparison) for subject in comparison.networks]
    n = len(comparison.data)
    done = 0
    parts: list[list[Series]] = []
    with full_precision():
        for rows in torch.split(torch.arange(n), comparison.batch_size):
            parts.append(list(_batch(comparison, comparison.data.take(rows), networks)))
            done += len(rows)
            observer(done, n)
    return [_joined(batches) for batches in zip(*parts, strict=True)]


def flops(subject: Subject, shape: Sequence[int]) -> int:
    """Returns the floating-point operations of one image's forward pass.

    A multiplication and an addition are two operations.
    """
    parameter = next(subject.model.parameters(), None)
    device = parameter.device if parameter is not None else torch.device("cpu")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        subject.model.eval()(torch.zeros(1, *shape, device=device))
    return int(counter.get_total_flops())


def fool(slope: Callable[[Images], Tensor], images: Images, threat: Threat) -> Images:
    """Returns images inside the ball that iterative FGSM moved up a slope; Kurakin et al. 2017."""
    return ascend(slope, images, images, threat, steps=STEPS, step_size=_STEP)


def _network(subject: Subject, comparison: Comparison) -> _Network:
    """Returns a network that can be compared; raises `UsageError` for any other."""
    oracle = Oracle(subject.model, comparison.device)
    if oracle.randomized:
        raise UsageError(
            f"'{subject.name}' is randomized: similarity compares deterministic networks"
        )

    first = comparison.data.images[:2]
    classes = oracle.logits(first).shape[1]
    if classes < comparison.data.classes:
        raise UsageError(
            f"'{subject.name}' has {classes} classes, the data set has {comparison.data.classes}"
        )
    if changes_argument(oracle.model, first.to(comparison.device)):
        raise UsageError(
            f"'{subject.name}' writes into the images that it is given, which others see: compute "
            "out of place (x = x - mean, not x.sub_(mean))"
        )
    return _Network(subject.name, oracle, last_map(oracle.model, first.to(comparison.device)))


def _batch(comparison: Comparison, data: Dataset, networks: Sequence[_Network]) -> Iterator[Series]:
    """Yields every measure of every network on a batch, always in the same order."""
    images = data.images.to(comparison.device)
    labels = data.labels.to(comparison.device)
    ids = torch.tensor(data.ids, device=comparison.device)
    copies = {_CLEAN: images}
    for name, change in {**INVARIANCES, **DOMAINS}.items():
        copies[name] = change(images, ids, comparison.seed)

    responses = [_respond(network, copies, labels, comparison.threat) for network in networks]
    teacher = responses[TEACHER]
    for index, response in enumerate(responses):
        yield _fraction("accuracy", index, response.predictions[_CLEAN] == labels)
        yield from _invariances(index, response)
        if index != TEACHER:
            yield from _agreement(index, teacher, response)
            yield _fooling("fooled by attacks on the teacher", index, teacher, response)
            yield _fooling("attacks on it fool the teacher", index, response, teacher)
            yield from _gradients(index, teacher.gradient, response.gradient)
    yield from _attention(responses)


def _respond(
    network: _Network, copies: dict[str, Images], labels: Labels, threat: Threat
) -> _Response:
    """Returns the answers of a network to all copies of a batch, and what it gives to attackers."""
    images = copies[_CLEAN]
    predictions = {name: network.predict(copy) for name, copy in copies.items()}
    gradient = network.slope(images, labels).flatten(1)
    attention = None
    if network.layer is not None:
        maps = gradcam(network.oracle.model, network.layer, images, labels)
        attention = maps.flatten(1)
    attacked = fool(partial(network.slope, labels=predictions[_CLEAN]), images, threat)
    return _Response(network, predictions, gradient, attention, attacked)


def _invariances(index: int, response: _Response) -> Iterator[Series]:
    clean = response.predictions[_CLEAN]
    for name in INVARIANCES:
        same = response.predictions[name] == clean
        yield _fraction(f"same answer under other {name}", index, same)


def _agreement(index: int, teacher: _Response, response: _Response) -> Iterator[Series]:
    for name in (_CLEAN, *DOMAINS):
        same = response.predictions[name] == teacher.predictions[name]
        yield _fraction(f"teacher's answer on {name}" if name else "teacher's answer", index, same)


def _fooling(measure: str, index: int, source: _Response, victim: _Response) -> Series:
    """Returns how often attacks on a source fool a victim.

    Attacks that do not change the answer of the source have no weight.
    """
    attacked = source.attacked
    works = source.network.predict(attacked) != source.predictions[_CLEAN]
    fooled = victim.network.predict(attacked) != victim.predictions[_CLEAN]
    return replace(_fraction(measure, index, fooled & works), weights=works.double().cpu())


def _gradients(index: int, teacher: Tensor, gradient: Tensor) -> Iterator[Series]:
    yield _number("gradient distance", index, (gradient - teacher).norm(dim=1))
    yield _number("gradient cosine", index, cosine_similarity(gradient, teacher, dim=1))


def _attention(responses: Sequence[_Response]) -> Iterator[Series]:
    """Yields how similar the Grad-CAM maps of a network and the teacher are.

    It also yields how often they are more similar than those of the independent network; a tie
    counts half.
    """
    teacher = responses[TEACHER].attention
    if teacher is None:
        return

    cosines: dict[int, Tensor] = {}
    for index, response in enumerate(responses):
        if response.attention is not None:
            cosines[index] = cosine_similarity(response.attention, teacher, dim=1)
    rival = cosines.get(INDEPENDENT)
    for index, cosine in cosines.items():
        if index == TEACHER:
            continue
        yield _number("attention cosine", index, cosine)
        if index != INDEPENDENT and rival is not None:
            wins = (1 + (cosine - rival).sign()) / 2
            yield _fraction("attention nearer than independent", index, wins)


def _fraction(measure: str, index: int, values: Tensor) -> Series:
    return replace(_number(measure, index, values), is_fraction=True)


def _number(measure: str, index: int, values: Tensor) -> Series:
    values = values.double().cpu()
    return Series(measure, index, values=values, weights=torch.ones_like(values))


def _joined(batches: Sequence[Series]) -> Series:
    """Returns one series of the examples of all batches."""
    values = torch.cat([batch.values for batch in batches])
    weights = torch.cat([batch.weights for batch in batches])
    return replace(batches[0], values=values, weights=weights)
