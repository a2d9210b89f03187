"""Many processes for one evaluation: the options, and what each of them does."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from robustbench_kd.cli import _options
from robustbench_kd.core.errors import RegressionError, UsageError
from robustbench_kd.core.shards import Shard, shards
from robustbench_kd.core.threat import Threat

if TYPE_CHECKING:
    from robustbench_kd.engine.evaluate import Outcome
    from robustbench_kd.engine.run.progress import Observer
    from robustbench_kd.engine.run.request import Request

Command = TypeVar("Command", bound=Callable[..., Any])
Load = Callable[[dict[str, Any]], "Request"]
Spread = Callable[["Request", "Observer"], None]

options: Callable[[Command], Command] = _options.together(
    click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True,
                 help="Processes that share the examples; of several GPUs each takes its own."),
    click.option("--executor", type=click.Choice(["local", "ray"]), default="local", show_default=True,
                 help="Where the workers run: on this machine, or as tasks of a Ray cluster."),
    click.option("--shard", default="", metavar="I/N", help="Decide this part of the examples only, for 'rkd merge'."),
    click.option("--until-decided", "claim", default="", metavar="CLAIM",
                 help="Stop as soon as 'robust>=0.45' is proved or refuted; exit 1 if refuted."),
)  # fmt: skip


@dataclass(frozen=True)
class Task:
    """What every worker of a run is given: `load` gives it the request by the options, its threat is that of the run."""

    load: Load
    options: dict[str, Any]
    threat: Threat
    smaller: Path | None
    threads: int = 0

    def __call__(self, shard: Shard, observer: "Observer") -> None:
        """Decides one shard, silently, on as many threads as are a worker's; 0 leaves them as they are."""
        import torch

        from robustbench_kd.cli import _console, _devices
        from robustbench_kd.engine.evaluate import evaluate_shard

        _console.err.quiet = True  # the one who started this has said it all
        if self.threads:
            torch.set_num_threads(self.threads)
        request = self.load(
            self.options | {"device": _devices.share(self.options["device"], shard.number)}
        )
        asked = replace(request, threat=self.threat, smaller=self.smaller)
        evaluate_shard(asked, self.options["results"], shard, observer=observer)


def own_shard(options: dict[str, Any]) -> Shard | None:
    """Reads --shard, and refuses what does not go with it."""
    if not options["shard"]:
        return None
    if options["workers"] > 1 or options["executor"] == "ray":
        raise UsageError(
            "--shard is for processes that you start yourself: leave --workers and --executor out"
        )
    if options["fresh"]:
        raise UsageError(
            "--fresh would forget what other shards have decided: delete the folder of the run instead"
        )
    return Shard.parse(options["shard"])


def spread(load: Load, options: dict[str, Any]) -> Spread | None:
    """Returns what lets workers decide a request that each of them loads; None where there is to be one process only."""
    if options["executor"] == "ray":
        return partial(_on_ray, load, options)
    return partial(_here, load, options) if options["workers"] > 1 else None


def decide(shard: Shard, request: "Request", curves: list[list[Threat]], results: Path) -> None:
    """Decides one shard under each threat in this process, and says how to go on."""
    from robustbench_kd.cli import _console, _runs
    from robustbench_kd.engine.evaluate import evaluate_shard

    if any(len(curve) > 1 for curve in curves):
        raise UsageError(
            "--shard cannot know what a smaller radius breaks elsewhere: give each radius by a --threat of its own"
        )
    for (threat,) in curves:
        with _console.progress() as line:
            observer = _runs.observer(line, f"{request.subject.name} {threat} shard {shard}")
            folder = evaluate_shard(
                replace(request, threat=threat), results, shard, observer=observer
            )
        _console.say(
            f"shard {shard} is decided, {folder}: 'rkd merge {results}' once all of them are", "dim"
        )


def raise_if_refuted(outcomes: list["Outcome"]) -> None:
    """Raises `RegressionError` where a claim was refuted."""
    refuted = [
        outcome.record
        for outcome in outcomes
        if outcome.record.claim and not outcome.record.claim.holds
    ]
    if refuted:
        names = ", ".join(
            f"{record.identity.model} ({record.claim.text})" for record in refuted if record.claim
        )
        raise RegressionError(f"refuted: {names}")


def _here(load: Load, options: dict[str, Any], request: "Request", observer: "Observer") -> None:
    import torch

    from robustbench_kd.engine.workers.local import in_processes

    count = min(options["workers"], len(request.data))
    threads = max(1, torch.get_num_threads() // count)
    in_processes(
        Task(load, options, request.threat, request.smaller, threads),
        shards(count),
        observer=observer,
    )


def _on_ray(load: Load, options: dict[str, Any], request: "Request", _observer: "Observer") -> None:
    from robustbench_kd.cli import _console
    from robustbench_kd.engine.workers.on_ray import on_ray

    count = min(options["workers"], len(request.data))
    absolute = options | {
        "results": options["results"].resolve(),
        "data_dir": Path(options["data_dir"]).resolve(),
    }
    smaller = request.smaller.resolve() if request.smaller else None
    on_ray(
        Task(load, absolute, request.threat, smaller),
        shards(count),
        gpu=request.device.type == "cuda",
        finished=lambda done: _console.say(f"{done} of {count} shards are decided", "dim"),
    )
