"""Figures as SVG to be put into a page: text stays text, colours are the page's own, and equal data give equal bytes."""

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure

from robustbench_kd.core.records import Accuracy

SERIES = 8  # colours that can be told apart

_WIDTH = 4.8  # inches, which a page stretches to the width it has
_LONGEST = 24  # letters of a name
# Size of a name's letters in a scatter plot, as shares of its axes.
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
    """A model by its clean and robust accuracy; `best` where no other is as good in both and better in one."""

    name: str
    clean: Accuracy
    robust: Accuracy
    best: bool


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
    """Returns clean against robust accuracy with their intervals, and a line through the points that no other beats."""
    with _drawn(height=3.5) as (figure, axes):
        clean, robust = (
            [100 * getattr(point, side).value for point in points] for side in ("clean", "robust")
        )
        front = sorted(
            place for *place, point in zip(clean, robust, points, strict=True) if point.best
        )
        axes.plot(
            [x for x, _ in front],
            [y for _, y in front],
            color=_COLOURS[1],
            linewidth=1.2,
            linestyle="--",
            zorder=2,
        )
        axes.add_collection(
            LineCollection(_crosses(_prominent(points)), colors=_REST, linewidths=0.8, zorder=2)
        )
        paints = [_COLOURS[0] if point.best else _MUTED for point in points]
        axes.scatter(clean, robust, s=30, color=paints, zorder=3, linewidth=0)
        _name_points(axes, points)
        axes.set_xlabel("clean accuracy, %")
        axes.set_ylabel("robust accuracy, %")
        return _svg(figure)


def bars(
    rows: Sequence[Bar], colours: Sequence[int | None], label: str, *, most: float | None = None
) -> str:
    """Returns rows of stacked parts, the first row on top; a part without a colour of its own is grey."""
    with _drawn(height=0.62 + 0.27 * len(rows), left=_margin(rows), bottom=0.52) as (figure, axes):
        starts = [0.0] * len(rows)
        for number, colour in enumerate(colours):
            ends = [start + row.parts[number] for start, row in zip(starts, rows, strict=True)]
            boxes = [
                _box(start, end, row)
                for row, (start, end) in enumerate(zip(starts, ends, strict=True))
            ]
            paint = _REST if colour is None else _COLOURS[colour]
            axes.add_collection(
                PolyCollection(boxes, facecolors=paint, linewidths=0), autolim=False
            )
            starts = ends
        axes.set_yticks(range(len(rows)), [_short(row.name) for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(0, most or 1.03 * max(starts) or 1)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(label)
        return _svg(figure)


def curves(shown: Sequence[Curve], norm: str) -> str:
    """Returns robust accuracy against the radius, each curve with the band of its 95 % intervals."""
    with _drawn(height=3.3) as (figure, axes):
        for curve, colour in zip(shown, _COLOURS, strict=False):
            radii = [radius for radius, _ in curve.radii]
            low, high = (
                [100 * getattr(one, end) for one in curve.accuracies]
                for end in ("ci_low", "ci_high")
            )
            axes.fill_between(radii, low, high, color=colour, alpha=0.16, linewidth=0)
            axes.plot(
                radii,
                [100 * one.value for one in curve.accuracies],
                color=colour,
                marker="o",
                markersize=4,
            )
        ticks = dict(sorted(radius for curve in shown for radius in curve.radii))
        if len(ticks) <= SERIES:
            axes.set_xticks(list(ticks), [_short(text) for text in ticks.values()])
        axes.set_xlim(left=0)
        axes.set_ylim(0, 100)
        axes.set_xlabel(f"radius, {norm}")
        axes.set_ylabel("robust accuracy, %")
        return _svg(figure)


def _box(start: float, end: float, row: int) -> list[tuple[float, float]]:
    """Returns the corners of one part; of the height of a row a third is left between the bars."""
    return [(start, row - 0.33), (end, row - 0.33), (end, row + 0.33), (start, row + 0.33)]


def _prominent(points: Sequence[Point]) -> list[Point]:
    """Returns the points that get a name and a cross, from the top: all where there are few, else the best."""
    chosen = points if len(points) <= _LABELLED else [point for point in points if point.best]
    return sorted(chosen, key=lambda point: (-point.robust.value, point.name))[:_LABELLED]


def _crosses(points: Sequence[Point]) -> list[list[tuple[float, float]]]:
    """Returns two lines for each point, as long as its intervals."""
    lines = []
    for clean, robust in ((point.clean, point.robust) for point in points):
        x, y = 100 * clean.value, 100 * robust.value
        lines.append([(100 * clean.ci_low, y), (100 * clean.ci_high, y)])
        lines.append([(x, 100 * robust.ci_low), (x, 100 * robust.ci_high)])
    return lines


def _name_points(axes: Axes, points: Sequence[Point]) -> None:
    """Writes names beside points, towards the middle, each as much lower as it takes to stand clear of the others."""
    axes.autoscale_view()  # a place on the axes means nothing before their limits stand
    to_share = axes.transData + axes.transAxes.inverted()
    taken: list[tuple[float, float, float]] = []
    for point in _prominent(points):
        x, height = to_share.transform((100 * point.clean.value, 100 * point.robust.value))
        name = _short(point.name)
        inward, width = x > 0.5, _LETTER * len(name)
        start = x - width if inward else x
        while any(
            start < end and begin < start + width and abs(height - h) < _LINE_HEIGHT
            for begin, end, h in taken
        ):
            height -= 0.01
        taken.append((start, start + width, height))
        axes.annotate(
            name,
            (x, height),
            xycoords="axes fraction",
            xytext=(-5 if inward else 5, 6),
            textcoords="offset points",
            ha="right" if inward else "left",
            va="center",
            fontsize=9,
        )


@contextmanager
def _drawn(
    *, height: float, left: float = 0.52, bottom: float = 0.48
) -> Iterator[tuple[Figure, Axes]]:
    """Gives a figure of a height in inches with one pair of axes, whose margins are in inches too."""
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        # The reader's fonts draw the text, not ours.
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
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}\N{HORIZONTAL ELLIPSIS}"
