"""Reads and replaces files that anybody may have put there.

Nothing is written through a link, and nothing but a regular file is read or replaced: a folder that
was received can hold a link to a file of its receiver, or a pipe that never ends.
"""

import os
import platform
import re
import stat
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from robustbench_kd.core.errors import RecordError

_MOST = 2**28  # bytes of a record; the examples of a run of two million take less
_TEMPORARY = re.compile(r"\..+\.\d+\.tmp")


def is_special(path: Path) -> bool:
    """Returns whether a path is a pipe or a device, which may never end; a folder is neither."""
    return path.exists() and not (path.is_file() or path.is_dir())


def read_bytes(path: Path, most: int = _MOST) -> bytes:
    """Returns what a file holds; raises like `open_to_read`."""
    with open_to_read(path, most) as file:
        return file.read()


def open_to_read(path: Path, most: int = _MOST) -> BinaryIO:
    """Opens a file.

    Raises `OSError` like `open`, and `RecordError` for what is no regular file or has more bytes
    than `most`.
    """
    # Without O_NONBLOCK, to open a pipe would wait for its writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    found = os.fstat(descriptor)
    problem = ""
    if not stat.S_ISREG(found.st_mode):
        problem = f"expected a regular file, got {_kind(found.st_mode)}"
    elif found.st_size > most:
        problem = f"expected at most {most:,} bytes, got {found.st_size:,}"
    if problem:
        os.close(descriptor)
        raise RecordError(f"cannot read '{path}': {problem}")
    return os.fdopen(descriptor, "rb")


def write_text(path: Path, text: str) -> None:
    """Writes a text file like `write_bytes`."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file atomically.

    Raises `RecordError` where the disk is full, the folder not writable, or something else than a
    regular file has the name.
    """
    temporary = path.with_name(f".{path.name}.{_machine()}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        require_regular(path)
        _remove_of_the_dead(path)
        temporary.unlink(missing_ok=True)
        with _new(temporary) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise RecordError(
            f"cannot write '{path}': {error.strerror}; free space or choose another place"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def open_for_append(path: Path) -> BinaryIO:
    """Opens a file for reading and appending, a new one where there is none.

    Raises `OSError` like `open`, and `RecordError` for a link, for a file with a second name, and
    for what is no regular file.
    """
    require_regular(path)
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o666)
    file = os.fdopen(descriptor, "a+b")
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        file.close()
        raise RecordError(
            f"cannot write '{path}': expected a regular file of one name, got "
            f"{_kind(found.st_mode)} with {found.st_nlink} names; move it away"
        )
    return file


def require_regular(path: Path) -> None:
    """Raises `RecordError` where a path names something else than a regular file or nothing."""
    with suppress(FileNotFoundError):
        mode = path.lstat().st_mode
        if not stat.S_ISREG(mode):
            raise RecordError(
                f"cannot write '{path}': expected a regular file, got {_kind(mode)}; move it away "
                "or choose another place"
            )


def require_own_folder(folder: Path) -> None:
    """Raises `RecordError` where the folder of a run, or that of its model, is a link.

    A folder of results as a whole may be one: a person made that.
    """
    for part in (folder, folder.parent):
        if part.is_symlink():
            raise RecordError(
                f"cannot write to '{folder}': '{part}' is a link; remove it, or name the results "
                "that it leads to"
            )


def remove_temporary(folder: Path) -> None:
    """Removes files that killed processes have left half written; nobody else may write there."""
    for path in folder.iterdir():
        if _TEMPORARY.fullmatch(path.name):
            with suppress(OSError):
                path.unlink()


def _new(path: Path) -> BinaryIO:
    """Creates a file and opens it; fails where there is anything of that name, also a link."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags, 0o666), "wb")


def _remove_of_the_dead(path: Path) -> None:
    """Removes what killed processes of this machine have left of a file."""
    prefix = f".{path.name}.{_machine()}."
    for entry in path.parent.iterdir():
        number = entry.name.removeprefix(prefix).removesuffix(".tmp")
        left = entry.name == f"{prefix}{number}.tmp" and number.isascii() and number.isdigit()
        if left and not _runs(int(number)):
            with suppress(OSError):
                entry.unlink()


def _runs(process: int) -> bool:
    """Returns whether a process of this machine runs, whosever it is."""
    try:
        with suppress(PermissionError):
            os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    return True


def _machine() -> str:
    """Returns the name of this machine, of letters that any file system takes."""
    return re.sub(r"[^A-Za-z0-9-]", "-", platform.node())[:40] or "machine"


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFLNK: "a link",
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
        stat.S_IFREG: "a regular file",
    }
    return kinds.get(stat.S_IFMT(mode), "something else")
