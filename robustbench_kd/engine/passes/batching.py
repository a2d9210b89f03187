"""Works through examples in batches.

Where memory runs out, the batch is halved, a finding says so, and the work goes on.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from robustbench_kd.core.errors import IncompleteError
from robustbench_kd.core.ledger import Entry
from robustbench_kd.core.records import Finding, Severity
from robustbench_kd.tensors.oracle import is_out_of_memory

Result = TypeVar("Result")

_NO_ROOM = "out of memory with a batch of one image; free memory and run the same command to resume"


def in_batches(rows: list[int], size: int, work: Callable[[list[int]], Entry]) -> Iterator[Entry]:
    """Yields the entry of each batch of at most `size` rows.

    Raises `IncompleteError` where even one row does not fit in memory.
    """
    reduced_precision = False
    while rows:
        batch = rows[:size]
        try:
            entry = work(batch)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            size, reduced_precision = halved(len(batch)), True
            continue
        yield _with_note(entry, size) if reduced_precision else entry
        rows, reduced_precision = rows[len(batch) :], False


def with_fewer(size: int, work: Callable[[int], Result]) -> Result:
    """Returns what work on at most `size` images gives, on fewer where memory runs out.

    Raises `IncompleteError` where even one image does not fit in memory.
    """
    while True:
        try:
            return work(size)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            size = halved(size)


@contextmanager
def one_must_fit() -> Iterator[None]:
    """Turns a lack of memory into `IncompleteError`, where no smaller batch can help."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise IncompleteError(_NO_ROOM) from error


def halved(size: int) -> int:
    """Returns half of a batch size that did not fit.

    Raises `IncompleteError` where there is no half of it.
    """
    if size == 1:
        raise IncompleteError(_NO_ROOM)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return size // 2


def halving_note(stage: str, size: int) -> Finding:
    """Returns the finding that says that the batch size was halved."""
    return Finding(
        check="batch-size-halved",
        severity=Severity.INFO,
        message=f"out of memory in {stage}: the batch size was halved to {size}",
        value=float(size),
    )


def _with_note(entry: Entry, size: int) -> Entry:
    return entry.model_copy(update={"findings": [*entry.findings, halving_note(entry.stage, size)]})
