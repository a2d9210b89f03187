"""Comparisons and gates in Markdown for a comment or a step summary.

Names stand in code spans, where no markup takes effect.
"""

import re
from collections.abc import Iterable, Sequence

from robustbench_kd.analysis.compare import Comparison, provenance
from robustbench_kd.analysis.gate import Gate, JudgedAccuracy
from robustbench_kd.analysis.leaderboard import title
from robustbench_kd.analysis.paired import MOST, Change, listed, p_text, points
from robustbench_kd.analysis.runs import Run
from robustbench_kd.core.text import percent, printable

_MARKS = "`+` better, `-` worse, `~` not significant, `=` no example differs"
_COMPARED = (
    f"{_MARKS}. Intervals of 95 %; p by McNemar's exact test, for classes adjusted for their "
    "number (Holm)."
)
_JUDGED = (
    f"`!` fails, {_MARKS}. Intervals of 95 %; drop p is that of McNemar's exact one-sided test, "
    "adjusted for all rows (Holm)."
)
_CHANGE = ("accuracy", "A %", "B %", "B - A, points", "lost", "gained", "p")
_CELL = (
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
_TEXTS = ("", "model", "protocol", "accuracy", "class")  # headings above text, not numbers


def code(text: str) -> str:
    r"""Returns text as a code span that may stand in a table.

    No markup, link, mention or HTML in it takes effect.

    >>> print(code("a|b"))
    `a\|b`
    """
    shown = printable(text).replace("|", r"\|") or " "
    longest = max(map(len, re.findall("`+", shown)), default=0)
    fence = "`" * (1 + longest)
    if {shown[0], shown[-1]} & {"`", " "}:
        shown = f" {shown} "
    return f"{fence}{shown}{fence}"


def comparison(found: Comparison) -> str:
    """Returns a comparison: every stage, the classes that differ, the lost and gained images."""
    heading = f"### {code(found.b.model)} against {code(found.a.model)}"
    about = f"A is {_run(found.a)}, B is {_run(found.b)}; {code(found.title)}."
    stages = _table(("", *_CHANGE), map(_row, found.stages))
    classes = ""
    if found.classes:
        classes = _table(("", "class", *_CHANGE[1:]), map(_row, found.classes[:MOST]))
    lost, gained = listed(found.robust.lost), listed(found.robust.gained)
    flips = f"Lost under attack: {lost}.\nGained: {gained}."
    remarks = _items([*provenance(found.a, found.b), *found.notes])
    return _paragraphs([heading, about, stages, classes, flips, remarks, _COMPARED])


def gate(found: Gate) -> str:
    """Returns a gate: its outcome, what failed, every accuracy, and what was not judged."""
    heading = f"### Robustness gate {found.headline}"
    news = []
    for cell in found.failures:
        news.append(f"- **{cell.change.name} accuracy** of {_run(cell.after)}: {cell.reason}")
    for gap in found.gaps:
        news.append(f"- not judged: {code(gap.text)}")
    for run in found.added:
        news.append(f"- new, without a baseline: {_run(run)}, {code(title(run.identity))}")

    cells = ""
    if found.cells:
        cells = _table(("", *_CELL), map(_cell, found.cells))
    return _paragraphs([heading, "\n".join(news), cells, _items(found.notes), _JUDGED])


def _paragraphs(parts: Iterable[str]) -> str:
    return "\n\n".join(filter(None, parts)) + "\n"


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


def _cell(cell: JudgedAccuracy) -> tuple[str, ...]:
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
    rule = [":--" if heading in _TEXTS else "--:" for heading in headings]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (headings, rule, *rows))


def _items(lines: Iterable[str]) -> str:
    return "\n".join(f"- {code(line)}" for line in lines)
