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
    rule, headings = [], []
    for column in table.columns:
        headings.append(column.heading)
        rule.append("--:" if column.numeric else ":--")
    rows = [_row(table.columns, row) for row in (*table.rows, *table.references)]
    lines = [f"## {_escaped(table.title)}", "", _line(headings), _line(rule), *rows]
    return "\n".join(lines)


def _row(columns: tuple[Column, ...], cells: tuple[Cell, ...]) -> str:
    texts = []
    for column, cell in zip(columns, cells, strict=True):
        texts.append(cell.text if column.numeric else _escaped(cell.text))
    return _line(texts)


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _escaped(text: str) -> str:
    """Escapes everything Markdown or HTML could take for markup, and folds spaces."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))
