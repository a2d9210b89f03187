"""Rank stored runs and write leaderboard.csv and leaderboard.md."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from robustbench_kd.cli import _options

if TYPE_CHECKING:
    from robustbench_kd.analysis.leaderboard import Board


@click.command("leaderboard")
@click.argument("results", type=click.Path(path_type=Path), default=Path("results"))
@_options.as_json
def command(results: Path, *, as_json: bool) -> None:
    """Ranks the runs under RESULTS and writes RESULTS/leaderboard.csv (tidy) and RESULTS/leaderboard.md.

    Runs that differ in data, examples, threat, suite or engine stand in tables of their own.

    \b
    Example:
      rkd leaderboard results
    """
    from robustbench_kd.analysis.formats import csv, markdown
    from robustbench_kd.analysis.leaderboard import read_leaderboard
    from robustbench_kd.cli import _console
    from robustbench_kd.core.rundir import write_text

    leaderboard = read_leaderboard(results)
    for reason in leaderboard.left_out:
        _console.say(f"left out: {reason}", "yellow")
    write_text(results / "leaderboard.csv", csv.render(leaderboard))
    write_text(results / "leaderboard.md", markdown.render(leaderboard))
    if as_json:
        records = [record for board in leaderboard.boards for record in board.records]
        _console.write_json([record.model_dump(mode="json") for record in records])
        return
    for board in leaderboard.boards:
        _show(board)
    _console.say(f"{results / 'leaderboard.csv'} and {results / 'leaderboard.md'} written", "dim")


def _show(board: "Board") -> None:
    from robustbench_kd.cli import _console

    columns = {"#": "right", "model": "left", "family": "left", "n": "right", "clean %": "right", "robust %": "right"}
    table = _console.table(board.title, columns | {"verdict": "left", "parameters": "right", "time": "right"})
    for rank, record in zip(board.ranks, board.records, strict=True):
        table.add_row(
            str(rank),
            _console.plain(record.identity.model),
            _console.plain(record.identity.family),
            str(record.identity.examples),
            _console.percent(record.clean),
            _console.percent(record.robust),
            _console.verdict(record.verdict),
            f"{record.parameters:,}",
            _console.duration(record.seconds),
        )
    _console.show_table(table)
