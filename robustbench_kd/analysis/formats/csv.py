"""Tidy CSV: one row per run and stage, as a person would plot it."""

from robustbench_kd.analysis.leaderboard import Leaderboard
from robustbench_kd.core.records import AttackRow, attack_rows
from robustbench_kd.core.rundir import to_csv


def render(leaderboard: Leaderboard) -> str:
    """Returns the stages of all ranked runs, in the order of the tables."""
    rows = [row for board in leaderboard.boards for record in board.records for row in attack_rows(record)]
    return to_csv(rows, AttackRow)
