"""What a table of runs says, cell by cell, before any format writes it."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

from robustbench_kd.analysis.leaderboard import Board, gap
from robustbench_kd.analysis.published import Published
from robustbench_kd.core.records import Accuracy, Identity, RunRecord
from robustbench_kd.core.text import duration, percent, percent_interval, printable
from robustbench_kd.core.verdicts import verdict_words

PUBLISHED = "published, not run here"

_NUMBERS = (
    "Accuracies in percent of n examples, with 95 % Wilson intervals; robust accuracy is an upper "
    "bound. Runs in different tables differ in data, examples, threat, suite, engine or mode and "
    "must not be ranked together."
)
_ADAPTIVE = (
    "Adaptive attacks know the defence; the gap is what they took beyond the attacks before, in "
    "points."
)
_RANDOMIZED = (
    "The accuracy of a randomized defence is the expected one of a single draw; 'all draws' counts "
    "the images that every draw gets right."
)
_FAST = "Fast runs may miss adversarial images, up to the points they name with 95 % confidence."
_PUBLISHED = "Published numbers come from RobustBench: others ran them, perhaps on other examples."
_AUTOATTACK = {"apgd-ce", "apgd-t", "fab-t", "square"}
# Every heading in order, and whether its cells are numbers. A table has one of the three headings
# before "adaptive %".
_HEADINGS = {
    "#": True,
    "model": False,
    "family": False,
    "n": True,
    "clean %": True,
    "robust %": True,
    "AutoAttack %": True,
    "before adaptive %": True,
    "adaptive %": True,
    "gap": True,
    "all draws %": True,
    "mode": False,
    "verdict": False,
    "parameters": True,
    "passes": True,
    "time": True,
    "run": False,
}


class Cell(NamedTuple):
    """A text without markup, and the number or text to sort it by."""

    text: str = ""
    key: float | str = ""


_EMPTY = Cell()


class Column(NamedTuple):
    """A heading; the cells below are numbers or texts."""

    heading: str
    numeric: bool


@dataclass(frozen=True)
class Table:
    """Rows of as many cells as there are columns.

    `references` are published numbers without a rank.
    """

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    references: tuple[tuple[Cell, ...], ...]


def tabulate(board: Board) -> Table:
    """Returns the table of a board; a column is there only where some row fills it."""
    first = _first_heading(board)
    rows = []
    for rank, record in zip(board.ranks, board.records, strict=True):
        rows.append(_cells(rank, record, first))
    references = [_reference(number, first) for number in board.published]
    columns = _columns([*rows, *references])
    return Table(board.title, columns, _in_order(rows, columns), _in_order(references, columns))


def legend(boards: Sequence[Board]) -> list[str]:
    """Returns what a reader has to know about the tables: a note for each thing that occurs."""
    records = list(chain.from_iterable(board.records for board in boards))
    notes = [_NUMBERS]
    if any(map(_has_adaptive, boards)):
        notes.append(_ADAPTIVE)
    if any(record.robust_draws for record in records):
        notes.append(_RANDOMIZED)
    if any(record.identity.mode == "fast" for record in records):
        notes.append(_FAST)
    if any(board.published for board in boards):
        notes.append(_PUBLISHED)
    return notes


def mode(record: RunRecord) -> str:
    """Returns what to know about a number that is not exact, and nothing where it is."""
    if record.identity.mode == "exact":
        return ""
    if record.claim:
        return printable(record.identity.mode)
    missed = "some"
    if record.missed is not None:
        missed = f"up to {percent(record.missed)} points"
    return f"{printable(record.identity.mode)}, may miss {missed}"


def is_autoattack(identity: Identity) -> bool:
    """Returns whether all four attacks of AutoAttack's standard suite ran."""
    return set(identity.attacks) >= _AUTOATTACK


def accuracy_text(accuracy: Accuracy | None) -> str:
    """Returns an accuracy with its interval, `50.0 [46.9, 53.1]`; empty where there is none."""
    if accuracy is None:
        return ""
    return percent_interval(accuracy.value, accuracy.ci_low, accuracy.ci_high)


def _columns(rows: Sequence[dict[str, Cell]]) -> tuple[Column, ...]:
    columns = []
    for heading, numeric in _HEADINGS.items():
        if any(row.get(heading, _EMPTY).text for row in rows):
            columns.append(Column(heading, numeric))
    return tuple(columns)


def _has_adaptive(board: Board) -> bool:
    """Returns whether some number of a board has another one, from before adaptive attacks."""
    rows: list[RunRecord | Published] = [*board.records, *board.published]
    return any(row.standard is not None for row in rows)


def _first_heading(board: Board) -> str:
    """Returns the heading of the number before adaptive attacks, or of the only number."""
    if not _has_adaptive(board):
        return "robust %"
    if is_autoattack(board.records[0].identity):
        return "AutoAttack %"
    return "before adaptive %"


def _cells(rank: int, record: RunRecord, first: str) -> dict[str, Cell]:
    identity = record.identity
    all_draws = record.robust_draws.all_correct if record.robust_draws else None
    evaluated = record.claim.evaluated if record.claim else identity.examples
    cells = {
        "#": Cell(str(rank), rank),
        "model": _text(identity.model),
        "family": _text(identity.family),
        "n": _count(evaluated),
        "clean %": _accuracy(record.clean),
        first: _accuracy(record.standard or record.robust),
        "all draws %": _accuracy(all_draws),
        "mode": _text(mode(record)),
        "verdict": _text(verdict_words(record.verdict or "")),
        "parameters": _count(record.parameters),
        "passes": _count(record.passes),
        "time": Cell(duration(record.seconds), record.seconds),
        "run": _text(record.run_id),
    }
    difference = gap(record)
    if difference is not None:
        cells["adaptive %"] = _accuracy(record.robust)
        cells["gap"] = _fraction(difference)
    return cells


def _reference(number: Published, first: str) -> dict[str, Cell]:
    remark = f"{PUBLISHED}, called unreliable there" if number.unreliable else PUBLISHED
    cells = {
        "model": _text(number.model),
        "clean %": _fraction(number.clean),
        first: _fraction(number.robust),
        "verdict": _text(remark),
    }
    if number.standard is not None:
        cells[first] = _fraction(number.standard)
        cells["adaptive %"] = _fraction(number.robust)
        cells["gap"] = _fraction(number.standard - number.robust)
    return cells


def _in_order(
    rows: Sequence[dict[str, Cell]], columns: Sequence[Column]
) -> tuple[tuple[Cell, ...], ...]:
    ordered = []
    for row in rows:
        ordered.append(tuple(row.get(column.heading, _EMPTY) for column in columns))
    return tuple(ordered)


def _accuracy(accuracy: Accuracy | None) -> Cell:
    if accuracy is None:
        return _EMPTY
    return Cell(accuracy_text(accuracy), accuracy.value)


def _fraction(value: float) -> Cell:
    return Cell(percent(value), value)


def _count(number: int) -> Cell:
    return Cell(f"{number:,}", number)


def _text(text: str) -> Cell:
    return Cell(printable(text), printable(text))
