"""The training loop: one defence, one data set, one threat, one recipe."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from statistics import fmean
from typing import TypeVar

import torch
from torch import Tensor, nn, optim

from robustbench_kd.core.errors import ModelError
from robustbench_kd.core.threat import Threat
from robustbench_kd.tensors.contracts import Dataset
from robustbench_kd.tensors.defence import Fitted
from robustbench_kd.tensors.distillation import Terms, total
from robustbench_kd.tensors.geometry import steepest
from robustbench_kd.training import distributed
from robustbench_kd.training.batches import batches, split
from robustbench_kd.training.events import Accuracies, Epoch, Observer, Step, Trained
from robustbench_kd.training.recipe import Recipe
from robustbench_kd.training.schedule import learning_rate
from robustbench_kd.training.training_checkpoint import TrainingCheckpoint
from robustbench_kd.training.training_state import Partners, TrainingState, open_course
from robustbench_kd.training.validation import evaluate

Built = TypeVar("Built")
_ALONE = Partners()
_UNTRAINED = Trained({}, 0, Accuracies(0.0, None))


def seeded_build(build: Callable[[], Built], seed: int) -> Built:
    """Returns what is built; its initial weights follow from the seed alone."""
    with _seeded(seed):
        return build()


def train(
    network: nn.Module,
    dataset: Dataset,
    threat: Threat,
    recipe: Recipe,
    observer: Observer,
    *,
    partners: Partners = _ALONE,
    memory: TrainingCheckpoint | None = None,
) -> Trained:
    """Trains a defence in place, on its own device, and returns the selected weights.

    A defence that fits itself to data does so first. Only parameters that want a gradient are
    optimised.

    All randomness follows from `recipe.seed`: on a CPU the same seed and number of threads give the
    same weights, bit for bit, and the global generators stay as they were. Several processes that
    torchrun started share every batch and end with the same weights; their number counts like the
    seed. `observer` receives a `Step` after each step and an `Epoch` after each epoch; what it
    raises, and an interrupt, passes through. With a `memory` the training goes on after the last
    epoch that was finished, to the same weights. The network is left with the weights of the last
    epoch. Raises `UsageError` for `l1`, for a validation split that leaves nothing to train on and
    for epochs without anything to optimise, `ModelError` when the loss is no longer finite.
    """
    # Refuses a norm that PGD cannot use before any work is done.
    steepest(torch.zeros(1, 1), threat.norm)
    generator = torch.Generator().manual_seed(recipe.seed)
    rows, held_out = split(dataset.labels, recipe.validation, generator)
    training, validation = dataset.take(rows), dataset.take(held_out)
    measure = partial(evaluate, dataset=validation, threat=threat, recipe=recipe)
    with _seeded(recipe.seed):
        if isinstance(network, Fitted):
            network.fit(training.images, training.labels, validation.images, validation.labels)
        if not recipe.epochs:
            return Trained(_snapshot(network), 0, measure(network))
        current = open_course(network, training, threat, recipe, partners, generator=generator)
        return _complete(current, observer, memory, measure=measure)


def _complete(
    current: TrainingState,
    observer: Observer,
    memory: TrainingCheckpoint | None,
    *,
    measure: Callable[[nn.Module], Accuracies],
) -> Trained:
    trained = (memory and memory.recall(current)) or _UNTRAINED
    distributed.align(current.network, current.helper)
    for number in range(len(trained.history) + 1, current.recipe.epochs + 1):
        loss, terms = _means(_steps(current, number), observer)
        current.after_epoch(number)
        answering = current.answering()
        epoch = Epoch(number, current.recipe.epochs, loss, terms, measure(answering))
        trained = replace(trained, history=(*trained.history, epoch))
        if _selects_newest(trained.history, current.recipe):
            trained = Trained(_snapshot(answering), number, epoch.validation, trained.history)
        if memory and distributed.leads():
            memory.keep(current, trained)
        observer(epoch)
    return trained


def _steps(current: TrainingState, epoch: int) -> Iterator[Step]:
    recipe = current.recipe
    parts = batches(
        torch.randperm(len(current.training), generator=current.generator), recipe.batch_size
    )
    current.network.train()
    current.helper.train()
    for step, rows in enumerate(parts, start=1):
        before = (epoch - 1) * len(parts) + step - 1
        with distributed.in_common(current.network, current.helper):
            terms = _terms(current, rows, epoch, before)
            loss = total(terms)
            number, *means = distributed.summed(torch.stack([loss, *terms.values()])).tolist()
            if not math.isfinite(number):
                raise ModelError(f"the loss became {number} in epoch {epoch}: lower learning_rate")
            _update(
                current.optimiser,
                loss,
                learning_rate(recipe, before, len(parts)),
                recipe.gradient_clip,
            )
        current.after_step(epoch)
        yield Step(epoch, step, len(parts), number, dict(zip(terms, means, strict=True)))


def _terms(current: TrainingState, rows: Tensor, epoch: int, step: int) -> Terms:
    """Returns what this process adds to the means over a batch: all of them where it is alone."""
    own = distributed.mine(rows)
    generator = distributed.source(current.generator, current.recipe.seed, step)
    terms = replace(current, generator=generator).terms(own, epoch)
    return {name: value * (len(own) / len(rows)) for name, value in terms.items()}


def _update(optimiser: optim.Optimizer, loss: Tensor, rate: float, clip: float | None) -> None:
    optimiser.zero_grad()
    torch.autograd.backward(loss)
    distributed.sum_gradients(optimiser)
    for group in optimiser.param_groups:
        group["lr"] = rate
        if clip is not None:
            nn.utils.clip_grad_norm_(group["params"], clip)
    optimiser.step()


def _means(steps: Iterator[Step], observer: Observer) -> tuple[float, dict[str, float]]:
    """Returns the means of the loss and of its terms.

    A term that begins during the epoch counts from then on.
    """
    losses: list[float] = []
    terms: dict[str, list[float]] = {}
    for step in steps:
        observer(step)
        losses.append(step.loss)
        for name, value in step.terms.items():
            terms.setdefault(name, []).append(value)
    return fmean(losses), {name: fmean(values) for name, values in terms.items()}


def _selects_newest(history: tuple[Epoch, ...], recipe: Recipe) -> bool:
    best = max(history, key=lambda epoch: (epoch.validation.robust or 0.0, epoch.validation.clean))
    return recipe.selection == "last" or best is history[-1]


def _snapshot(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    # Dropout and the initialisation of layers know no other generator than the global ones.
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield
