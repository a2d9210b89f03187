"""Writes checkpoints in a form that holds no code: safetensors with a card beside it."""

from contextlib import suppress
from pathlib import Path

from safetensors.torch import save
from torch import Tensor, nn

from robustbench_kd.checkpoints.card import Weights, is_file_name
from robustbench_kd.checkpoints.weights import sha256
from robustbench_kd.core.errors import RecordError, UsageError


def write_weights(network: nn.Module, folder: Path, name: str) -> Weights:
    """Writes `<name>.safetensors` into a folder, whole or not at all, and returns its description.

    Raises `UsageError` for a name that cannot be a file name, `RecordError` where the folder cannot
    be written.
    """
    file = f"{name}.safetensors"
    if not name or not is_file_name(file):
        raise UsageError(f"expected a name that can be a file name, got {name!r}")
    content = save({key: _copied(value) for key, value in network.state_dict().items()})

    temporary = folder / f".{file}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # save_file of safetensors makes a file that only its owner can read; this one follows the
        # umask of the user.
        temporary.write_bytes(content)
        temporary.replace(folder / file)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise RecordError(
            f"cannot write '{folder / file}': {error.strerror}; free space or choose another folder"
        ) from error
    return Weights(file=file, sha256=sha256(folder / file))


def _copied(value: Tensor) -> Tensor:
    """Returns a tensor that shares no memory with another one, which safetensors requires."""
    return value.detach().cpu().clone().contiguous()
