"""Tidy CSV: one row per run and stage, as a person would plot it."""

from robustbench_kd.analysis.leaderboard import Leaderboard
from robustbench_kd.core.records import RunRecord
from robustbench_kd.core.rows import AttackRow, attack_rows
from robustbench_kd.core.rundir import to_csv

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
    return [_Row.model_validate({**row.model_dump(), **own}) for row in attack_rows(record)]
