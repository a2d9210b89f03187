"""Figures as SVG to be put into a page.

Text stays text, colours are those of the page, and equal data give equal bytes.
"""

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure

from robustbench_kd.core.records import Accuracy

SERIES = 8  # colours that a reader can tell apart

_WIDTH = 4.8  # inches, which a page stretches to the width it has
_LONGEST = 24  # letters of a name
# Size of the letters of a name in a scatter plot, as fractions of its axes.
_LETTER, _LINE_HEIGHT = 0.018, 0.06
_LABELLED = 8  # points of a scatter plot with a name
# Each colour stands for a variable of the page's style, which has one for light and one for dark.
_INK, _MUTED, _LINE, _REST = "#000001", "#000002", "#000003", "#000004"
_COLOURS = tuple(f"#0001{number:02x}" for number in range(SERIES))
_VARIABLES = {
    _INK: "currentColor",
    _MUTED: "var(--muted)",
    _LINE: "var(--line)",
    _REST: "var(--rest)",
} | {colour: f"var(--s{number})" for number, colour in enumerate(_COLOURS)}
_PAINT = re.compile(r"(fill|stroke): (#000[0-9a-f]{3})\b")
_NEEDLESS = re.compile(
    r'(?<=<g) id="[^"]*"|<defs>\s*<style.*?</style>\s*</defs>|font-family: [^;"]*; |(?<=\n) +',
    re.DOTALL,
)
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "robustbench_kd",
    "text.parse_math": False,
    "font.size": 10,
    "text.color": _INK,
    "axes.labelcolor": _MUTED,
    "axes.edgecolor": _LINE,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": _LINE,
    "grid.linewidth": 0.6,
    "xtick.color": _LINE,
    "ytick.color": _LINE,
    "xtick.labelcolor": _MUTED,
    "ytick.labelcolor": _INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
}


@dataclass(frozen=True)
class Point:
    """A model by its clean and robust accuracy.

    `best` where no other model is as good in both and better in one.
    """

    name: str
    clean: Accuracy
    robust: Accuracy
    best: bool

    @property
    def place(self) -> tuple[float, float]:
        """Both accuracies in percent."""
        return 100 * self.clean.value, 100 * self.robust.value


@dataclass(frozen=True)
class Bar:
    """A row of parts, one after the other, named by the legend."""

    name: str
    parts: tuple[float, ...]


@dataclass(frozen=True)
class Curve:
    """The robust accuracy of one model at growing radii."""

    name: str
    radii: tuple[tuple[float, str], ...]
    accuracies: tuple[Accuracy, ...]


def scatter(points: Sequence[Point]) -> str:
    """Returns clean against robust accuracy with intervals, and a line through the best points."""
    with _drawn(height=3.5) as (figure, axes):
        _draw_front(axes, points)
        clean, robust = np.array([point.place for point in points]).T
        paints = [_COLOURS[0] if point.best else _MUTED for point in points]
        axes.scatter(clean, robust, s=30, color=paints, zorder=3, linewidth=0)

        _name_points(axes, points)
        axes.set_xlabel("clean accuracy, %")
        axes.set_ylabel("robust accuracy, %")
        return _svg(figure)


def bars(
    rows: Sequence[Bar], colours: Sequence[int | None], label: str, *, most: float | None = None
) -> str:
    """Returns rows of stacked parts, the first row on top; a part without a colour is grey."""
    with _drawn(height=0.62 + 0.27 * len(rows), left=_margin(rows), bottom=0.52) as (figure, axes):
        for colour, series in zip(colours, _boxes(rows, len(colours)), strict=True):
            paint = _REST if colour is None else _COLOURS[colour]
            parts = PolyCollection(series, facecolors=paint, linewidths=0)
            axes.add_collection(parts, autolim=False)

        longest = max(sum(row.parts) for row in rows)
        axes.set_yticks(range(len(rows)), [_short(row.name) for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(0, most or 1.03 * longest or 1)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(label)
        return _svg(figure)


def curves(shown: Sequence[Curve], norm: str) -> str:
    """Returns robust accuracy against the radius, each curve with its band of 95 % intervals."""
    with _drawn(height=3.3) as (figure, axes):
        ticks: dict[float, str] = {}
        for curve, colour in zip(shown, _COLOURS, strict=False):
            _draw_curve(axes, curve, colour)
            ticks |= dict(curve.radii)

        if len(ticks) <= SERIES:
            axes.set_xticks(sorted(ticks), [_short(ticks[radius]) for radius in sorted(ticks)])
        axes.set_xlim(left=0)
        axes.set_ylim(0, 100)
        axes.set_xlabel(f"radius, {norm}")
        axes.set_ylabel("robust accuracy, %")
        return _svg(figure)


def _draw_front(axes: Axes, points: Sequence[Point]) -> None:
    """Draws the line through the best points, and the intervals of the points with a name."""
    best = sorted(point.place for point in points if point.best)
    clean, robust = np.reshape(best, (-1, 2)).T
    axes.plot(clean, robust, color=_COLOURS[1], linewidth=1.2, linestyle="--", zorder=2)

    crosses = _crosses(_prominent(points))
    axes.add_collection(LineCollection(crosses, colors=_REST, linewidths=0.8, zorder=2))


def _draw_curve(axes: Axes, curve: Curve, colour: str) -> None:
    radii, low, middle, high = [], [], [], []
    for (radius, _), accuracy in zip(curve.radii, curve.accuracies, strict=True):
        radii.append(radius)
        low.append(100 * accuracy.ci_low)
        middle.append(100 * accuracy.value)
        high.append(100 * accuracy.ci_high)

    axes.fill_between(radii, low, high, color=colour, alpha=0.16, linewidth=0)
    axes.plot(radii, middle, color=colour, marker="o", markersize=4)


def _boxes(rows: Sequence[Bar], parts: int) -> list[list[list[tuple[float, float]]]]:
    """Returns for each part the boxes of all rows; a third of a row's height stays free."""
    found: list[list[list[tuple[float, float]]]] = []
    starts = [0.0] * len(rows)
    for number in range(parts):
        series = []
        for height, row in enumerate(rows):
            start, end = starts[height], starts[height] + row.parts[number]
            low, high = height - 0.33, height + 0.33
            series.append([(start, low), (end, low), (end, high), (start, high)])
            starts[height] = end
        found.append(series)
    return found


def _prominent(points: Sequence[Point]) -> list[Point]:
    """Returns the points that get a name and a cross: all where there are few, else the best."""
    chosen = list(points)
    if len(points) > _LABELLED:
        chosen = [point for point in points if point.best]
    return sorted(chosen, key=lambda point: (-point.robust.value, point.name))[:_LABELLED]


def _crosses(points: Sequence[Point]) -> list[list[tuple[float, float]]]:
    """Returns two lines for each point, as long as its intervals."""
    lines = []
    for point in points:
        x, y = point.place
        lines.append([(100 * point.clean.ci_low, y), (100 * point.clean.ci_high, y)])
        lines.append([(x, 100 * point.robust.ci_low), (x, 100 * point.robust.ci_high)])
    return lines


@dataclass(frozen=True)
class _Label:
    """Where a name stands, in fractions of the axes."""

    start: float
    end: float
    height: float

    def covers(self, other: "_Label") -> bool:
        """Returns whether two names overlap."""
        beside = self.start < other.end and other.start < self.end
        return beside and abs(self.height - other.height) < _LINE_HEIGHT


def _name_points(axes: Axes, points: Sequence[Point]) -> None:
    """Writes names beside points, towards the middle, lower where another name is in the way."""
    axes.autoscale_view()  # a place on the axes means nothing before their limits stand
    to_fraction = axes.transData + axes.transAxes.inverted()
    taken: list[_Label] = []
    for point in _prominent(points):
        x, height = to_fraction.transform(point.place)
        label = _free_label(_short(point.name), x, height, taken)
        taken.append(label)
        _write_name(axes, _short(point.name), x, label.height)


def _free_label(name: str, x: float, height: float, taken: Sequence[_Label]) -> _Label:
    width = _LETTER * len(name)
    start = x - width if x > 0.5 else x
    label = _Label(start, start + width, height)
    while any(label.covers(other) for other in taken):
        label = _Label(start, start + width, label.height - 0.01)
    return label


def _write_name(axes: Axes, name: str, x: float, height: float) -> None:
    side, offset = ("right", -5) if x > 0.5 else ("left", 5)
    axes.annotate(
        name,
        (x, height),
        xycoords="axes fraction",
        xytext=(offset, 6),
        textcoords="offset points",
        ha=side,
        va="center",
        fontsize=9,
    )


@contextmanager
def _drawn(
    *, height: float, left: float = 0.52, bottom: float = 0.48
) -> Iterator[tuple[Figure, Axes]]:
    """Gives a figure with one pair of axes; its height and its margins are in inches."""
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        # The fonts of the reader draw the text, not ours.
        warnings.filterwarnings("ignore", message="Glyph")
        figure = Figure(figsize=(_WIDTH, height))
        size = (1 - (left + 0.15) / _WIDTH, 1 - (bottom + 0.1) / height)
        yield figure, figure.add_axes((left / _WIDTH, bottom / height, *size))


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = _NEEDLESS.sub("", text[text.index("<svg") :])
    return _PAINT.sub(lambda found: f"{found[1]}: {_VARIABLES.get(found[2], found[2])}", text)


def _margin(rows: Sequence[Bar]) -> float:
    return 0.2 + 0.078 * max(len(_short(row.name)) for row in rows)


def _short(name: str) -> str:
    if len(name) <= _LONGEST:
        return name
    return f"{name[: _LONGEST - 1]}\N{HORIZONTAL ELLIPSIS}"
