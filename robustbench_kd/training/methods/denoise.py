"""Denoising (You et al. 2023): squared error of images that are reconstructed from noise."""

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from robustbench_kd.core.errors import UsageError
from robustbench_kd.tensors.contracts import Images
from robustbench_kd.tensors.distillation import BatchContext, Terms
from robustbench_kd.training.recipe import Recipe


@runtime_checkable
class Denoiser(Protocol):
    """A defence that removes Gaussian noise before it classifies."""

    sigma: float

    def reconstruct(self, noisy: Images) -> Images:
        """Returns what it makes of noisy images."""
        ...


def loss(context: BatchContext, recipe: Recipe) -> Terms:
    """Returns the mean squared error between images and their reconstructions from noisy copies.

    The standard deviation of the noise is the defence's, or each image's own from a Gamma
    distribution around it; the published shape is 25 (You et al. 2023, arXiv 2302.01056). The
    classifier takes no part. Raises `UsageError` for a network that removes no noise.
    """
    network, images, generator = context.student.network, context.images, context.generator
    if not isinstance(network, Denoiser):
        raise UsageError(
            f"method 'denoise' trains the family 'denoiser', got {type(network).__name__}: choose "
            "another method"
        )
    noise = torch.randn(images.shape, generator=generator)
    noisy = images + (_deviations(len(images), network.sigma, recipe, generator) * noise).to(
        images.device
    )
    return {"reconstruction": (network.reconstruct(noisy) - images).square().mean()}


def _deviations(n: int, sigma: float, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Returns one standard deviation for each image, `(n, 1, 1, 1)`."""
    if recipe.noise_shape is None:
        return torch.full((n, 1, 1, 1), sigma)
    # A sum of k exponentials has the Gamma distribution of shape k.
    parts = torch.empty(n, recipe.noise_shape).exponential_(generator=generator)
    return sigma * parts.mean(dim=1).view(n, 1, 1, 1)
