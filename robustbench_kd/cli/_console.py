"""Terminal output: data on standard output, everything else on standard error."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Table

from robustbench_kd.core.records import Accuracy, Finding, Severity

_PIPE_WIDTH = 10_000  # tables are as wide as what they hold: in a file or a pipe nothing is cut off
out = Console(highlight=False, emoji=False)
err = Console(stderr=True, highlight=False, emoji=False)
if not out.is_terminal:
    out = Console(highlight=False, emoji=False, width=_PIPE_WIDTH)

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


def show_table(table: Table) -> None:
    """Writes a table to standard output, with a blank line after it."""
    out.print(table)
    out.print()


def say_finding(finding: Finding) -> None:
    """Writes a finding to standard error, in the colour of its severity."""
    advice = f" -> {finding.advice}" if finding.advice else ""
    say(f"  {finding.severity}: {finding.check}: {finding.message}{advice}", SEVERITY_STYLES[finding.severity])


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


def duration(seconds: float) -> str:
    """Returns seconds as `42s`, `3m05s` or `2h10m`."""
    if seconds < 60:
        return f"{seconds:.0f}s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m{rest:02d}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"


def table(title: str, columns: dict[str, str]) -> Table:
    """Returns an empty table; `columns` maps headings to `left` or `right`."""
    made = Table(
        title=escape(title), title_justify="left", header_style="bold", box=None, pad_edge=False, padding=(0, 2)
    )
    for heading, side in columns.items():
        made.add_column(heading, justify="right" if side == "right" else "left", no_wrap=True)
    return made


class Line:
    """One line of progress: a bar on a terminal, a plain line every ten seconds elsewhere."""

    def __init__(self, bar: Progress | None) -> None:
        self._bar = bar
        self._task = bar.add_task("", total=None, details="") if bar else None
        self._last = ("", 0.0)

    def show(self, label: str, done: int, total: int, details: str) -> None:
        """Shows `done` of `total` under a label, with details behind it."""
        if self._bar and self._task is not None:
            text = f"[bold]{escape(label)}[/]"
            self._bar.update(self._task, description=text, completed=done, total=total, details=escape(details))
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
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.completed}/{task.total}"),
        TextColumn("{task.fields[details]}", style="dim"),
    )
    with Progress(*columns, console=err, transient=True) as bar:
        yield Line(bar)
