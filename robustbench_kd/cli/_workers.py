"""Many processes for one evaluation: the options, and what each of the processes does."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from robustbench_kd.cli._eval_options import EvalOptions
from robustbench_kd.core.errors import RegressionError, UsageError
from robustbench_kd.core.shards import Shard, shards
from robustbench_kd.core.threat import Threat

if TYPE_CHECKING:
    from robustbench_kd.engine.evaluate import Outcome
    from robustbench_kd.engine.run.progress import Observer
    from robustbench_kd.engine.run.request import Request

Load: TypeAlias = Callable[[EvalOptions], "Request"]
Spread: TypeAlias = Callable[["Request", "Observer"], None]


@dataclass(frozen=True)
class Task:
    """What every worker of a run gets.

    `load` makes the request from the options; its threat is that of the run. `threads` is the
    number of threads of a worker; 0 leaves it as it is.
    """

    load: Load
    options: EvalOptions
    threat: Threat
    smaller: Path | None
    threads: int = 0

    def __call__(self, shard: Shard, observer: "Observer") -> None:
        """Decides one shard, silently."""
        import torch

        from robustbench_kd.cli import _console, _devices
        from robustbench_kd.engine.evaluate import evaluate_shard

        _console.err.quiet = True  # the process that started this one has said it all
        if self.threads:
            torch.set_num_threads(self.threads)

        device = _devices.of_worker(self.options.device, shard.number)
        request = self.load(replace(self.options, device=device))
        asked = replace(request, threat=self.threat, smaller=self.smaller)
        evaluate_shard(asked, self.options.results, shard, observer=observer)


def own_shard(options: EvalOptions) -> Shard | None:
    """Reads --shard, and refuses options that do not go with it."""
    if not options.shard:
        return None
    if options.workers > 1 or options.executor == "ray":
        raise UsageError(
            "--shard is for processes that you start yourself: leave --workers and --executor out"
        )
    if options.fresh:
        raise UsageError(
            "--fresh would delete what other shards have decided: delete the folder of the run "
            "instead"
        )
    return Shard.parse(options.shard)


def spread(load: Load, options: EvalOptions) -> Spread | None:
    """Returns what lets workers decide a request that each of them loads.

    It is None for a single process.
    """
    if options.executor == "ray":
        return partial(_on_ray, load, options)
    if options.workers > 1:
        return partial(_here, load, options)
    return None


def decide(shard: Shard, request: "Request", curves: list[list[Threat]], results: Path) -> None:
    """Decides one shard under each threat in this process, and says how to go on."""
    from robustbench_kd.cli import _console, _runs
    from robustbench_kd.engine.evaluate import evaluate_shard

    if any(len(curve) > 1 for curve in curves):
        raise UsageError(
            "--shard cannot know what a smaller radius breaks elsewhere: give each radius by a "
            "--threat of its own"
        )
    for (threat,) in curves:
        with _console.progress() as line:
            observer = _runs.observer(line, f"{request.subject.name} {threat} shard {shard}")
            asked = replace(request, threat=threat)
            folder = evaluate_shard(asked, results, shard, observer=observer)
        _console.say(
            f"shard {shard} is decided, {folder}: 'rkd merge {results}' once all of them are",
            "dim",
        )


def raise_if_refuted(outcomes: list["Outcome"]) -> None:
    """Raises `RegressionError` where a claim was refuted."""
    refuted = []
    for outcome in outcomes:
        claim = outcome.record.claim
        if claim and not claim.holds:
            refuted.append(f"{outcome.record.identity.model} ({claim.text})")
    if refuted:
        raise RegressionError(f"refuted: {', '.join(refuted)}")


def _here(load: Load, options: EvalOptions, request: "Request", observer: "Observer") -> None:
    import torch

    from robustbench_kd.engine.workers.local import in_processes

    count = min(options.workers, len(request.data))
    threads = max(1, torch.get_num_threads() // count)
    task = Task(load, options, request.threat, request.smaller, threads)
    in_processes(task, shards(count), observer=observer)


def _on_ray(load: Load, options: EvalOptions, request: "Request", _observer: "Observer") -> None:
    from robustbench_kd.cli import _console
    from robustbench_kd.engine.workers.on_ray import on_ray

    count = min(options.workers, len(request.data))
    absolute = replace(
        options, results=options.results.resolve(), data_dir=options.data_dir.resolve()
    )
    smaller = request.smaller.resolve() if request.smaller else None

    def finished(done: int) -> None:
        _console.say(f"{done} of {count} shards are decided", "dim")

    on_ray(
        Task(load, absolute, request.threat, smaller),
        shards(count),
        gpu=request.device.type == "cuda",
        finished=finished,
    )
