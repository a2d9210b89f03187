"""Comparisons and gates in Markdown for a comment or a step summary; names stand in code spans, where nothing acts."""

import re
from collections.abc import Iterable, Sequence

from robustbench_kd.analysis.compare import Comparison, provenance
from robustbench_kd.analysis.gate import Cell, Gate
from robustbench_kd.analysis.leaderboard import title
from robustbench_kd.analysis.paired import MOST, Change, listed, p_text, percent, points
from robustbench_kd.analysis.runs import Run
from robustbench_kd.core.text import printable

_MARKS = "`+` better, `-` worse, `~` not significant, `=` no example differs"


def code(text: str) -> str:
    r"""Returns text as a code span that may stand in a table: no markup, link, mention or HTML in it takes effect.

    >>> print(code("a|b"))
    `a\|b`
    """
    shown = printable(text).replace("|", r"\|") or " "
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", shown)), default=0))
    pad = " " if {shown[0], shown[-1]} & {"`", " "} else ""
    return f"{fence}{pad}{shown}{pad}{fence}"


def comparison(found: Comparison) -> str:
    """Returns a comparison: every stage, the classes that differ, the images that were lost and gained."""
    heading = f"### {code(found.b.model)} against {code(found.a.model)}"
    about = f"A is {_run(found.a)}, B is {_run(found.b)}; {code(found.title)}."
    headings = ("", "accuracy", "A %", "B %", "B - A, points", "lost", "gained", "p")
    stages = _table(headings, [_row(change) for change in found.stages])
    classes = _table(
        ("", "class", *headings[2:]), [_row(change) for change in found.classes[:MOST]]
    )
    flips = (
        f"Lost under attack: {listed(found.robust.lost)}.\nGained: {listed(found.robust.gained)}."
    )
    remarks = _items([*provenance(found.a, found.b), *found.notes])
    legend = f"{_MARKS}. Intervals of 95 %; p by McNemar's exact test, for classes adjusted for their number (Holm)."
    parts = [heading, about, stages, *([classes] if found.classes else []), flips, remarks, legend]
    return "\n\n".join(part for part in parts if part) + "\n"


def gate(found: Gate) -> str:
    """Returns a gate: its outcome, what failed, every accuracy, and what was not judged."""
    headings = (
        "",
        "model",
        "protocol",
        "accuracy",
        "baseline %",
        "now %",
        "change, points",
        "lost",
        "gained",
        "drop p",
    )
    failed = [
        f"- **{cell.change.name} accuracy** of {_run(cell.after)}: {cell.reason}"
        for cell in found.failures
    ]
    gaps = [f"- not judged: {code(gap.text)}" for gap in found.gaps]
    added = [
        f"- new, without a baseline: {_run(run)}, {code(title(run.identity))}"
        for run in found.added
    ]
    parts = [
        f"### Robustness gate {found.headline}",
        "\n".join([*failed, *gaps, *added]),
        _table(headings, [_cell(cell) for cell in found.cells]) if found.cells else "",
        _items(found.notes),
        f"`!` fails, {_MARKS}. Intervals of 95 %; drop p is that of McNemar's exact one-sided test, adjusted for all rows (Holm).",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _run(run: Run) -> str:
    return f"{code(run.model)} ({code(str(run.folder))})"


def _row(change: Change) -> tuple[str, ...]:
    numbers = (percent(change.before), percent(change.after), points(change), str(len(change.lost)))
    return (
        code(change.mark),
        code(change.name),
        *numbers,
        str(len(change.gained)),
        p_text(change.p),
    )


def _cell(cell: Cell) -> tuple[str, ...]:
    _, name, *numbers, _ = _row(cell.change)
    return (
        code(cell.mark),
        code(cell.after.model),
        code(title(cell.after.identity)),
        name,
        *numbers,
        p_text(cell.p),
    )


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    rule = [
        ":--" if heading in ("", "model", "protocol", "accuracy", "class") else "--:"
        for heading in headings
    ]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (headings, rule, *rows))


def _items(lines: Iterable[str]) -> str:
    return "\n".join(f"- {code(line)}" for line in lines)
