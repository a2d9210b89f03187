"""Decides whether any model became worse than its baseline.

A drop counts where it exceeds a tolerance and is not explained by chance.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from robustbench_kd.analysis.compare import (
    change_json,
    clean_change,
    notes,
    obstacles,
    robust_change,
)
from robustbench_kd.analysis.leaderboard import title
from robustbench_kd.analysis.paired import Change
from robustbench_kd.analysis.runs import Key, Run
from robustbench_kd.core.mcnemar import mcnemar_drop
from robustbench_kd.core.statistics import holm
from robustbench_kd.core.text import percent, printable


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
class JudgedAccuracy:
    """One accuracy of one model against its baseline.

    `reason` says why it fails and is empty where it does not. `mark` is `!` where it fails,
    otherwise like that of a comparison. `p` is McNemar's exact one-sided p-value for a drop,
    adjusted for all accuracies of the gate (Holm).
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
    """All that a gate found.

    `cells` are accuracies with a baseline, `added` runs without one, `gaps` what was not judged.
    """

    cells: tuple[JudgedAccuracy, ...]
    added: tuple[Run, ...]
    gaps: tuple[Gap, ...]
    notes: tuple[str, ...]
    limits: Limits

    @property
    def failures(self) -> tuple[JudgedAccuracy, ...]:
        """The accuracies that fell too far."""
        return tuple(cell for cell in self.cells if cell.reason)

    @property
    def headline(self) -> str:
        """The outcome in a few words, `passed` or `failed: 2 regressions`."""
        counts = []
        if self.failures:
            counts.append(_counted(len(self.failures), "regression"))
        if self.gaps:
            counts.append(_counted(len(self.gaps), "run") + " not judged")
        if not counts:
            return "passed"
        state = "failed" if self.failures else "incomplete"
        return f"{state}: {', '.join(counts)}"


def gate_runs(
    runs: Sequence[Run], problems: Iterable[str], baseline: dict[Key, Run], limits: Limits
) -> Gate:
    """Judges runs against the baseline runs of the same model and protocol."""
    pairs: list[tuple[Run, Run]] = []
    added: list[Run] = []
    gaps: list[Gap] = []
    for run in runs:
        old = baseline.get(run.key)
        if old is None:
            added.append(run)
            continue
        why = obstacles(old, run)
        if why:
            gaps.append(Gap(run.model, _named(run), f"not comparable: {'; '.join(why)}"))
        else:
            pairs.append((old, run))

    gaps += _missing(runs, baseline)
    for problem in problems:
        gaps.append(Gap("rkd", "a run among the results", printable(problem)))
    cells = _cells(pairs, limits)
    return Gate(
        cells=cells,
        added=tuple(added),
        gaps=tuple(gaps),
        notes=(*_power(cells, limits), *notes(new for _, new in pairs)),
        limits=limits,
    )


def as_json(gate: Gate) -> dict[str, object]:
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


def _cell_json(cell: JudgedAccuracy) -> dict[str, object]:
    return {
        "model": cell.after.model,
        "baseline": str(cell.before.folder),
        "run": str(cell.after.folder),
        **change_json(cell.change),
        "p": cell.p,
        "mark": cell.mark,
        "reason": cell.reason,
    }


def _cells(pairs: Sequence[tuple[Run, Run]], limits: Limits) -> tuple[JudgedAccuracy, ...]:
    found = []
    drops = []
    for old, new in pairs:
        for measure in (robust_change, clean_change):
            change = measure(old, new)
            found.append((old, new, change))
            drops.append(mcnemar_drop(len(change.lost), len(change.gained)))

    cells = []
    for (old, new, change), p in zip(found, holm(drops), strict=True):
        reason = _reason(change, p, limits)
        mark = "!" if reason else _mark(change, p, limits)
        cells.append(JudgedAccuracy(old, new, change, p, reason, mark))
    return tuple(cells)


def _reason(change: Change, p: float, limits: Limits) -> str:
    drop = -change.difference
    if limits.hard_limit is not None and drop > limits.hard_limit:
        return f"a drop beyond the hard limit of {percent(limits.hard_limit)} points"
    if drop > limits.tolerance and p <= limits.alpha:
        return (
            f"a drop beyond the tolerance of {percent(limits.tolerance)} points and beyond chance "
            f"(adjusted p {p:.1g})"
        )
    return ""


def _mark(change: Change, p: float, limits: Limits) -> str:
    """Returns a mark as a comparison has it, where a drop counts as the gate counts it."""
    if p <= limits.alpha:
        return "-"
    return "~" if change.mark == "-" else change.mark


def _missing(runs: Iterable[Run], baseline: dict[Key, Run]) -> list[Gap]:
    judged = {run.key for run in runs}
    return [_gap(old, runs) for key, old in baseline.items() if key not in judged]


def _gap(old: Run, runs: Iterable[Run]) -> Gap:
    """Names a run without counterpart, and in what the nearest run of its model differs."""
    of_model = [obstacles(old, run) for run in runs if run.model == old.model]
    nearest = min(of_model, key=len, default=[])
    why = "in the baseline, but not among the results"
    if nearest:
        why += f"; its nearest run there differs: {'; '.join(nearest)}"
    return Gap(old.model, _named(old), why)


def _named(run: Run) -> str:
    return f"{run.model}, {title(run.identity)}"


def _power(cells: Sequence[JudgedAccuracy], limits: Limits) -> list[str]:
    """Says where too few examples cannot show a drop beyond the tolerance."""
    fewest = min((cell.change.n for cell in cells), default=0)
    # With none gained p is 2 to the minus losses.
    losses = math.ceil(math.log2(max(1, len(cells)) / limits.alpha))
    if not cells or limits.hard_limit is not None or losses <= limits.tolerance * fewest:
        return []
    drop = "no drop"
    if losses <= fewest:
        drop += f" below {percent(losses / fewest)} points"
    tests = _counted(len(cells), "test")
    scope = f"with {fewest} examples and {tests}"
    return [f"{scope} {drop} can be significant: evaluate more, or set --hard-limit"]


def _counted(number: int, what: str) -> str:
    if number == 1:
        return f"{number} {what}"
    return f"{number} {what}s"
