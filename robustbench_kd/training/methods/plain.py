"""Standard training: cross-entropy on the images as they are."""

import torch
from torch import Tensor, nn

from robustbench_kd.core.threat import Threat
from robustbench_kd.tensors.contracts import Images, Labels
from robustbench_kd.tensors.losses import cross_entropy
from robustbench_kd.training.recipe import Recipe


def loss(
    network: nn.Module,
    images: Images,
    labels: Labels,
    *,
    threat: Threat,  # noqa: ARG001  # every method takes the same arguments
    recipe: Recipe,  # noqa: ARG001
    generator: torch.Generator,  # noqa: ARG001
) -> Tensor:
    """Returns the mean cross-entropy of the batch."""
    return cross_entropy(network(images), labels).mean()
