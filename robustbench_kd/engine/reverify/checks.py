"""Compares the statements of a finished run with its stored images and with new answers."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from robustbench_kd.checkpoints.subject import Subject
from robustbench_kd.core.engines import engine_traits
from robustbench_kd.core.records import Accuracy, RunRecord
from robustbench_kd.core.rows import ExampleRow
from robustbench_kd.core.statistics import interval
from robustbench_kd.core.text import printable
from robustbench_kd.core.threat import Threat
from robustbench_kd.core.verdicts import verdict_of
from robustbench_kd.engine.reverify.case import EXACT, Case, as_tensor
from robustbench_kd.engine.run.run import CLEAN, SMALLER
from robustbench_kd.tensors.contracts import Dataset
from robustbench_kd.tensors.geometry import distance, inside
from robustbench_kd.tensors.stored_images import SHOWN

_DIGITS = 16  # of a sha256 that are shown
_NAMED = 5  # failing examples that a text names
_DISTANCE = 1e-5  # of a distance: the order of a sum changes its last digits


@dataclass(frozen=True)
class Check:
    """One statement of a run: whether it holds, what was found, and where it fails."""

    name: str
    holds: bool
    found: str
    examples: tuple[int, ...] = ()


def origins(record: RunRecord, threat: Threat, data: Dataset, subject: Subject) -> Iterator[Check]:
    """Yields whether the record is consistent in itself, and about this data and this defence."""
    identity = record.identity
    yield _consistent(record, threat)

    examples = f"{len(data)} examples of {data.name}"
    yield _same("data", identity.data_fingerprint, data.fingerprint(), examples)
    yield _same("checkpoint", identity.checkpoint_sha256, subject.checkpoint_sha256, subject.name)
    if identity.code_sha256 or subject.code_sha256:
        yield _same("code", identity.code_sha256, subject.code_sha256, subject.architecture)

    recorded = f"{identity.family}, {identity.architecture}, normalisation {identity.normalisation}"
    normalisation = subject.normalisation or "none"
    network = f"{subject.family}, {subject.architecture}, normalisation {normalisation}"
    if recorded == network:
        yield Check("defence", holds=True, found=network)
    else:
        difference = printable(f"recorded is {recorded}; this is {network}")
        yield Check("defence", holds=False, found=difference)


def checks(case: Case) -> Iterator[Check]:
    """Yields what the images and the answers say of the other statements."""
    yield _images(case)
    yield _labels(case)
    yield _box(case)
    yield _ball(case)
    yield _clean(case)
    yield _errors(case)
    if case.draws is None:
        yield _predictions(case)
    yield _distances(case)
    yield _lines(case)
    if not case.drawn:
        yield _stages(case)
    yield from _accuracies(case)


def _consistent(record: RunRecord, threat: Threat) -> Check:
    """Do run id, protocol, radius and verdict follow from the rest of the record?"""
    identity = record.identity
    pairs = {
        "run id": (record.run_id, identity.run_id()),
        "protocol": (record.protocol_hash, identity.protocol_hash()),
        "radius": (identity.eps, threat.eps),
        "verdict": (record.verdict, verdict_of(record)),
    }
    wrong = [name for name, (recorded, expected) in pairs.items() if recorded != expected]
    if wrong:
        return Check(
            "record", holds=False, found=f"{', '.join(wrong)}: not what the rest of it says"
        )
    return Check("record", holds=True, found=f"its {', '.join(pairs)} follow from the rest")


def _images(case: Case) -> Check:
    """Is there an image of this run for each example that an attack made worse?"""
    run = (case.stored.run, case.stored.threat)
    if run != (case.record.run_id, str(case.threat)):
        other = printable(f"{case.stored.run} at {case.stored.threat}")
        return Check("images", holds=False, found=f"they are of run {other}")

    worse = {row.index for row in case.rows if row.broken_by not in {"", CLEAN}}
    wrong = sorted(worse ^ set(case.ids))
    holds = f"one for each of {len(worse)} examples that attacks made worse"
    return _check("images", wrong, holds, "missing, or needless")


def _labels(case: Case) -> Check:
    """Are labels and the clean images beside the others those of the data set?"""
    data = case.data
    positions = case.positions
    known = torch.tensor([row.label for row in case.rows]) == data.labels
    known[positions] &= torch.from_numpy(case.stored.labels) == data.labels[positions]

    shown = positions[:SHOWN]
    equal = torch.from_numpy(case.stored.originals) == data.images[shown]
    known[shown] &= equal.flatten(1).all(dim=1)
    failing = _examples(data.ids, ~known)
    return _check("labels", failing, "those of the data set", "not those of the data set")


def _box(case: Case) -> Check:
    held = ((case.images >= 0) & (case.images <= 1)).flatten(1).all(dim=1)
    failing = _examples(case.ids, ~held)
    return _check("box", failing, "all pixels in [0, 1]", "pixels outside [0, 1], or no numbers")


def _ball(case: Case) -> Check:
    clean = case.data.images[case.positions]
    norm = case.threat.norm
    held = inside(case.images, clean, case.threat.eps, norm)
    distances = distance(case.images.double(), clean.double(), norm)
    farthest = f"the farthest at {max(distances.tolist(), default=0.0):.7g}"
    failing = _examples(case.ids, ~held)
    return _check("ball", failing, f"all within {case.threat}, {farthest}", f"outside, {farthest}")


def _clean(case: Case) -> Check:
    answers = case.clean
    slack = case.slack(len(case.rows))
    differ = ~((answers.wrong - case.clean_wrong).abs() <= slack)
    if case.draws is None:
        recorded = torch.tensor([row.clean_prediction for row in case.rows])
        differ |= answers.prediction != recorded
    return _compared("clean answers", differ, answers.close, case.data.ids)


def _errors(case: Case) -> Check:
    """Is the defence wrong on every stored image, or as often as recorded if it is randomized?"""
    answers = case.attacked
    recorded = torch.ones_like(answers.wrong)
    if case.drawn:
        recorded = case.wrong[case.positions]
    differ = ~((answers.wrong - recorded).abs() <= case.slack(len(case.ids)))
    return _compared("errors", differ, answers.close, case.ids)


def _predictions(case: Case) -> Check:
    answers = case.attacked
    stored = torch.from_numpy(case.stored.predictions)
    recorded = as_tensor(row.adversarial_prediction for row in case.attacked_rows)
    differ = (answers.prediction != recorded) | (answers.prediction != stored)
    return _compared("predictions", differ, answers.close, case.ids)


def _distances(case: Case) -> Check:
    clean = case.data.images[case.positions]
    found = distance(case.images, clean, case.threat.norm).double()
    recorded = as_tensor(row.distance for row in case.attacked_rows)
    # No distance is recorded for an image that no draw misclassified in the end.
    not_recorded = recorded.isnan() & (case.wrong[case.positions] == 0)
    near = (found - recorded).abs() <= _DISTANCE * found.clamp(min=1)
    differ = ~near & ~not_recorded
    return _compared("distances", differ, torch.zeros_like(differ), case.ids)


def _lines(case: Case) -> Check:
    """Do the columns of `examples.csv` follow from each other?"""
    stages = {"", CLEAN, SMALLER, *(stage.stage for stage in case.record.stages)}
    deterministic = not case.drawn
    wrong = []
    for row in case.rows:
        if row.broken_by not in stages or not _follows(row, deterministic=deterministic):
            wrong.append(row.index)
    return _check(
        "examples.csv", wrong, "its columns follow from each other", "contradict themselves"
    )


def _follows(row: ExampleRow, *, deterministic: bool) -> bool:
    """Returns whether the columns of a line agree.

    An attack on a randomized defence need not change the most frequent prediction.
    """
    last = row.adversarial_prediction
    if last is None:
        last = row.clean_prediction
    if row.clean_correct != (row.clean_prediction == row.label):
        return False
    if row.robust != (last == row.label):
        return False
    return not deterministic or row.robust == (not row.broken_by)


def _stages(case: Case) -> Check:
    """Do the accuracies after each stage follow from the stages that broke the examples?"""
    record = case.record
    n = len(case.rows)
    broken = Counter(row.broken_by for row in case.rows)
    left = n - np.cumsum([broken[stage.stage] for stage in record.stages])

    wrong = []
    for stage, correct in zip(record.stages, left.tolist(), strict=True):
        if not _is_accuracy(stage.accuracy, correct, n):
            wrong.append(stage.stage)
    if not _standard_follows(record):
        wrong.append("standard")
    if wrong:
        found = printable(f"{', '.join(wrong)}: not what {n} lines say")
        return Check("stages", holds=False, found=found)
    return Check("stages", holds=True, found=f"{len(left)} accuracies follow from examples.csv")


def _standard_follows(record: RunRecord) -> bool:
    """Returns whether the accuracy before adaptive attacks is that of the last standard stage."""
    if record.robust_draws is not None and not record.robust_draws.exact:
        return True  # it was scored on draws that are in no file
    standard = {CLEAN, SMALLER, *record.identity.attacks}
    before = [stage.accuracy for stage in record.stages if stage.stage in standard]
    return record.standard in {None, *before[-1:]}


def _accuracies(case: Case) -> Iterator[Check]:
    """Are the two accuracies of the record what the answers say, apart from rounding?"""
    record = case.record
    clean = torch.where(case.clean.close, case.clean_wrong, case.clean.wrong)
    worst = clean.clone()
    recorded = case.wrong[case.positions]
    worst[case.positions] = torch.where(case.attacked.close, recorded, case.attacked.wrong)

    expected = record.robust_draws.mean if record.robust_draws else None
    slack = case.slack(1, of=len(case.rows))
    yield _accuracy("clean accuracy", record.clean, clean, case.clean_wrong, slack)
    yield _accuracy("robust accuracy", expected or record.robust, worst, case.wrong, slack)
    if expected and not engine_traits(record.identity.engine).one_draw_breaks:
        is_headline = expected == record.robust
        yield Check("headline", is_headline, "the robust accuracy is the expected one")


def _accuracy(
    name: str, stated: Accuracy | None, found: Tensor, recorded: Tensor, slack: float
) -> Check:
    """Compares an accuracy with error rates `(n,)` that were found, and with recorded ones."""
    n = len(found)
    correct = float((1 - found).sum())
    if stated is None:
        return Check(name, holds=False, found=f"{correct / n:.4%} found, none recorded")
    is_near = abs(stated.value - correct / n) <= slack
    holds = is_near and _is_accuracy(stated, float((1 - recorded).sum()), n)
    return Check(name, holds, f"{correct / n:.4%} found, {stated.value:.4%} recorded")


def _is_accuracy(stated: Accuracy, correct: float, n: int) -> bool:
    """Returns whether an accuracy and its interval are those of so many correct examples."""
    expected = (correct / n, *interval(correct, n))
    numbers = (stated.value, stated.ci_low, stated.ci_high)
    pairs = zip(numbers, expected, strict=True)
    return stated.n == n and all(abs(one - other) <= EXACT for one, other in pairs)


def _compared(name: str, differ: Tensor, close: Tensor, ids: Sequence[int]) -> Check:
    """Returns a check of answers, which rounding may change where two classes are close."""
    agree = f"{len(ids) - int(differ.sum())} of {len(ids)} as recorded"
    excused = _examples(ids, differ & close)
    if excused:
        agree += f", {len(excused)} others by rounding ({_named(excused)})"
    failing = _examples(ids, differ & ~close)
    if failing:
        agree += f"; not {_named(failing)}"
    return Check(name, not failing, agree, tuple(failing))


def _check(name: str, failing: Sequence[int], holds: str, fails: str) -> Check:
    """Returns a check that fails on some examples, or on none."""
    found = f"{_named(failing)}: {fails}" if failing else holds
    return Check(name, not failing, found, tuple(failing))


def _same(name: str, recorded: str, found: str, what: str) -> Check:
    if recorded == found:
        return Check(name, holds=True, found=f"{what}, sha256 {found[:_DIGITS]}...")
    text = f"{what} has sha256 {found[:_DIGITS]}..., recorded is {recorded[:_DIGITS]}..."
    return Check(name, holds=False, found=printable(text))


def _examples(ids: Sequence[int], failing: Tensor) -> list[int]:
    return [ids[row] for row in torch.nonzero(failing).flatten().tolist()]


def _named(examples: Sequence[int]) -> str:
    names = ", ".join(map(str, examples[:_NAMED]))
    if len(examples) > _NAMED:
        names += f" and {len(examples) - _NAMED} more"
    return names
