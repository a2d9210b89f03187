"""TRADES of Zhang et al. 2019: clean cross-entropy plus the divergence from clean to attacked output."""

from functools import partial

import torch

from robustbench_kd.tensors.distillation import BatchContext, Objective, Terms, away_from
from robustbench_kd.tensors.losses import cross_entropy, kl_divergence
from robustbench_kd.training.recipe import Recipe


def inner(lesson: BatchContext, recipe: Recipe) -> Objective:  # noqa: ARG001  # every method takes the same arguments
    """Returns KL(f(x) || f(x')) from the clean prediction as it is in the attack's mode, held fixed."""
    with torch.no_grad():
        target = lesson.student.through(lesson.images)
    return partial(away_from, target)


def loss(lesson: BatchContext, recipe: Recipe) -> Terms:
    """Returns CE(f(x), y) and beta KL(f(x) || f(x')), means over the batch.

    Zhang et al. 2019, equation 5. Here the clean prediction carries gradient in the divergence,
    too. The published setting is beta 6, a Gaussian start and an attack in evaluation mode.
    """
    natural = lesson.student(lesson.images)
    divergence = kl_divergence(natural, lesson.student(lesson.attacked)).mean()
    return {
        "labels": cross_entropy(natural, lesson.labels).mean(),
        "divergence": recipe.beta * divergence,
    }
