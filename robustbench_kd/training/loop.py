"""The training loop: one defence, one data set, one threat, one recipe."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn, optim

from robustbench_kd.core import plugins
from robustbench_kd.core.errors import ModelError, UsageError
from robustbench_kd.core.threat import Threat
from robustbench_kd.tensors.contracts import Dataset, Images, Labels, Logits
from robustbench_kd.tensors.defence import Fitted, Key, Randomized
from robustbench_kd.tensors.geometry import steepest
from robustbench_kd.tensors.losses import cross_entropy
from robustbench_kd.training.augmentation import augment
from robustbench_kd.training.inner import mode, pgd
from robustbench_kd.training.recipe import METHODS, Recipe
from robustbench_kd.training.schedule import learning_rate, make_optimiser


@dataclass(frozen=True)
class Step:
    """One optimiser step; `epoch` and `step` count from 1, `steps` is the number in an epoch."""

    epoch: int
    step: int
    steps: int
    loss: float


class Accuracies(NamedTuple):
    """Fractions of the validation examples: right as they are, and under PGD.

    A defence that answers by chance is asked once for each image and not attacked, so that `robust` is None.
    """

    clean: float
    robust: float | None


@dataclass(frozen=True)
class Epoch:
    """One finished epoch, its mean training loss, and how the defence does after it."""

    epoch: int
    epochs: int
    loss: float
    validation: Accuracies


@dataclass(frozen=True)
class Trained:
    """The outcome of a training: the selected weights, on the CPU, how they do, and how every epoch went.

    The first epoch is 1; without any optimisation the best one is 0 and there is no history.
    """

    best_state: dict[str, Tensor]
    best_epoch: int
    validation: Accuracies
    history: tuple[Epoch, ...] = ()


Built = TypeVar("Built")
Observer = Callable[[Step | Epoch], None]
_BatchLoss = Callable[[Images, Labels], Tensor]
_REACH = 2.5  # length of all validation steps together, in radii: enough to cross the ball


def seeded_build(build: Callable[[], Built], seed: int) -> Built:
    """Returns what is built; its initial weights follow from the seed, whatever the global generators hold."""
    with _seeded(seed):
        return build()


def train(network: nn.Module, dataset: Dataset, threat: Threat, recipe: Recipe, observer: Observer) -> Trained:
    """Trains a defence in place, on its own device, and returns the selected weights.

    One that fits itself to data does so first. Only parameters that want a gradient are optimised.

    All randomness follows from `recipe.seed`: on a CPU the same seed and number of threads give the same
    weights, bit for bit, and the global generators stay as they were. `observer` receives a `Step` after each
    step and an `Epoch` after each epoch; what it raises, and an interrupt, passes through. The network is
    left with the weights of the last epoch. Raises `UsageError` for `l1`, for a validation split that leaves
    nothing to train on and for epochs without anything to optimise, `ModelError` when the loss is no longer finite.
    """
    steepest(torch.zeros(1, 1), threat.norm)  # refuses a norm that PGD cannot use before any work is done
    generator = torch.Generator().manual_seed(recipe.seed)
    rows, held_out = split(dataset.labels, recipe.validation, generator)
    training, validation = dataset.take(rows), dataset.take(held_out)
    measure = partial(evaluate, network, validation, threat, recipe)
    with _seeded(recipe.seed):
        if isinstance(network, Fitted):
            network.fit(training.images, training.labels, validation.images, validation.labels)
        if not recipe.epochs:
            return Trained(_snapshot(network), 0, measure())
        loss = partial(_method(recipe), network, threat=threat, recipe=recipe, generator=generator)
        run = partial(_steps, network, training, recipe, loss=loss, generator=generator)
        return _optimise(network, recipe, observer, run=run, measure=measure)


def split(labels: Labels, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Returns the rows to train on and `size` rows to hold out; each class keeps its share within one.

    Raises `UsageError` when nothing would be left to train on.
    """
    n = len(labels)
    if size >= n:
        raise UsageError(f"expected a validation size below the {n} training examples, got {size}")
    shuffled = torch.randperm(n, generator=generator)
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    chosen = torch.zeros(n, dtype=torch.bool)
    chosen[torch.arange(size) * n // size] = True
    return by_class[~chosen], by_class[chosen]


def evaluate(network: nn.Module, dataset: Dataset, threat: Threat, recipe: Recipe) -> Accuracies:
    """Returns clean accuracy and accuracy under PGD of `validation_steps` steps from fixed starts."""
    generator = torch.Generator().manual_seed(recipe.seed)
    steps, chance = recipe.validation_steps, isinstance(network, Randomized)
    ascend = partial(pgd, steps=steps, step_size=_REACH / steps, start="uniform", generator=generator)
    clean = robust = 0
    with mode(network, training=False):
        for rows in _batches(torch.arange(len(dataset)), recipe.batch_size):
            images, labels = _fetch(dataset, rows, network)
            key = _key(dataset, rows, recipe.seed, images.device)
            correct = _predict(network, images, key) == labels
            clean += int(correct.sum())
            if not chance:
                points = ascend(network, images, partial(cross_entropy, labels=labels), threat)
                robust += int((correct & (_predict(network, points, key) == labels)).sum())
    return Accuracies(clean / len(dataset), None if chance else robust / len(dataset))


def _method(recipe: Recipe) -> Callable[..., Tensor]:
    component = plugins.find(METHODS, recipe.method, "training method")
    loss: Callable[..., Tensor] = plugins.module(METHODS, component.stem).loss
    return loss


def _optimise(
    network: nn.Module,
    recipe: Recipe,
    observer: Observer,
    *,
    run: Callable[..., Iterator[Step]],
    measure: Callable[[], Accuracies],
) -> Trained:
    optimiser = make_optimiser(network, recipe)
    history: list[Epoch] = []
    for number in range(1, recipe.epochs + 1):
        mean = _observed_mean(run(optimiser=optimiser, epoch=number), observer)
        history.append(Epoch(number, recipe.epochs, mean, measure()))
        if _selects_newest(history, recipe):
            best = Trained(_snapshot(network), number, history[-1].validation)
        observer(history[-1])
    return replace(best, history=tuple(history))


def _steps(
    network: nn.Module,
    dataset: Dataset,
    recipe: Recipe,
    *,
    loss: _BatchLoss,
    optimiser: optim.Optimizer,
    generator: torch.Generator,
    epoch: int,
) -> Iterator[Step]:
    batches = _batches(torch.randperm(len(dataset), generator=generator), recipe.batch_size)
    network.train()
    for step, rows in enumerate(batches, start=1):
        images, labels = _fetch(dataset, rows, network)
        value = loss(augment(images, recipe, generator), labels)
        rate = learning_rate(recipe, (epoch - 1) * len(batches) + step - 1, len(batches))
        if not math.isfinite(number := value.item()):
            raise ModelError(f"the loss became {number} in epoch {epoch}: lower learning_rate")
        _update(optimiser, value, rate, recipe.gradient_clip)
        yield Step(epoch, step, len(batches), number)


def _update(optimiser: optim.Optimizer, loss: Tensor, rate: float, clip: float | None) -> None:
    optimiser.zero_grad()
    torch.autograd.backward(loss)
    for group in optimiser.param_groups:
        group["lr"] = rate
        if clip is not None:
            nn.utils.clip_grad_norm_(group["params"], clip)
    optimiser.step()


def _observed_mean(steps: Iterator[Step], observer: Observer) -> float:
    losses = []
    for step in steps:
        observer(step)
        losses.append(step.loss)
    return fmean(losses)


def _selects_newest(history: list[Epoch], recipe: Recipe) -> bool:
    best = max(history, key=lambda epoch: (epoch.validation.robust or 0.0, epoch.validation.clean))
    return recipe.selection == "last" or best is history[-1]


def _snapshot(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}


def _batches(rows: Tensor, size: int) -> tuple[Tensor, ...]:
    # Batches of nearly equal size: a last batch of one example would break batch normalisation.
    return rows.tensor_split(math.ceil(len(rows) / size))


def _fetch(dataset: Dataset, rows: Tensor, network: nn.Module) -> tuple[Images, Labels]:
    device = next(network.parameters()).device
    return dataset.images[rows].to(device), dataset.labels[rows].to(device)


def _key(dataset: Dataset, rows: Tensor, seed: int, device: torch.device) -> Key:
    ids = torch.tensor(dataset.ids)[rows].to(device)
    return Key(seed, "validation", ids=ids, draw=torch.zeros_like(ids))


@torch.no_grad()
def _predict(network: nn.Module, images: Images, key: Key) -> Labels:
    logits: Logits = network.draw(images, key) if isinstance(network, Randomized) else network(images)
    return logits.argmax(dim=1)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    # Dropout and the initialisation of layers know no other generator than the global ones.
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield
