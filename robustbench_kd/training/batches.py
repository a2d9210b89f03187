"""Which examples are trained on, which are held out, and how they are cut into batches."""

import math

import torch
from torch import Tensor, nn

from robustbench_kd.core.errors import UsageError
from robustbench_kd.tensors.contracts import Dataset, Images, Labels


def split(labels: Labels, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Returns the rows to train on and `size` rows to hold out.

    Each class keeps its fraction to within one example. Raises `UsageError` when nothing would be
    left to train on.
    """
    n = len(labels)
    if size >= n:
        raise UsageError(f"expected a validation size below the {n} training examples, got {size}")
    shuffled = torch.randperm(n, generator=generator)
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    chosen = torch.zeros(n, dtype=torch.bool)
    chosen[torch.arange(size) * n // size] = True
    return by_class[~chosen], by_class[chosen]


def batches(rows: Tensor, size: int) -> tuple[Tensor, ...]:
    """Returns rows in batches of nearly equal size.

    A last one of one example would break batch normalisation.
    """
    return rows.tensor_split(math.ceil(len(rows) / size))


def fetch(dataset: Dataset, rows: Tensor, network: nn.Module) -> tuple[Images, Labels]:
    """Returns images and labels where the network is."""
    device = next(network.parameters()).device
    return dataset.images[rows].to(device), dataset.labels[rows].to(device)
