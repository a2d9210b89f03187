"""The append-only record of decided examples; it survives `kill -9` with at most the batch in flight lost.

One JSON line per batch of decisions, flushed to disk before the next batch starts. A line that a crash tore in half is cut
off when the ledger is opened again. An advisory lock keeps two processes from writing one run.
"""

import fcntl
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from pydantic import Field, ValidationError

from robustbench_kd.core.errors import RecordError
from robustbench_kd.core.records import Finding, Frozen, Work


class Decision(Frozen):
    """What one stage found out about one example; `distance` is None where every answer is right.

    `margin` is the true class's logit less the largest other one, on the image that decided. `wrong` is the share of a
    randomized defence's answers that err, None where it is plain from `broken`, `rejected` the share of those that reject,
    None where the defence never does. `image` holds what decided, as `engine/images.py` writes it, where it is asked for
    again later.
    """

    index: int
    broken: bool
    prediction: int
    margin: float
    distance: float | None = None
    forwards: int | None = None
    backwards: int | None = None
    wrong: float | None = None
    rejected: float | None = None
    image: str = ""

    @property
    def share(self) -> float:
        """Returns the share of answers that err: 0 or 1 for a deterministic defence."""
        return float(self.broken) if self.wrong is None else self.wrong


class Entry(Frozen):
    """Decisions of one batch of one stage, with their cost."""

    stage: str
    decisions: list[Decision] = Field(default_factory=list)
    forwards: int = 0
    backwards: int = 0
    seconds: float = 0.0
    findings: list[Finding] = Field(default_factory=list)
    work: Work | None = None


class Ledger:
    """An open ledger; a context manager that holds the lock of its run.

    Raises `RecordError` where the folder cannot be written, the disk is full, or another process holds the run.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.entries: list[Entry] = []

    def __enter__(self) -> Self:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("a+b")
        except OSError as error:
            raise RecordError(f"cannot write results to '{self._path.parent}': {error.strerror}") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            where, busy = self._path.parent, isinstance(error, BlockingIOError)
            raise RecordError(
                f"another process is writing '{where}': wait for it, or stop it"
                if busy
                else f"cannot lock '{where}': {error.strerror}; choose another --results"
            ) from None
        self.entries = self._replay()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Closing tries again to write what did not fit on the disk; `append` has told of that already.
        with suppress(OSError):
            self._file.close()

    def append(self, entry: Entry) -> None:
        """Writes one entry and waits until it is on disk."""
        line = entry.model_dump_json(exclude_defaults=True).encode() + b"\n"
        try:
            self._file.write(line)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise RecordError(
                f"cannot write '{self._path}': {error.strerror}; what was decided is kept, free some space and run again"
            ) from error
        self.entries.append(entry)

    def clear(self) -> None:
        """Forgets everything, for a run that starts afresh."""
        self._file.truncate(0)
        self.entries = []

    def remove(self) -> None:
        """Deletes the file, once `run.json` holds all it said."""
        self._path.unlink(missing_ok=True)

    def _replay(self) -> list[Entry]:
        self._file.seek(0)
        entries, intact = [], 0
        for line in self._file:
            entry = _parse(line)
            if entry is None:
                break
            entries.append(entry)
            intact += len(line)
        self._file.truncate(intact)
        return entries


def decided(entries: Iterable[Entry], stage: str) -> dict[int, Decision]:
    """Returns the decisions of one stage by example id."""
    return {decision.index: decision for entry in entries if entry.stage == stage for decision in entry.decisions}


def _parse(line: bytes) -> Entry | None:
    if not line.endswith(b"\n"):
        return None
    try:
        return Entry.model_validate_json(line)
    except ValidationError:
        return None
