"""Random shifts and mirror images of a batch, computed on tensors."""

import torch
from torch.nn import functional

from robustbench_kd.tensors.contracts import Images
from robustbench_kd.training.recipe import Recipe


def augment(images: Images, recipe: Recipe, generator: torch.Generator) -> Images:
    """Returns the batch as the recipe's augmentation changes it.

    Each image draws its own change.
    """
    if recipe.augmentation == "none":
        return images
    shifted = _shift(images, recipe.padding, generator)
    if recipe.augmentation == "flip_crop":
        return _mirror(shifted, generator)
    return shifted


def _shift(images: Images, padding: int, generator: torch.Generator) -> Images:
    n, _, height, width = images.shape
    corners = torch.randint(2 * padding + 1, (2, n, 1), generator=generator)
    rows = (corners[0] + torch.arange(height)).to(images.device)
    columns = (corners[1] + torch.arange(width)).to(images.device)
    padded = functional.pad(images, [padding] * 4).movedim(1, -1)
    example = torch.arange(n, device=images.device)[:, None, None]
    return padded[example, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)


def _mirror(images: Images, generator: torch.Generator) -> Images:
    chosen = torch.rand(len(images), generator=generator).to(images.device) < 0.5
    return torch.where(chosen[:, None, None, None], images.flip(-1), images)
