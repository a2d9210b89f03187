"""What a person sees in a terminal that is too narrow, and how a running evaluation tells its "
"pace."""

import io

import pytest
from rich.console import Console

from robustbench_kd.cli import _console, _runs
from robustbench_kd.engine.run.progress import Progress

ROW = [
    "digits-teacher",
    "classifier",
    "100.0 [88.6, 100.0]",
    "76.7 [59.1, 88.2]",
    "consistent",
    "188,394",
]
SIDES = ["left", "left", "right", "right", "left", "right"]
HEADINGS = ["model", "family", "clean %", "robust %", "verdict", "parameters"]


@pytest.fixture
def shown(monkeypatch):
    """Shows a row in a terminal of so many columns and returns the lines."""

    def show(columns, row=ROW, spare=("parameters", "family")):
        screen = io.StringIO()
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setattr(
            _console, "out", Console(file=screen, force_terminal=True, no_color=True, width=10_000)
        )
        table = _console.table("", dict(zip(HEADINGS, SIDES, strict=True)))
        table.add_row(*row)
        _console.show_table(table, spare=spare)
        return [
            line
            for line in screen.getvalue().replace("\x1b[1m", "").replace("\x1b[0m", "").splitlines()
            if line
        ]

    return show


def test_a_wide_terminal_shows_every_column(shown):
    heading, row = shown(120)
    assert heading.split("  ")[0] == "model"
    assert all(cell in row for cell in ROW)


def test_columns_move_together_before_any_is_left_out(shown):
    _, row = shown(100)
    assert all(cell in row for cell in ROW)
    assert len(row) <= 100


def test_a_narrow_terminal_leaves_out_what_can_be_spared_and_cuts_nothing(shown):
    lines = shown(72)
    assert all(len(line) <= 72 for line in lines)
    assert all(cell in lines[1] for cell in ROW if cell not in ("classifier", "188,394"))
    assert "…" not in "".join(lines)


def test_texts_are_folded_at_words(shown):
    lines = shown(80, row=["a sentence that is rather long", *ROW[1:]])
    assert all(len(line) <= 80 for line in lines)
    assert len(lines) > 2
    assert "76.7 [59.1, 88.2]" in lines[1]


def test_a_terminal_too_narrow_for_the_numbers_wraps_them_itself(shown):
    lines = shown(40)
    assert "100.0 [88.6, 100.0]  76.7 [59.1, 88.2]  consistent" in lines[1]


def test_no_line_ends_in_blanks(shown):
    assert all(line == line.rstrip() for line in shown(200))


def test_the_pace_of_an_evaluation_leaves_out_what_came_before_the_attacks(monkeypatch):
    told = []
    line = _console.Line(None)
    monkeypatch.setattr(line, "show", lambda *said: told.append(said[-1]))
    see = _runs.observer(line, "net")
    moment = Progress("apgd-ce", 0, 20, 20, 20, passes=20, passes_left=1000)
    monkeypatch.setattr(_runs.time, "monotonic", lambda: 10.0)
    see(moment)
    monkeypatch.setattr(_runs.time, "monotonic", lambda: 12.0)
    see(Progress("apgd-ce", 0, 20, 20, 20, passes=220, passes_left=800))
    assert told == ["robust 100.0%", "robust 100.0%  at most 8s left  100 passes/s"]
