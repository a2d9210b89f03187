"""Files of tensors that say what they are for.

They are written whole or not at all, and refused where a byte has changed.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from robustbench_kd.core.errors import CheckpointError
from robustbench_kd.core.files import write_bytes

_SEAL = "sha256"


class HashedFile(NamedTuple):
    """What a file holds, and what it says of that."""

    tensors: dict[str, Tensor]
    header: dict[str, str]


def write(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> None:
    """Writes tensors with a header as safetensors, which hold no code.

    Raises `RecordError` where that fails.
    """
    own = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    write_bytes(path, save(own, metadata={**header, _SEAL: digest(own, header)}))


def read(path: Path) -> HashedFile:
    """Reads what `write` wrote.

    Raises `CheckpointError` for a file that is no such one or is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            names = list(file.keys())
            tensors = {name: file.get_tensor(name) for name in names}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"'{path}' cannot be read ({error}): delete it") from error
    if header.pop(_SEAL, "") != digest(tensors, header):
        raise CheckpointError(f"'{path}' is damaged, its sha256 is not the one it names: delete it")
    return HashedFile(tensors, header)


def digest(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> str:
    """Returns the sha256 of tensors on the CPU and of what is said of them."""
    found = hashlib.sha256(repr(sorted(header.items())).encode())
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        found.update(tensor.detach().contiguous().numpy().tobytes())
    return found.hexdigest()
