"""What every evaluation does first: the clean pass, and what a smaller radius has shown."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch

from robustbench_kd.core.errors import ModelError
from robustbench_kd.core.examples import read_examples
from robustbench_kd.core.ledger import Decision, Entry
from robustbench_kd.core.rundir import ADVERSARIAL, EXAMPLES
from robustbench_kd.core.threat import Threat
from robustbench_kd.engine.judging.judge import decisions, judge_answers, rejected_weight
from robustbench_kd.engine.judging.packing import pack
from robustbench_kd.engine.judging.rescore import DRAWS, SCORE
from robustbench_kd.engine.passes.batching import in_batches
from robustbench_kd.engine.passes.meter import EntryClock
from robustbench_kd.engine.run.run import CLEAN, SMALLER
from robustbench_kd.tensors import stored_images
from robustbench_kd.tensors.attack import weighted_mean
from robustbench_kd.tensors.contracts import Dataset, Logits
from robustbench_kd.tensors.defence import without_rejection
from robustbench_kd.tensors.oracle import Oracle


def count_classes(oracle: Oracle, logits: Logits, data: Dataset) -> int:
    """Returns how many classes logits `(n, ...)` distinguish.

    Raises `ModelError` where labels exceed them.
    """
    classes = logits.shape[1] - oracle.abstains
    highest = int(data.labels.max())
    if highest == classes and int(data.labels.min()) > 0:
        raise ModelError(
            f"the model has {classes} classes, 0 to {classes - 1}, but '{data.name}' has labels up "
            f"to {highest} and no 0: they are counted from 1; subtract 1 from all labels"
        )
    if highest >= classes:
        raise ModelError(
            f"the model has {classes} classes, but label {highest} occurs in "
            f"'{data.name}': choose the data set it was trained on"
        )
    return classes


def clean_pass(
    oracle: Oracle, data: Dataset, threat: Threat, batch_size: int
) -> tuple[Logits, list[Entry]]:
    """Returns the mean logits `(n, classes)` of all clean images, on the CPU, and the decisions.

    An image that only some answers misclassify is not decided. To reject a clean image is wrong.
    Raises like `Oracle.logits`.
    """
    found: list[Logits] = []

    def classify(rows: list[int]) -> Entry:
        clock = EntryClock(oracle.meter)
        batch = data.take(torch.tensor(rows))
        ids = torch.tensor(batch.ids)
        answers = oracle.answers(batch.images, ids, stream=SCORE, draws=DRAWS)
        weights = oracle.weights(len(answers))

        judgement = judge_answers(answers, weights, batch.images, batch, threat)
        judgement = replace(judgement, rejected=rejected_weight(oracle, answers))
        accepted = without_rejection(answers, batch.labels) if oracle.abstains else answers
        found.append(weighted_mean(accepted, weights).float())
        return clock.entry(CLEAN, decisions(batch.ids, judgement))

    entries = list(in_batches(list(range(len(data))), batch_size, classify))
    return torch.cat(found), entries


def smaller_radius(folder: Path, *, with_images: bool) -> Entry:
    """Returns what a finished run at a smaller radius has broken.

    Raises `RecordError` where its folder cannot be read, or lacks images that are asked for.
    """
    images = _stored_images(folder) if with_images else {}
    return Entry(stage=SMALLER, decisions=list(_broken(folder, images)))


def _broken(folder: Path, images: Mapping[int, str]) -> Iterator[Decision]:
    for row in read_examples(folder / EXAMPLES):
        if not row.robust and row.adversarial_prediction is not None:
            yield Decision(
                index=row.index,
                broken=True,
                prediction=row.adversarial_prediction,
                margin=row.margin,
                distance=row.distance,
                image=images.get(row.index, ""),
            )


def _stored_images(folder: Path) -> dict[int, str]:
    """Returns the images that a run has stored, by example id."""
    stored = stored_images.read(folder / ADVERSARIAL)
    pairs = zip(stored.ids.tolist(), torch.from_numpy(stored.images), strict=True)
    return {example: pack(image) for example, image in pairs}
