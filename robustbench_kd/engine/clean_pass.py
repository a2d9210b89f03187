"""What every engine does first: the clean pass, and checks of the model."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch

from robustbench_kd.core.errors import ModelError
from robustbench_kd.core.examples import read_examples
from robustbench_kd.core.ledger import Decision, Entry, decisions_of
from robustbench_kd.core.rundir import ADVERSARIAL, EXAMPLES
from robustbench_kd.core.threat import Threat
from robustbench_kd.engine.autoattack import package as autoattack
from robustbench_kd.engine.judging.judge import decisions, judged, rejecting
from robustbench_kd.engine.judging.packing import packed
from robustbench_kd.engine.judging.rescore import DRAWS, SCORE
from robustbench_kd.engine.passes.batching import in_batches
from robustbench_kd.engine.probing.checkup import PROBES, Scope, checkup
from robustbench_kd.engine.run.run import CLEAN, SMALLER, Job
from robustbench_kd.tensors import stored_images
from robustbench_kd.tensors.attack import per_row
from robustbench_kd.tensors.contracts import Dataset, Logits
from robustbench_kd.tensors.defence import without_rejection
from robustbench_kd.tensors.oracle import Oracle

PACKAGE = "checks"


def classes(oracle: Oracle, logits: Logits, data: Dataset) -> int:
    """Returns how many classes logits `(n, ...)` tell apart; raises `ModelError` where labels exceed them."""
    apart, highest = logits.shape[1] - oracle.abstains, int(data.labels.max())
    if highest >= apart:
        raise ModelError(
            f"the model tells {apart} classes apart, but label {highest} occurs in '{data.name}': choose the data set "
            "it was trained on"
        )
    return apart


def clean_pass(
    oracle: Oracle, data: Dataset, threat: Threat, batch_size: int
) -> tuple[Logits, list[Entry]]:
    """Returns the mean logits `(n, classes)` of all clean images, on the CPU, and what the answers decide.

    An image that only some answers get wrong is not decided. Rejecting a clean image is an error.
    Raises like `Oracle.logits`.
    """
    found: list[Logits] = []

    def classify(rows: list[int]) -> Entry:
        start = time.perf_counter()
        batch = data.take(torch.tensor(rows))
        forwards = oracle.forwards
        answers = oracle.answers(batch.images, torch.tensor(batch.ids), stream=SCORE, draws=DRAWS)
        weights = oracle.weights(len(answers))
        judgement = judged(answers, weights, batch.images, batch, threat)
        judgement = replace(judgement, rejected=rejecting(oracle, answers))
        known = without_rejection(answers, batch.labels) if oracle.abstains else answers
        found.append((per_row(weights, known) * known).sum(dim=0).float())
        cost, seconds = oracle.forwards - forwards, time.perf_counter() - start
        return Entry(
            stage=CLEAN, decisions=decisions(batch.ids, judgement), forwards=cost, seconds=seconds
        )

    entries = list(in_batches(list(range(len(data))), batch_size, classify))
    return torch.cat(found), entries


def entries(
    job: Job,
    ledger: list[Entry],
    clean: list[Entry],
    smaller: Path | None,
    checks: Callable[[Job], Entry] | None,
) -> Iterator[Entry]:
    """Yields what the clean pass, a smaller radius and the checks of the model say, unless the ledger holds it already.

    Raises `RecordError` where the folder of the smaller radius cannot be read, or lacks images that
    are asked for.
    """
    if not decisions_of(ledger, CLEAN).keys() >= set(job.data.ids):
        yield from clean
    if smaller and not any(entry.stage == SMALLER for entry in ledger):
        images = _images(smaller) if job.saves else {}
        yield Entry(stage=SMALLER, decisions=_carried(smaller, images))
    if checks and not any(entry.stage in {PACKAGE, PROBES} for entry in ledger):
        yield checks(job)


def probes(job: Job) -> Entry:
    """Returns what the checks of `trust/` find on images that are classified rightly; adaptive stages attack parts anyway."""
    right = torch.nonzero(job.logits.argmax(dim=1) == job.data.labels).flatten().tolist()
    scope = Scope(seed=job.seed, parts=job.suite.adaptive is None, scout=True)
    return checkup(job.oracle, job.data, right, job.threat, scope)


def package_checks(job: Job) -> Entry:
    """Returns what the package's own checks find on the first batch."""
    return next(
        in_batches(list(range(len(job.data))), job.batch_size, lambda rows: _check(job, rows))
    )


def _images(folder: Path) -> dict[int, str]:
    """Returns the images that a run has stored, by example id."""
    stored = stored_images.read(folder / ADVERSARIAL)
    pairs = zip(stored.ids.tolist(), torch.from_numpy(stored.images), strict=True)
    return {example: packed(image) for example, image in pairs}


def _carried(folder: Path, images: Mapping[int, str]) -> list[Decision]:
    return [
        Decision(
            index=row.index,
            broken=True,
            prediction=row.adversarial_prediction,
            margin=row.margin,
            distance=row.distance,
            image=images.get(row.index, ""),
        )
        for row in read_examples(folder / EXAMPLES)
        if not row.robust and row.adversarial_prediction is not None
    ]


def _check(job: Job, rows: list[int]) -> Entry:
    start, forwards = time.perf_counter(), job.oracle.forwards
    first = job.data.take(torch.tensor(rows))
    randomized = job.suite.settings == "rand"
    findings = autoattack.check(job.oracle, first.images, first.labels, randomized=randomized)
    cost = job.oracle.forwards - forwards
    return Entry(
        stage=PACKAGE, forwards=cost, seconds=time.perf_counter() - start, findings=findings
    )
