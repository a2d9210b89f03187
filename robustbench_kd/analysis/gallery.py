"""Shows some of the images that decided a run: the original, what was changed, and the result."""

import base64
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from robustbench_kd.core.errors import RecordError
from robustbench_kd.core.records import RunRecord
from robustbench_kd.core.rundir import ADVERSARIAL
from robustbench_kd.tensors.stored_images import SHOWN, Pixels, StoredImages, read

_ENLARGED = 10  # times, so that a change of 8/255 can be seen
_MOST_PIXELS = SHOWN * 32 * 32  # in the originals of a run: eight of CIFAR-10, or two larger ones
_LONGEST_SIDE = 64
_COLOUR_TYPES = {1: 0, 3: 2}  # of PNG, by channels


@dataclass(frozen=True)
class Exhibit:
    """One image: original, change and result side by side, its label, and its prediction.

    `source` is a PNG as a data URI.
    """

    source: str
    index: int
    label: int
    prediction: int


@dataclass(frozen=True)
class Gallery:
    """Some of the images that decided a run."""

    record: RunRecord
    exhibits: tuple[Exhibit, ...]


def galleries(runs: Iterable[tuple[RunRecord, Path]], left_out: list[str]) -> tuple[Gallery, ...]:
    """Returns a gallery of each run that kept images to show.

    Adds to `left_out` what cannot be read.
    """
    found = []
    for record, folder in runs:
        try:
            exhibits = _exhibits(folder / ADVERSARIAL)
        except RecordError as error:
            left_out.append(str(error))
            continue
        if exhibits:
            found.append(Gallery(record, exhibits))
    return tuple(found)


def png(pixels: NDArray[np.uint8]) -> bytes:
    """Returns pixels `(h, w, c)` as a PNG, grey or RGB.

    Source: W3C, Portable Network Graphics, third edition.
    """
    height, width, channels = pixels.shape
    header = struct.pack(">2I5B", width, height, 8, _COLOUR_TYPES[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    chunks = (
        _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(rows, 9)) + _chunk(b"IEND", b"")
    )
    return b"\x89PNG\r\n\x1a\n" + chunks


def _chunk(kind: bytes, content: bytes) -> bytes:
    length = struct.pack(">I", len(content))
    checksum = struct.pack(">I", zlib.crc32(kind + content))
    return length + kind + content + checksum


def _exhibits(path: Path) -> tuple[Exhibit, ...]:
    if not path.exists():
        return ()
    stored = read(path, most=SHOWN)
    originals, images = _reduced(stored.originals), _reduced(stored.images)
    _, channels, height, width = originals.shape
    if channels not in _COLOUR_TYPES:
        return ()
    most = max(1, _MOST_PIXELS // (height * width))
    exhibits = []
    for row in range(min(most, len(originals))):
        exhibits.append(_exhibit(stored, row, originals[row], images[row]))
    return tuple(exhibits)


def _reduced(images: Pixels) -> Pixels:
    """Returns images without some rows and columns, so that no side is too long.

    A mean over pixels would hide the change.
    """
    step = -(-max(images.shape[2:]) // _LONGEST_SIDE)
    return images[:, :, ::step, ::step]


def _exhibit(stored: StoredImages, row: int, original: Pixels, image: Pixels) -> Exhibit:
    change = 0.5 + _ENLARGED * (image - original)
    side_by_side = np.concatenate([original, change, image], axis=2).transpose(1, 2, 0)
    source = "data:image/png;base64," + base64.b64encode(png(_bytes(side_by_side))).decode()
    return Exhibit(
        source=source,
        index=int(stored.ids[row]),
        label=int(stored.labels[row]),
        prediction=int(stored.predictions[row]),
    )


def _bytes(pixels: Pixels) -> NDArray[np.uint8]:
    scaled: Pixels = np.round(255 * np.clip(np.nan_to_num(pixels), 0, 1))
    return scaled.astype(np.uint8)
