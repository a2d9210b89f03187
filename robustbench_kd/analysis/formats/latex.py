r"""LaTeX tables in the style of booktabs, one `table` per board.

The document needs `\usepackage{booktabs}`.
"""

import re
from collections.abc import Iterable

from robustbench_kd.analysis.leaderboard import Leaderboard
from robustbench_kd.analysis.table import Cell, Table, legend, tabulate

SUFFIX = "tex"

_WORDS = {
    "\\": r"\textbackslash{}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
}
_ESCAPES = str.maketrans(_WORDS | {letter: f"\\{letter}" for letter in "{}$&#%_"})
_HYPHENS = re.compile("-(?=-)")  # two in a row would become a dash


def render(leaderboard: Leaderboard) -> str:
    """Returns the tables for a paper; names are escaped, whatever they hold."""
    if not leaderboard.boards:
        return "% No finished runs.\n"
    parts = [_table(tabulate(board)) for board in leaderboard.boards]
    for note in legend(leaderboard.boards):
        parts.append(f"% {note}")
    return "\n\n".join(parts) + "\n"


def _table(table: Table) -> str:
    sides, headings = "", []
    for column in table.columns:
        sides += "r" if column.numeric else "l"
        headings.append(column.heading)
    references = _lines(table.references)
    if references:
        references.insert(0, r"\midrule")
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_escaped(table.title)}}}",
        rf"\begin{{tabular}}{{{sides}}}",
        r"\toprule",
        _line(headings),
        r"\midrule",
        *_lines(table.rows),
        *references,
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines)


def _lines(rows: Iterable[Iterable[Cell]]) -> list[str]:
    return [_line(cell.text for cell in row) for row in rows]


def _line(cells: Iterable[str]) -> str:
    return " & ".join(map(_escaped, cells)) + r" \\"


def _escaped(text: str) -> str:
    """Escapes everything TeX could take for a command, and folds spaces."""
    escaped = " ".join(text.split()).translate(_ESCAPES)
    return _HYPHENS.sub("-{}", escaped)
