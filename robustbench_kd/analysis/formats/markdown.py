"""Markdown tables: accuracies in percent with their 95 % interval."""

import re
from collections.abc import Iterable

from robustbench_kd.analysis.leaderboard import Leaderboard
from robustbench_kd.analysis.table import Cell, Column, Table, legend, tabulate

SUFFIX = "md"

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>()#!|~&])")


def render(leaderboard: Leaderboard) -> str:
    """Returns the tables that a person would read; names are escaped, whatever they hold."""
    if not leaderboard.boards:
        return "# Leaderboard\n\nNo finished runs.\n"
    tables = [_table(tabulate(board)) for board in leaderboard.boards]
    return "\n\n".join(["# Leaderboard", *tables, *legend(leaderboard.boards)]) + "\n"


def _table(table: Table) -> str:
    rule = _line("--:" if column.numeric else ":--" for column in table.columns)
    headings = _line(column.heading for column in table.columns)
    rows = [_row(table.columns, row) for row in (*table.rows, *table.references)]
    return "\n".join([f"## {_escaped(table.title)}", "", headings, rule, *rows])


def _row(columns: tuple[Column, ...], cells: tuple[Cell, ...]) -> str:
    pairs = zip(columns, cells, strict=True)
    return _line(cell.text if column.numeric else _escaped(cell.text) for column, cell in pairs)


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _escaped(text: str) -> str:
    """Escapes everything Markdown or HTML could take for markup, and folds spaces."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))
