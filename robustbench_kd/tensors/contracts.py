"""Shapes and values that all other layers share.

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

_BRIGHTEST = 255  # the largest value of a pixel that is stored in one byte
_ROUNDING = 0.02  # by how much resizing or rounding may leave [0, 1]


@dataclass(frozen=True)
class DataRequest:
    """Which examples of a data set to open, and where its files are.

    `argument` is the text after the colon of `npz:FILE`. `limit` takes the first examples in
    official order, of a folder examples of all classes; None takes all. `class_names` are those of
    the model in its order, where a card knows them.
    """

    split: Split = "test"
    argument: str = ""
    limit: int | None = None
    data_dir: Path = Path("data")
    download: bool = False
    class_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Dataset:
    """Images with labels and stable example ids (the row in the official order of the split).

    `notes` say what loading had to decide.
    """

    name: str
    images: Images
    labels: Labels
    ids: tuple[int, ...]
    classes: int
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: Tensor) -> "Dataset":
        """Returns the given rows, int64 `(m,)`, in that order."""
        ids = tuple(self.ids[row] for row in rows.tolist())
        return replace(self, images=self.images[rows], labels=self.labels[rows], ids=ids)

    def fingerprint(self) -> str:
        """Returns the sha256 of the shape, ids, labels and pixels."""
        digest = hashlib.sha256(repr((tuple(self.images.shape), self.ids)).encode())
        digest.update(self.labels.numpy().tobytes())
        digest.update(self.images.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def checked(self) -> "Dataset":
        """Returns itself if it keeps the contract.

        Raises `DatasetError` that names the first violation otherwise.
        """
        if len(self) == 0:
            raise DatasetError(f"data set '{self.name}' holds no examples")
        if self.images.ndim != 4 or len(self.images) != len(self.labels):
            raise self._wrong(
                "images (n, c, h, w) and labels (n,)",
                f"{tuple(self.images.shape)} and {tuple(self.labels.shape)}",
            )

        if not self.images.numel():
            raise self._wrong("images with pixels", f"{tuple(self.images.shape)}")
        if bool(self.images.isnan().any()):
            raise self._wrong("pixels in [0, 1]", "NaN")
        low = float(self.images.min())
        high = float(self.images.max())
        if not (low >= 0 and high <= 1):
            got = f"[{low:.6g}, {high:.6g}]"
            raise self._wrong("pixels in [0, 1]", f"{got}; {_remedy(low, high)}")

        least = int(self.labels.min())
        most = int(self.labels.max())
        if least < 0 or most >= self.classes:
            raise self._wrong(f"labels in 0..{self.classes - 1}", f"{least}..{most}")
        return self

    def _wrong(self, expected: str, found: str) -> DatasetError:
        return DatasetError(f"data set '{self.name}': expected {expected}, got {found}")


def _remedy(low: float, high: float) -> str:
    """Returns what to do about pixels outside [0, 1]."""
    if low > -_ROUNDING and high < 1 + _ROUNDING:
        return "where rounding or resizing brought them there, save images.clip(0, 1)"
    if low >= 0 and high <= _BRIGHTEST:
        return "divide them by 255"
    return "undo any normalisation, it belongs inside the model"
