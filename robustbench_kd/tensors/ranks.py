"""Counts within classes."""

import torch
from torch import Tensor

from robustbench_kd.tensors.contracts import Labels


def rank_in_class(labels: Labels) -> Tensor:
    """Returns how many earlier images have the label of an image, int64 `(n,)`.

    >>> rank_in_class(torch.tensor([3, 1, 3, 3])).tolist()
    [0, 0, 1, 2]
    """
    order = labels.argsort(stable=True)
    counts = torch.bincount(labels)
    starts = counts.cumsum(dim=0) - counts
    ranks = torch.empty_like(labels)
    ranks[order] = torch.arange(len(labels)) - starts[labels[order]]
    return ranks
