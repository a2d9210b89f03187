"""Lets a Ray cluster decide the shards of a run: one task per shard.

Ray runs a task again where its process or node dies.
"""

from collections.abc import Callable, Sequence
from importlib import import_module
from types import ModuleType

from robustbench_kd.core.errors import RkdError, UsageError
from robustbench_kd.core.shards import Shard
from robustbench_kd.core.unforeseen import unforeseen
from robustbench_kd.engine.run.progress import nobody
from robustbench_kd.engine.workers.local import Work
from robustbench_kd.tensors.oracle import is_out_of_memory

_RETRIES = 3


def on_ray(
    work: Work, shards: Sequence[Shard], *, gpu: bool, finished: Callable[[int], None]
) -> None:
    """Calls `work` for every shard as a task of a cluster; returns when all have ended.

    The cluster is the one at `RAY_ADDRESS`, or this machine. `work` must be picklable, and go on
    from its last state when it is called again. All nodes must see the same files under the same
    names. `finished` gets the number of finished shards. Raises what `work` raises, other errors
    than our own as `InternalError`, and `UsageError` without Ray.
    """
    ray = _ray()
    resources = {"num_cpus": 1, "num_gpus": 1 if gpu else 0, "max_retries": _RETRIES}
    started_here = not ray.is_initialized()
    if started_here:
        ray.init(log_to_driver=False, logging_level="error", include_dashboard=False)
    try:
        task = ray.remote(**resources)(_error_of)
        waiting = [task.remote(work, shard) for shard in shards]
        while waiting:
            done, waiting = ray.wait(waiting)
            _raise_first(ray.get(done))
            finished(len(shards) - len(waiting))
    finally:
        if started_here:
            ray.shutdown()


def _error_of(work: Work, shard: Shard) -> RkdError | None:
    """Returns an error of our own as a value: Ray would wrap it up."""
    try:
        work(shard, nobody)
    except RkdError as error:
        return error
    except Exception as error:  # a traceback is no answer; out of memory, another try may help
        if is_out_of_memory(error):
            raise
        return unforeseen(error)
    return None


def _raise_first(errors: Sequence[RkdError | None]) -> None:
    for error in errors:
        if error:
            raise error


def _ray() -> ModuleType:
    try:
        return import_module("ray")
    except ImportError as error:
        raise UsageError(
            "--executor ray needs Ray: pip install 'robustbench-kd[ray]', or use --workers"
        ) from error
