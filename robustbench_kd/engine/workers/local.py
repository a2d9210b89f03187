"""Lets processes decide the shards of a run.

They are watched, started again when they die, and ended with this process.
"""

import os
import signal
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from multiprocessing.reduction import ForkingPickler
from typing import TypeAlias

from robustbench_kd.core.errors import IncompleteError, RkdError
from robustbench_kd.core.shards import Shard
from robustbench_kd.core.unforeseen import unforeseen
from robustbench_kd.engine.run.progress import Observer, Progress, nobody
from robustbench_kd.engine.workers.begin import begin
from robustbench_kd.tensors.oracle import is_out_of_memory

Work: TypeAlias = Callable[[Shard, Observer], object]
_STARTS = 4


@dataclass
class _Worker:
    """A process at work on a shard, what it sends, and how often it may still be started."""

    process: SpawnProcess
    receiver: Connection
    starts: int


def in_processes(work: Work, shards: Sequence[Shard], *, observer: Observer = nobody) -> None:
    """Calls `work` for every shard in a process of its own; returns when all have ended.

    `work` must be picklable, and go on from its last state when it is called again: a process that
    dies is started again, three times at most. The observer sees all shards as one. Raises what
    `work` raises, other errors than our own as `InternalError`, and `IncompleteError` where a
    process dies too often; no process is left behind, however this ends.
    """
    workers: dict[Shard, _Worker] = {}
    moments: dict[Shard, Progress] = {}
    try:
        for shard in shards:
            workers[shard] = _started(work, shard, _STARTS)
        while workers:
            for shard in _ready(workers):
                message = _received(workers[shard].receiver)
                if isinstance(message, Progress):
                    moments[shard] = message
                    observer(_together(moments.values()))
                elif message:
                    raise message
                else:
                    _replace(workers, work, shard)
    finally:
        for worker in workers.values():
            worker.process.kill()
            worker.process.join()


def _ready(workers: dict[Shard, _Worker]) -> list[Shard]:
    """Waits for messages and returns the shards that sent one, or whose process has ended."""
    ready = set(wait([worker.receiver for worker in workers.values()]))
    return [shard for shard, worker in workers.items() if worker.receiver in ready]


def _replace(workers: dict[Shard, _Worker], work: Work, shard: Shard) -> None:
    """Removes a worker whose process has ended, and starts another one if it died."""
    worker = workers.pop(shard)
    worker.process.join()
    code = worker.process.exitcode
    if code == 0:
        return
    if worker.starts == 1:
        raise IncompleteError(
            f"the process of shard {shard} died {_STARTS} times, the last time with exit code "
            f"{code}; what was decided is kept: run the same command to resume"
        )
    workers[shard] = _started(work, shard, worker.starts - 1)


def _received(receiver: Connection) -> Progress | RkdError | None:
    """Returns the message of a worker, None where its process has ended."""
    try:
        message: Progress | RkdError = receiver.recv()
    except (EOFError, OSError):
        return None
    return message


def _together(moments: Collection[Progress]) -> Progress:
    """Returns the progress of all shards as one, in the stage of the slowest one."""
    slowest = max(moments, key=lambda moment: moment.passes_left)
    together = Progress(slowest.stage, 0, 0, 0, 0, 0, 0)
    for moment in moments:
        together = replace(
            together,
            decided=together.decided + moment.decided,
            total=together.total + moment.total,
            robust=together.robust + moment.robust,
            examples=together.examples + moment.examples,
            passes=together.passes + moment.passes,
            passes_left=together.passes_left + moment.passes_left,
        )
    return together


def _started(work: Work, shard: Shard, starts: int) -> _Worker:
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    task = bytes(ForkingPickler.dumps(partial(_serve, work, shard)))
    process = context.Process(target=begin, args=(task, sender), name=f"rkd {shard}")
    with _interrupts_ignored():
        process.start()
    sender.close()
    return _Worker(process, receiver, starts)


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Lets processes that start meanwhile ignore Ctrl-C, and a terminal that is closed.

    Both go to all of them; the first process ends the others.
    """
    before = {one: signal.signal(one, signal.SIG_IGN) for one in (signal.SIGINT, signal.SIGHUP)}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def _serve(work: Work, shard: Shard, sender: Connection) -> None:
    """Does the work of one process."""
    try:
        work(shard, sender.send)
    except RkdError as error:
        sender.send(error)
    except Exception as error:  # noqa: BLE001  # a traceback is no answer
        if is_out_of_memory(error):
            os._exit(1)  # another start may find more
        sender.send(unforeseen(error))
