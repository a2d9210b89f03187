"""What a table of runs says, cell by cell, before any format writes it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from robustbench_kd.analysis.leaderboard import Board, gap
from robustbench_kd.analysis.published import Published
from robustbench_kd.core.records import Accuracy, Identity, RunRecord
from robustbench_kd.core.text import duration, printable

PUBLISHED = "published, not run here"

_NUMBERS = (
    "Accuracies in percent of n examples, with 95 % Wilson intervals; robust accuracy is an upper bound. Runs in "
    "different tables differ in data, examples, threat, suite, engine or mode and must not be ranked together."
)
_AUTOATTACK = {"apgd-ce", "apgd-t", "fab-t", "square"}
# Every heading in order, and whether its cells are numbers. Of the three before "adaptive %" a
# table has one.
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


class Column(NamedTuple):
    """A heading; the cells below are numbers or texts."""

    heading: str
    numeric: bool


@dataclass(frozen=True)
class Table:
    """Rows of as many cells as there are columns; `references` are published numbers without a rank."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    references: tuple[tuple[Cell, ...], ...]


def tabulate(board: Board) -> Table:
    """Returns the table of a board; a column is there only where some row fills it."""
    first = _first_heading(board)
    rows = [
        _cells(rank, record, first) for rank, record in zip(board.ranks, board.records, strict=True)
    ]
    references = [_reference(number, first) for number in board.published]
    columns = tuple(
        Column(heading, numeric)
        for heading, numeric in _HEADINGS.items()
        if any(row.get(heading, Cell()).text for row in [*rows, *references])
    )
    return Table(board.title, columns, _in_order(rows, columns), _in_order(references, columns))


def legend(boards: Sequence[Board]) -> list[str]:
    """Returns what a reader has to know about the tables, a sentence or two for each thing that occurs in them."""
    records = [record for board in boards for record in board.records]
    notes = [_NUMBERS]
    numbers = [number for board in boards for number in board.published]
    if any([*(record.standard for record in records), *(number.standard for number in numbers)]):
        notes.append(
            "Adaptive attacks know the defence; the gap is what they took beyond the attacks before, in points."
        )
    if any(record.robust_draws for record in records):
        notes.append(
            "The accuracy of a randomized defence is the expected one of a single draw; 'all draws' counts the images "
            "that every draw gets right."
        )
    if any(record.identity.mode == "fast" for record in records):
        notes.append(
            "Fast runs may miss adversarial images, up to the points they name with 95 % confidence."
        )
    if numbers:
        notes.append(
            "Published numbers come from RobustBench: others ran them, perhaps on other examples."
        )
    return notes


def mode(record: RunRecord) -> str:
    """Returns what to know about a number that is not exact, and nothing where it is."""
    if record.identity.mode == "exact":
        return ""
    if record.claim:
        return printable(record.identity.mode)
    missed = "some" if record.missed is None else f"up to {100 * record.missed:.1f} points"
    return f"{printable(record.identity.mode)}, may miss {missed}"


def is_autoattack(identity: Identity) -> bool:
    """Returns whether all four attacks of AutoAttack's standard suite ran."""
    return set(identity.attacks) >= _AUTOATTACK


def percent(accuracy: Accuracy | None) -> str:
    """Returns an accuracy with its interval, `50.0 [46.9, 53.1]`."""
    if accuracy is None:
        return ""
    return f"{100 * accuracy.value:.1f} [{100 * accuracy.ci_low:.1f}, {100 * accuracy.ci_high:.1f}]"


def _first_heading(board: Board) -> str:
    """Returns the name of the number before adaptive attacks, or of the only one where there are none."""
    if not any(
        [
            *(record.standard for record in board.records),
            *(number.standard for number in board.published),
        ]
    ):
        return "robust %"
    return "AutoAttack %" if is_autoattack(board.records[0].identity) else "before adaptive %"


def _cells(rank: int, record: RunRecord, first: str) -> dict[str, Cell]:
    identity, passes, difference = record.identity, record.forwards + record.backwards, gap(record)
    cells = {
        "#": Cell(str(rank), rank),
        "model": _text(identity.model),
        "family": _text(identity.family),
        "n": _count(record.claim.evaluated if record.claim else identity.examples),
        "clean %": _accuracy(record.clean),
        first: _accuracy(record.standard or record.robust),
        "all draws %": _accuracy(record.robust_draws.all_correct if record.robust_draws else None),
        "mode": _text(mode(record)),
        "verdict": _text(record.verdict or ""),
        "parameters": _count(record.parameters),
        "passes": _count(passes),
        "time": Cell(duration(record.seconds), record.seconds),
        "run": _text(record.run_id),
    }
    if difference is None:
        return cells
    return cells | {
        "adaptive %": _accuracy(record.robust),
        "gap": Cell(f"{100 * difference:.1f}", difference),
    }


def _reference(number: Published, first: str) -> dict[str, Cell]:
    cells = {
        "model": _text(number.model),
        "clean %": _share(number.clean),
        first: _share(number.robust if number.standard is None else number.standard),
        "verdict": _text(PUBLISHED + (", called unreliable there" if number.unreliable else "")),
    }
    if number.standard is None:
        return cells
    difference = number.standard - number.robust
    return cells | {
        "adaptive %": _share(number.robust),
        "gap": Cell(f"{100 * difference:.1f}", difference),
    }


def _in_order(
    rows: list[dict[str, Cell]], columns: tuple[Column, ...]
) -> tuple[tuple[Cell, ...], ...]:
    return tuple(tuple(row.get(column.heading, Cell()) for column in columns) for row in rows)


def _accuracy(accuracy: Accuracy | None) -> Cell:
    return Cell(percent(accuracy), accuracy.value if accuracy else "")


def _share(value: float) -> Cell:
    return Cell(f"{100 * value:.1f}", value)


def _count(number: int) -> Cell:
    return Cell(f"{number:,}", number)


def _text(text: str) -> Cell:
    return Cell(printable(text), printable(text))
