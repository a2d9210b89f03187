"""What became of each example: the decision on its clean image, and the worst one."""

from collections.abc import Sequence
from dataclasses import dataclass

from robustbench_kd.core.ledger import Decision
from robustbench_kd.core.rows import DrawRow, ExampleRow
from robustbench_kd.engine.judging.rescore import SCORE
from robustbench_kd.engine.record.header import RunHeader
from robustbench_kd.engine.run.ledger_index import LedgerIndex
from robustbench_kd.engine.run.run import CLEAN, SMALLER


@dataclass(frozen=True)
class Fate:
    """The decisions on the clean and on the worst image of an example.

    `broken_by` is the stage that found the worst image, empty if no answer to it is wrong.
    """

    clean: Decision
    worst: Decision
    broken_by: str


def fates(
    header: RunHeader,
    index: LedgerIndex,
    attacks: Sequence[str] | None = None,
    score: str = SCORE,
) -> dict[int, Fate]:
    """Returns the fate of each example under some attacks, or all, in the order of the data set.

    The error rates of a randomized defence without members are those of the stage `score`.
    """
    if attacks is None:
        attacks = header.attacks
    clean = index.decisions(CLEAN)
    found: dict[int, Fate] = {}
    for example in header.labels:
        decision = clean[example]
        found[example] = Fate(decision, decision, CLEAN if decision.broken else "")

    for stage in (SMALLER, *attacks):
        for example, decision in index.decisions(stage).items():
            before = found.get(example)  # a resumed claim has not looked at all of them yet
            if before is None:
                continue
            if _badness(decision) > _badness(before.worst):
                found[example] = Fate(before.clean, decision, stage)

    scored = index.decisions(score)
    return {
        example: Fate(fate.clean, scored.get(example, fate.worst), fate.broken_by)
        for example, fate in found.items()
    }


def survivors(header: RunHeader, index: LedgerIndex) -> int:
    """Returns how many examples nothing has broken."""
    return sum(not fate.worst.broken for fate in fates(header, index).values())


def example_rows(header: RunHeader, index: LedgerIndex) -> list[ExampleRow]:
    """Returns one row per example, in the order of the data set."""
    found = fates(header, index)
    costs = _costs(header, index)
    return [
        _row(example, label, found[example], costs.get(example))
        for example, label in header.labels.items()
    ]


def draw_rows(header: RunHeader, index: LedgerIndex) -> list[DrawRow]:
    """Returns one row per example of a randomized defence, none for others."""
    if not header.randomized:
        return []
    return [
        DrawRow(index=example, clean_wrong=fate.clean.error_rate, wrong=fate.worst.error_rate)
        for example, fate in fates(header, index).items()
    ]


def _badness(decision: Decision) -> tuple[bool, float]:
    return decision.broken, decision.error_rate


def _costs(header: RunHeader, index: LedgerIndex) -> dict[int, tuple[int, int]]:
    """Returns the forwards and backwards that attacks spent on each example, where counted."""
    costs: dict[int, tuple[int, int]] = {}
    for stage in header.attacks:
        for example, decision in index.decisions(stage).items():
            if decision.forwards is not None and decision.backwards is not None:
                forwards, backwards = costs.get(example, (0, 0))
                costs[example] = (forwards + decision.forwards, backwards + decision.backwards)
    return costs


def _row(example: int, label: int, fate: Fate, cost: tuple[int, int] | None) -> ExampleRow:
    clean = fate.clean
    worst = fate.worst
    attacked = worst is not clean
    forwards, backwards = cost or (None, None)
    robust = not worst.broken
    if worst.wrong is not None:
        robust = worst.prediction == label
    return ExampleRow(
        index=example,
        label=label,
        clean_prediction=clean.prediction,
        clean_correct=clean.prediction == label,
        robust=robust,
        broken_by=fate.broken_by,
        adversarial_prediction=worst.prediction if attacked and worst.error_rate else None,
        distance=worst.distance if attacked else None,
        margin=worst.margin,
        forwards=forwards,
        backwards=backwards,
    )
