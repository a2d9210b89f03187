"""Standard training: cross-entropy on the images as they are."""

from robustbench_kd.tensors.distillation import BatchContext, Terms
from robustbench_kd.tensors.losses import cross_entropy
from robustbench_kd.training.recipe import Recipe


def loss(context: BatchContext, recipe: Recipe) -> Terms:
    """Returns the mean cross-entropy of the batch."""
    return {"labels": cross_entropy(context.student(context.images), context.labels).mean()}
