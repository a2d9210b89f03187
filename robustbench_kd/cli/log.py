"""Hand stored runs to TensorBoard, MLflow or Weights & Biases."""

from pathlib import Path

import click

from robustbench_kd.core.plugins import find, module

_KIND = "analysis/trackers"


@click.command("log")
@click.argument("results", type=click.Path(path_type=Path), default=Path("results"))
@click.option(
    "--to",
    "trackers",
    multiple=True,
    required=True,
    metavar="TRACKER[:PLACE]",
    help="tensorboard:DIR, mlflow:URI or wandb:PROJECT; without a place the tracker's usual one; "
    "repeatable.",
)
def command(results: Path, trackers: tuple[str, ...]) -> None:
    """Logs every finished run under RESULTS.

    It logs parameters, accuracies, passes and seconds by stage, and findings as text. A run is
    logged once, however often the command runs. Each tracker is an extra, such as
    robustbench-kd[mlflow].

    \b
    Examples:
      rkd log results --to tensorboard:build/tensorboard
      rkd log results --to mlflow:http://localhost:5000 --to wandb:robustness
    """
    from robustbench_kd.analysis.leaderboard import read_records
    from robustbench_kd.analysis.tracking import entry
    from robustbench_kd.cli import _console

    chosen = []
    for text in trackers:
        name, _, place = text.partition(":")
        chosen.append((name, module(_KIND, find(_KIND, name, "tracker").stem), place))
    records, left_out = read_records(results)
    for reason in left_out:
        _console.say(f"left out: {reason}", "yellow")
    if not records:
        _console.say(f"there is no finished run under '{results}'", "yellow")
    for record in records.values():
        logged = entry(record)
        for name, tracker, place in chosen:
            where = tracker.log(logged, place)
            _console.write(f"{logged.model} {logged.run_id}: {name} {where}")
