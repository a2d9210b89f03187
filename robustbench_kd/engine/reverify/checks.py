"""What a finished run claims, compared with what its stored images and a defence that was asked again say."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from robustbench_kd.checkpoints.subject import Subject
from robustbench_kd.core.records import Accuracy, DrawRow, ExampleRow, RunRecord, verdict
from robustbench_kd.core.statistics import interval
from robustbench_kd.core.text import printable
from robustbench_kd.core.threat import Threat
from robustbench_kd.engine.run.run import CLEAN, SMALLER
from robustbench_kd.tensors.contracts import Dataset, Images
from robustbench_kd.tensors.geometry import distance, inside
from robustbench_kd.tensors.stored_images import SHOWN, StoredImages

_DIGITS = 16  # of a sha256 that are shown
_NAMED = 5  # failing examples that a text names
_EXACT = 1e-6  # what sums and the weights of members may differ by
_DOUBT = 1e-3  # the chance that luck alone fails a check of a randomized defence
_DISTANCE = 1e-5  # of a distance: the order of a sum changes its last digits


@dataclass(frozen=True)
class Check:
    """One thing that a run claims: whether it holds, what was found, and the examples that it fails on."""

    name: str
    holds: bool
    found: str
    examples: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Answers:
    """What a defence says of images, all `(n,)`.

    `wrong` is the share of its answers that err, `prediction` the most frequent one. `close` marks
    images on which two classes are so near to each other that rounding could change an answer.
    """

    wrong: Tensor
    prediction: Tensor
    close: Tensor


@dataclass(frozen=True, eq=False)
class Case:
    """A run with everything that is known of it.

    `rows` and `drawn` are the lines of `examples.csv` and `draws.csv` in the order of the data, the
    latter of a randomized defence only. `places` `(m,)` are the rows of the data set that the
    stored `images` belong to. `draws` is the number of draws behind every share of a randomized
    defence without members, None where shares are exact.
    """

    record: RunRecord
    threat: Threat
    data: Dataset
    rows: Sequence[ExampleRow]
    drawn: Sequence[DrawRow]
    stored: StoredImages
    places: Tensor
    images: Images
    clean: Answers
    attacked: Answers
    draws: int | None

    @property
    def ids(self) -> list[int]:
        """Returns the example of each stored image."""
        return [self.data.ids[place] for place in self.places.tolist()]

    @property
    def attacked_rows(self) -> list[ExampleRow]:
        """Returns the line of each stored image."""
        return [self.rows[place] for place in self.places.tolist()]

    @property
    def clean_wrong(self) -> Tensor:
        """Returns the recorded share of wrong answers to each clean image `(n,)`."""
        if self.drawn:
            return _tensor(row.clean_wrong for row in self.drawn)
        return _tensor(float(not row.clean_correct) for row in self.rows)

    @property
    def wrong(self) -> Tensor:
        """Returns the recorded share of wrong answers to the worst image of each example `(n,)`."""
        if self.drawn:
            return _tensor(row.wrong for row in self.drawn)
        return _tensor(float(not row.robust) for row in self.rows)

    def slack(self, means: int, of: int = 1) -> float:
        """Returns what a share may differ by, where `means` shares are compared, each the mean `of` so many images.

        Two independent means of draws differ by more with a chance below 0.001 (Hoeffding 1963, for
        all of them together).
        """
        if self.draws is None:
            return _EXACT
        return math.sqrt(math.log(2 * max(1, means) / _DOUBT) / (self.draws * max(1, of)))


def origins(record: RunRecord, threat: Threat, data: Dataset, subject: Subject) -> Iterator[Check]:
    """Yields whether the record is in itself consistent, and about this data and this defence."""
    identity = record.identity
    pairs = {
        "run id": (record.run_id, identity.run_id()),
        "protocol": (record.protocol_hash, identity.protocol_hash()),
        "radius": (identity.eps, threat.eps),
        "verdict": (record.verdict, verdict(record.findings)),
    }
    wrong = [name for name, (told, follows) in pairs.items() if told != follows]
    found = (
        f"{', '.join(wrong)}: not what the rest of it says"
        if wrong
        else f"its {', '.join(pairs)} follow from the rest"
    )
    yield Check("record", not wrong, found)
    yield _same(
        "data",
        identity.data_fingerprint,
        data.fingerprint(),
        f"{len(data)} examples of {data.name}",
    )
    yield _same("checkpoint", identity.checkpoint_sha256, subject.checkpoint_sha256, subject.name)
    if identity.code_sha256 or subject.code_sha256:
        yield _same("code", identity.code_sha256, subject.code_sha256, subject.architecture)
    recorded = f"{identity.family}, {identity.architecture}, normalisation {identity.normalisation}"
    network = (
        f"{subject.family}, {subject.architecture}, normalisation {subject.normalisation or 'none'}"
    )
    if recorded == network:
        yield Check("defence", holds=True, found=network)
    else:
        yield Check(
            "defence", holds=False, found=printable(f"recorded is {recorded}; this is {network}")
        )


def checks(case: Case) -> Iterator[Check]:
    """Yields what the images and the answers say of the rest."""
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


def _images(case: Case) -> Check:
    """Is there an image for each example that an attack made worse, and are they this run's?"""
    worse = {row.index for row in case.rows if row.broken_by not in {"", CLEAN}}
    wrong = sorted(worse ^ set(case.ids))
    own = (case.stored.run, case.stored.threat) == (case.record.run_id, str(case.threat))
    if not own:
        of = printable(f"{case.stored.run} at {case.stored.threat}")
        return Check("images", holds=False, found=f"they are of run {of}")
    return _verdict(
        "images",
        wrong,
        f"one for each of {len(worse)} examples that attacks made worse",
        "missing, or needless",
    )


def _labels(case: Case) -> Check:
    """Are labels and the clean images that lie beside the others those of the data set?"""
    data, places = case.data, case.places
    known = torch.tensor([row.label for row in case.rows]) == data.labels
    known[places] &= torch.from_numpy(case.stored.labels) == data.labels[places]
    shown = places[:SHOWN]
    same = (torch.from_numpy(case.stored.originals) == data.images[shown]).flatten(1).all(dim=1)
    known[shown] &= same
    return _verdict(
        "labels", _examples(data.ids, ~known), "those of the data set", "not those of the data set"
    )


def _box(case: Case) -> Check:
    held = ((case.images >= 0) & (case.images <= 1)).flatten(1).all(dim=1)
    return _verdict(
        "box",
        _examples(case.ids, ~held),
        "all pixels in [0, 1]",
        "pixels outside [0, 1], or no numbers",
    )


def _ball(case: Case) -> Check:
    true, norm = case.data.images[case.places], case.threat.norm
    held = inside(case.images, true, case.threat.eps, norm)
    far = distance(case.images.double(), true.double(), norm)
    farthest = f"the farthest at {max(far.tolist(), default=0.0):.7g}"
    return _verdict(
        "ball",
        _examples(case.ids, ~held),
        f"all within {case.threat}, {farthest}",
        f"outside, {farthest}",
    )


def _clean(case: Case) -> Check:
    found = case.clean
    differ = ~((found.wrong - case.clean_wrong).abs() <= case.slack(len(case.rows)))
    if case.draws is None:
        differ |= found.prediction != torch.tensor([row.clean_prediction for row in case.rows])
    return _compared("clean answers", differ, found.close, case.data.ids)


def _errors(case: Case) -> Check:
    """Does the defence err on every stored image, or as often as recorded where chance decides?"""
    found = case.attacked
    recorded = case.wrong[case.places] if case.drawn else torch.ones_like(found.wrong)
    differ = ~((found.wrong - recorded).abs() <= case.slack(len(case.ids)))
    return _compared("errors", differ, found.close, case.ids)


def _predictions(case: Case) -> Check:
    found, stored = case.attacked, torch.from_numpy(case.stored.predictions)
    recorded = _tensor(row.adversarial_prediction for row in case.attacked_rows)
    differ = (found.prediction != recorded) | (found.prediction != stored)
    return _compared("predictions", differ, found.close, case.ids)


def _distances(case: Case) -> Check:
    found = distance(case.images, case.data.images[case.places], case.threat.norm).double()
    recorded = _tensor(row.distance for row in case.attacked_rows)
    # Of an image that no draw got wrong in the end.
    untold = recorded.isnan() & (case.wrong[case.places] == 0)
    differ = ~((found - recorded).abs() <= _DISTANCE * found.clamp(min=1)) & ~untold
    return _compared("distances", differ, torch.zeros_like(differ), case.ids)


def _lines(case: Case) -> Check:
    """Do the columns of `examples.csv` follow from each other?"""
    stages = {"", CLEAN, SMALLER, *case.record.identity.stages}
    wrong = [
        row.index
        for row in case.rows
        if row.broken_by not in stages or not _follows(row, one=not case.drawn)
    ]
    return _verdict(
        "examples.csv", wrong, "its columns follow from each other", "contradict themselves"
    )


def _follows(row: ExampleRow, *, one: bool) -> bool:
    """Tells whether the columns of a line agree; of a randomized defence an attack need not change the prediction."""
    last = (
        row.clean_prediction if row.adversarial_prediction is None else row.adversarial_prediction
    )
    plain = row.clean_correct == (row.clean_prediction == row.label) and row.robust == (
        last == row.label
    )
    return plain and (not one or row.robust == (not row.broken_by))


def _stages(case: Case) -> Check:
    """Do the accuracies after each stage follow from who was broken by which?"""
    record, lost, n = case.record, Counter(row.broken_by for row in case.rows), len(case.rows)
    left = n - np.cumsum([lost[stage.stage] for stage in record.stages])
    wrong = [
        stage.stage
        for stage, right in zip(record.stages, left.tolist(), strict=True)
        if not _tells(stage.accuracy, right, n)
    ]
    before = [
        stage.accuracy for stage in record.stages if stage.stage not in record.identity.adaptive
    ]
    # Scored on draws of which no line tells.
    drawn = record.robust_draws is not None and not record.robust_draws.exact
    if not drawn and record.standard not in {None, *before[-1:]}:
        wrong.append("standard")
    told = (
        f"{', '.join(wrong)}: not what {n} lines say"
        if wrong
        else f"{len(left)} accuracies follow from examples.csv"
    )
    return Check("stages", not wrong, printable(told))


def _accuracies(case: Case) -> Iterator[Check]:
    """Are the two accuracies of the record what the answers say? Rounding is given the benefit of the doubt."""
    record, n = case.record, len(case.rows)
    clean = torch.where(case.clean.close, case.clean_wrong, case.clean.wrong)
    worst = clean.clone()
    worst[case.places] = torch.where(
        case.attacked.close, case.wrong[case.places], case.attacked.wrong
    )
    drawn = record.robust_draws.mean if record.robust_draws else None
    slack = case.slack(1, of=n)
    yield _accuracy("clean accuracy", record.clean, clean, case.clean_wrong, slack)
    yield _accuracy("robust accuracy", drawn or record.robust, worst, case.wrong, slack)
    if drawn and record.identity.engine == "native":
        yield Check("headline", drawn == record.robust, "the robust accuracy is the expected one")


def _accuracy(
    name: str, told: Accuracy | None, found: Tensor, recorded: Tensor, slack: float
) -> Check:
    """Compares an accuracy with shares `(n,)` of wrong answers that were found, and with those that were recorded."""
    n, right = len(found), float((1 - found).sum())
    if told is None:
        return Check(name, holds=False, found=f"{right / n:.4%} found, none recorded")
    holds = abs(told.value - right / n) <= slack and _tells(told, float((1 - recorded).sum()), n)
    return Check(name, holds, f"{right / n:.4%} found, {told.value:.4%} recorded")


def _tells(told: Accuracy, right: float, n: int) -> bool:
    """Tells whether an accuracy and its interval are those of so many right ones."""
    pairs = zip(
        (told.value, told.ci_low, told.ci_high), (right / n, *interval(right, n)), strict=True
    )
    return told.n == n and all(abs(one - other) <= _EXACT for one, other in pairs)


def _compared(name: str, differ: Tensor, close: Tensor, ids: Sequence[int]) -> Check:
    """Returns a check of answers, which rounding may change where two classes are close."""
    excused = _examples(ids, differ & close)
    rounding = f", {len(excused)} others by rounding ({_named(excused)})" if excused else ""
    agree = f"{len(ids) - int(differ.sum())} of {len(ids)} as recorded{rounding}"
    failing = _examples(ids, differ & ~close)
    return Check(
        name, not failing, f"{agree}; not {_named(failing)}" if failing else agree, tuple(failing)
    )


def _verdict(name: str, failing: Sequence[int], holds: str, fails: str) -> Check:
    """Returns a check that fails on some examples, or on none."""
    return Check(
        name, not failing, f"{_named(failing)}: {fails}" if failing else holds, tuple(failing)
    )


def _same(name: str, recorded: str, found: str, what: str) -> Check:
    if recorded == found:
        return Check(name, holds=True, found=f"{what}, sha256 {found[:_DIGITS]}...")
    text = f"{what} has sha256 {found[:_DIGITS]}..., recorded is {recorded[:_DIGITS]}..."
    return Check(name, holds=False, found=printable(text))


def _examples(ids: Sequence[int], failing: Tensor) -> list[int]:
    return [example for example, fails in zip(ids, failing.tolist(), strict=True) if fails]


def _named(examples: Sequence[int]) -> str:
    more = f" and {len(examples) - _NAMED} more" if len(examples) > _NAMED else ""
    return f"{', '.join(map(str, examples[:_NAMED]))}{more}"


def _tensor(values: Iterable[float | None]) -> Tensor:
    """Returns numbers that equal none where there is none."""
    return torch.tensor(
        [math.nan if value is None else value for value in values], dtype=torch.float64
    )
