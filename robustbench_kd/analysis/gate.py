"""Decides whether any model became worse than its baseline: by more than a tolerance, and not by chance."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from robustbench_kd.analysis.compare import (
    change_json,
    clean_change,
    notes,
    obstacles,
    robust_change,
)
from robustbench_kd.analysis.leaderboard import title
from robustbench_kd.analysis.paired import Change, percent
from robustbench_kd.analysis.runs import Key, Run
from robustbench_kd.core.statistics import holm, mcnemar_drop
from robustbench_kd.core.text import printable


@dataclass(frozen=True)
class Limits:
    """What may be lost, in fractions of the examples.

    A drop fails where it exceeds `tolerance` and its one-sided p-value, adjusted for all accuracies
    of the gate, is at most `alpha`; beyond `hard_limit` it fails in any case.
    """

    tolerance: float = 0.01
    hard_limit: float | None = None
    alpha: float = 0.05


@dataclass(frozen=True)
class Cell:
    """One accuracy of one model against its baseline; `reason` says why it fails and is empty where it does not.

    `mark` is `!` where it fails, otherwise like that of a comparison. `p` is McNemar's exact
    one-sided p-value for a drop, adjusted for all accuracies of the gate (Holm).
    """

    before: Run
    after: Run
    change: Change
    p: float
    reason: str
    mark: str

    @property
    def text(self) -> str:
        """The cell in a sentence; printable."""
        moved = f"from {percent(self.change.before)} % to {percent(self.change.after)} %"
        return f"{_named(self.after)}: {self.change.name} accuracy went {moved}, {self.reason}"


@dataclass(frozen=True)
class Gap:
    """A run that was not judged: its model, which run it is, and why."""

    model: str
    run: str
    why: str

    @property
    def text(self) -> str:
        """The gap in a sentence; printable."""
        return f"{self.run}: {self.why}"


@dataclass(frozen=True)
class Gate:
    """All that a gate found: accuracies with a baseline, runs without one, and what is not there to be judged."""

    cells: tuple[Cell, ...]
    added: tuple[Run, ...]
    gaps: tuple[Gap, ...]
    notes: tuple[str, ...]
    limits: Limits

    @property
    def failures(self) -> tuple[Cell, ...]:
        """The accuracies that fell too far."""
        return tuple(cell for cell in self.cells if cell.reason)

    @property
    def headline(self) -> str:
        """The outcome in a few words, `passed` or `failed: 2 regressions`."""
        counts = [
            _counted(len(self.failures), "regression"),
            _counted(len(self.gaps), "run") + " not judged",
        ]
        told = [
            text for text, found in zip(counts, (self.failures, self.gaps), strict=True) if found
        ]
        state = "failed" if self.failures else "incomplete"
        return f"{state}: {', '.join(told)}" if told else "passed"


def judge(
    runs: Sequence[Run], problems: Iterable[str], baseline: dict[Key, Run], limits: Limits
) -> Gate:
    """Judges runs against the baseline runs of the same model and protocol."""
    pairs = [(baseline[run.key], run) for run in runs if run.key in baseline]
    comparable = [(old, new) for old, new in pairs if not obstacles(old, new)]
    cells = _cells(comparable, limits)
    return Gate(
        cells=cells,
        added=tuple(run for run in runs if run.key not in baseline),
        gaps=(
            *_mismatches(pairs),
            *_missing(runs, baseline),
            *(Gap("rkd", "a run among the results", printable(problem)) for problem in problems),
        ),
        notes=(*_power(cells, limits), *notes(new for _, new in comparable)),
        limits=limits,
    )


def as_json(gate: Gate) -> dict[str, Any]:
    """Returns a gate's findings as JSON has them."""
    return {
        "outcome": gate.headline,
        "tolerance": gate.limits.tolerance,
        "hard_limit": gate.limits.hard_limit,
        "alpha": gate.limits.alpha,
        "cells": [_cell_json(cell) for cell in gate.cells],
        "new": [{"model": run.model, "folder": str(run.folder)} for run in gate.added],
        "not_judged": [gap.text for gap in gate.gaps],
        "notes": list(gate.notes),
    }


def _cell_json(cell: Cell) -> dict[str, Any]:
    runs = {
        "model": cell.after.model,
        "baseline": str(cell.before.folder),
        "run": str(cell.after.folder),
    }
    return {
        **runs,
        **change_json(cell.change),
        "p": cell.p,
        "mark": cell.mark,
        "reason": cell.reason,
    }


def _cells(pairs: Sequence[tuple[Run, Run]], limits: Limits) -> tuple[Cell, ...]:
    found = [
        (old, new, measure(old, new))
        for old, new in pairs
        for measure in (robust_change, clean_change)
    ]
    adjusted = holm([mcnemar_drop(len(change.lost), len(change.gained)) for _, _, change in found])
    return tuple(_cell(*one, p, limits) for one, p in zip(found, adjusted, strict=True))


def _cell(before: Run, after: Run, change: Change, p: float, limits: Limits) -> Cell:
    reason = _reason(change, p, limits)
    return Cell(before, after, change, p, reason, mark="!" if reason else _mark(change, p, limits))


def _reason(change: Change, p: float, limits: Limits) -> str:
    drop = -change.difference
    if limits.hard_limit is not None and drop > limits.hard_limit:
        return f"a drop beyond the hard limit of {percent(limits.hard_limit)} points"
    if drop > limits.tolerance and p <= limits.alpha:
        return f"a drop beyond the tolerance of {percent(limits.tolerance)} points and beyond chance (adjusted p {p:.1g})"
    return ""


def _mark(change: Change, p: float, limits: Limits) -> str:
    """Returns a mark as a comparison has it, where a drop counts as the gate counts it."""
    if p <= limits.alpha:
        return "-"
    return "~" if change.mark == "-" else change.mark


def _mismatches(pairs: Iterable[tuple[Run, Run]]) -> list[Gap]:
    found = [(new, obstacles(old, new)) for old, new in pairs]
    return [
        Gap(new.model, _named(new), f"not comparable: {'; '.join(why)}")
        for new, why in found
        if why
    ]


def _missing(runs: Iterable[Run], baseline: dict[Key, Run]) -> list[Gap]:
    judged = {run.key for run in runs}
    return [_gap(old, runs) for key, old in baseline.items() if key not in judged]


def _gap(old: Run, runs: Iterable[Run]) -> Gap:
    """Names a run without counterpart, and in what the nearest run of its model differs."""
    near = min((obstacles(old, run) for run in runs if run.model == old.model), key=len, default=[])
    hint = f"; its nearest run there differs: {'; '.join(near)}" if near else ""
    return Gap(old.model, _named(old), f"in the baseline, but not among the results{hint}")


def _named(run: Run) -> str:
    return f"{run.model}, {title(run.identity)}"


def _power(cells: Sequence[Cell], limits: Limits) -> list[str]:
    """Says where there are too few examples for a drop beyond the tolerance to be more than chance."""
    fewest = min((cell.change.n for cell in cells), default=0)
    # With none gained p is 2 to the minus losses.
    losses = math.ceil(math.log2(max(1, len(cells)) / limits.alpha))
    if not cells or limits.hard_limit is not None or losses <= limits.tolerance * fewest:
        return []
    which = f"below {percent(losses / fewest)} points " if losses <= fewest else ""
    tests = _counted(len(cells), "test")
    return [
        f"with {fewest} examples and {tests} no drop {which}can be significant: evaluate more, or set --hard-limit"
    ]


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
