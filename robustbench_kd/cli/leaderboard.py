"""Rank stored runs: print the tables, and write them as CSV, Markdown, HTML, LaTeX or JSON."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from robustbench_kd.cli import _options
from robustbench_kd.core.plugins import find, module

if TYPE_CHECKING:
    from types import ModuleType

    from robustbench_kd.analysis.leaderboard import Leaderboard, View
    from robustbench_kd.analysis.table import Table

_FORMATS = "analysis/formats"
_ONLY_IN_FILES = {"passes", "run"}  # a terminal is narrow


@dataclass(frozen=True, kw_only=True)
class LeaderboardOptions:
    """The options of `rkd leaderboard`."""

    results: Path
    where: tuple[str, ...]
    sort: str
    top: int | None
    formats: str
    published: Path | None
    as_json: bool

    def view(self) -> "View":
        """Returns which runs are shown, and in which order."""
        from robustbench_kd.analysis.leaderboard import View

        where: dict[str, set[str]] = {}
        for text in self.where:
            for key, value in _options.parse_texts((text,), "--where").items():
                where.setdefault(key, set()).add(value)
        return View(where, self.sort, self.top)

    def writers(self) -> "list[ModuleType]":
        """Returns the modules of the formats to write."""
        names = dict.fromkeys(name.strip() for name in self.formats.split(","))
        return [module(_FORMATS, find(_FORMATS, name, "format").stem) for name in names]


@click.command("leaderboard")
@click.argument("results", type=click.Path(path_type=Path), default=Path("results"))
@click.option(
    "--where",
    multiple=True,
    metavar="KEY=VALUE",
    help="Only runs with this model, family, architecture, dataset, norm, threat, suite, engine, "
    "mode or verdict; repeatable.",
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
    help="RobustBench's model_info, a file or folder: its numbers are shown beneath the runs, "
    "without a rank.",
)
@_options.as_json
@_options.typed(LeaderboardOptions)
def command(options: LeaderboardOptions) -> None:
    """Ranks the runs under RESULTS by robust accuracy and writes RESULTS/leaderboard.csv, .md, ...

    Runs that differ in data, examples, threat, suite, engine or mode are in tables of their own.
    Several --where of one key are alternatives; of different keys all must hold. --json prints the
    records of the runs instead of tables.

    \b
    Examples:
      rkd leaderboard results
      rkd leaderboard --where dataset=cifar10 --where threat=linf:8/255 --top 10 --format latex
      rkd leaderboard --published robustbench/model_info
    """
    from robustbench_kd.analysis.leaderboard import read_leaderboard
    from robustbench_kd.analysis.table import tabulate
    from robustbench_kd.cli import _console

    writers = options.writers()
    found = read_leaderboard(options.results, options.view())
    leaderboard = _with_published(found, options.published)
    for reason in leaderboard.left_out:
        _console.say(f"left out: {reason}", "yellow")
    written = _write(options.results, leaderboard, writers)
    if options.as_json:
        _console.write_json(_records(leaderboard))
        return

    for board in leaderboard.boards:
        _show(tabulate(board))
    if not leaderboard.boards:
        wanted = " that --where asks for" if options.where else ""
        _console.say(f"there is no finished run{wanted} under '{options.results}'", "yellow")
    _console.say(f"{' and '.join(written)} written", "dim")


def _records(leaderboard: "Leaderboard") -> list[object]:
    records: list[object] = []
    for board in leaderboard.boards:
        records += [json.loads(record.model_dump_json()) for record in board.records]
    return records


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
        f"{len(shown)} of {len(numbers)} published numbers are for a data set and threat shown "
        "here",
        "dim",
    )
    return made


def _write(results: Path, leaderboard: "Leaderboard", writers: "Iterable[ModuleType]") -> list[str]:
    from robustbench_kd.core.files import write_text

    written = []
    for writer in writers:
        path = results / f"leaderboard.{writer.SUFFIX}"
        write_text(path, writer.render(leaderboard))
        written.append(str(path))
    return written


def _show(table: "Table") -> None:
    from robustbench_kd.cli import _console

    shown = [
        index for index, column in enumerate(table.columns) if column.heading not in _ONLY_IN_FILES
    ]
    sides = {}
    for index in shown:
        column = table.columns[index]
        sides[column.heading] = "right" if column.numeric else "left"

    drawn = _console.table(table.title, sides)
    for row in table.rows:
        cells = [_markup(table.columns[index].heading, row[index].text) for index in shown]
        drawn.add_row(*cells)
    for row in table.references:
        drawn.add_row(*(_console.plain(row[index].text) for index in shown), style="dim")
    _console.show_table(drawn, spare=("parameters", "family", "time"))


def _markup(heading: str, text: str) -> str:
    from robustbench_kd.cli import _console

    if heading == "verdict":
        return _console.verdict(text or None)
    return _console.plain(text)
