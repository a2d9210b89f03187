"""The inner maximisation of adversarial training: projected gradient ascent inside the ball."""

from typing import Literal

import torch
from torch import Tensor

from robustbench_kd.core.threat import Threat
from robustbench_kd.tensors.ascent import ascend
from robustbench_kd.tensors.contracts import Classifier, Images
from robustbench_kd.tensors.distillation import CachedNetwork, Objective
from robustbench_kd.tensors.geometry import project, random_start
from robustbench_kd.tensors.oracle import mode
from robustbench_kd.training.recipe import Recipe


def pgd(
    network: Classifier,
    images: Images,
    objective: Objective,
    threat: Threat,
    *,
    steps: int,
    step_size: float,
    start: Literal["none", "uniform", "gaussian"],
    generator: torch.Generator,
) -> Images:
    """Returns images inside the ball and the box that raise the objective, detached.

    Madry et al. 2018. `objective` maps points and their logits to one value per example, `(n,)`;
    `step_size` is a fraction of the radius. The gradients that the parameters hold stay as they
    are. Raises `UsageError` for `l1`.
    """

    def slope(points: Images) -> Tensor:
        points = points.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(objective(points, network(points)).sum(), points)
        return gradient

    first = _start(images, threat, start, generator)
    return ascend(slope, first, images, threat, steps=steps, step_size=step_size)


def attack(
    student: CachedNetwork,
    images: Images,
    objective: Objective,
    *,
    threat: Threat,
    recipe: Recipe,
    generator: torch.Generator,
) -> Images:
    """Returns adversarial images for the loss of a batch, made as the recipe says."""
    with mode(student.network, training=recipe.attack_mode == "train"):
        return pgd(
            student.through,
            images,
            objective,
            threat,
            steps=recipe.attack_steps,
            step_size=recipe.step_size,
            start=recipe.random_start,
            generator=generator,
        )


def _start(images: Images, threat: Threat, start: str, generator: torch.Generator) -> Images:
    if start == "uniform":
        return random_start(images, threat.eps, threat.norm, generator)
    if start == "none":
        return images.clone()
    noise = torch.randn(
        images.shape, generator=generator, dtype=images.dtype, device=generator.device
    )
    return project(images + 0.001 * noise.to(images.device), images, threat.eps, threat.norm)
