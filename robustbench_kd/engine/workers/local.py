"""Lets processes decide the shards of a run: watches them, starts those again that die, and ends them all with this one."""

import os
import signal
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import TypeAlias

from robustbench_kd.core.errors import IncompleteError, RkdError
from robustbench_kd.core.shards import Shard
from robustbench_kd.engine.run.progress import Observer, Progress, nobody

Work: TypeAlias = Callable[[Shard, Observer], object]
_LIVES = 4


@dataclass
class _Worker:
    """A process at work on a shard, what it tells, and how many more may follow should it die."""

    process: SpawnProcess
    told: Connection
    lives: int


def in_processes(work: Work, shards: Sequence[Shard], *, observer: Observer = nobody) -> None:
    """Calls `work` for every shard in a process of its own; returns when all have ended.

    `work` must be picklable, and go on where it was when it is called again: a process that dies is
    started anew, three times at most. The observer is told of all shards as of one. Raises what
    `work` raises of our own errors, and `IncompleteError` where a process dies too often; no
    process is left behind, however this ends.
    """
    workers: dict[Shard, _Worker] = {}
    moments: dict[Shard, Progress] = {}
    try:
        for shard in shards:
            workers[shard] = _started(work, shard, _LIVES)
        while workers:
            ready = set(wait([worker.told for worker in workers.values()]))
            for shard in [shard for shard, worker in workers.items() if worker.told in ready]:
                said = _heard(workers[shard].told)
                if isinstance(said, Progress):
                    moments[shard] = said
                    observer(_together(moments.values()))
                elif said:
                    raise said
                else:
                    _replace(workers, work, shard)
    finally:
        for worker in workers.values():
            worker.process.kill()
            worker.process.join()


def _replace(workers: dict[Shard, _Worker], work: Work, shard: Shard) -> None:
    """Takes out a worker whose process has ended, and starts another in its place if it died."""
    worker = workers.pop(shard)
    worker.process.join()
    if worker.process.exitcode == 0:
        return
    if worker.lives == 1:
        raise IncompleteError(
            f"the process of shard {shard} died {_LIVES} times, the last time with exit code {worker.process.exitcode}; "
            "what was decided is kept: run the same command to resume"
        )
    workers[shard] = _started(work, shard, worker.lives - 1)


def _heard(told: Connection) -> Progress | RkdError | None:
    """Returns what a worker says, None where its process has ended."""
    try:
        said: Progress | RkdError = told.recv()
    except (EOFError, OSError):
        return None
    return said


def _together(moments: Collection[Progress]) -> Progress:
    """Returns the progress of all shards as one, in the stage of the one that has most to do."""
    return Progress(
        stage=max(moments, key=lambda moment: moment.passes_left).stage,
        decided=sum(moment.decided for moment in moments),
        total=sum(moment.total for moment in moments),
        robust=sum(moment.robust for moment in moments),
        examples=sum(moment.examples for moment in moments),
        passes=sum(moment.passes for moment in moments),
        passes_left=sum(moment.passes_left for moment in moments),
    )


def _started(work: Work, shard: Shard, lives: int) -> _Worker:
    context = get_context("spawn")
    told, tell = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(work, shard, tell), name=f"rkd {shard}")
    with _deaf_to_interrupts():
        process.start()
    tell.close()
    return _Worker(process, told, lives)


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Lets processes that start meanwhile ignore Ctrl-C: it goes to all of them, and the first one ends the others."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _serve(work: Work, shard: Shard, tell: Connection) -> None:
    """Is what a worker's process does."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        work(shard, tell.send)
    except RkdError as error:
        tell.send(error)


def _end_with_parent() -> None:
    parent = parent_process()
    if parent:
        parent.join()
        os._exit(1)
