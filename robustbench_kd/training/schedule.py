"""The optimiser of a recipe and its learning rate at every step."""

import math

from torch import nn, optim

from robustbench_kd.core.errors import UsageError
from robustbench_kd.training.recipe import Recipe

_RISE = 0.3


def make_optimiser(network: nn.Module, recipe: Recipe, *, helper: nn.Module) -> optim.Optimizer:
    """Returns the optimiser of all trainable parameters of a network and its helper.

    All of them have weight decay.

    Raises `UsageError` where the network has none.
    """
    wanted, beside = (
        [parameter for parameter in module.parameters() if parameter.requires_grad]
        for module in (network, helper)
    )
    if not wanted:
        kind = type(network).__name__
        raise UsageError(
            f"{kind} has nothing to optimise: expected a recipe with epochs = 0 such as 'fit', got "
            f"{recipe.epochs}"
        )
    wanted, rate, decay = wanted + beside, recipe.learning_rate, recipe.weight_decay
    if recipe.optimiser != "sgd":
        adaptive = optim.AdamW if recipe.optimiser == "adamw" else optim.Adam
        return adaptive(wanted, lr=rate, weight_decay=decay)
    # Without momentum both are plain descent, but torch refuses.
    nesterov = recipe.nesterov and recipe.momentum > 0
    return optim.SGD(
        wanted, lr=rate, momentum=recipe.momentum, nesterov=nesterov, weight_decay=decay
    )


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """Returns the learning rate of a step, counted from 0 over the whole training.

    Smooth schedules are read in the middle of the step, so no step is made at rate zero.
    """
    rise = steps_per_epoch * (recipe.warmup or 0)
    if step < rise:
        return recipe.learning_rate * (step + 0.5) / rise
    progress = (step + 0.5) / (steps_per_epoch * recipe.epochs)
    match recipe.schedule:
        case "constant":
            factor = 1.0
        case "cosine":
            factor = (1 + math.cos(math.pi * progress)) / 2
        case "onecycle":
            factor = min(progress / _RISE, (1 - progress) / (1 - _RISE))
        case "milestones":
            factor = recipe.decay ** sum(
                step >= epoch * steps_per_epoch for epoch in recipe.milestones
            )
    return recipe.learning_rate * factor
