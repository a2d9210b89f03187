"""The append-only record of decided examples; `kill -9` loses at most the batch in flight.

One JSON line per batch of decisions, flushed to disk before the next batch starts. Each line is
chained to the one before (`core/chain.py`). A line that a crash tore in half is cut off when the
ledger is opened again; a damaged line ends what is believed, and is named. A ledger of a version
without checksums is one whose first line is damaged. An advisory lock keeps two processes from
writing one run.

A shard has a file of its own beside the run's. Whoever opens a ledger knows what all files say, so
that it does not matter how the work was divided when it was interrupted.
"""

import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from pydantic import Field, ValidationError

from robustbench_kd.core.chain import first_link, linked, value_of
from robustbench_kd.core.errors import RecordError
from robustbench_kd.core.files import (
    open_for_append,
    open_to_read,
    remove_temporary,
    require_own_folder,
)
from robustbench_kd.core.ranges import Count, Fraction, Nonnegative, Seconds
from robustbench_kd.core.records import Finding, Frozen, Work
from robustbench_kd.core.shards import Shard, shards

_MOST = 2**34  # bytes; the images of a run are in its ledger, too
_FINISHED = "finished"  # the mark of a shard that has nothing left to decide


class Decision(Frozen):
    """What one stage found out about one example; `distance` is None where no answer is wrong.

    `margin` is the true class's logit less the largest other one, on the image that decided.
    `wrong` is the fraction of a randomized defence's answers that are wrong, None where `broken`
    says it; `rejected` is the fraction that reject, None where the defence never rejects. `image`
    holds the image that decided, as `engine/judging/packing.py` writes it, where a later step
    needs it.
    """

    index: Count
    broken: bool
    prediction: Count
    margin: float
    distance: Nonnegative | None = None
    forwards: Count | None = None
    backwards: Count | None = None
    wrong: Fraction | None = None
    rejected: Fraction | None = None
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

    index: Count
    fooled: bool
    prediction: Count
    score: float
    accepted_wrong: Fraction
    rejected: Fraction


class Entry(Frozen):
    """Decisions of one batch of one stage, with their cost."""

    stage: str
    decisions: list[Decision] = Field(default_factory=list)
    forwards: Count = 0
    backwards: Count = 0
    seconds: Seconds = 0.0
    findings: list[Finding] = Field(default_factory=list)
    work: Work | None = None
    scores: list[RejectionScore] = Field(default_factory=list)


@dataclass(frozen=True)
class Stored:
    """What the files of a run hold: all entries that can be believed, and what is damaged."""

    entries: list[Entry]
    damage: tuple[str, ...]


class Ledger:
    """An open ledger; a context manager that holds the lock of its run, or of one shard of it.

    Shards of one run may be open at the same time, each once; a run as a whole only by itself.
    `entries` are those of all files, `damage` says in one sentence for each file where it is
    damaged; `inherited` says whether there was something when it was opened, `appended` whether
    something came since. Raises `RecordError` where the folder cannot be written or is a link, the
    disk is full, or another process holds the run.
    """

    def __init__(self, path: Path, shard: Shard | None = None) -> None:
        self._run = path
        self._path = path.with_name(shard.of(path.name)) if shard else path
        self._link = first_link(self._path)
        self.entries: list[Entry] = []
        self.damage: tuple[str, ...] = ()
        self.inherited = False
        self.appended = False

    def __enter__(self) -> Self:
        with ExitStack() as opened:
            self._lock = opened.enter_context(self._opened(self._run))
            self._acquire(self._lock, fcntl.LOCK_EX if self._path == self._run else fcntl.LOCK_SH)
            self._file = self._lock
            if self._path != self._run:
                self._file = opened.enter_context(self._opened(self._path))
                self._acquire(self._file, fcntl.LOCK_EX)
            else:
                remove_temporary(self._run.parent)
            self.inherited = self._read()
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
        value = entry.model_dump_json(exclude_defaults=True).encode()
        self._link, line = linked(self._link, value)
        try:
            self._file.write(line)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise RecordError(
                f"cannot write '{self._path}': {error.strerror}; what was decided is kept, free "
                "some space and run again"
            ) from error
        self.entries.append(entry)
        self.appended = True

    def clear(self) -> None:
        """Deletes all entries, for a run that starts again."""
        self._file.truncate(0)
        for path in _others(self._run, self._path):
            path.unlink()
        self._link = first_link(self._path)
        self.entries = []
        self.inherited = False

    def remove(self) -> None:
        """Deletes the files, once `run.json` holds all they said."""
        for path in (*_others(self._run, self._path), self._path):
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
        require_own_folder(path.parent)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            return open_for_append(path)
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

    def _read(self) -> bool:
        """Reads all files; cuts off what a crash has torn in the own one, and what is damaged.

        Returns whether there is anything that this process goes on with.
        """
        own = _intact(self._path)
        self._file.truncate(own.size)
        self._link = own.link
        stored = _stored(self._run, self._path, own)
        self.entries = stored.entries
        self.damage = stored.damage
        return bool(own.entries if self._path != self._run else stored.entries)


@dataclass(frozen=True)
class _Intact:
    """What a file holds before the first damaged line: entries, bytes, the last checksum."""

    entries: list[Entry]
    size: int
    link: str
    damage: str = ""


def read_ledger(path: Path) -> Stored:
    """Reads the ledger of a run and those of its shards, and changes nothing.

    Raises `RecordError` where one is no file that can be read.
    """
    own = _intact(path) if path.exists() else _Intact([], 0, "")
    return _stored(path, path, own)


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


def _stored(run: Path, path: Path, own: _Intact) -> Stored:
    """Returns what all files of a run hold; `own` is known of the one at `path`, the last one."""
    files = [*map(_intact, _others(run, path)), own]
    return Stored(
        entries=[entry for file in files for entry in file.entries],
        damage=tuple(file.damage for file in files if file.damage),
    )


def _others(run: Path, path: Path) -> list[Path]:
    """Returns the files of a run beside one of them, the run's own first."""
    known = [run, *sorted(run.parent.glob(f"{run.stem}-*-of-*{run.suffix}"))]
    return [other for other in known if other != path]


def _intact(path: Path) -> _Intact:
    """Reads a file up to the first damaged line; a last line without its end is torn, not damaged.

    Raises `RecordError` where it cannot be read.
    """
    entries: list[Entry] = []
    size, link = 0, first_link(path)
    with _opened_to_read(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                break
            found = value_of(link, line)
            entry = _parse(found[1]) if found else None
            if not found or not entry:
                return _Intact(entries, size, link, _damaged(path, number))
            entries.append(entry)
            size += len(line)
            link = found[0]
    return _Intact(entries, size, link)


def _opened_to_read(path: Path) -> BinaryIO:
    try:
        return open_to_read(path, _MOST)
    except OSError as error:
        raise RecordError(f"cannot read '{path}': {error.strerror}") from error


def _damaged(path: Path, number: int) -> str:
    return (
        f"'{path}' is damaged at line {number}, or of a version without checksums: what is there "
        "and behind is decided again"
    )


def _parse(value: bytes) -> Entry | None:
    try:
        return Entry.model_validate_json(value)
    except ValidationError:
        return None
