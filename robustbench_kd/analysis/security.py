"""Security curves: the accuracy of each model at growing radii."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from robustbench_kd.analysis import figures
from robustbench_kd.analysis.figures import SERIES, Curve
from robustbench_kd.analysis.leaderboard import title
from robustbench_kd.analysis.pictures import Picture, legend_keys
from robustbench_kd.core.records import Identity, RunRecord
from robustbench_kd.core.text import percent, printable

_ZERO = 0.01  # what a curve has to reach at its end


@dataclass(frozen=True)
class Security:
    """The curves of one protocol, and a warning about those that stay above zero."""

    picture: Picture
    warning: str


def security(records: Iterable[RunRecord]) -> list[Security]:
    """Returns one figure per protocol under which some model was evaluated at several radii."""
    figures_found = []
    for group in _by_protocol(records).values():
        models = [_in_order(radii) for radii in group.values() if len(radii) > 1]
        if models:
            figures_found.append(_security(models))
    return figures_found


def _by_protocol(
    records: Iterable[RunRecord],
) -> dict[str, dict[tuple[str, str], dict[float, RunRecord]]]:
    """Returns records by protocol, model and radius; of several seeds the one with the worst."""
    groups: dict[str, dict[tuple[str, str], dict[float, RunRecord]]] = {}
    for record in records:
        identity = record.identity
        group = groups.setdefault(_regardless_of_radius(identity), {})
        radii = group.setdefault((identity.model, identity.checkpoint_sha256), {})
        worst = radii.setdefault(identity.eps, record)
        if record.robust_value < worst.robust_value:
            radii[identity.eps] = record
    return groups


def _in_order(radii: dict[float, RunRecord]) -> list[RunRecord]:
    return [radii[radius] for radius in sorted(radii)]


def _security(models: list[list[RunRecord]]) -> Security:
    ordered = sorted(models, key=lambda runs: (-runs[-1].robust_value, runs[0].identity.model))
    shown = ordered[:SERIES]
    curves = [_curve(runs) for runs in shown]
    legend: list[tuple[str, int | None]] = []
    for number, curve in enumerate(curves):
        legend.append((curve.name, number))

    identity = shown[0][0].identity
    svg = Markup(figures.curves(curves, printable(identity.norm)))  # noqa: S704  # escaped there
    picture = Picture(
        title=title(identity, radius=False),
        caption=_caption(len(models)),
        svg=svg,
        keys=legend_keys(legend),
    )
    return Security(picture, _warning([runs[-1] for runs in shown]))


def _caption(models: int) -> str:
    caption = (
        "Accuracy left at each radius, with its 95 % interval; at radius 0 it is the clean one."
    )
    if models > SERIES:
        caption += f" The {SERIES} best of {models} models."
    return caption


def _curve(runs: Sequence[RunRecord]) -> Curve:
    radii, accuracies = [], []
    if runs[0].clean:
        radii.append((0.0, "0"))
        accuracies.append(runs[0].clean)
    for run in runs:
        if run.robust:
            radii.append((run.identity.eps, printable(run.identity.eps_text)))
            accuracies.append(run.robust)
    return Curve(runs[0].identity.model, tuple(radii), tuple(accuracies))


def _warning(largest: Sequence[RunRecord]) -> str:
    """Returns which models keep accuracy at the largest radius; empty where none does."""
    left = []
    for run in largest:
        if run.robust_value > _ZERO:
            left.append(
                f"{run.identity.model} has {percent(run.robust_value)} % at {run.identity.eps_text}"
            )
    if not left:
        return ""
    return printable(
        f"{', '.join(left)}, the largest radius here. A curve has to reach zero: evaluate larger "
        "radii; where it never does, the attacks fail and the numbers say nothing."
    )


def _regardless_of_radius(identity: Identity) -> str:
    same = {"eps": 0.0, "eps_text": ""}
    return identity.model_copy(update=same).protocol_hash()
