"""Checks a finished run against the images that it has stored, and trusts nothing else in it.

The defence is asked again about all clean and all stored images: in other batches, perhaps in
another precision or on another device, and where it draws, with draws that no run has used. What it
answers is compared with what the run claims, by the checks of `claims.py`. No attack is involved.
"""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from robustbench_kd.checkpoints.subject import Subject
from robustbench_kd.core.errors import RecordError
from robustbench_kd.core.examples import read_examples
from robustbench_kd.core.records import DrawRow, ExampleRow, RunRecord
from robustbench_kd.core.rundir import ADVERSARIAL, DRAWS, EXAMPLES
from robustbench_kd.core.threat import Threat
from robustbench_kd.engine.judging.judge import judge_answers
from robustbench_kd.engine.judging.rescore import DRAWS as SCORED
from robustbench_kd.engine.reverify.checks import Answers, Case, Check, checks, origins
from robustbench_kd.tensors import stored_images
from robustbench_kd.tensors.contracts import Dataset, Images
from robustbench_kd.tensors.defence import without_rejection
from robustbench_kd.tensors.oracle import Oracle, full_precision
from robustbench_kd.tensors.stored_images import StoredImages

_STREAM = "verify"
_ROUNDING = 1e-4  # of the largest logit: two classes that are nearer may change places by rounding


@dataclass(frozen=True)
class Means:
    """How a defence is asked again: where, in which precision, and about how many images at once."""

    device: torch.device
    dtype: torch.dtype = torch.float32
    batch_size: int = 100


@dataclass(frozen=True)
class _Witness:
    """The defence that is asked again, and how."""

    oracle: Oracle
    threat: Threat
    means: Means

    def asked(self, images: Images, true: Dataset, *, attacked: bool = False) -> Answers:
        """Returns what the defence says of images, asked in batches."""
        rows = torch.arange(len(true))
        parts = [
            self._answers(images[some], true.take(some), attacked=attacked)
            for some in torch.split(rows, self.means.batch_size)
            if len(some)  # not every model takes no image at all
        ]
        if not parts:
            return Answers(wrong=rows.double(), prediction=rows, close=rows.bool())
        return Answers(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def _answers(
        self, images: Images, true: Dataset, *, attacked: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the answers to a batch; one that rejects is right under attack and wrong on a clean image."""
        seen = images.nan_to_num().clamp(0, 1).to(self.means.dtype)
        answers = self.oracle.answers(seen, torch.tensor(true.ids), stream=_STREAM, draws=SCORED)
        known = (
            without_rejection(answers, true.labels)
            if attacked and self.oracle.abstains
            else answers
        )
        judgement = judge_answers(known, self.oracle.weights(len(known)), images, true, self.threat)
        close = _close(known) if self.oracle.exact else torch.zeros(len(true), dtype=torch.bool)
        return judgement.wrong, judgement.prediction, close


def verify(
    folder: Path, record: RunRecord, data: Dataset, subject: Subject, means: Means
) -> list[Check]:
    """Returns all checks of a finished run; only the first ones where its files are damaged or about other examples.

    Raises `ModelError` where the defence gives no finite logits for the images, `UsageError` for an
    impossible threat.
    """
    threat = Threat.parse(f"{record.identity.norm}:{record.identity.eps_text}")
    known = list(origins(record, threat, data, subject))
    with full_precision():
        oracle = Oracle(subject.model.to(means.dtype), means.device, seed=record.identity.seed)
        try:
            case = _case(folder, record, data, _Witness(oracle, threat, means))
        except RecordError as error:
            return [*known, Check("files", holds=False, found=str(error))]
    shape = " x ".join(map(str, case.images.shape[1:]))
    files = f"{len(case.images)} images of {shape}, {len(case.rows)} examples"
    return [*known, Check("files", holds=True, found=files), *checks(case)]


def _case(folder: Path, record: RunRecord, data: Dataset, witness: _Witness) -> Case:
    """Reads everything and asks the defence; raises `RecordError` for files that are damaged or about other examples."""
    stored = stored_images.read(folder / ADVERSARIAL)
    rows = {row.index: row for row in read_examples(folder / EXAMPLES)}
    if record.claim:  # it was settled before all examples were needed
        data = data.take(
            torch.tensor([row for row, example in enumerate(data.ids) if example in rows])
        )
    drawn = _read_draws(folder / DRAWS) if witness.oracle.randomized else None
    _check_examples(folder, data, stored, rows, drawn)
    place = {example: row for row, example in enumerate(data.ids)}
    places = torch.tensor([place[example] for example in stored.ids.tolist()], dtype=torch.int64)
    images = torch.from_numpy(stored.images)
    return Case(
        record=record,
        threat=witness.threat,
        data=data,
        rows=[rows[example] for example in data.ids],
        drawn=[drawn[example] for example in data.ids] if drawn else [],
        stored=stored,
        places=places,
        images=images,
        clean=witness.asked(data.images, data),
        attacked=witness.asked(images, data.take(places), attacked=True),
        draws=None if witness.oracle.exact else SCORED,
    )


def _check_examples(
    folder: Path,
    data: Dataset,
    stored: StoredImages,
    rows: Mapping[int, ExampleRow],
    drawn: Mapping[int, DrawRow] | None,
) -> None:
    """Raises `RecordError` for a file that is about other examples than the data set."""
    shape, expected = tuple(stored.images.shape[1:]), tuple(data.images.shape[1:])
    if shape != expected:
        raise RecordError(
            f"'{folder / ADVERSARIAL}': expected images of shape {expected}, got {shape}"
        )
    ids = set(data.ids)
    strangers = {ADVERSARIAL: set(stored.ids.tolist()) - ids, EXAMPLES: ids ^ rows.keys()}
    if drawn is not None:
        strangers[DRAWS] = ids ^ drawn.keys()
    for name, wrong in strangers.items():
        if wrong:
            raise RecordError(
                f"'{folder / name}': expected the examples of the data set, wrong is example {min(wrong)}"
            )


def _close(answers: Tensor) -> Tensor:
    """Returns of which images `(n,)` any of the answers `(k, n, classes)` has two leading classes that nearly tie."""
    first, second = answers.topk(2, dim=2).values.unbind(dim=2)
    return (first - second <= _ROUNDING * answers.abs().amax(dim=2)).any(dim=0)


def _read_draws(path: Path) -> dict[int, DrawRow]:
    """Reads `draws.csv`; raises `RecordError` where it is missing or damaged."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = [DrawRow.model_validate(line) for line in csv.DictReader(file)]
    # What is no text or no number is a ValueError.
    except (OSError, ValueError, csv.Error) as error:
        raise RecordError(f"cannot read '{path}': {' '.join(str(error).split())[:200]}") from error
    return {row.index: row for row in rows}
