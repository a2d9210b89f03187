"""Adversarial training (Madry et al. 2018): cross-entropy on PGD examples."""

from functools import partial

from robustbench_kd.tensors.distillation import BatchContext, Objective, Terms, labelled
from robustbench_kd.tensors.losses import cross_entropy
from robustbench_kd.training.recipe import Recipe

VARIANTS: dict[str, dict[str, object]] = {"pgd-at": {}}


def inner(context: BatchContext, recipe: Recipe) -> Objective:
    """Returns CE(f(x'), y)."""
    return partial(labelled, context.labels)


def loss(context: BatchContext, recipe: Recipe) -> Terms:
    """Returns the mean cross-entropy on images that PGD made to raise it.

    Madry et al. 2018, equation 2.1.
    """
    return {"labels": cross_entropy(context.student(context.attacked), context.labels).mean()}
