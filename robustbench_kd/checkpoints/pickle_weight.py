"""Adds up what a pickle builds before it is built: a few bytes can nest tuples without end.

A tuple that holds another one twice, which holds a third one twice, and so on, is small, but a hash
or a text of it visits 2 ** depth tuples. The check follows the instructions that torch's reader
knows, with a weight in place of each object: how many objects it reaches.
"""

import io
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from robustbench_kd.core.errors import CheckpointError

MOST_OBJECTS = 10_000_000
_PICKLES_OF_OLD = 5  # torch.save wrote as many before the bytes of the tensors
_PIECE = 2**20  # bytes
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError)

_ATOMS = {
    pickle.NONE[0]: 0,
    pickle.NEWTRUE[0]: 0,
    pickle.NEWFALSE[0]: 0,
    pickle.BINFLOAT[0]: 8,
    pickle.BININT[0]: 4,
    pickle.BININT1[0]: 1,
    pickle.BININT2[0]: 2,
    pickle.EMPTY_TUPLE[0]: 0,
    pickle.EMPTY_LIST[0]: 0,
    pickle.EMPTY_DICT[0]: 0,
    pickle.EMPTY_SET[0]: 0,
}  # with the bytes that follow
_TEXTS = {pickle.BINUNICODE[0]: "<I", pickle.SHORT_BINSTRING[0]: "<B", pickle.LONG1[0]: "<B"}
_GETS = {pickle.BINGET[0]: "<B", pickle.LONG_BINGET[0]: "<I"}
_PUTS = {pickle.BINPUT[0]: "<B", pickle.LONG_BINPUT[0]: "<I"}
_TUPLES = {pickle.TUPLE1[0]: 1, pickle.TUPLE2[0]: 2, pickle.TUPLE3[0]: 3}
_FILLS = {pickle.APPEND[0]: 1, pickle.SETITEM[0]: 2, pickle.BUILD[0]: 1}
_FILLS_BY_MARK = {pickle.APPENDS[0], pickle.SETITEMS[0]}


class _WeightError(Exception):
    """A pickle builds objects that reach more others than a file may hold."""


class _UnreadableError(Exception):
    """An instruction that torch's reader refuses, too."""


@dataclass(eq=False)
class _Weight:
    """How many objects an object reaches; a list gains some when it is filled."""

    objects: int = 1


def check_weight(path: Path) -> None:
    """Raises `CheckpointError` for a file of torch.save whose objects reach too many others.

    What torch's reader would refuse ends the check: the reader stops there, too.
    """
    try:
        _follow_file(path)
    except _WeightError:
        raise CheckpointError(
            f"'{path}' asks for more memory than it holds, for an object that reaches more than "
            f"{MOST_OBJECTS:,} others: save tensors alone"
        ) from None


def _follow_file(path: Path) -> None:
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            _follow(file, _PICKLES_OF_OLD)
        return
    with suppress(*_DAMAGE), zipfile.ZipFile(path) as archive:
        for record in archive.infolist():
            if record.filename.endswith("data.pkl"):
                _follow(io.BytesIO(archive.read(record)), 1)


def _follow(file: BinaryIO, pickles: int) -> None:
    with suppress(_UnreadableError, IndexError, KeyError, struct.error):
        for _ in range(pickles):
            _Machine(file).run()


@dataclass
class _Machine:
    """The stack of a reader, with weights in place of objects."""

    file: BinaryIO
    stack: list[_Weight] = field(default_factory=list)
    marks: list[list[_Weight]] = field(default_factory=list)
    memo: dict[int, _Weight] = field(default_factory=dict)

    def run(self) -> None:
        """Follows one pickle to its end."""
        while True:
            code = self.file.read(1)
            if code == pickle.STOP:
                return
            if not code:
                raise _UnreadableError
            self.step(code[0])

    def step(self, code: int) -> None:
        """Follows one instruction."""
        if code in _ATOMS:
            self.skip(_ATOMS[code])
            self.stack.append(_Weight())
        elif code in _TEXTS:
            self.skip(self.number(_TEXTS[code]))
            self.stack.append(_Weight())
        elif code in _GETS:
            self.stack.append(self.memo[self.number(_GETS[code])])
        elif code in _PUTS:
            self.memo[self.number(_PUTS[code])] = self.stack[-1]
        elif code in _TUPLES:
            self.together(self.popped(_TUPLES[code]))
        elif code in _FILLS:
            self.fill(self.popped(_FILLS[code]))
        elif code in _FILLS_BY_MARK:
            self.fill(self.unmarked())
        else:
            self.step_rarely(code)

    def step_rarely(self, code: int) -> None:
        """Follows an instruction of its own kind."""
        steps: dict[int, Callable[[], None]] = {
            pickle.PROTO[0]: lambda: self.skip(1),
            pickle.MARK[0]: self.mark,
            pickle.TUPLE[0]: lambda: self.together(self.unmarked()),
            pickle.GLOBAL[0]: self.name,
            pickle.BINPERSID[0]: lambda: self.together(self.popped(1)),
            pickle.REDUCE[0]: lambda: self.together(self.popped(2)),
            pickle.NEWOBJ[0]: lambda: self.together(self.popped(2)),
        }
        if code not in steps:
            raise _UnreadableError
        steps[code]()

    def number(self, kind: str) -> int:
        """Reads a number."""
        (value,) = struct.unpack(kind, self.file.read(struct.calcsize(kind)))
        return int(value)

    def skip(self, size: int) -> None:
        """Passes over bytes, of which there may be fewer than a file says."""
        while size > 0:
            found = len(self.file.read(min(size, _PIECE)))
            if not found:
                raise _UnreadableError
            size -= found

    def name(self) -> None:
        """Passes over the two lines of a name."""
        for _ in range(2):
            if not self.file.readline().endswith(b"\n"):
                raise _UnreadableError
        self.stack.append(_Weight())

    def mark(self) -> None:
        """Begins a stack above the one in use."""
        self.marks.append(self.stack)
        self.stack = []

    def unmarked(self) -> list[_Weight]:
        """Returns what lies above the last mark."""
        above, self.stack = self.stack, self.marks.pop()
        return above

    def popped(self, count: int) -> list[_Weight]:
        """Returns the last objects."""
        return [self.stack.pop() for _ in range(count)]

    def together(self, parts: Sequence[_Weight]) -> None:
        """Makes one object of others."""
        self.stack.append(_Weight(0))
        self.fill([_Weight(), *parts])

    def fill(self, parts: Sequence[_Weight]) -> None:
        """Gives the last object some others."""
        holder = self.stack[-1]
        holder.objects += sum(part.objects for part in parts)
        if holder.objects > MOST_OBJECTS:
            raise _WeightError
