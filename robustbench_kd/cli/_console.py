"""Terminal output: data on standard output, everything else on standard error."""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO, cast

from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Column, Table
from rich.text import Text
from rich.tree import Tree

from robustbench_kd.cli._streams import data
from robustbench_kd.core.records import Accuracy, Finding, Severity
from robustbench_kd.core.text import percent_interval, printable
from robustbench_kd.core.verdicts import verdict_words

_UNBOUNDED = 10_000  # a width at which nothing is cut off
out = Console(file=cast("TextIO", data), highlight=False, emoji=False, width=_UNBOUNDED)
err = Console(stderr=True, highlight=False, emoji=False)

_VERDICT_STYLES = {
    "no findings": "green",
    "suspicious": "yellow",
    "unreliable": "bold red",
    "unchecked": "yellow",
}
SEVERITY_STYLES = {Severity.INFO: "dim", Severity.YELLOW: "yellow", Severity.RED: "bold red"}
_PLAIN_SECONDS = 10.0


def say(text: str, style: str = "") -> None:
    """Writes a line for a person to standard error, uninterpreted."""
    err.print(plain(text), style=style, soft_wrap=True)


def write(text: str) -> None:
    """Writes data to standard output, uninterpreted and unwrapped."""
    out.print(_lines(text), markup=False, soft_wrap=True)


def write_json(content: object) -> None:
    """Writes one JSON document to standard output."""
    write(json.dumps(content, indent=2))


def show_table(table: Table, *, spare: Sequence[str] = ()) -> None:
    """Writes a table to standard output, with a blank line after it.

    In a terminal that is too narrow, columns move together, those in `spare` are left out one by
    one, and texts are folded. If the table is still too wide, the terminal wraps it: nothing is cut
    off.
    """
    if not out.is_terminal:  # to measure thousands of rows takes longer than to read them
        show(table)
        return

    room = Console().width
    if _measure(table).maximum > room:
        table.padding = (0, 0, 0, 2)
        for column in table.columns:
            if column.no_wrap:
                column.min_width = _widest(column)

    for heading in spare:
        if _measure(table).maximum > room:
            table.columns = [column for column in table.columns if column.header != heading]

    fits = _measure(table).minimum <= room
    show(table, width=room if fits else None)


def _measure(table: Table) -> Measurement:
    return Measurement.get(out, out.options, table)


def _widest(column: Column) -> int:
    return max(Text.from_markup(str(cell)).cell_len for cell in (column.header, *column.cells))


def show(drawing: Table | Tree, width: int | None = None) -> None:
    """Writes a drawing to standard output, without blanks at the ends of lines."""
    with out.capture() as drawn:
        out.print(drawing, width=width)
    lines = [line.rstrip() for line in drawn.get().splitlines()]
    out.out(*lines, "", sep="\n", highlight=False)


def say_finding(finding: Finding) -> None:
    """Writes a finding to standard error, in the colour of its severity."""
    advice = f" -> {finding.advice}" if finding.advice else ""
    say(
        f"  {finding.severity}: {finding.check}: {finding.message}{advice}",
        SEVERITY_STYLES[finding.severity],
    )


def plain(text: str) -> str:
    """Returns text that neither rich nor a terminal takes for anything but text."""
    return escape(_lines(text))


def _lines(text: str) -> str:
    """Returns text whose line breaks alone move a terminal."""
    return "\n".join(map(printable, text.split("\n")))


def accuracy_text(accuracy: Accuracy | None) -> str:
    """Returns an accuracy in percent with its interval, for the screen."""
    if accuracy is None:
        return "-"
    return percent_interval(accuracy.value, accuracy.ci_low, accuracy.ci_high)


def verdict(name: str | None) -> str:
    """Returns the words of a verdict in their colour, as markup."""
    if not name:
        return "-"
    words = verdict_words(name)
    return f"[{_VERDICT_STYLES[words]}]{words}[/]"


def table(title: str, columns: dict[str, str]) -> Table:
    """Returns an empty table; `columns` maps headings to `left` or `right`."""
    made = Table(
        title=plain(title),
        title_justify="left",
        header_style="bold",
        box=None,
        pad_edge=False,
        padding=(0, 2),
    )
    for heading, side in columns.items():
        is_number = side == "right"
        made.add_column(heading, justify="right" if is_number else "left", no_wrap=is_number)
    return made


class Line:
    """One line of progress: a bar on a terminal, a plain line every ten seconds elsewhere."""

    def __init__(self, bar: Progress | None) -> None:
        self._bar = bar
        self._task = bar.add_task("", total=None) if bar else None
        self._last = ("", 0.0)

    def show(self, label: str, done: int, total: int, details: str) -> None:
        """Shows `done` of `total` under a label, with details behind it."""
        if self._bar and self._task is not None:
            text = f"[bold]{plain(label)}[/] {done}/{total} [dim]{plain(details)}[/]"
            self._bar.update(self._task, description=text, completed=done, total=total)
            return
        last_label, shown_at = self._last
        if label != last_label or time.monotonic() - shown_at > _PLAIN_SECONDS:
            self._last = (label, time.monotonic())
            say(f"{label} {done}/{total} {details}")


@contextmanager
def progress() -> Iterator[Line]:
    """Gives a progress line on standard error for the duration of some work."""
    if not err.is_terminal:
        yield Line(None)
        return
    # In a narrow terminal the bar shrinks first and then the text ends early: the least important
    # part comes last.
    columns = (SpinnerColumn(), BarColumn(bar_width=24), TextColumn("{task.description}"))
    with Progress(*columns, console=err, transient=True) as bar:
        yield Line(bar)
