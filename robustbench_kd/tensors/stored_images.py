"""The images that decided a run, as `adversarial.safetensors` holds them.

This file needs no torch, so that reports can read the images without it.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from robustbench_kd.core.errors import RecordError
from robustbench_kd.core.files import write_bytes

SHOWN = 8  # clean images that are stored too: a page shows no more

_SCHEMA = "1"
_ADVICE = "evaluate it again with --save-adversarial"
_NUMBERS = ("ids", "labels", "predictions")
_PICTURES = ("images", "originals")

Ints: TypeAlias = NDArray[np.int64]
Pixels: TypeAlias = NDArray[np.float32]
_Kind: TypeAlias = tuple[str, tuple[int, ...]]  # the type and shape of a tensor


@dataclass(frozen=True, eq=False)
class StoredImages:
    """One image for each example that an attack broke.

    For a randomized defence there is one for each example whose answers an attack made worse.
    `images` are `(m, c, h, w)`; `ids`, the true `labels` and the `predictions` on the images are
    `(m,)`. `originals` are the clean images of the first eight. `run` and `threat` name the run
    that they belong to.
    """

    run: str
    threat: str
    ids: Ints
    labels: Ints
    predictions: Ints
    images: Pixels
    originals: Pixels


def write(path: Path, stored: StoredImages) -> None:
    """Writes the file completely or not at all; raises `RecordError` where that fails."""
    header = {"schema_version": _SCHEMA, "run": stored.run, "threat": stored.threat}
    tensors = {}
    for name in (*_NUMBERS, *_PICTURES):
        tensors[name] = np.ascontiguousarray(getattr(stored, name))
    write_bytes(path, _in_order(save(tensors, header)))


def read(path: Path, *, most: int | None = None) -> StoredImages:
    """Returns the first `most` images of a file, all if None.

    Raises `RecordError` for a file that is missing or holds anything else.
    """
    tensors = {}
    try:
        with safe_open(path, framework="np") as file:
            header = _checked(file, path)
            count = file.get_slice("ids").get_shape()[0]
            if most is not None:
                count = min(most, count)
            for name in (*_NUMBERS, *_PICTURES):
                tensors[name] = _first(file, name, count)
    except (OSError, SafetensorError) as error:
        raise RecordError(f"cannot read images from '{path}': {error}; {_ADVICE}") from error

    if len(set(tensors["ids"].tolist())) < count:
        raise _wrong(path, "expected one image for each example, got several for one")
    return StoredImages(run=header["run"], threat=header["threat"], **tensors)


def _in_order(content: bytes) -> bytes:
    """Returns a safetensors file with a sorted header: the library's order differs by the call.

    The header is JSON behind its length of eight bytes, filled with blanks to a multiple of eight.
    """
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + content[end:]


def _kinds(count: int, shape: tuple[int, ...]) -> dict[str, _Kind]:
    """Returns the type and shape of each tensor of a file of `count` images of one shape."""
    return {
        **dict.fromkeys(_NUMBERS, ("I64", (count,))),
        "images": ("F32", (count, *shape)),
        "originals": ("F32", (min(count, SHOWN), *shape)),
    }


def _checked(file: Any, path: Path) -> dict[str, str]:
    """Returns the header of a file; raises `RecordError` where header or tensors are wrong."""
    header = file.metadata() or {}
    if header.get("schema_version") != _SCHEMA or not {"run", "threat"} <= header.keys():
        raise _wrong(path, f"expected images of schema {_SCHEMA}, with their run and threat")

    kinds: dict[str, _Kind] = {}
    for name in file.keys():  # noqa: SIM118  # it is no mapping
        part = file.get_slice(name)
        kinds[name] = (part.get_dtype(), tuple(part.get_shape()))

    count, *shape = kinds.get("images", ("", (0,)))[1]
    for name, kind in _kinds(count, tuple(shape)).items():
        if kinds.get(name) != kind or len(shape) != 3 or 0 in shape:
            found = kinds.get(name, "none")
            raise _wrong(path, f"expected {name} of type and shape {kind}, got {found}")
    return dict(header)


def _first(file: Any, name: str, count: int) -> Any:
    """Returns the first `count` rows of a tensor."""
    if not count:
        return file.get_tensor(name)[:0]  # a slice of no rows is an error
    part = file.get_slice(name)
    return part[: min(count, part.get_shape()[0])]


def _wrong(path: Path, problem: str) -> RecordError:
    return RecordError(f"'{path}' holds no images of a run: {problem}; {_ADVICE}")
