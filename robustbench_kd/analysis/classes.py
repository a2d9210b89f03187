"""Robust accuracy class by class, from the examples of several runs on the same data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from robustbench_kd.core.records import ExampleRow

MOST_CLASSES = 20


@dataclass(frozen=True)
class Heat:
    """A row per model and a cell per class: its share of robust images and their number, None where it has no image."""

    classes: tuple[int, ...]
    rows: tuple[tuple[str, tuple[tuple[float, int] | None, ...]], ...]
    note: str


def by_class(runs: Sequence[tuple[str, Sequence[ExampleRow]]]) -> Heat | None:
    """Returns the table of models with their examples, of the weakest classes where there are many; None of nothing."""
    shares = [(name, _shares(rows)) for name, rows in runs if rows]
    classes = sorted({label for _, found in shares for label in found})
    if not classes:
        return None
    kept = sorted(sorted(classes, key=lambda label: _mean(label, [found for _, found in shares]))[:MOST_CLASSES])
    note = f" The {MOST_CLASSES} weakest of {len(classes)} classes." if len(classes) > MOST_CLASSES else ""
    return Heat(tuple(kept), tuple((name, tuple(map(found.get, kept))) for name, found in shares), note)


def _shares(rows: Sequence[ExampleRow]) -> dict[int, tuple[float, int]]:
    verdicts: dict[int, list[bool]] = {}
    for row in rows:
        verdicts.setdefault(row.label, []).append(row.robust)
    return {label: (sum(robust) / len(robust), len(robust)) for label, robust in verdicts.items()}


def _mean(label: int, models: Sequence[Mapping[int, tuple[float, int]]]) -> float:
    shares = [found[label][0] for found in models if label in found]
    return sum(shares) / len(shares)
