r"""LaTeX tables in the style of booktabs, one `table` per board; the document needs `\usepackage{booktabs}`."""

import re
from collections.abc import Iterable

from robustbench_kd.analysis.leaderboard import Leaderboard
from robustbench_kd.analysis.table import Table, legend, tabulate

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
    tables = [_table(tabulate(board)) for board in leaderboard.boards]
    return "\n\n".join([*tables, *(f"% {note}" for note in legend(leaderboard.boards))]) + "\n"


def _table(table: Table) -> str:
    sides = "".join("r" if column.numeric else "l" for column in table.columns)
    rule = [r"\midrule"] if table.references else []
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_escaped(table.title)}}}",
        rf"\begin{{tabular}}{{{sides}}}",
        r"\toprule",
        _line(column.heading for column in table.columns),
        r"\midrule",
        *(_line(cell.text for cell in row) for row in table.rows),
        *rule,
        *(_line(cell.text for cell in row) for row in table.references),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines)


def _line(cells: Iterable[str]) -> str:
    return " & ".join(map(_escaped, cells)) + r" \\"


def _escaped(text: str) -> str:
    """Escapes everything TeX could take for a command, and folds spaces."""
    escaped = " ".join(text.split()).translate(_ESCAPES)
    return _HYPHENS.sub("-{}", escaped)
