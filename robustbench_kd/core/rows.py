"""Lines of the CSV files of a run: `examples.csv`, `draws.csv` and `attacks.csv`."""

from typing import NamedTuple

from robustbench_kd.core.ranges import Count, Fraction, Nonnegative
from robustbench_kd.core.records import Frozen, Name, RunRecord, StageResult


class ExampleRow(NamedTuple):  # a page reads them by the hundred thousand
    """One line of `examples.csv`; it is checked where it is read.

    `margin` is the true class's logit less the largest other one, on the adversarial image where
    there is one and on the clean image otherwise. `forwards` and `backwards` are empty where the
    engine cannot tell them per example. For a randomized defence the prediction is the most
    frequent one, and `robust` says whether it is right.
    """

    index: Count  # type: ignore[assignment]  # hides the method of tuples, which nobody asks of a row
    label: Count
    clean_prediction: Count
    clean_correct: bool
    robust: bool
    broken_by: str
    adversarial_prediction: Count | None
    distance: Nonnegative | None
    margin: float
    forwards: Count | None
    backwards: Count | None


class DrawRow(Frozen):
    """One line of `draws.csv`, for randomized defences.

    `clean_wrong` and `wrong` are the fractions of answers that err on the clean and on the
    adversarial image.
    """

    index: Count
    clean_wrong: Fraction
    wrong: Fraction


class AttackRow(Frozen):
    """One line of `attacks.csv`: the accuracy after a stage, in tidy form."""

    run: Name
    model: Name
    family: Name
    dataset: Name
    norm: str
    eps: float
    suite: str
    engine: str
    stage: str
    n: int
    accuracy: float
    ci_low: float
    ci_high: float
    forwards: int
    backwards: int
    seconds: float


def attack_rows(record: RunRecord) -> list[AttackRow]:
    """Returns the stages of a run in tidy form, closed by a stage `final`."""
    if record.robust is None:
        return []
    final = StageResult(
        stage="final",
        accuracy=record.robust,
        forwards=record.forwards,
        backwards=record.backwards,
        seconds=record.seconds,
    )
    shared = record.identity.model_dump(
        include={"model", "family", "dataset", "norm", "eps", "suite", "engine"}
    )
    return [_attack_row(record.run_id, shared, stage) for stage in [*record.stages, final]]


def _attack_row(run: str, shared: dict[str, str | float], stage: StageResult) -> AttackRow:
    cells = {
        **shared,
        **stage.model_dump(exclude={"accuracy", "work"}),
        **stage.accuracy.model_dump(exclude={"value"}),
    }
    return AttackRow.model_validate({**cells, "run": run, "accuracy": stage.accuracy.value})
