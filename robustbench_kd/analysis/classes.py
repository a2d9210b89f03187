"""Robust accuracy class by class, from the examples of several runs on the same data."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import compress

MOST_CLASSES = 20

Fraction = tuple[float, int]


@dataclass(frozen=True)
class Heat:
    """A row per model and a cell per class.

    A cell is the fraction of robust images and the number of images; None where there is no image.
    """

    classes: tuple[int, ...]
    rows: tuple[tuple[str, tuple[Fraction | None, ...]], ...]
    note: str


def by_class(runs: Sequence[tuple[str, Sequence[int], Sequence[bool]]]) -> Heat | None:
    """Returns the table of models, each with its labels and whether each example is robust.

    Where there are many classes it has the weakest. None where there are no examples.
    """
    models = [(name, _fractions(labels, robust)) for name, labels, robust in runs if labels]
    classes: set[int] = set()
    for _, fractions in models:
        classes |= fractions.keys()
    if not classes:
        return None

    kept = sorted(_weakest(classes, [fractions for _, fractions in models]))
    rows = []
    for name, fractions in models:
        rows.append((name, tuple(map(fractions.get, kept))))
    note = ""
    if len(classes) > MOST_CLASSES:
        note = f" The {MOST_CLASSES} weakest of {len(classes)} classes."
    return Heat(tuple(kept), tuple(rows), note)


def _weakest(classes: set[int], models: Sequence[Mapping[int, Fraction]]) -> list[int]:
    """Returns the classes with the lowest mean over the models."""

    def mean(label: int) -> float:
        known = [fractions[label][0] for fractions in models if label in fractions]
        return sum(known) / len(known)

    return sorted(sorted(classes), key=mean)[:MOST_CLASSES]


def _fractions(labels: Sequence[int], robust: Sequence[bool]) -> dict[int, Fraction]:
    standing = Counter(compress(labels, robust))
    fractions = {}
    for label, number in Counter(labels).items():
        fractions[label] = (standing[label] / number, number)
    return fractions
