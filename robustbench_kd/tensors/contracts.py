"""Shapes and values that all floors above share.

`Images` are float32 `(n, c, h, w)` in [0, 1], `Labels` int64 `(n,)`, `Logits` float32 `(n,
classes)`.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

from torch import Tensor

from robustbench_kd.core.errors import DatasetError

Images: TypeAlias = Tensor
Labels: TypeAlias = Tensor
Logits: TypeAlias = Tensor
Classifier: TypeAlias = Callable[[Images], Logits]
Split: TypeAlias = Literal["train", "test"]

_BRIGHTEST = 255  # of a pixel in one byte


@dataclass(frozen=True)
class DataRequest:
    """What a data set is asked for.

    `argument` is the text after the colon of `npz:FILE`; `limit` takes the first examples in
    official order, None all.
    """

    split: Split = "test"
    argument: str = ""
    limit: int | None = None
    data_dir: Path = Path("data")
    download: bool = False


@dataclass(frozen=True)
class Dataset:
    """Images with labels and stable example ids (the row in the official order of the split)."""

    name: str
    images: Images
    labels: Labels
    ids: tuple[int, ...]
    classes: int

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: Tensor) -> "Dataset":
        """Returns the given rows, int64 `(m,)`, in that order."""
        ids = tuple(self.ids[row] for row in rows.tolist())
        return replace(self, images=self.images[rows], labels=self.labels[rows], ids=ids)

    def fingerprint(self) -> str:
        """Returns the sha256 of the shape, ids, labels and pixels that are used."""
        digest = hashlib.sha256(repr((tuple(self.images.shape), self.ids)).encode())
        digest.update(self.labels.numpy().tobytes())
        digest.update(self.images.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def checked(self) -> "Dataset":
        """Returns itself if it keeps the contract; raises `DatasetError` that names the first breach."""
        if len(self) == 0:
            raise DatasetError(f"data set '{self.name}' holds no examples")
        if self.images.ndim != 4 or len(self.images) != len(self.labels):
            shapes = f"{tuple(self.images.shape)} and {tuple(self.labels.shape)}"
            raise DatasetError(
                f"data set '{self.name}': expected images (n, c, h, w) and labels (n,), got {shapes}"
            )
        if bool(self.images.isnan().any()):
            raise DatasetError(f"data set '{self.name}': expected pixels in [0, 1], got NaN")
        low, high = float(self.images.min()), float(self.images.max())
        if not (low >= 0 and high <= 1):
            bytelike = low >= 0 and high <= _BRIGHTEST
            advice = (
                "divide them by 255"
                if bytelike
                else "undo any normalisation, it belongs inside the model"
            )
            raise DatasetError(
                f"data set '{self.name}': expected pixels in [0, 1], got [{low:.3g}, {high:.3g}]; {advice}"
            )
        least, most = int(self.labels.min()), int(self.labels.max())
        if least < 0 or most >= self.classes:
            raise DatasetError(
                f"data set '{self.name}': expected labels in 0..{self.classes - 1}, got {least}..{most}"
            )
        return self
