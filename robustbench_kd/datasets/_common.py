"""From arrays to the contract; shared by the data sets."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from robustbench_kd.core.errors import DatasetError
from robustbench_kd.tensors.contracts import DataRequest, Dataset, Images


def build(
    request: DataRequest,
    *,
    name: str,
    pixels: NDArray[Any],
    labels: ArrayLike,
    classes: int,
    ids: Sequence[int] | None = None,
) -> Dataset:
    """Returns the first `request.limit` examples of a whole split as a checked data set.

    `pixels` are what `to_images` takes, `labels` whole numbers `(n,)`; `ids` are the rows unless
    they are given. Raises `DatasetError` where the split holds fewer examples than the limit, or
    breaks the contract.
    """
    n = count(request, len(pixels), name)
    targets = torch.from_numpy(np.asarray(labels)[:n].astype(np.int64))
    rows = tuple(range(n)) if ids is None else tuple(ids[:n])
    return Dataset(name, to_images(pixels[:n]), targets, rows, classes).checked()


def count(request: DataRequest, available: int, name: str) -> int:
    """Returns how many examples to use.

    Raises `DatasetError` where the limit exceeds what is available.
    """
    if request.limit is None:
        return available
    if request.limit > available:
        raise DatasetError(
            f"data set '{name}': expected at least {request.limit} examples for the limit, got "
            f"{available}; "
            f"ask for at most {available}, or for all"
        )
    return request.limit


def to_images(pixels: NDArray[Any]) -> Images:
    """Returns images from uint8 `(n, h, w, c)` or `(n, h, w)`, or from float `(n, c, h, w)`."""
    if pixels.dtype != np.uint8:
        # Some models view their images in another shape, which needs the usual order in memory.
        return torch.from_numpy(np.ascontiguousarray(pixels, dtype=np.float32))
    channels_last = pixels[..., None] if pixels.ndim == 3 else pixels
    channels_first = np.ascontiguousarray(channels_last.transpose(0, 3, 1, 2))
    return torch.from_numpy(channels_first).float().div_(255)
