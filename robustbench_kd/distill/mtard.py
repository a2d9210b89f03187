"""MTARD (Zhao et al. 2022): one teacher for adversarial, another one for clean images."""

from functools import partial

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat
from torch import Tensor, nn

from robustbench_kd.distill._divergence import Reduction, divergence
from robustbench_kd.tensors.distillation import (
    BatchContext,
    MethodOptions,
    Objective,
    Progress,
    Setup,
    Terms,
    labelled,
)


class Options(MethodOptions):
    """How fast the balance moves, and the scale of the divergence.

    Defaults are those of zhaoshiji123/MTARD (`mtard_resnet18_cifar10.py`, commit a46fbc2): `rate`
    0.025, multiplied by `rate_decay` after each epoch of `rate_milestones`, `power` 1,
    `elementmean`, with `scale` 10 on CIFAR-100.
    """

    rate: float = Field(default=0.025, ge=0, le=1)
    rate_decay: float = Field(default=0.1, ge=0, le=1)
    rate_milestones: tuple[NonNegativeInt, ...] = Field(default=(215, 260, 285), strict=False)
    power: NonNegativeFloat = 1.0
    reduction: Reduction = "elementmean"
    scale: PositiveFloat = 1.0

    def teachers(self) -> tuple[str, ...]:
        """Returns the two teachers."""
        return "robust teacher", "standard teacher"


class Balance(nn.Module):
    """The weight of the clean term, and the losses of the first step, NaN before it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("clean_weight", torch.tensor(0.5, dtype=torch.float64))
        self.register_buffer("first", torch.full((2,), torch.nan, dtype=torch.float64))
        self.clean_weight: Tensor
        self.first: Tensor

    @torch.no_grad()
    def update(self, losses: Tensor, *, rate: float, power: float) -> None:
        """Moves the weight towards the part of the clean loss, each relative to its first value.

        Where both have vanished they pull towards one half; the weight never leaves [0, 1].
        """
        self.first.copy_(torch.where(self.first.isnan(), losses, self.first))
        adversarial, clean = losses.log() - self.first.log()
        # r_c^b / (r_a^b + r_c^b) from the logarithms of both ratios, so that none of them can
        # overflow.
        goal = (power * (clean - adversarial)).nan_to_num(nan=0.0).sigmoid()
        self.clean_weight.lerp_(goal, rate)


def prepare(setup: Setup, options: Options) -> nn.Module:
    """Returns the balance, even at first."""
    return Balance().to(setup.images.device)


def inner(context: BatchContext, options: Options) -> Objective:
    """Returns CE(S(x'), y)."""
    return partial(labelled, context.labels)


def loss(context: BatchContext, options: Options) -> Terms:
    """Returns w_a KL(T_robust(x') || S(x')) + w_c KL(T_standard(x) || S(x)), w_a + w_c = 1.

    Zhao et al., ECCV 2022. The balance moves before it is used, as in the authors' code.
    """
    balance = context.prepared(Balance)
    robust, standard = context.teachers
    attacked = divergence(
        robust(context.attacked), context.student(context.attacked), reduction=options.reduction
    )
    clean = divergence(
        standard(context.images), context.student(context.images), reduction=options.reduction
    )
    losses = torch.stack([attacked, clean]).detach().double()
    balance.update(losses, rate=_rate(context.progress, options), power=options.power)
    weight = balance.clean_weight.to(clean.dtype)
    return {
        "adversarial": options.scale * (1 - weight) * attacked,
        "clean": options.scale * weight * clean,
    }


def _rate(progress: Progress, options: Options) -> float:
    return options.rate * options.rate_decay ** sum(
        progress.epoch > epoch for epoch in options.rate_milestones
    )
