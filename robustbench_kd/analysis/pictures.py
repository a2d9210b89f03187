"""Chooses what the figures of a board show; their number and size are bounded."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count

from markupsafe import Markup

from robustbench_kd.analysis import figures
from robustbench_kd.analysis.figures import SERIES, Bar, Point
from robustbench_kd.core.records import RunRecord, StageResult
from robustbench_kd.core.text import printable

MOST_ROWS = 12
OTHERS = "other attacks"

_CLEAN = "clean"


@dataclass(frozen=True)
class Picture:
    """A figure with its title, what to see in it, and a legend of variables of the page's style."""

    title: str
    caption: str
    svg: Markup
    keys: tuple[tuple[str, str], ...] = ()


def trade_off(records: Sequence[RunRecord]) -> Picture | None:
    """Returns clean against robust accuracy; None where no run has both."""
    finished = [record for record in records if record.clean and record.robust]
    if not finished:
        return None

    unbeaten = best([(record.clean_value, record.robust_value) for record in finished])
    points = []
    for record, first in zip(finished, unbeaten, strict=True):
        if record.clean and record.robust:
            points.append(Point(record.identity.model, record.clean, record.robust, best=first))
    caption = "No model is better in both than the coloured ones. The crosses are 95 % intervals."
    svg = Markup(figures.scatter(points))  # noqa: S704  # escaped there
    return Picture("Clean against robust", caption, svg)


def losses(records: Sequence[RunRecord]) -> Picture:
    """Returns a bar per run: what survives, and what each attack broke, in order of time."""
    colours = _stage_colours(records)
    attacks = [name for name in colours if name != _CLEAN]
    paints: list[int | None] = [0]
    legend: list[tuple[str, int | None]] = [("survives", 0)]
    for name in attacks:
        legend.append((name, colours[name]))
    # The bar is read from the right, where the first attack took its part.
    for name in reversed(attacks):
        paints.append(colours[name])

    rows = [_lost(record, attacks) for record in records[:MOST_ROWS]]
    caption = (
        "Share of the images that each attack broke first, in the order they ran."
        f"{_first_of(records)}"
    )
    bars = figures.bars(rows, [*paints, None], "images, %", most=100)
    svg = Markup(bars)  # noqa: S704  # escaped there
    legend.append(("wrong before any attack", None))
    return Picture("What each attack took", caption, svg, legend_keys(legend))


def costs(records: Sequence[RunRecord]) -> Picture:
    """Returns a bar per run: the passes that each attack spent."""
    colours = _stage_colours(records)
    rows = [_spent(record, list(colours)) for record in records[:MOST_ROWS]]
    caption = f"Forward and backward passes per image of the data set.{_first_of(records)}"
    bars = figures.bars(rows, list(colours.values()), "passes per image")
    svg = Markup(bars)  # noqa: S704  # escaped there
    return Picture("What each attack cost", caption, svg, legend_keys(colours.items()))


def best(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Returns for each point whether no other is as large in both coordinates and larger in one.

    >>> best([(1, 2), (2, 1), (1, 1)])
    [True, True, False]
    """
    return [not any(_beats(other, point) for other in points) for point in points]


def legend_keys(labels: Iterable[tuple[str, int | None]]) -> tuple[tuple[str, str], ...]:
    """Returns for each label the variable of its colour; no colour is the one of the rest."""
    keys = []
    for name, colour in labels:
        variable = "--rest" if colour is None else f"--s{colour}"
        keys.append((variable, name))
    return tuple(keys)


def _lost(record: RunRecord, attacks: Sequence[str]) -> Bar:
    """Returns what is correct in the end, what each attack broke, and what was wrong before."""
    lost: defaultdict[str, float] = defaultdict(float)
    before = 1.0
    for stage in record.stages:
        after = stage.accuracy.value
        if stage is record.stages[-1]:
            after = record.robust_value
        lost[_label(stage)] += before - after
        before = after

    wrong = lost.pop(_CLEAN, 0.0)
    parts = [record.robust_value, *reversed(_summed(lost, attacks)), wrong]
    return Bar(record.identity.model, tuple(100 * max(0.0, part) for part in parts))


def _spent(record: RunRecord, stages: Sequence[str]) -> Bar:
    examples = max(1, record.identity.examples)
    passes: defaultdict[str, float] = defaultdict(float)
    for stage in record.stages:
        passes[_label(stage)] += stage.passes / examples
    return Bar(record.identity.model, _summed(passes, stages))


def _summed(values: Mapping[str, float], names: Sequence[str]) -> tuple[float, ...]:
    """Returns a value for each name, the rest under `OTHERS`."""
    summed = dict.fromkeys(names, 0.0)
    for name, value in values.items():
        if name in summed:
            summed[name] += value
        elif OTHERS in summed:
            summed[OTHERS] += value
    return tuple(summed.values())


def _label(stage: StageResult) -> str:
    """Returns the name of a stage in a figure: all attacks on one surface have the same."""
    surface, on_surface, _ = stage.stage.partition(":")
    return printable(f"on {surface}" if on_surface else stage.stage)


def _stage_colours(records: Sequence[RunRecord]) -> dict[str, int | None]:
    """Returns the colour of each stage in order: grey for the clean pass, one for each attack.

    Where there are more attacks than colours, the last colour stands for all others.
    """
    names: dict[str, None] = {}
    for record in records:
        names |= dict.fromkeys(map(_label, record.stages))

    attacks = [name for name in names if name != _CLEAN]
    if len(attacks) >= SERIES:
        attacks = [*attacks[: SERIES - 2], OTHERS]
    numbers: dict[str, int | None] = dict(zip(attacks, count(1), strict=False))
    return {_CLEAN: None} | numbers


def _first_of(records: Sequence[RunRecord]) -> str:
    if len(records) <= MOST_ROWS:
        return ""
    return f" The first {MOST_ROWS} of {len(records)} runs."


def _beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one[0] >= other[0] and one[1] >= other[1] and one != other
