"""Adversarial training of Madry et al. 2018: cross-entropy on PGD examples."""

from functools import partial
from typing import Any

from robustbench_kd.tensors.distillation import BatchContext, Objective, Terms, labelled
from robustbench_kd.tensors.losses import cross_entropy
from robustbench_kd.training.recipe import Recipe

VARIANTS: dict[str, dict[str, Any]] = {"pgd-at": {}}


def inner(lesson: BatchContext, recipe: Recipe) -> Objective:  # noqa: ARG001  # every method takes the same arguments
    """Returns CE(f(x'), y)."""
    return partial(labelled, lesson.labels)


def loss(lesson: BatchContext, recipe: Recipe) -> Terms:  # noqa: ARG001
    """Returns the mean cross-entropy on images that PGD made to raise it.

    Madry et al. 2018, equation 2.1.
    """
    return {"labels": cross_entropy(lesson.student(lesson.attacked), lesson.labels).mean()}
