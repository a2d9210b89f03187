"""Reads weights files without ever running what they hold.

Safetensors hold no code. For everything else `torch.load(weights_only=True)` interprets the pickle
with an allow-list: tensors and the plain containers around them. Any other class that a file names
is replaced by an inert stub, which takes every argument and does nothing. Names that act on the
machine are refused.
"""

import hashlib
import pickle
import re
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from robustbench_kd.checkpoints._text import listed, one_line
from robustbench_kd.checkpoints.pickle_weight import check_weight
from robustbench_kd.checkpoints.safe_globals import GrowthError, bounded
from robustbench_kd.checkpoints.sharded import is_index, shards
from robustbench_kd.core.errors import CheckpointError
from robustbench_kd.core.files import is_special

WHOLE_MODULE = (
    "holds a whole pickled module, which only code can rebuild: save its state_dict() instead"
)
_MAX_STUBS = 200
_MOST_UNPACKED = 4  # times the size of an archive: torch.save does not compress
_LITTLE = 2**20  # bytes
_NPY = b"\x93NUMPY"
_UNRECOGNISED = re.compile(r"unrecognized function <\w+ '?([\w.]+)")
_UNKNOWN = re.compile(r"GLOBAL (\S+)")
_FILLED = re.compile(
    rf"Can only (SETITEM|append|extend).* got <class '{re.escape(__name__)}\.(.+)'>"
)
_ACTING = frozenset([
    "os", "posix", "nt", "sys", "io", "subprocess", "commands", "shutil", "pty", "socket", "ctypes",
    "importlib", "runpy", "code", "codeop", "webbrowser", "builtins", "multiprocessing", "pickle",
    "marshal", "shelve", "dbm", "operator", "tempfile", "http", "urllib", "requests", "timeit",
    "pdb",
])  # fmt: skip
_LOADERS = frozenset({"load", "loads", "open", "save", "fromfile", "memmap", "tofile"})
_LOWER_CASE_CLASSES = frozenset({"torch", "numpy", "datetime", "collections", "functools"})
# The errors of torch's safe reader on pickles that torch.save did not write in its usual protocol.
_OTHER_PICKLES = (f"Unsupported operand {pickle.FRAME[0]}", "Invalid magic number")


class Read(NamedTuple):
    """The content of a file, and notes about what was done to read it."""

    content: Any
    notes: tuple[str, ...]


class Inert:
    """Replaces a class of the file that is not loaded; takes any argument and does nothing."""

    def __init__(self, *_args: object, **_kwargs: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


class _CalledError(Exception):
    """A file calls a function when it is loaded; its argument is the name of the function."""


class _Function:
    """Replaces a function that a file names; a file that calls it is refused.

    A subclass has the name of the function. Nothing runs either way.
    """

    def __new__(cls, *_args: object, **_kwargs: object) -> Self:
        raise _CalledError(cls.__name__)


class InertDict:
    """Replaces a kind of dict, such as `defaultdict`, by one that the loader fills."""

    # The loader fills no other class.
    def __new__(cls, *_args: object) -> OrderedDict[Any, Any]:  # type: ignore[misc]
        """Returns the dict to fill."""
        return OrderedDict()


class InertList:
    """Replaces a kind of list, such as `deque`, by one that the loader fills."""

    # The loader fills no other class.
    def __new__(cls, *_args: object) -> list[Any]:  # type: ignore[misc]
        """Returns the list to fill."""
        return []


def sha256(path: Path) -> str:
    """Returns the sha256 of a file, or that of all shards of an index.

    Raises `CheckpointError` where one cannot be read.
    """
    if is_index(path):
        digests = "".join(sha256(shard) for shard in shards(path))
        return hashlib.sha256(digests.encode()).hexdigest()
    _check_regular(path)
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"cannot read '{path}': {error.strerror}") from error


def read_weights(path: Path) -> Read:
    """Reads a safetensors file or one of torch.save, recognised by its content.

    An index is read with all its shards. Raises `CheckpointError` that says what the file is
    instead.
    """
    if is_index(path):
        return _read_shards(path)
    head = _head(path)
    if head[8:9] == b"{":
        return Read(_safetensors(path), ())
    if path.suffix == ".safetensors":
        raise CheckpointError(
            f"'{path}' is not a safetensors file: it begins with {head[:12]!r}; download it again, "
            "or name it .pth if torch.save wrote it"
        )
    if head.startswith(b"PK"):
        _check_archive(path)
    elif head.startswith(_NPY):
        raise CheckpointError(_numpy_arrays(path, "numpy.load(FILE, allow_pickle=True).item()"))
    elif not head.startswith(pickle.PROTO):
        raise CheckpointError(
            f"'{path}' is neither safetensors nor a file of torch.save: it begins with "
            f"{head[:12]!r}; unpack it if it is an archive, or else download it again"
        )
    check_weight(path)
    return _restricted_load(path)


def _read_shards(index: Path) -> Read:
    found: dict[str, Any] = {}
    files = shards(index)
    for file in files:
        content = read_weights(file).content
        if not isinstance(content, dict):
            raise CheckpointError(f"'{file}' is no part of '{index}': expected a state dict")
        twice = found.keys() & content.keys()
        if twice:
            raise CheckpointError(f"'{file}' holds {listed(twice)}, as another part of '{index}'")
        found |= content
    return Read(found, (f"joined {len(files)} files",))


def _check_regular(path: Path) -> None:
    """Raises `CheckpointError` for a pipe or a device, which may never end."""
    if is_special(path):
        raise CheckpointError(f"'{path}' is no regular file: name a file of weights")


def _head(path: Path) -> bytes:
    """Returns the first bytes; raises `CheckpointError` for what failed downloads leave behind."""
    _check_regular(path)
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise CheckpointError(f"cannot read '{path}': {error.strerror}") from error

    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if not head:
        raise CheckpointError(f"'{path}' is empty: download it again")
    if start.startswith((b"<!", b"<html", b"<?xml", b"<head")):
        raise CheckpointError(
            f"'{path}' is a web page, not weights: the download link led to a page; "
            "fetch the file itself"
        )
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"'{path}' is a Git LFS pointer, not weights: run 'git lfs pull'")
    return head


def _numpy_arrays(path: Path, source: str) -> str:
    """Returns what to do with arrays of numpy; one whose pickle is loaded runs what is in it."""
    return (
        f"'{path}' holds numpy arrays, not tensors; where it was made: torch.save("
        f"{{name: torch.from_numpy(array) for name, array in {source}.items()}}, 'weights.pth')"
    )


def _check_archive(path: Path) -> None:
    """Raises `CheckpointError` for an archive that carries code, or no weights at all."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            unpacked = sum(member.file_size for member in archive.infolist())
    except Exception as error:  # a damaged list of contents can raise anything
        raise CheckpointError(
            f"'{path}' is a truncated or damaged archive ({one_line(error)}): "
            "download or copy it again"
        ) from error

    packed = path.stat().st_size
    if unpacked > _MOST_UNPACKED * packed + _LITTLE:
        raise CheckpointError(
            f"'{path}' has {packed:,} bytes, {unpacked:,} when unpacked; torch.save does not "
            "compress: save the weights anew"
        )
    if any("/code/" in name or name.endswith("constants.pkl") for name in names):
        raise CheckpointError(
            f"'{path}' is TorchScript, which carries code: save a state dict with "
            "torch.save(model.state_dict())"
        )
    if any(name.endswith(("archive_format", "model.json")) for name in names):
        raise CheckpointError(
            f"'{path}' is an exported program, which carries code: save a state dict instead"
        )
    if not any(name.endswith("data.pkl") for name in names):
        if names and all(name.endswith(".npy") for name in names):
            raise CheckpointError(_numpy_arrays(path, "numpy.load(FILE)"))
        raise CheckpointError(
            f"'{path}' is a zip archive but no torch checkpoint: it holds "
            f"{listed(names) or 'nothing'}; unpack it and choose the weights inside"
        )


def _safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except Exception as error:  # a damaged header can raise anything
        reason = str(error)
        if not isinstance(error, SafetensorError):
            reason = f"{type(error).__name__}: {reason}"
        raise CheckpointError(
            f"'{path}' is not a whole safetensors file ({one_line(reason)}): "
            "download or copy it again"
        ) from error


def _restricted_load(path: Path) -> Read:
    """Loads with the allow-list, with an inert stub for each unknown name in the file."""
    stubs: dict[str, type] = {}
    while len(stubs) < _MAX_STUBS:
        inert = [(stub, name) for name, stub in stubs.items()]
        try:
            content = _load_allowed(path, inert)
        except pickle.UnpicklingError as error:
            stubs |= _next_stub(path, str(error), stubs)
        except _CalledError as error:
            raise _wants_to_run(path, str(error)) from error
        except GrowthError as error:
            raise _grows(path, str(error)) from error
        # A damaged pickle can raise anything; nothing of it was executed.
        except Exception as error:
            raise _damaged(path, error) from error
        else:
            notes = [f"left out what is no tensor: {listed(stubs)}"] if stubs else []
            return Read(content, tuple(notes))
    raise CheckpointError(
        f"'{path}' names more than {_MAX_STUBS} unknown classes: export its state dict"
    )


def _load_allowed(path: Path, allowed: list[Any]) -> Any:
    with torch.serialization.safe_globals(allowed), bounded(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.load(path, map_location="cpu", weights_only=True)


def _next_stub(path: Path, message: str, stubs: dict[str, type]) -> dict[str, type]:
    """Returns a stub for the name that the loader stopped at.

    Where the loader could not fill an earlier stub, a dict or a list takes its place.
    """
    filled = _FILLED.search(message)
    if filled:
        return {filled[2]: InertDict if filled[1] == "SETITEM" else InertList}

    unknown = _UNKNOWN.search(message)
    if unknown is None or unknown[1] in stubs or not unknown[1].isprintable():
        raise _damaged(path, message)
    name = unknown[1]
    if name == "torch.storage._load_from_bytes":
        raise _damaged(path, _OTHER_PICKLES[1])
    # The loader drops the prefix of builtins from its message: a name without a dot is one.
    if "." not in name or _acts(name):
        raise _wants_to_run(path, name)
    return {name: type(name, (_Function if _is_function(name) else Inert,), {})}


def _grows(path: Path, call: str) -> CheckpointError:
    return CheckpointError(
        f"'{path}' asks for more memory than it holds ({one_line(call)}): refused; where it was "
        "made, save a state dict of tensors alone"
    )


def _wants_to_run(path: Path, name: str) -> CheckpointError:
    """Returns the error for a file that calls a function, or names one that acts on the machine."""
    if name.startswith("dill."):
        return CheckpointError(
            f"'{path}' was written with dill, as MadryLab's robustness does, and runs code when "
            "loaded: refused, nothing was executed; where you trust it, load it by "
            "c = torch.load(FILE, pickle_module=dill, weights_only=False) and "
            "torch.save(c['model'], 'weights.pt')"
        )
    return CheckpointError(
        f"'{path}' wants to run {name} when loaded: refused, nothing was executed; "
        "do not use this file, or ask its author for a state dict"
    )


def _acts(name: str) -> bool:
    """Tells whether a name stands for something that acts on the machine.

    Safety does not depend on it: a stub of any name does nothing.
    """
    parts = name.split(".")
    return parts[0] in _ACTING or parts[-1] in _LOADERS


def _is_function(name: str) -> bool:
    parts = name.split(".")
    return parts[-1].islower() and parts[0] not in _LOWER_CASE_CLASSES


def _damaged(path: Path, error: Exception | str) -> CheckpointError:
    """Returns the error that says why torch's reader stopped."""
    text = str(error)
    reason = (text.partition("WeightsUnpickler error: ")[2] or text).strip()
    called = _UNRECOGNISED.search(reason)
    if called:
        return (_grows if called[1].startswith("torch") else _wants_to_run)(path, called[1])
    if "persistent_load" in reason:
        return CheckpointError(f"'{path}' {WHOLE_MODULE}")
    if reason.startswith(_OTHER_PICKLES):
        return CheckpointError(
            f"'{path}' is a pickle that cannot be read without running it: where it was made, "
            "save its state dict with torch.save, in the usual protocol"
        )
    if isinstance(error, Exception):
        reason = f"{type(error).__name__}: {reason}"
    return CheckpointError(
        f"'{path}' is not a whole torch checkpoint ({one_line(reason)}): download or copy it again"
    )
