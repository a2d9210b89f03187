"""Reads weights files without ever running what they hold.

Safetensors hold no code. For everything else `torch.load(weights_only=True)` interprets the pickle with an allow-list:
tensors, and the plain data that trainers store beside them. Any other class a file names is replaced by an inert stub,
which takes every argument and does nothing; modules whose functions act on the machine are refused outright.
"""

import argparse
import builtins
import hashlib
import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from robustbench_kd.core.errors import CheckpointError

WHOLE_MODULE = "holds a whole pickled module, which only code can rebuild: save its state_dict() instead"
_MAX_STUBS = 200
_GLOBAL = re.compile(r"GLOBAL (\S+)")
_ACTING = frozenset(
    [
        "os",
        "posix",
        "nt",
        "sys",
        "io",
        "subprocess",
        "commands",
        "shutil",
        "pty",
        "socket",
        "ctypes",
        "importlib",
        "runpy",
        "code",
        "codeop",
        "webbrowser",
        "builtins",
        "multiprocessing",
        "pickle",
        "marshal",
        "shelve",
        "dbm",
        "operator",
        "functools",
        "tempfile",
        "http",
        "urllib",
        "requests",
        "timeit",
        "pdb",
    ]
)
_LOADERS = frozenset({"load", "loads", "open", "save", "fromfile", "memmap", "tofile"})
_PLAIN_BUILTINS = ("list", "dict", "set", "frozenset", "tuple", "int", "float", "complex", "bool", "slice", "object")


class Read(NamedTuple):
    """What a file holds, and what was done to read it."""

    content: Any
    notes: tuple[str, ...]


class Inert:
    """Stands for a class of the file that is not loaded; takes anything, does nothing."""

    def __init__(self, *_args: object, **_kwargs: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


def sha256(path: Path) -> str:
    """Returns the sha256 of a file; raises `CheckpointError` where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"cannot read '{path}': {error.strerror}") from error


def read_weights(path: Path) -> Read:
    """Reads a safetensors or torch file; raises `CheckpointError` that says what the file is instead."""
    _check_magic(path)
    if path.suffix == ".safetensors":
        return Read(_safetensors(path), ())
    return _restricted_load(path)


def _check_magic(path: Path) -> None:
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise CheckpointError(f"cannot read '{path}': {error.strerror}") from error
    start = head.lstrip().lower()
    if not head:
        raise CheckpointError(f"'{path}' is empty: download it again")
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise CheckpointError(
            f"'{path}' is a web page, not weights: the download link led to a page; fetch the file itself"
        )
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"'{path}' is a Git LFS pointer, not weights: run 'git lfs pull'")
    if head.startswith(b"PK"):
        _check_archive(path)


def _check_archive(path: Path) -> None:
    if not zipfile.is_zipfile(path):
        raise CheckpointError(f"'{path}' is truncated: its archive has no end; download or copy it again")
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any("/code/" in name or name.endswith("constants.pkl") for name in names):
        raise CheckpointError(
            f"'{path}' is TorchScript, which carries code: save a state dict with torch.save(model.state_dict())"
        )
    if any(name.endswith(("archive_format", "model.json")) for name in names):
        raise CheckpointError(f"'{path}' is an exported program, which carries code: save a state dict instead")
    if not any(name.endswith("data.pkl") for name in names):
        raise CheckpointError(f"'{path}' is a zip archive but no torch checkpoint: it holds {', '.join(names[:3])}")


def _safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"'{path}' is not a whole safetensors file ({error}): download or copy it again"
        ) from error


def _restricted_load(path: Path) -> Read:
    """Loads with the allow-list, adding an inert stub for each unknown name the loader stops at."""
    stubs: list[str] = []
    while len(stubs) < _MAX_STUBS:
        allowed = [*_plain_data(), *((Inert, name) for name in stubs)]
        try:
            with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                content = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            stubs.append(_unknown_name(path, str(error), stubs))
        except Exception as error:  # a damaged pickle can raise anything; nothing of it was executed
            raise _damaged(path, error) from error
        else:
            return Read(content, tuple(f"class {name} of the file was not loaded" for name in stubs))
    raise CheckpointError(f"'{path}' names more than {_MAX_STUBS} unknown classes: export its state dict")


def _unknown_name(path: Path, message: str, stubs: list[str]) -> str:
    found = _GLOBAL.search(message)
    if found is None or found[1] in stubs:
        raise _damaged(path, message)
    name = found[1]
    # The loader drops the prefix of builtins from its message: a name without a dot is one.
    if "." not in name or _acts(name):
        raise CheckpointError(
            f"'{path}' wants to run {name} when loaded: refused, nothing was executed; do not use this file, "
            "or ask its author for a state dict"
        )
    return name


def _acts(name: str) -> bool:
    """Tells whether a name looks like a function that acts on the machine; only the message depends on it."""
    parts = name.split(".")
    is_function = parts[-1].islower() and parts[0] not in {"torch", "numpy"}
    return parts[0] in _ACTING or parts[-1] in _LOADERS or is_function


def _damaged(path: Path, error: object) -> CheckpointError:
    text = str(error)
    reason = text.partition("WeightsUnpickler error: ")[2] or text or type(error).__name__
    if "persistent_load" in reason:
        return CheckpointError(f"'{path}' {WHOLE_MODULE}")
    first_line = reason.strip().partition("\n")[0][:160]
    return CheckpointError(f"'{path}' is not a whole torch checkpoint ({first_line}): download or copy it again")


def _plain_dict(*_factory: object) -> dict[object, object]:
    """Stands for `defaultdict`, which the restricted loader cannot fill."""
    return {}


def _plain_data() -> list[Any]:
    """Names that trainers store beside the weights and that only hold data, also as numpy 1 spelled them."""
    scalar, rebuild = np._core.multiarray.scalar, np._core.multiarray._reconstruct  # type: ignore[attr-defined]  # noqa: SLF001  # what numpy writes into pickles
    dtypes = [getattr(np.dtypes, name) for name in np.dtypes.__all__]
    return [
        argparse.Namespace,
        (_plain_dict, "collections.defaultdict"),
        np.dtype,
        np.ndarray,
        scalar,
        rebuild,
        (scalar, "numpy.core.multiarray.scalar"),
        (rebuild, "numpy.core.multiarray._reconstruct"),
        *dtypes,
        *((getattr(builtins, name), f"builtins.{name}") for name in _PLAIN_BUILTINS),
    ]
