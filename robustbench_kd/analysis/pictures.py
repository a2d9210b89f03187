"""Chooses what the figures of a report show; whatever the number of runs, their number and size are bounded."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from robustbench_kd.analysis import figures
from robustbench_kd.analysis.figures import SERIES, Bar, Curve, Point
from robustbench_kd.analysis.leaderboard import title
from robustbench_kd.core.records import Identity, RunRecord, StageResult
from robustbench_kd.core.text import printable

MOST_ROWS = 12
OTHERS = "other attacks"

_ZERO = 0.01  # what a security curve has to reach at its end
_BEFORE = "clean"


@dataclass(frozen=True)
class Picture:
    """A figure with its title, what to see in it, and a legend of variables of the page's style."""

    title: str
    caption: str
    svg: Markup
    keys: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Security:
    """The curves of the models that were evaluated at several radii, and a warning of those that stay above zero."""

    picture: Picture
    warning: str


def trade_off(records: Sequence[RunRecord]) -> Picture | None:
    """Returns clean against robust accuracy; None where no run has both."""
    known = [(record.identity.model, record.clean, record.robust) for record in records]
    places = [(name, clean, robust) for name, clean, robust in known if clean and robust]
    if not places:
        return None
    unbeaten = best([(clean.value, robust.value) for _, clean, robust in places])
    points = [Point(*place, best=first) for place, first in zip(places, unbeaten, strict=True)]
    caption = "No model is better in both than the coloured ones. The crosses are 95 % intervals."
    return Picture("Clean against robust", caption, Markup(figures.scatter(points)))  # noqa: S704  # escaped there


def losses(records: Sequence[RunRecord]) -> Picture:
    """Returns a bar per run: what stands, and what each attack took; read from the right, in the order they ran."""
    colours = _stage_colours(records)
    names = [name for name in reversed(colours) if name != _BEFORE]
    rows = [_lost(record, names) for record in records[:MOST_ROWS]]
    paints: list[int | None] = [0, *(colours[name] for name in names), None]
    keys = [
        ("stands", 0),
        *((name, colours[name]) for name in reversed(names)),
        ("wrong before any attack", None),
    ]
    caption = f"Share of the images that each attack broke first, in the order they ran.{_first_of(records)}"
    svg = Markup(figures.bars(rows, paints, "images, %", most=100))  # noqa: S704  # escaped there
    return Picture("What each attack took", caption, svg, _keys(keys))


def costs(records: Sequence[RunRecord]) -> Picture:
    """Returns a bar per run: the passes that each attack spent."""
    colours = _stage_colours(records)
    rows = [_spent(record, list(colours)) for record in records[:MOST_ROWS]]
    caption = f"Forward and backward passes per image of the data set.{_first_of(records)}"
    svg = Markup(figures.bars(rows, list(colours.values()), "passes per image"))  # noqa: S704  # escaped there
    return Picture("What each attack cost", caption, svg, _keys(colours.items()))


def best(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Returns for each point whether no other is as large in both coordinates and larger in one.

    >>> best([(1, 2), (2, 1), (1, 1)])
    [True, True, False]
    """
    return [not any(_beats(other, point) for other in points) for point in points]


def security(records: Iterable[RunRecord]) -> list[Security]:
    """Returns one figure for each protocol under which some model was evaluated at two radii or more."""
    groups: dict[str, dict[tuple[str, str], dict[float, RunRecord]]] = {}
    for record in records:
        identity = record.identity
        radii = groups.setdefault(_regardless_of_radius(identity), {})
        own = radii.setdefault((identity.model, identity.checkpoint_sha256), {})
        # The worst of several seeds.
        own[identity.eps] = min(own.get(identity.eps, record), record, key=_robust)
    several = [
        [list(own.values()) for own in group.values() if len(own) > 1] for group in groups.values()
    ]
    return [_security(models) for models in several if models]


def _lost(record: RunRecord, names: Sequence[str]) -> Bar:
    left = [1.0, *(stage.accuracy.value for stage in record.stages[:-1]), _robust(record)]
    lost: defaultdict[str, float] = defaultdict(float)
    for stage, before, after in zip(record.stages, left, left[1:], strict=False):
        lost[_label(stage)] += before - after
    wrong = lost.pop(_BEFORE, 0.0)
    parts = _robust(record), *_summed(lost, names), wrong
    return Bar(record.identity.model, tuple(100 * max(0.0, part) for part in parts))


def _spent(record: RunRecord, names: Sequence[str]) -> Bar:
    passes: defaultdict[str, float] = defaultdict(float)
    for stage in record.stages:
        passes[_label(stage)] += (stage.forwards + stage.backwards) / max(
            1, record.identity.examples
        )
    return Bar(record.identity.model, _summed(passes, names))


def _summed(values: Mapping[str, float], names: Sequence[str]) -> tuple[float, ...]:
    """Returns a value for each name, the rest under `OTHERS`."""
    others = sum(value for name, value in values.items() if name not in names)
    return tuple(others if name == OTHERS else values.get(name, 0.0) for name in names)


def _label(stage: StageResult) -> str:
    """Returns the name of a stage in a figure: all attacks on one surface together."""
    surface, on_surface, _ = stage.stage.partition(":")
    return printable(f"on {surface}" if on_surface else stage.stage)


def _stage_colours(records: Sequence[RunRecord]) -> dict[str, int | None]:
    """Returns the colour of each stage in order: grey for the clean pass, then one for each attack while there are some."""
    stages = dict.fromkeys(_label(stage) for record in records for stage in record.stages)
    attacks = [name for name in stages if name != _BEFORE]
    if len(attacks) >= SERIES:
        attacks = [*attacks[: SERIES - 2], OTHERS]
    return {_BEFORE: None} | {name: number for number, name in enumerate(attacks, start=1)}


def _security(models: list[list[RunRecord]]) -> Security:
    ordered = [sorted(records, key=lambda record: record.identity.eps) for records in models]
    shown = sorted(ordered, key=lambda records: (-_robust(records[-1]), records[0].identity.model))[
        :SERIES
    ]
    drawn = [_curve(records) for records in shown]
    identity = shown[0][0].identity
    more = f" The {SERIES} best of {len(models)} models." if len(models) > SERIES else ""
    picture = Picture(
        title=title(identity, radius=False),
        caption=f"Accuracy left at each radius, with its 95 % interval; at radius 0 it is the clean one.{more}",
        svg=Markup(figures.curves(drawn, printable(identity.norm))),  # noqa: S704  # escaped there
        keys=_keys((curve.name, number) for number, curve in enumerate(drawn)),
    )
    return Security(
        picture, _warning([records[-1] for records in shown if _robust(records[-1]) > _ZERO])
    )


def _curve(records: Sequence[RunRecord]) -> Curve:
    start = [(0.0, "0", records[0].clean)]
    points = start + [
        (one.identity.eps, printable(one.identity.eps_text), one.robust) for one in records
    ]
    known = [(eps, text, accuracy) for eps, text, accuracy in points if accuracy]
    radii = tuple((eps, text) for eps, text, _ in known)
    return Curve(records[0].identity.model, radii, tuple(accuracy for _, _, accuracy in known))


def _warning(above: Sequence[RunRecord]) -> str:
    if not above:
        return ""
    left = [
        f"{one.identity.model} has {100 * _robust(one):.1f} % at {one.identity.eps_text}"
        for one in above
    ]
    return printable(
        f"{', '.join(left)}, the largest radius here. A curve has to reach zero: evaluate larger radii; where it never "
        "does, the attacks fail and the numbers say nothing."
    )


def _regardless_of_radius(identity: Identity) -> str:
    same = {"eps": 0.0, "eps_text": ""}
    return identity.model_copy(update=same).protocol_hash()


def _first_of(records: Sequence[RunRecord]) -> str:
    return f" The first {MOST_ROWS} of {len(records)} runs." if len(records) > MOST_ROWS else ""


def _keys(labels: Iterable[tuple[str, int | None]]) -> tuple[tuple[str, str], ...]:
    return tuple(("--rest" if colour is None else f"--s{colour}", name) for name, colour in labels)


def _beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one[0] >= other[0] and one[1] >= other[1] and one != other


def _robust(record: RunRecord) -> float:
    return record.robust.value if record.robust else 0.0
