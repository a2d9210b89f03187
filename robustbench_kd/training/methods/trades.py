"""TRADES (Zhang et al. 2019): clean loss, and divergence between clean and adversarial output."""

from functools import partial

import torch

from robustbench_kd.tensors.distillation import BatchContext, Objective, Terms, away_from
from robustbench_kd.tensors.losses import cross_entropy, kl_divergence
from robustbench_kd.training.recipe import Recipe


def inner(context: BatchContext, recipe: Recipe) -> Objective:
    """Returns KL(f(x) || f(x')); the clean prediction is fixed and of the mode of the attack."""
    with torch.no_grad():
        target = context.student.through(context.images)
    return partial(away_from, target)


def loss(context: BatchContext, recipe: Recipe) -> Terms:
    """Returns CE(f(x), y) and beta KL(f(x) || f(x')), means over the batch.

    Zhang et al. 2019, equation 5. Here the clean prediction carries gradient in the divergence,
    too. The published setting is beta 6, a Gaussian start and an attack in evaluation mode.
    """
    natural = context.student(context.images)
    divergence = kl_divergence(natural, context.student(context.attacked)).mean()
    return {
        "labels": cross_entropy(natural, context.labels).mean(),
        "divergence": recipe.beta * divergence,
    }
