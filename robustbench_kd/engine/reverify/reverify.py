"""Checks a finished run against the images that it has stored, and trusts nothing else in it.

The defence is asked again about all clean and all stored images: in other batches, possibly in
another precision or on another device, and a randomized one with draws that no run has used. The
checks of `checks.py` compare its answers with the statements of the run. No attack is involved.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from robustbench_kd.checkpoints.subject import Subject
from robustbench_kd.core.errors import RecordError
from robustbench_kd.core.examples import read_draws, read_examples
from robustbench_kd.core.records import RunRecord
from robustbench_kd.core.rows import DrawRow, ExampleRow
from robustbench_kd.core.rundir import ADVERSARIAL, DRAWS, EXAMPLES
from robustbench_kd.core.threat import Threat
from robustbench_kd.engine.judging.judge import judge_answers
from robustbench_kd.engine.judging.rescore import DRAWS as SCORED
from robustbench_kd.engine.probing.undeclared import first_logits, with_chance
from robustbench_kd.engine.reverify.case import Answers, Case
from robustbench_kd.engine.reverify.checks import Check, checks, origins
from robustbench_kd.tensors import stored_images
from robustbench_kd.tensors.contracts import Dataset, Images
from robustbench_kd.tensors.defence import without_rejection
from robustbench_kd.tensors.oracle import Oracle, full_precision
from robustbench_kd.tensors.stored_images import StoredImages

_STREAM = "verify"
_ROUNDING = 1e-4  # of the largest logit: rounding may swap two classes that are nearer


@dataclass(frozen=True)
class Means:
    """How a defence is asked again: where, in which precision, about how many images at once."""

    device: torch.device
    dtype: torch.dtype = torch.float32
    batch_size: int = 100


@dataclass(frozen=True)
class _Witness:
    """The defence that is asked again, and how."""

    oracle: Oracle
    threat: Threat
    means: Means

    def answers(self, images: Images, clean: Dataset, *, attacked: bool = False) -> Answers:
        """Returns what the defence says of images, asked in batches."""
        rows = torch.arange(len(clean))
        if not len(rows):  # not every model accepts an empty batch
            return Answers(wrong=rows.double(), prediction=rows, close=rows.bool())

        parts = []
        for batch in torch.split(rows, self.means.batch_size):
            parts.append(self._batch(images[batch], clean.take(batch), attacked=attacked))
        return Answers(
            wrong=torch.cat([part.wrong for part in parts]),
            prediction=torch.cat([part.prediction for part in parts]),
            close=torch.cat([part.close for part in parts]),
        )

    def _batch(self, images: Images, clean: Dataset, *, attacked: bool) -> Answers:
        """Returns the answers to a batch.

        A rejection is correct on an attacked image and wrong on a clean one.
        """
        in_box = images.nan_to_num().clamp(0, 1).to(self.means.dtype)
        ids = torch.tensor(clean.ids)
        labels = clean.labels if attacked else None
        answers = self.oracle.answers(in_box, ids, stream=_STREAM, draws=SCORED, attacked=labels)
        if attacked and self.oracle.abstains:
            answers = without_rejection(answers, clean.labels)

        weights = self.oracle.weights(len(answers))
        judgement = judge_answers(answers, weights, images, clean, self.threat)
        close = torch.zeros(len(clean), dtype=torch.bool)
        if self.oracle.exact:
            close = _close(answers)
        return Answers(judgement.wrong, judgement.prediction, close)


def verify(
    folder: Path, record: RunRecord, data: Dataset, subject: Subject, means: Means
) -> list[Check]:
    """Returns all checks of a finished run.

    Where its files are damaged or about other examples, only the first checks are made. Raises
    `ModelError` where the defence gives no finite logits for the images, `UsageError` for an
    impossible threat.
    """
    threat = Threat.parse(f"{record.identity.norm}:{record.identity.eps_text}")
    first = list(origins(record, threat, data, subject))
    with full_precision():
        model = subject.model.to(means.dtype)
        oracle = Oracle(model, means.device, seed=record.identity.seed)
        images = data.images.to(means.dtype)
        oracle, _ = first_logits(oracle, images[:1], data.classes)
        oracle, _ = with_chance(oracle, images)
        try:
            case = _case(folder, record, data, _Witness(oracle, threat, means))
        except RecordError as error:
            return [*first, Check("files", holds=False, found=str(error))]

    shape = " x ".join(str(size) for size in case.images.shape[1:])
    files = f"{len(case.images)} images of {shape}, {len(case.rows)} examples"
    return [*first, Check("files", holds=True, found=files), *checks(case)]


def _case(folder: Path, record: RunRecord, data: Dataset, witness: _Witness) -> Case:
    """Reads everything and asks the defence.

    Raises `RecordError` for files that are damaged or about other examples.
    """
    stored = stored_images.read(folder / ADVERSARIAL)
    rows = {row.index: row for row in read_examples(folder / EXAMPLES)}
    if record.claim:  # it was settled before all examples were needed
        evaluated = [row for row, example in enumerate(data.ids) if example in rows]
        data = data.take(torch.tensor(evaluated, dtype=torch.int64))
    drawn = _draws(folder / DRAWS) if witness.oracle.randomized else None
    _check_examples(folder, data, stored, rows, drawn)

    row_of = dict(zip(data.ids, range(len(data)), strict=True))
    positions = torch.tensor([row_of[example] for example in stored.ids.tolist()]).long()
    images = torch.from_numpy(stored.images)
    return Case(
        record=record,
        threat=witness.threat,
        data=data,
        rows=[rows[example] for example in data.ids],
        drawn=[drawn[example] for example in data.ids] if drawn else [],
        stored=stored,
        positions=positions,
        images=images,
        clean=witness.answers(data.images, data),
        attacked=witness.answers(images, data.take(positions), attacked=True),
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
    shape = tuple(stored.images.shape[1:])
    expected = tuple(data.images.shape[1:])
    if shape != expected:
        raise RecordError(
            f"'{folder / ADVERSARIAL}': expected images of shape {expected}, got {shape}"
        )

    ids = set(data.ids)
    wrong_ids = {ADVERSARIAL: set(stored.ids.tolist()) - ids, EXAMPLES: ids ^ rows.keys()}
    if drawn is not None:
        wrong_ids[DRAWS] = ids ^ drawn.keys()
    for name, wrong in wrong_ids.items():
        if wrong:
            raise RecordError(
                f"'{folder / name}': expected the examples of the data set, wrong is example "
                f"{min(wrong)}"
            )


def _close(answers: Tensor) -> Tensor:
    """Returns the images `(n,)` on which two leading classes nearly tie in any answer."""
    first, second = answers.topk(2, dim=2).values.unbind(dim=2)
    nearly_ties = first - second <= _ROUNDING * answers.abs().amax(dim=2)
    return nearly_ties.any(dim=0)


def _draws(path: Path) -> dict[int, DrawRow]:
    """Reads a `draws.csv` by example id; raises like `read_draws`."""
    columns = read_draws(path)
    lines = zip(columns["index"], columns["clean_wrong"], columns["wrong"], strict=True)
    return {
        index: DrawRow(index=index, clean_wrong=clean_wrong, wrong=wrong)
        for index, clean_wrong, wrong in lines
    }
