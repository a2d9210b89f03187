"""The tables of `rkd similarity`, for a terminal and as Markdown."""

from collections.abc import Iterator, Sequence
from itertools import compress, groupby
from typing import TYPE_CHECKING, NamedTuple

from robustbench_kd.core.text import percent_interval

if TYPE_CHECKING:
    from robustbench_kd.similarity.bootstrap import Row
    from robustbench_kd.similarity.compare import Comparison

ROLES = ("teacher", "student", "independent", "null")
_HEADINGS = ("measure", *ROLES, "student - independent", "null - independent")
_NOTE = (
    "Fractions in percent with 95 % Wilson intervals, other numbers and all differences with "
    "bootstrapped ones over examples; differences are paired. Attention and gradients are compared "
    "with the teacher's. Robust accuracies per million parameters or GFLOP are fractions divided "
    "by size."
)


class _Table(NamedTuple):
    """A title, headings, and one line of cells for each measure."""

    title: str
    headings: list[str]
    lines: list[list[str]]


def show(rows: "Sequence[Row]", comparison: "Comparison") -> None:
    """Writes a table for each protocol to standard output."""
    from robustbench_kd.cli import _console

    for title, headings, lines in _tables(rows, comparison):
        sides = {heading: "left" if heading == "measure" else "right" for heading in headings}
        table = _console.table(title, sides)
        table.padding = (0, 1)  # up to seven columns have to fit a terminal
        for line in lines:
            table.add_row(*map(_console.plain, line))
        _console.show_table(table)


def markdown(rows: "Sequence[Row]", comparison: "Comparison") -> str:
    """Returns the tables as a Markdown document."""
    from robustbench_kd.analysis.markdown import code

    pairs = zip(ROLES, comparison.networks, strict=False)
    networks = ", ".join(f"{role} {code(network.name)}" for role, network in pairs)
    parts = ["# Similarity", f"Networks: {networks}."]
    for title, headings, lines in _tables(rows, comparison):
        rule = [":--", *["--:"] * (len(headings) - 1)]
        table = "\n".join(f"| {' | '.join(cells)} |" for cells in (headings, rule, *lines))
        parts += [f"## {code(title)}", table]
    return "\n\n".join([*parts, _NOTE]) + "\n"


def _tables(rows: "Sequence[Row]", comparison: "Comparison") -> Iterator[_Table]:
    """Yields the table of each protocol, without columns that are empty throughout."""
    for protocol, group in groupby(rows, lambda row: row.protocol):
        lines = list(_lines(list(group)))
        columns = list(zip(*lines, strict=True))
        used = [any(column) for column in columns]
        headings = list(compress(_HEADINGS, used))
        cells = [list(compress(line, used)) for line in lines]
        yield _Table(protocol or _title(comparison), headings, cells)


def _lines(rows: "Sequence[Row]") -> Iterator[list[str]]:
    """Yields the cells of each measure: the values of all networks, then two differences."""
    by_role: dict[str, dict[str, Row]] = {}
    for row in rows:
        by_role.setdefault(row.measure, {})[row.role] = row

    for measure, networks in by_role.items():
        values = [_value(networks.get(role)) for role in ROLES]
        student, null = _difference(networks.get("student")), _difference(networks.get("null"))
        yield [measure, *values, student, null]


def _value(row: "Row | None") -> str:
    if row is None or row.value is None or row.ci_low is None or row.ci_high is None:
        return ""
    if row.share:
        return percent_interval(row.value, row.ci_low, row.ci_high)
    return f"{_short(row.value)} [{_short(row.ci_low)}, {_short(row.ci_high)}]"


def _difference(row: "Row | None") -> str:
    if row is None or row.difference is None:
        return ""
    if row.difference_low is None or row.difference_high is None:
        return ""
    write = _signed_percent if row.share else _signed
    interval = f"[{write(row.difference_low)}, {write(row.difference_high)}]"
    return f"{write(row.difference)} {interval}"


def _signed_percent(number: float) -> str:
    return f"{100 * number:+.1f}"


def _signed(number: float) -> str:
    return _short(number, "+")


def _short(number: float, sign: str = "") -> str:
    """Returns a number with three digits, or without a fraction if it has more."""
    return format(number, f"{sign},.0f" if abs(number) >= 1000 else f"{sign}.3g")


def _title(comparison: "Comparison") -> str:
    data = comparison.data
    return (
        f"{data.name}, {len(data)} examples, transferred attacks {comparison.threat}, "
        f"seed {comparison.seed}"
    )
