"""Standard training: cross-entropy on the images as they are."""

from robustbench_kd.tensors.distillation import BatchContext, Terms
from robustbench_kd.tensors.losses import cross_entropy
from robustbench_kd.training.recipe import Recipe


def loss(lesson: BatchContext, recipe: Recipe) -> Terms:  # noqa: ARG001  # every method takes the same arguments
    """Returns the mean cross-entropy of the batch."""
    return {"labels": cross_entropy(lesson.student(lesson.images), lesson.labels).mean()}
