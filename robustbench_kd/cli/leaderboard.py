"""Rank stored runs: print the tables, and write them as CSV, Markdown, HTML, LaTeX or JSON."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from robustbench_kd.cli import _options

if TYPE_CHECKING:
    from types import ModuleType

    from robustbench_kd.analysis.leaderboard import Leaderboard, View
    from robustbench_kd.analysis.table import Table

_FORMATS = "analysis/formats"
_ONLY_IN_FILES = {"passes", "run"}  # a terminal is narrow


@click.command("leaderboard")
@click.argument("results", type=click.Path(path_type=Path), default=Path("results"))
@click.option(
    "--where",
    multiple=True,
    metavar="KEY=VALUE",
    help="Only runs with this model, family, architecture, dataset, norm, threat, suite, engine, mode or verdict; repeatable.",
)
@click.option(
    "--sort",
    default="robust",
    show_default=True,
    help="robust, clean or gap (largest first), model, time or passes (smallest first).",
)
@click.option(
    "--top", type=click.IntRange(min=1), help="Only the first N runs of each table.  [default: all]"
)
@click.option(
    "--format",
    "formats",
    default="csv,markdown",
    show_default=True,
    metavar="NAME,...",
    help="Files to write: csv, markdown, html, latex, json, robustbench, huggingface.",
)
@click.option(
    "--published",
    type=click.Path(path_type=Path),
    help="RobustBench's model_info, a file or folder: its numbers stand beneath the runs, without a rank.",
)
@_options.as_json
def command(results: Path, **options: Any) -> None:
    """Ranks the runs under RESULTS by robust accuracy and writes what it shows to RESULTS/leaderboard.csv, .md, ...

    Runs that differ in data, examples, threat, suite, engine or mode stand in tables of their own. Several --where of
    one key are alternatives; of different keys all must hold. --json prints the records of the runs instead of tables.

    \b
    Examples:
      rkd leaderboard results
      rkd leaderboard --where dataset=cifar10 --where threat=linf:8/255 --top 10 --format latex
      rkd leaderboard --published robustbench/model_info
    """
    from robustbench_kd.analysis.leaderboard import read_leaderboard
    from robustbench_kd.analysis.table import tabulate
    from robustbench_kd.cli import _console

    writers = _writers(options["formats"])
    leaderboard = _with_published(read_leaderboard(results, _view(options)), options["published"])
    for reason in leaderboard.left_out:
        _console.say(f"left out: {reason}", "yellow")
    written = _write(results, leaderboard, writers)
    if options["as_json"]:
        records = [record for board in leaderboard.boards for record in board.records]
        _console.write_json([json.loads(record.model_dump_json()) for record in records])
        return
    for board in leaderboard.boards:
        _show(tabulate(board))
    if not leaderboard.boards:
        wanted = " that --where asks for" if options["where"] else ""
        _console.say(f"there is no finished run{wanted} under '{results}'", "yellow")
    _console.say(f"{' and '.join(written)} written", "dim")


def _writers(text: str) -> "list[ModuleType]":
    from robustbench_kd.core.plugins import find, module

    names = dict.fromkeys(name.strip() for name in text.split(","))
    return [module(_FORMATS, find(_FORMATS, name, "format").stem) for name in names]


def _view(options: dict[str, Any]) -> "View":
    from robustbench_kd.analysis.leaderboard import View

    where: dict[str, set[str]] = {}
    for text in options["where"]:
        for key, value in _options.parse_texts((text,), "--where").items():
            where.setdefault(key, set()).add(value)
    return View(where, options["sort"], options["top"])


def _with_published(leaderboard: "Leaderboard", path: Path | None) -> "Leaderboard":
    from robustbench_kd.analysis.leaderboard import beside
    from robustbench_kd.analysis.published import read_published
    from robustbench_kd.cli import _console

    if path is None:
        return leaderboard
    numbers, left_out = read_published(path)
    for reason in left_out:
        _console.say(f"left out: {reason}", "yellow")
    made = beside(leaderboard, numbers)
    shown = {number for board in made.boards for number in board.published}
    _console.say(
        f"{len(shown)} of {len(numbers)} published numbers are for a data set and threat shown here",
        "dim",
    )
    return made


def _write(results: Path, leaderboard: "Leaderboard", writers: "Iterable[ModuleType]") -> list[str]:
    from robustbench_kd.core.rundir import write_text

    written = []
    for writer in writers:
        path = results / f"leaderboard.{writer.SUFFIX}"
        write_text(path, writer.render(leaderboard))
        written.append(str(path))
    return written


def _show(table: "Table") -> None:
    from robustbench_kd.cli import _console

    kept = [
        index for index, column in enumerate(table.columns) if column.heading not in _ONLY_IN_FILES
    ]
    columns = {
        table.columns[index].heading: "right" if table.columns[index].numeric else "left"
        for index in kept
    }
    shown = _console.table(table.title, columns)
    for row in table.rows:
        shown.add_row(*(_markup(table.columns[index].heading, row[index].text) for index in kept))
    for row in table.references:
        shown.add_row(*(_console.plain(row[index].text) for index in kept), style="dim")
    _console.show_table(shown, spare=("parameters", "family", "time"))


def _markup(heading: str, text: str) -> str:
    from robustbench_kd.cli import _console

    return _console.verdict(text or None) if heading == "verdict" else _console.plain(text)
