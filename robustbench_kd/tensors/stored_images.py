"""The images that decided a run, as `adversarial.safetensors` holds them; needs no torch, so that reports can read them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from robustbench_kd.core.errors import RecordError
from robustbench_kd.core.rundir import write_bytes

SHOWN = 8  # clean images that are kept beside: a page shows no more

_SCHEMA = "1"
_ADVICE = "evaluate it again with --save-adversarial"

Ints = NDArray[np.int64]
Pixels = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class StoredImages:
    """One image for each example that an attack broke, of a randomized defence for each whose answers it made worse.

    `images` are `(m, c, h, w)`, `ids`, the true `labels` and the `predictions` on the images
    `(m,)`. `originals` are the clean images of the first eight. `run` and `threat` name the run
    they belong to.
    """

    run: str
    threat: str
    ids: Ints
    labels: Ints
    predictions: Ints
    images: Pixels
    originals: Pixels


def write(path: Path, stored: StoredImages) -> None:
    """Writes the file, whole or not at all; raises `RecordError` where that fails."""
    tensors = {name: np.ascontiguousarray(getattr(stored, name)) for name in _kinds(0, ())}
    write_bytes(
        path, save(tensors, {"schema_version": _SCHEMA, "run": stored.run, "threat": stored.threat})
    )


def read(path: Path, *, most: int | None = None) -> StoredImages:
    """Reads the first `most` images, None all; raises `RecordError` for a file that is missing or holds anything else."""
    try:
        with safe_open(path, framework="np") as file:
            header, n = _checked(file, path), file.get_slice("ids").get_shape()[0]
            taken = n if most is None else min(most, n)
            tensors = {name: _first(file, name, taken) for name in _kinds(0, ())}
    except (OSError, SafetensorError) as error:
        raise RecordError(f"cannot read images from '{path}': {error}; {_ADVICE}") from error
    if len(set(tensors["ids"].tolist())) < taken:
        raise _wrong(path, "expected one image for each example, got several for one")
    return StoredImages(run=header["run"], threat=header["threat"], **tensors)


def _kinds(n: int, shape: tuple[int, ...]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Returns the type and shape of each tensor of a file of `n` images of one shape."""
    numbers = dict.fromkeys(("ids", "labels", "predictions"), ("I64", (n,)))
    return {
        **numbers,
        "images": ("F32", (n, *shape)),
        "originals": ("F32", (min(n, SHOWN), *shape)),
    }


def _checked(file: Any, path: Path) -> dict[str, str]:
    """Returns the header of a file that holds what it should."""
    header = file.metadata() or {}
    if header.get("schema_version") != _SCHEMA or not {"run", "threat"} <= header.keys():
        raise _wrong(path, f"expected images of schema {_SCHEMA}, with their run and threat")
    slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
    found = {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
    n, *shape = found.get("images", ("", (0,)))[1]
    for name, kind in _kinds(n, tuple(shape)).items():
        if found.get(name) != kind or len(shape) != 3 or 0 in shape:
            raise _wrong(
                path, f"expected {name} of type and shape {kind}, got {found.get(name, 'none')}"
            )
    return dict(header)


def _first(file: Any, name: str, n: int) -> Any:
    """Returns the first n rows of a tensor; a part of nothing cannot be sliced."""
    part = file.get_slice(name)
    return part[: min(n, part.get_shape()[0])] if n else file.get_tensor(name)[:0]


def _wrong(path: Path, what: str) -> RecordError:
    return RecordError(f"'{path}' holds no images of a run: {what}; {_ADVICE}")
