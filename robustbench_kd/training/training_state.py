"""One network's way through a training.

Its partners, its batches, and everything that changes on the way.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn, optim

from robustbench_kd.core.errors import UsageError
from robustbench_kd.core.threat import Threat
from robustbench_kd.tensors.averaging import average, ema_share, swa_share
from robustbench_kd.tensors.contracts import Dataset, Images, Labels
from robustbench_kd.tensors.distillation import (
    BatchContext,
    CachedNetwork,
    FrozenTeacher,
    Method,
    Progress,
    Setup,
    Teacher,
    Terms,
)
from robustbench_kd.tensors.oracle import mode
from robustbench_kd.tensors.stored_logits import Archive
from robustbench_kd.training.augmentation import augment
from robustbench_kd.training.batches import batches, fetch
from robustbench_kd.training.inner import attack
from robustbench_kd.training.recipe import Recipe
from robustbench_kd.training.schedule import make_optimiser


def _nobody() -> nn.Module:
    raise UsageError("this method learns beside a second network: say how one is built")


@dataclass(frozen=True, kw_only=True, eq=False)
class Partners:
    """The other networks of a training.

    Args:
        teachers: Networks that do not learn, in the order in which the method names them.
        archive: What they said of fixed views of the images; None where they are asked about every
            batch.
        fresh: Builds another network like the one that learns, with weights of its own.
    """

    teachers: tuple[nn.Module, ...] = ()
    archive: Archive | None = None
    fresh: Callable[[], nn.Module] = _nobody


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingState:
    """Everything that takes part in a training.

    Both modules, the optimiser, the generator and the average of weights change in place; the
    average is empty at first.
    """

    network: nn.Module
    helper: nn.Module
    method: Method
    optimiser: optim.Optimizer
    generator: torch.Generator
    training: Dataset
    threat: Threat
    recipe: Recipe
    partners: Partners
    average: dict[str, Tensor] = field(default_factory=dict)

    def terms(self, rows: Tensor, epoch: int) -> Terms:
        """Returns the loss of a batch, after the attack that the method asks for."""
        images, labels = fetch(self.training, rows, self.network)
        return self.method.loss(self._attacked(self._context(images, labels, rows, epoch)))

    def after_step(self, epoch: int) -> None:
        """Adds the weights of a step to an exponential average."""
        if self.recipe.weight_averaging == "ema" and self._averaged_since(epoch) >= 0:
            self._average(ema_share(self.recipe.averaging_decay or 0.0, len(self.average)))

    def after_epoch(self, epoch: int) -> None:
        """Adds the weights of an epoch to an equal average."""
        if self.recipe.weight_averaging == "swa" and self._averaged_since(epoch) >= 0:
            self._average(swa_share(self._averaged_since(epoch)))

    def answering(self) -> nn.Module:
        """Returns the network that is measured and kept.

        It is a copy with the average of weights, once there is one.
        """
        if not self.average:
            return self.network
        averaged = deepcopy(self.network)
        averaged.load_state_dict(self.average)
        if self.recipe.weight_averaging == "swa":
            rows = batches(torch.arange(len(self.training)), self.recipe.batch_size)
            optim.swa_utils.update_bn(
                (fetch(self.training, part, averaged)[0] for part in rows), averaged
            )
        return averaged

    def _context(self, images: Images, labels: Labels, rows: Tensor, epoch: int) -> BatchContext:
        shown, teachers = self._shown(images, rows)
        return BatchContext(
            student=CachedNetwork(self.network, half=self.recipe.precision == "bf16"),
            teachers=teachers,
            images=shown,
            labels=labels,
            rows=rows.to(labels.device),
            progress=Progress(epoch, self.recipe.epochs),
            generator=self.generator,
            helper=self.helper,
        )

    def _shown(self, images: Images, rows: Tensor) -> tuple[Images, tuple[Teacher, ...]]:
        if self.partners.archive is None:
            return augment(images, self.recipe, self.generator), tuple(
                map(FrozenTeacher, self.partners.teachers)
            )
        ids = torch.tensor([self.training.ids[row] for row in rows.tolist()], device=images.device)
        return self.partners.archive.shown(images, ids, self.generator)

    def _attacked(self, context: BatchContext) -> BatchContext:
        recipe = self.recipe
        with mode(self.network, training=recipe.attack_mode == "train"):
            objective = self.method.inner(context)
        if objective is None:
            return context
        points = attack(
            context.student,
            context.images,
            objective,
            threat=self.threat,
            recipe=recipe,
            generator=self.generator,
        )
        return replace(context, adversarial=points)

    def _averaged_since(self, epoch: int) -> int:
        """Returns how many epochs the average has lasted, below 0 before its first one."""
        return epoch - (self.recipe.averaging_start or epoch)

    def _average(self, weight: float) -> None:
        state = self.network.state_dict()
        self.average.update(average(self.average or state, state, weight))


def open_course(
    network: nn.Module,
    training: Dataset,
    threat: Threat,
    recipe: Recipe,
    partners: Partners,
    *,
    generator: torch.Generator,
) -> TrainingState:
    """Returns the first state of a training.

    The helper of the method draws its weights from the global generator.
    """
    method = recipe.opened()
    images, _ = fetch(training, torch.arange(min(2, len(training))), network)
    setup = Setup(
        student=network,
        teachers=partners.teachers,
        images=images,
        labels=training.labels,
        fresh=partners.fresh,
    )
    helper = method.prepare(setup)
    return TrainingState(
        network=network,
        helper=helper,
        method=method,
        optimiser=make_optimiser(network, recipe, helper=helper),
        generator=generator,
        training=training,
        threat=threat,
        recipe=recipe,
        partners=partners,
    )
