"""Shows comparisons and gates on a terminal."""

from collections.abc import Sequence
from itertools import groupby
from shlex import quote

from rich.table import Table

from robustbench_kd.analysis.compare import Comparison, provenance
from robustbench_kd.analysis.gate import Gate, JudgedAccuracy
from robustbench_kd.analysis.leaderboard import title
from robustbench_kd.analysis.paired import MOST, Change, listed, p_text, points
from robustbench_kd.cli import _console
from robustbench_kd.core.text import percent, printable

_STYLES = {"!": "bold red", "-": "red", "+": "green", "~": "dim", "=": "dim"}


def show_comparison(found: Comparison) -> None:
    """Writes both runs, every stage, changed classes, and the ids of lost and gained images."""
    for name, run in (("A", found.a), ("B", found.b)):
        _console.write(f"{name}  {run.model}  {printable(str(run.folder))}")
    _console.write("")
    _show_changes(found.title, "accuracy", found.stages)
    if found.classes:
        heading = "robust accuracy of the classes that changed"
        if len(found.classes) > MOST:
            heading += f"; {len(found.classes) - MOST} more with --json"
        _show_changes(heading, "class", found.classes[:MOST])
    _console.write(f"lost    {listed(found.robust.lost)}")
    _console.write(f"gained  {listed(found.robust.gained)}")
    for note in (*provenance(found.a, found.b), *found.notes):
        _console.say(note, "dim")


def show_gate(gate: Gate) -> None:
    """Writes a table per protocol, the outcome, and a line per failure, gap and new run."""
    for (*_, name), cells in groupby(sorted(gate.cells, key=_protocol), _protocol):
        table = _table(
            name, ["model", ""], ["was %", "now %", "points [95 %]", "lost", "gained", "drop p"]
        )
        for cell in cells:
            table.add_row(
                *_row(cell.mark, [cell.after.model, cell.change.name], cell.change, cell.p)
            )
        _console.show_table(table)
    _console.write(f"Robustness gate {gate.headline}")
    for cell in gate.failures:
        _console.write(f"! {cell.text}\n  {_closer_look(cell)}")
    for gap in gate.gaps:
        _console.write(f"x {gap.text}")
    for run in gate.added:
        _console.write(f"* {run.model}, {title(run.identity)}: new, without a baseline")
    for note in gate.notes:
        _console.say(note, "dim")


def _closer_look(cell: JudgedAccuracy) -> str:
    return printable(
        f"rkd compare {quote(str(cell.before.folder))} {quote(str(cell.after.folder))}"
    )


def _protocol(cell: JudgedAccuracy) -> tuple[str, str, float, str]:
    identity = cell.after.identity
    return identity.dataset, identity.norm, identity.eps, title(identity)


def _show_changes(heading: str, what: str, changes: Sequence[Change]) -> None:
    table = _table(heading, [what], ["A %", "B %", "B - A [95 %]", "lost", "gained", "p"])
    for change in changes:
        table.add_row(*_row(change.mark, [change.name], change, change.p))
    _console.show_table(table)


def _table(heading: str, names: list[str], numbers: list[str]) -> Table:
    """Returns an empty narrow table: a narrower terminal breaks names, but no number."""
    made = _console.table(heading, {})
    made.padding = (0, 1)
    made.add_column("")
    for name in names:
        made.add_column(name, overflow="fold", min_width=6)
    for number in numbers:
        made.add_column(number, justify="right", no_wrap=True)
    return made


def _row(mark: str, what: list[str], change: Change, p: float) -> list[str]:
    """Returns the cells of a row, as markup."""
    names = [_console.plain(text) for text in what]
    return [
        f"[{_STYLES[mark]}]{mark}[/]",
        *names,
        percent(change.before),
        percent(change.after),
        points(change),
        str(len(change.lost)),
        str(len(change.gained)),
        p_text(p),
    ]
