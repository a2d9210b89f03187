"""Images of your own in a NumPy archive: `npz:FILE` with the arrays `images` and `labels`.

`images` are uint8 `(n, h, w, c)`, grey uint8 `(n, h, w)`, or float `(n, c, h, w)` in [0, 1];
`labels` are whole numbers `(n,)` or `(n, 1)`. The number of classes is the largest label of the
whole file plus one, at least 2, unless a single number `classes` says otherwise. The file is the
split: `train` and `test` read the same rows.

    numpy.savez_compressed("mine.npz", images=images, labels=labels, classes=10)
"""

from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

from robustbench_kd.core.errors import DatasetError
from robustbench_kd.core.received import MOST_CLASSES
from robustbench_kd.core.text import shortened
from robustbench_kd.datasets._common import build
from robustbench_kd.tensors.contracts import DataRequest, Dataset

ARGUMENT = "FILE"

Array = NDArray[Any]

_REQUIRED = ("images", "labels")
_USUAL = {  # what other tools call them
    "images": ("image", "data", "x", "X", "x_test", "X_test"),
    "labels": ("label", "targets", "y", "y_test", "Y"),
}

# Real images are hardly compressed; an archive that is over and above this one is a trap.
_MOST_COMPRESSED = 20
_LITTLE = 2**28  # bytes that may be of any kind
_HOW = "write one with numpy.savez_compressed(FILE, images=images, labels=labels)"


def load(request: DataRequest) -> Dataset:
    """Loads the rows of a file in their order; ids are the rows.

    Nothing in the file is executed: arrays of Python objects, which are pickles, are refused.

    Raises:
        DatasetError: a file that is missing, damaged or no npz; an array that is missing, pickled,
            or of the wrong type or shape; images and labels of different length; pixels that are
            NaN or outside [0, 1].
    """
    path = Path(request.argument)
    arrays = _read(path)
    images, labels = arrays["images"], arrays["labels"]
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]  # a column, as some tools write them
    _check_images(path, images)
    _check_labels(path, labels, len(images))
    classes = _classes(path, labels, arrays.get("classes"))
    name = f"npz:{path.absolute().name}"
    return build(request, name=name, pixels=images, labels=labels, classes=classes)


def _read(path: Path) -> dict[str, Array]:
    if not _is_file(path):
        raise DatasetError(f"expected an npz file at '{shortened(str(path))}', got none; {_HOW}")
    try:
        with path.open("rb") as stream:
            return _members(path, np.load(stream, allow_pickle=False))
    except DatasetError:
        raise
    except Exception as error:  # a damaged header can raise anything
        raise DatasetError(
            f"'{path}': expected a whole npz file, got one that is damaged or of another kind "
            f"({type(error).__name__}); {_HOW}"
        ) from error


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # no file can have such a name
        return False


def _members(path: Path, archive: Any) -> dict[str, Array]:
    if not isinstance(archive, NpzFile):
        raise DatasetError(f"'{path}': expected an npz file, got a single array (npy); {_HOW}")
    for wanted in _REQUIRED:
        if wanted not in archive.files:
            raise _missing(path, wanted, archive.files)
    names = [name for name in (*_REQUIRED, "classes") if name in archive.files]
    _check_size(path, archive, names)
    return {name: _member(path, archive, name) for name in names}


def _check_size(path: Path, archive: NpzFile, names: list[str]) -> None:
    """Raises `DatasetError` for arrays that would fill the memory from a small file."""
    members = [archive.zip.getinfo(f"{name}.npy") for name in names]  # type: ignore[union-attr]
    unpacked = sum(member.file_size for member in members)
    packed = path.stat().st_size
    if unpacked > max(_LITTLE, _MOST_COMPRESSED * packed):
        raise DatasetError(
            f"'{path}' has {packed:,} bytes, {unpacked:,} when unpacked: if they are real images, "
            "write them by numpy.savez, which does not compress"
        )


def _member(path: Path, archive: NpzFile, name: str) -> Array:
    try:
        return np.asarray(archive[name])
    except ValueError as error:
        raise DatasetError(
            f"'{path}': expected plain numbers in '{name}', got a damaged array or Python objects "
            "(a pickle), refused because reading them can run code; save an array with a numeric "
            "dtype"
        ) from error


def _missing(path: Path, wanted: str, found: list[str]) -> DatasetError:
    usual = [name for name in _USUAL[wanted] if name in found]
    close = usual or get_close_matches(wanted, set(found) - set(_REQUIRED), n=1, cutoff=0.5)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return DatasetError(
        f"'{path}': expected an array '{wanted}', got {', '.join(found) or 'none'}: {hint}{_HOW}"
    )


def _check_images(path: Path, images: Array) -> None:
    grey, floating = images.dtype == np.uint8, np.issubdtype(images.dtype, np.floating)
    dimensions = {3, 4} if grey else {4} if floating else set()
    if images.ndim not in dimensions:
        remedy = _remedy(images)
        raise DatasetError(
            f"'{path}': expected images as uint8 (n, h, w, c) or (n, h, w), or float (n, c, h, w) "
            "in [0, 1], "
            f"got {images.dtype} {images.shape}; {remedy}"
        )
    if images.ndim == 4:
        _check_layout(path, images)
    if floating and np.isnan(images).any():
        row = int(np.isnan(images).any(axis=(1, 2, 3)).argmax())
        raise DatasetError(
            f"'{path}': expected pixels in [0, 1], got NaN first in row {row}; leave such images "
            "out"
        )


def _remedy(images: Array) -> str:
    """Returns how to save images of another type or shape, so that no pixel changes its value."""
    if images.dtype == np.bool_:
        return "save images.astype('float32') with the channels as the second axis"
    if images.dtype.kind in "iu" and images.dtype != np.uint8:
        low, high = (int(images.min()), int(images.max())) if images.size else (0, 0)
        if low < 0 or high > 255:
            return f"their values reach from {low} to {high}: scale them to floats in [0, 1]"
        return "save bytes, for example images.astype('uint8')"
    if images.ndim == 2:
        return "reshape each row to height, width and channels"
    if images.ndim == 3:
        return "add an axis for the channel, images[:, None]"
    return "give them these axes"


def _check_layout(path: Path, images: Array) -> None:
    channels, other = (-1, 1) if images.dtype == np.uint8 else (1, -1)
    if images.shape[channels] in (1, 3) or images.shape[other] not in (1, 3):
        return
    order, swap = (
        ("(n, h, w, c)", "0, 2, 3, 1") if channels == -1 else ("(n, c, h, w)", "0, 3, 1, 2")
    )
    raise DatasetError(
        f"'{path}': expected {images.dtype} images as {order}, got {images.shape}, "
        f"which looks like the other order; save images.transpose({swap})"
    )


def _check_labels(path: Path, labels: Array, n: int) -> None:
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DatasetError(
            f"'{path}': expected labels as whole numbers (n,), got {labels.dtype} {labels.shape}; "
            f"save class indices, for example {_indices(labels)}"
        )
    if len(labels) and labels.min() < 0:
        without = int((labels < 0).sum())
        raise DatasetError(
            f"'{path}': expected labels from 0 on, got {int(labels.min())} for {without} of "
            f"{len(labels)} images; leave out images without a label: keep = labels >= 0"
        )
    if len(labels) != n:
        raise DatasetError(
            f"'{path}': expected one label per image, got {n} images and {len(labels)} labels"
        )
    if n == 0:
        raise DatasetError(f"'{path}': expected at least one image, got none; {_HOW}")


def _indices(labels: Array) -> str:
    """Returns the NumPy call that makes class indices of labels in another form."""
    if labels.ndim == 2 and labels.shape[1] > 1:
        if ((labels != 0).sum(axis=1) == 1).all():
            return "labels.argmax(axis=1)"
        return "labels.argmax(axis=1), if the largest of these soft labels is the true class"
    if labels.dtype.kind in "US":
        return "numpy.unique(labels, return_inverse=True)[1], if the model's classes are sorted"
    return "labels.astype('int64')"


def _classes(path: Path, labels: Array, stated: Array | None) -> int:
    seen = max(2, int(labels.max()) + 1)
    if seen > MOST_CLASSES:
        raise DatasetError(
            f"'{path}': expected labels below {MOST_CLASSES:,}, got {seen - 1}: correct it"
        )
    if stated is None:
        return seen
    if (
        stated.size != 1
        or stated.dtype.kind not in "iu"
        or not (seen <= int(stated.item()) <= MOST_CLASSES)
    ):
        raise DatasetError(
            f"'{path}': expected classes as one whole number of at least {seen}, which the labels "
            f"need, and at most {MOST_CLASSES:,}, got {shortened(str(stated), most=60)}; "
            "correct it or leave it out"
        )
    return int(stated.item())
