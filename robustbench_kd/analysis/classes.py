"""Robust accuracy class by class, from the examples of several runs on the same data."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import compress

MOST_CLASSES = 20


@dataclass(frozen=True)
class Heat:
    """A row per model and a cell per class: its share of robust images and their number, None where it has no image."""

    classes: tuple[int, ...]
    rows: tuple[tuple[str, tuple[tuple[float, int] | None, ...]], ...]
    note: str


def by_class(runs: Sequence[tuple[str, Sequence[int], Sequence[bool]]]) -> Heat | None:
    """Returns the table of models, each with the labels of its examples and whether they are robust; None of nothing.

    Where there are many classes it has the weakest.
    """
    shares = [(name, _shares(labels, robust)) for name, labels, robust in runs if labels]
    classes = sorted({label for _, found in shares for label in found})
    if not classes:
        return None
    kept = sorted(
        sorted(classes, key=lambda label: _mean(label, [found for _, found in shares]))[
            :MOST_CLASSES
        ]
    )
    note = (
        f" The {MOST_CLASSES} weakest of {len(classes)} classes."
        if len(classes) > MOST_CLASSES
        else ""
    )
    return Heat(
        tuple(kept), tuple((name, tuple(map(found.get, kept))) for name, found in shares), note
    )


def _shares(labels: Sequence[int], robust: Sequence[bool]) -> dict[int, tuple[float, int]]:
    standing = Counter(compress(labels, robust))
    return {label: (standing[label] / number, number) for label, number in Counter(labels).items()}


def _mean(label: int, models: Sequence[Mapping[int, tuple[float, int]]]) -> float:
    shares = [found[label][0] for found in models if label in found]
    return sum(shares) / len(shares)
