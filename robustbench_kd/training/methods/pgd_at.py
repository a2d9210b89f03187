"""Adversarial training of Madry et al. 2018: cross-entropy on PGD examples."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from robustbench_kd.core.threat import Threat
from robustbench_kd.tensors.contracts import Images, Labels
from robustbench_kd.tensors.losses import cross_entropy
from robustbench_kd.training.inner import attack
from robustbench_kd.training.recipe import Recipe

VARIANTS: dict[str, dict[str, Any]] = {"pgd-at": {}}


def loss(
    network: nn.Module,
    images: Images,
    labels: Labels,
    *,
    threat: Threat,
    recipe: Recipe,
    generator: torch.Generator,
) -> Tensor:
    """Returns the mean cross-entropy on images that PGD made to raise it; Madry et al. 2018, equation 2.1."""
    adversarial = attack(
        network,
        images,
        partial(cross_entropy, labels=labels),
        threat=threat,
        recipe=recipe,
        generator=generator,
    )
    return cross_entropy(network(adversarial), labels).mean()
