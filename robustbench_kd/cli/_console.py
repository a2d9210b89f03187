"""Terminal output: data on standard output, everything else on standard error."""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Column, Table
from rich.text import Text

from robustbench_kd.core.records import Accuracy, Finding, Severity

_UNBOUNDED = 10_000  # tables are as wide as what they hold: nothing is cut off
out = Console(highlight=False, emoji=False, width=_UNBOUNDED)
err = Console(stderr=True, highlight=False, emoji=False)

_VERDICT_STYLES = {"consistent": "green", "suspicious": "yellow", "unreliable": "bold red"}
SEVERITY_STYLES = {Severity.INFO: "dim", Severity.YELLOW: "yellow", Severity.RED: "bold red"}
_PLAIN_SECONDS = 10.0


def say(text: str, style: str = "") -> None:
    """Writes a line for a person to standard error, uninterpreted."""
    err.print(escape(text), style=style, soft_wrap=True)


def write(text: str) -> None:
    """Writes data to standard output, uninterpreted and unwrapped."""
    out.print(text, markup=False, soft_wrap=True)


def write_json(content: Any) -> None:
    """Writes one JSON document to standard output."""
    write(json.dumps(content, indent=2))


def show_table(table: Table, *, spare: Sequence[str] = ()) -> None:
    """Writes a table to standard output, with a blank line after it.

    In a terminal too narrow for it columns move together, those in `spare` are left out one by one,
    and texts are folded. What is too wide even then is left to the terminal to wrap: nothing is cut
    off.
    """
    room = Console().width if out.is_terminal else _UNBOUNDED
    if _measure(table).maximum > room:
        table.padding = (0, 0, 0, 2)
        for column in table.columns:
            column.min_width = _widest(column) if column.no_wrap else column.min_width
    for heading in spare:
        if _measure(table).maximum > room:
            table.columns = [column for column in table.columns if column.header != heading]
    with out.capture() as drawn:
        out.print(table, width=room if _measure(table).minimum <= room else None)
    out.out(*map(str.rstrip, drawn.get().splitlines()), "", sep="\n", highlight=False)


def _measure(table: Table) -> Measurement:
    return Measurement.get(out, out.options, table)


def _widest(column: Column) -> int:
    return max(Text.from_markup(str(cell)).cell_len for cell in (column.header, *column.cells))


def say_finding(finding: Finding) -> None:
    """Writes a finding to standard error, in the colour of its severity."""
    advice = f" -> {finding.advice}" if finding.advice else ""
    say(
        f"  {finding.severity}: {finding.check}: {finding.message}{advice}",
        SEVERITY_STYLES[finding.severity],
    )


def plain(text: str) -> str:
    """Returns text that rich will not take for markup."""
    return escape(text)


def percent(accuracy: Accuracy | None) -> str:
    """Returns an accuracy for the screen, with its interval.

    >>> percent(Accuracy(value=0.5, n=1000, ci_low=0.469, ci_high=0.531))
    '50.0 [46.9, 53.1]'
    """
    if accuracy is None:
        return "-"
    return f"{100 * accuracy.value:.1f} [{100 * accuracy.ci_low:.1f}, {100 * accuracy.ci_high:.1f}]"


def verdict(name: str | None) -> str:
    """Returns a verdict in its colour, as markup."""
    return f"[{_VERDICT_STYLES[name]}]{name}[/]" if name else "-"


def table(title: str, columns: dict[str, str]) -> Table:
    """Returns an empty table; `columns` maps headings to `left` or `right`."""
    made = Table(
        title=escape(title),
        title_justify="left",
        header_style="bold",
        box=None,
        pad_edge=False,
        padding=(0, 2),
    )
    for heading, side in columns.items():
        made.add_column(
            heading, justify="right" if side == "right" else "left", no_wrap=side == "right"
        )
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
            text = f"[bold]{escape(label)}[/] {done}/{total} [dim]{escape(details)}[/]"
            self._bar.update(self._task, description=text, completed=done, total=total)
            return
        stage, told = self._last
        if label != stage or time.monotonic() - told > _PLAIN_SECONDS:
            self._last = (label, time.monotonic())
            say(f"{label} {done}/{total} {details}")


@contextmanager
def progress() -> Iterator[Line]:
    """Gives a progress line on standard error for the duration of some work."""
    if not err.is_terminal:
        yield Line(None)
        return
    # Where there is no room for all, the bar shrinks first and then the text ends early: what
    # matters least stands last.
    columns = SpinnerColumn(), BarColumn(bar_width=24), TextColumn("{task.description}")
    with Progress(*columns, console=err, transient=True) as bar:
        yield Line(bar)
