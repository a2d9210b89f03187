"""Tidy CSV: one row per run and stage, as a person would plot it."""

from collections.abc import Mapping
from typing import Any

from robustbench_kd.analysis.leaderboard import Leaderboard
from robustbench_kd.core.records import RunRecord
from robustbench_kd.core.rows import AttackRow, attack_rows
from robustbench_kd.core.rundir import to_csv
from robustbench_kd.core.text import printable

SUFFIX = "csv"


class _Row(AttackRow):
    """A stage of a run; `missed` bounds what a run in fast mode could have missed."""

    mode: str
    missed: float | None


def render(leaderboard: Leaderboard) -> str:
    """Returns the stages of all ranked runs, in the order of the tables."""
    rows: list[_Row] = []
    for board in leaderboard.boards:
        for record in board.records:
            rows += _rows(record)
    return to_csv(rows, _Row)


def _rows(record: RunRecord) -> list[_Row]:
    own = {"mode": record.identity.mode, "missed": record.missed}
    return [_row({**row.model_dump(), **own}) for row in attack_rows(record)]


def _row(cells: Mapping[str, Any]) -> _Row:
    """Returns a row without control characters, which a terminal would obey."""
    shown = {}
    for name, value in cells.items():
        shown[name] = printable(value) if isinstance(value, str) else value
    return _Row.model_validate(shown)
