"""Compares two runs example by example, where they answer the same question."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TypeVar

from robustbench_kd.analysis.leaderboard import title
from robustbench_kd.analysis.paired import Change, change
from robustbench_kd.analysis.runs import Run
from robustbench_kd.core.errors import NotComparableError
from robustbench_kd.core.records import Identity
from robustbench_kd.core.rows import ExampleRow
from robustbench_kd.core.statistics import holm
from robustbench_kd.core.text import printable

T = TypeVar("T")

# Two runs are comparable where all of these agree, which is where their protocol hashes do.
_PROTOCOL = (
    "dataset",
    "examples",
    "data_fingerprint",
    "norm",
    "eps",
    "suite",
    "attacks",
    "engine",
    "mode",
    "arithmetic",
)
_CHANGE = (
    "name",
    "mark",
    "n",
    "before",
    "after",
    "difference",
    "ci_low",
    "ci_high",
    "p",
    "lost",
    "gained",
)
_MADE = ("seed", "batch_size", "device")


@dataclass(frozen=True)
class Comparison:
    """How run `b` differs from run `a`.

    `stages` are the accuracies on clean images, after each attack but the last, and after all of
    them. `classes` are those of which an example differs after all of them, most lost first, their
    p-values adjusted for all classes (Holm).
    """

    a: Run
    b: Run
    stages: tuple[Change, ...]
    classes: tuple[Change, ...]
    notes: tuple[str, ...]

    @property
    def title(self) -> str:
        """What both were asked; printable."""
        return title(self.a.identity)

    @property
    def robust(self) -> Change:
        """The change under all attacks."""
        return self.stages[-1]


def compare(a: Run, b: Run) -> Comparison:
    """Compares two runs on the same examples.

    Raises `NotComparableError`, which says what is not the same.
    """
    reasons = obstacles(a, b)
    if reasons:
        raise NotComparableError(
            f"'{a.folder}' and '{b.folder}' are not comparable: {'; '.join(reasons)}. Evaluate "
            "both with the same --dataset, --examples, --threat, --suite and --engine"
        )
    stages = (clean_change(a, b), *_after_attacks(a, b), robust_change(a, b))
    return Comparison(a, b, stages, _classes(a, b), notes([a, b]))


def obstacles(a: Run, b: Run) -> list[str]:
    """Returns the differences between the questions of two runs; none if they are comparable."""
    found = _differences(a.identity, b.identity, _PROTOCOL)
    if not found and _each(a, lambda row: row.label) != _each(b, lambda row: row.label):
        return ["the same data, but other indices or labels in examples.csv"]
    return found


def clean_change(a: Run, b: Run) -> Change:
    """Returns the change on clean images."""
    return change("clean", _each(a, _is_clean_correct), _each(b, _is_clean_correct))


def robust_change(a: Run, b: Run) -> Change:
    """Returns the change under all attacks."""
    return change("robust", _each(a, _is_robust), _each(b, _is_robust))


def notes(runs: Iterable[Run]) -> tuple[str, ...]:
    """Returns what a reader should know of runs beside their numbers; printable."""
    found = []
    for run in runs:
        if run.randomized:
            found.append(
                f"{run.folder}: randomized; an image counts as robust where its most frequent "
                "answer is right"
            )
        if run.record.verdict in ("suspicious", "unreliable"):
            found.append(
                f"{run.folder}: the robust accuracy is {run.record.verdict}; its findings say why"
            )
        if run.record.verdict == "unchecked":
            found.append(f"{run.folder}: the robust accuracy is unchecked: --no-probes")
    return tuple(dict.fromkeys(map(printable, found)))


def provenance(a: Run, b: Run) -> list[str]:
    """Returns in which respects two comparable runs were made differently; printable."""
    found = _differences(a.identity, b.identity, _MADE)
    old, new = a.identity.versions, b.identity.versions
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name, "none"), new.get(name, "none")
        if before != after:
            found.append(_against(name, before, after))
    return found


def as_json(comparison: Comparison) -> dict[str, object]:
    """Returns a comparison as JSON has it, with the ids of all lost and gained examples."""
    return {
        "a": _run_json(comparison.a),
        "b": _run_json(comparison.b),
        "protocol_hash": comparison.a.identity.protocol_hash(),
        "stages": list(map(change_json, comparison.stages)),
        "classes": list(map(change_json, comparison.classes)),
        "notes": list(comparison.notes),
    }


def change_json(found: Change) -> dict[str, object]:
    """Returns a change as JSON has it."""
    return {field: getattr(found, field) for field in _CHANGE}


def _run_json(run: Run) -> dict[str, str]:
    return {"folder": str(run.folder), "model": run.model}


def _after_attacks(a: Run, b: Run) -> list[Change]:
    """Returns the changes after each attack but the last.

    There are none where attacks differ, or where a run is randomized: its attacks break no image
    for good.
    """
    attacks = _attacks(a)
    if attacks != _attacks(b) or a.randomized or b.randomized:
        return []

    changes = []
    broken = {"clean"}
    for attack in attacks[:-1]:
        broken.add(attack)
        left = [_each(run, lambda row: row.broken_by not in broken) for run in (a, b)]
        changes.append(change(printable(f"after {attack}"), *left))
    return changes


def _attacks(run: Run) -> list[str]:
    return [stage.stage for stage in run.record.stages if stage.stage != "clean"]


def _classes(a: Run, b: Run) -> tuple[Change, ...]:
    labels = {row.label for row in a.examples.values()}
    found = [_of_class(a, b, label) for label in sorted(labels)]
    adjusted = holm([one.p for one in found])

    changed = []
    for one, p in zip(found, adjusted, strict=True):
        if one.lost or one.gained:
            changed.append(replace(one, p=p))
    return tuple(sorted(changed, key=lambda one: one.difference))


def _of_class(a: Run, b: Run, label: int) -> Change:
    return change(f"class {label}", _robust_of(a, label), _robust_of(b, label))


def _robust_of(run: Run, label: int) -> dict[int, bool]:
    return {index: row.robust for index, row in run.examples.items() if row.label == label}


def _is_clean_correct(row: ExampleRow) -> bool:
    return row.clean_correct


def _is_robust(row: ExampleRow) -> bool:
    return row.robust


def _each(run: Run, value: Callable[[ExampleRow], T]) -> dict[int, T]:
    return {index: value(row) for index, row in run.examples.items()}


def _differences(a: Identity, b: Identity, fields: Iterable[str]) -> list[str]:
    found = []
    for field in fields:
        if getattr(a, field) == getattr(b, field):
            continue
        shown = "eps_text" if field == "eps" else field
        name = field.replace("_", " ")
        found.append(_against(name, getattr(a, shown), getattr(b, shown)))
    return found


def _against(name: str, old: object, new: object) -> str:
    return printable(f"{name} {_shown(old)} against {_shown(new)}")


def _shown(value: object) -> str:
    text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
