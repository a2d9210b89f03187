"""TRADES of Zhang et al. 2019: clean cross-entropy plus the divergence from clean to attacked output."""

from functools import partial

import torch
from torch import Tensor, nn

from robustbench_kd.core.threat import Threat
from robustbench_kd.tensors.contracts import Images, Labels
from robustbench_kd.tensors.losses import cross_entropy, kl_divergence
from robustbench_kd.training.inner import attack, mode
from robustbench_kd.training.recipe import Recipe


def loss(
    network: nn.Module,
    images: Images,
    labels: Labels,
    *,
    threat: Threat,
    recipe: Recipe,
    generator: torch.Generator,
) -> Tensor:
    """Returns CE(f(x), y) + beta KL(f(x) || f(x')), means over the batch; Zhang et al. 2019, equation 5.

    The attack raises the same divergence from a fixed clean prediction; in the loss the clean prediction
    carries gradient too. The published setting is beta 6, a Gaussian start and an attack in evaluation mode.
    """
    with torch.no_grad(), mode(network, training=recipe.attack_mode == "train"):
        target = network(images)
    adversarial = attack(
        network, images, partial(kl_divergence, target), threat=threat, recipe=recipe, generator=generator
    )
    natural = network(images)
    divergence = kl_divergence(natural, network(adversarial)).mean()
    return cross_entropy(natural, labels).mean() + recipe.beta * divergence
