"""The append-only record of decided examples; `kill -9` loses at most the batch in flight.

One JSON line per batch of decisions, flushed to disk before the next batch starts. A line that a
crash tore in half is cut off when the ledger is opened again. An advisory lock keeps two processes
from writing one run.

A shard has a file of its own beside the run's. Whoever opens a ledger knows what all files say, so
that it does not matter how the work was divided when it was interrupted.
"""

import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from pydantic import Field, ValidationError

from robustbench_kd.core.errors import RecordError
from robustbench_kd.core.records import Finding, Frozen, Work
from robustbench_kd.core.shards import Shard, shards

_FINISHED = "finished"  # the mark of a shard that has nothing left to decide


class Decision(Frozen):
    """What one stage found out about one example; `distance` is None where no answer is wrong.

    `margin` is the true class's logit less the largest other one, on the image that decided.
    `wrong` is the fraction of a randomized defence's answers that are wrong, None where `broken`
    says it; `rejected` is the fraction that reject, None where the defence never rejects. `image`
    holds the image that decided, as `engine/judging/packing.py` writes it, where a later step
    needs it.
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
    def error_rate(self) -> float:
        """Returns the fraction of answers that are wrong: 0 or 1 for a deterministic defence."""
        if self.wrong is None:
            return float(self.broken)
        return self.wrong


class RejectionScore(Frozen):
    """What a defence that may reject says of one image.

    `fooled` says whether the classifier inside is wrong, `prediction` its class, `score` how far
    the logit for "rejected" is above all others. `accepted_wrong` and `rejected` are the fractions
    of answers that are accepted and wrong, and that reject.
    """

    index: int
    fooled: bool
    prediction: int
    score: float
    accepted_wrong: float
    rejected: float


class Entry(Frozen):
    """Decisions of one batch of one stage, with their cost."""

    stage: str
    decisions: list[Decision] = Field(default_factory=list)
    forwards: int = 0
    backwards: int = 0
    seconds: float = 0.0
    findings: list[Finding] = Field(default_factory=list)
    work: Work | None = None
    scores: list[RejectionScore] = Field(default_factory=list)


class Ledger:
    """An open ledger; a context manager that holds the lock of its run, or of one shard of it.

    Shards of one run may be open at the same time, each once; a run as a whole only by itself.
    `entries` are those of all files. Raises `RecordError` where the folder cannot be written, the
    disk is full, or another process holds the run.
    """

    def __init__(self, path: Path, shard: Shard | None = None) -> None:
        self._run = path
        self._path = path.with_name(shard.of(path.name)) if shard else path
        self.entries: list[Entry] = []

    def __enter__(self) -> Self:
        with ExitStack() as opened:
            self._lock = opened.enter_context(self._opened(self._run))
            self._acquire(self._lock, fcntl.LOCK_EX if self._path == self._run else fcntl.LOCK_SH)
            self._file = self._lock
            if self._path != self._run:
                self._file = opened.enter_context(self._opened(self._path))
                self._acquire(self._file, fcntl.LOCK_EX)
            self._read()
            opened.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Closing tries again to write what did not fit on the disk; `append` has said so
        # already.
        with suppress(OSError):
            self._file.close()
        self._lock.close()

    def append(self, entry: Entry) -> None:
        """Writes one entry and waits until it is on disk."""
        line = entry.model_dump_json(exclude_defaults=True).encode() + b"\n"
        try:
            self._file.write(line)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise RecordError(
                f"cannot write '{self._path}': {error.strerror}; what was decided is kept, free "
                "some "
                "space and run again"
            ) from error
        self.entries.append(entry)

    def clear(self) -> None:
        """Deletes all entries, for a run that starts again."""
        self._file.truncate(0)
        for path in self._others():
            path.unlink()
        self.entries = []

    def remove(self) -> None:
        """Deletes the files, once `run.json` holds all they said."""
        for path in (*self._others(), self._path):
            path.unlink(missing_ok=True)

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Lets the shards of the run be written meanwhile, and knows afterwards what they hold."""
        fcntl.flock(self._lock, fcntl.LOCK_SH)
        try:
            yield
        finally:
            self._acquire(self._lock, fcntl.LOCK_EX)
            self._read()

    def _opened(self, path: Path) -> BinaryIO:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            return path.open("a+b")
        except OSError as error:
            raise RecordError(
                f"cannot write results to '{path.parent}': {error.strerror}"
            ) from error

    def _acquire(self, file: BinaryIO, kind: int) -> None:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except OSError as error:
            where, busy = self._path.parent, isinstance(error, BlockingIOError)
            raise RecordError(
                f"another process is writing '{where}': wait for it, or stop it"
                if busy
                else f"cannot lock '{where}': {error.strerror}; choose another --results"
            ) from None

    def _others(self) -> list[Path]:
        """Returns the files of the run beside the one that is written, the run's own first."""
        known = [
            self._run,
            *sorted(self._run.parent.glob(f"{self._run.stem}-*-of-*{self._run.suffix}")),
        ]
        return [path for path in known if path != self._path]

    def _read(self) -> None:
        """Reads all files, and cuts off a line that a crash has torn in the own one."""
        own, intact = _intact(self._path)
        self._file.truncate(intact)
        others: list[Entry] = []
        for path in self._others():
            others += _intact(path)[0]
        self.entries = others + own


def finished(shard: Shard) -> Entry:
    """Returns the entry that a shard closes its ledger with."""
    return Entry(stage=f"{_FINISHED} {shard}")


def unfinished(entries: Iterable[Entry]) -> tuple[Shard, ...]:
    """Returns the shards that have not closed their ledgers, none if all of one division have.

    A run may have been divided in several ways; the division with the fewest missing shards counts.
    A run that was not divided is one shard.
    """
    done: dict[int, set[Shard]] = {}
    for entry in entries:
        if entry.stage.startswith(f"{_FINISHED} "):
            shard = Shard.parse(entry.stage.removeprefix(_FINISHED).strip())
            done.setdefault(shard.count, set()).add(shard)

    missing = [set(shards(count)) - finished for count, finished in done.items()]
    fewest = min(missing or [set(shards(1))], key=len)
    return tuple(sorted(fewest))


def _intact(path: Path) -> tuple[list[Entry], int]:
    """Returns the entries of a file before the first damaged line, and how many bytes they are."""
    entries, intact = [], 0
    with path.open("rb") as file:
        for line in file:
            entry = _parse(line)
            if entry is None:
                break
            entries.append(entry)
            intact += len(line)
    return entries, intact


def _parse(line: bytes) -> Entry | None:
    if not line.endswith(b"\n"):
        return None
    try:
        return Entry.model_validate_json(line)
    except ValidationError:
        return None
