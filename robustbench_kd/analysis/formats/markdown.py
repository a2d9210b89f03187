"""Markdown tables: accuracies in percent with their 95 % interval."""

import re

from robustbench_kd.analysis.leaderboard import Board, Leaderboard
from robustbench_kd.core.records import Accuracy, RunRecord

_HEADINGS = ("rank", "model", "family", "n", "clean %", "robust %", "verdict", "parameters", "passes", "run")
_RULE = ("--:", ":--", ":--", "--:", "--:", "--:", ":--", "--:", "--:", ":--")
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>()#!|~&])")


def render(leaderboard: Leaderboard) -> str:
    """Returns the tables that a person would read; names are escaped, whatever they hold."""
    if not leaderboard.boards:
        return "# Leaderboard\n\nNo finished runs.\n"
    return "# Leaderboard\n\n" + "\n\n".join(_board(board) for board in leaderboard.boards) + "\n\n" + _LEGEND


_LEGEND = """Accuracies in percent of n examples, with 95 % Wilson intervals; robust accuracy is an upper bound. Runs in different
tables differ in data, examples, threat, suite or engine and must not be ranked together.
"""


def _board(board: Board) -> str:
    lines = [f"## {_escaped(board.title)}", "", _line(_HEADINGS), _line(_RULE)]
    lines += [_line(_cells(rank, record)) for rank, record in zip(board.ranks, board.records, strict=True)]
    return "\n".join(lines)


def _cells(rank: int, record: RunRecord) -> tuple[str, ...]:
    identity = record.identity
    return (
        str(rank),
        _escaped(identity.model),
        _escaped(identity.family),
        str(identity.examples),
        _percent(record.clean),
        _percent(record.robust),
        record.verdict or "",
        f"{record.parameters:,}",
        f"{record.forwards + record.backwards:,}",
        _escaped(record.run_id),
    )


def _line(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cells) + " |"


def _percent(accuracy: Accuracy | None) -> str:
    if accuracy is None:
        return ""
    return f"{100 * accuracy.value:.1f} [{100 * accuracy.ci_low:.1f}, {100 * accuracy.ci_high:.1f}]"


def _escaped(text: str) -> str:
    """Escapes everything Markdown or HTML could take for markup, and folds line breaks."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))
