"""Lets a Ray cluster decide the shards of a run: a task per shard, which Ray runs again where its process or node dies."""

from collections.abc import Callable, Sequence
from importlib import import_module
from types import ModuleType
from typing import Any

from robustbench_kd.core.errors import RkdError, UsageError
from robustbench_kd.core.shards import Shard
from robustbench_kd.engine.run.progress import nobody
from robustbench_kd.engine.workers.local import Work

_RETRIES = 3


def on_ray(
    work: Work, shards: Sequence[Shard], *, gpu: bool, finished: Callable[[int], None]
) -> None:
    """Calls `work` for every shard as a task of the cluster at `RAY_ADDRESS`, or of this machine; returns when all ended.

    `work` must be picklable, and go on where it was when it is called again. All nodes must see the
    same files under the same names. `finished` is told how many shards are. Raises what `work`
    raises of our own errors, and `UsageError` without Ray.
    """
    ray = _ray()
    needs = {"num_cpus": 1, "num_gpus": 1 if gpu else 0, "max_retries": _RETRIES}
    began = not ray.is_initialized()
    if began:
        ray.init(log_to_driver=False, logging_level="error", include_dashboard=False)
    try:
        task = ray.remote(**needs)(_told)
        waiting = [task.remote(work, shard) for shard in shards]
        while waiting:
            done, waiting = ray.wait(waiting)
            _raise(ray.get(done))
            finished(len(shards) - len(waiting))
    finally:
        if began:
            ray.shutdown()


def _told(work: Work, shard: Shard) -> RkdError | None:
    """Returns an error of our own as a value: Ray would wrap it up."""
    try:
        work(shard, nobody)
    except RkdError as error:
        return error
    return None


def _raise(answers: Sequence[RkdError | None]) -> None:
    for error in answers:
        if error:
            raise error


def _ray() -> ModuleType | Any:
    try:
        return import_module("ray")
    except ImportError as error:
        raise UsageError(
            "--executor ray needs Ray: pip install 'robustbench-kd[ray]', or use --workers"
        ) from error
