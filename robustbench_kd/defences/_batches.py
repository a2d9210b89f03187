"""Reads parts of a data set while a family fits itself."""

from collections.abc import Iterator

import torch
from torch import Tensor

_SIZE = 200


def spread(count: int, most: int) -> Tensor:
    """Returns at most `most` rows of `count`, evenly spaced: data may be sorted by class.

    >>> spread(9, 3)
    tensor([0, 3, 6])
    """
    chosen = min(count, most)
    return torch.arange(chosen) * count // chosen


def batches(device: torch.device, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yields the rows of tensors of the same length in order, up to 200 at a time, on a device."""
    pieces = [torch.split(tensor, _SIZE) for tensor in tensors]
    for rows in zip(*pieces, strict=True):
        yield tuple(tensor.to(device) for tensor in rows)
