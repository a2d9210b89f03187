"""What a defence that may reject is worth as a detector: whom it rejects, and whether its scores give attacks away.

A robust accuracy alone would reward a defence that rejects a lot, so clean and attacked images are
reported side by side. The score of an image is how far the logit for "rejected" is above all
others, the mean over draws where chance decides. It is compared on clean images that the classifier
gets right, rejected or not, and on the same images under attack: by one that knows the classifier
only, and by one that knows the detector too. Adversarial images are those that fool the classifier,
rejected or not, as in Hu et al. 2019 (arXiv 1910.07629); that only the second attacker tells what a
detector is worth is shown by Tramer et al. 2020 (arXiv 2002.08347) and Pintor et al. 2022 (arXiv
2106.09947).

All images of an example meet the same draws, those of the final scores. An attacker chooses among
them by these draws, too, which flatters him where they differ little; by nothing where the draws
alone decide.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustbench_kd.attacks.apgd import Apgd
from robustbench_kd.core.ledger import Decision, Entry, decisions_of
from robustbench_kd.core.records import Accuracy, Caught, Detection, Roc
from robustbench_kd.core.statistics import mean_accuracy
from robustbench_kd.engine.judging.rescore import DRAWS, SCORE_STREAM
from robustbench_kd.engine.passes import surfaces
from robustbench_kd.engine.passes.batching import in_batches
from robustbench_kd.engine.passes.search import Reply, Search, Spent
from robustbench_kd.engine.run.run import Job
from robustbench_kd.tensors.attack import Rows, per_row
from robustbench_kd.tensors.contracts import Dataset, Images, Labels, Logits
from robustbench_kd.tensors.defence import EXPECTED, OWN, Key, Surface, without_rejection
from robustbench_kd.tensors.geometry import inside

CLEAN, OBLIVIOUS, JOINT = "detection-clean", "detection-oblivious", "detection-joint"
_DECLARED = {OBLIVIOUS: "classifier", JOINT: "joint"}
_ATTACK = Apgd(loss="margin", restarts=1, steps=50)


def entries(job: Job, ledger: list[Entry]) -> Iterator[Entry]:
    """Yields scores of clean and attacked images that the ledger lacks, of a defence that may reject; else nothing.

    A decision says here: is the classifier fooled (`broken`), what does it say (`prediction`), the
    score (`margin`), and the shares of answers that are accepted and wrong (`wrong`) or that
    reject. Raises like `Oracle.answers` and `Search`.
    """
    if not job.oracle.abstains:
        return
    for stage in (CLEAN, OBLIVIOUS, JOINT):
        yield from in_batches(
            _waiting(job, stage, ledger), job.batch_size, partial(_measured, job, stage)
        )


def report(ledger: list[Entry], fates: Mapping[int, tuple[Decision, Decision]]) -> Detection | None:
    """Returns what the ledger of a finished run says, None of a defence that never rejects.

    `fates` are the decisions on the clean and on the worst image of each example; they may be one
    and the same.
    """
    known = decisions_of(ledger, CLEAN)
    if not known:
        return None
    # In one order, however the work was divided.
    scores = {example: known[example] for example in fates}
    oblivious, joint = decisions_of(ledger, OBLIVIOUS), decisions_of(ledger, JOINT)
    met = {
        example: _outcomes(
            *fate, [found[example] for found in (oblivious, joint) if example in found]
        )
        for example, fate in fates.items()
    }
    right = [example for example, score in scores.items() if not score.broken]
    clean_scores = [scores[example].margin for example in right]
    # Who knows the detector may still attack the classifier alone, and show it what it scores
    # lower.
    knowing = [min(oblivious[example], joint[example], key=_suspicion) for example in right]
    rejected = {example: clean.rejected or 0.0 for example, (clean, _) in fates.items()}
    return Detection(
        clean_rejected=mean_accuracy(rejected.values()),
        clean_rejected_right=mean_accuracy([rejected[example] for example in right])
        if right
        else None,
        robust_handled=mean_accuracy(1 - max(wrong for wrong, _ in some) for some in met.values()),
        attacked_rejected=mean_accuracy(max(some)[1] for some in met.values()),
        robust_accepted=mean_accuracy(
            1 - min(1, max(sum(one) for one in some)) for some in met.values()
        ),
        oblivious=_roc(clean_scores, oblivious.values()),
        joint=_roc(clean_scores, knowing),
    )


def auc(clean: Tensor, attacked: Tensor) -> float | None:
    """Returns the chance that the score of an attacked image is above that of a clean one, None where there is none.

    Ties count half: this is the area under the ROC curve by midranks (Hanley and McNeil 1982).

    >>> auc(torch.tensor([1.0, 2.0]), torch.tensor([2.0, 3.0]))
    0.875
    """
    if not len(clean) or not len(attacked):
        return None
    ordered = clean.sort().values
    below, up_to = (torch.searchsorted(ordered, attacked, right=right) for right in (False, True))
    return float((below + up_to).sum()) / (2 * len(clean) * len(attacked))


def caught(clean: Tensor, attacked: Tensor, percent: int) -> Accuracy | None:
    """Returns the share of attacked images above the lowest threshold that rejects at most `percent` % of clean ones.

    A score at the threshold is accepted, so that of tied clean ones all are rejected or none. None
    where there is no image.
    """
    if not len(clean) or not len(attacked):
        return None
    threshold = clean.sort(descending=True).values[len(clean) * percent // 100]
    return mean_accuracy((attacked > threshold).tolist())


def _waiting(job: Job, stage: str, ledger: list[Entry]) -> list[int]:
    """Returns the rows of the data set without a score; only what the classifier gets right is attacked."""
    done, clean = decisions_of(ledger, stage), decisions_of(ledger, CLEAN)
    left = [(row, example) for row, example in enumerate(job.data.ids) if example not in done]
    return [row for row, example in left if stage == CLEAN or not clean[example].broken]


def _measured(job: Job, stage: str, rows: list[int]) -> Entry:
    start, forwards, spent = time.perf_counter(), job.oracle.forwards, Spent()
    true = job.data.take(torch.tensor(rows))
    points = true.images if stage == CLEAN else _attacked(job, stage, true, job.logits[rows], spent)
    return Entry(
        stage=stage,
        decisions=_decisions(job, true, points),
        forwards=job.oracle.forwards - forwards + spent.forwards,
        backwards=spent.backwards,
        seconds=time.perf_counter() - start,
    )


def _decisions(job: Job, true: Dataset, points: Images) -> list[Decision]:
    oracle = job.oracle
    answers = oracle.answers(
        points, torch.tensor(true.ids), stream=SCORE_STREAM, draws=DRAWS
    ).double()
    weights, said, last = oracle.weights(len(answers)), answers.argmax(dim=2), answers.shape[2] - 1
    score = weights @ (answers[..., -1] - answers[..., :-1].amax(dim=2))
    prediction = (per_row(weights, answers) * answers).sum(dim=0)[:, :-1].argmax(dim=1)
    wrong = weights @ ((said != true.labels) & (said != last)).double()
    columns = (
        prediction != true.labels,
        prediction,
        score,
        wrong,
        weights @ (said == last).double(),
    )
    return [
        Decision(
            index=example,
            broken=fooled,
            prediction=seen,
            margin=above,
            wrong=share,
            rejected=refused,
        )
        for example, fooled, seen, above, share, refused in zip(
            true.ids, *(column.tolist() for column in columns), strict=True
        )
    ]


@dataclass(frozen=True)
class _Aim:
    """The loss of an attack on the classifier alone, or on the detector too."""

    joint: bool

    def objective(self, state: Any, logits: Logits) -> Tensor:
        """Returns the loss `(1, n)` of logits `(n, classes + 1)`."""
        return _ATTACK.objective(
            state, without_rejection(logits, state.labels) if self.joint else logits[:, :-1]
        )


def _surface(job: Job, stage: str) -> Surface:
    """Returns the surface that the defence declares for an attack, else the defence itself."""
    known = {surface.name: surface for surface in surfaces.adaptive(job.oracle, job.threat.eps)}
    return next(known[name] for name in (_DECLARED[stage], EXPECTED, OWN) if name in known)


def _attacked(job: Job, stage: str, true: Dataset, logits: Logits, spent: Spent) -> Images:
    """Returns for each image the point in the ball with the highest loss, among those that fool the classifier if any do."""
    device, surface, threat, aim = (
        job.oracle.device,
        _surface(job, stage),
        job.threat,
        _Aim(joint=stage == JOINT),
    )
    weights = None if surface.weights is None else surface.weights.to(device)
    search = Search(surface.answer, weights=weights, passes=surface.passes, spent=spent)
    images, labels, ids = (
        true.images.to(device),
        true.labels.to(device),
        torch.tensor(true.ids, device=device),
    )
    state = _ATTACK.start(
        Rows(images, labels, logits.to(device), ids, torch.zeros_like(ids)), threat, job.seed
    )
    best, rank = images, images.new_full((2, len(images)), -torch.inf)
    for step, wanted in enumerate(_ATTACK.schedule(threat.norm)):
        points = _ATTACK.ask(state)
        key = Key(job.seed, f"search/{stage}", ids=ids, draw=torch.full_like(ids, step))
        reply = search.evaluate(points, key, np.full(len(images), wanted), state, aim)
        found = _rank(reply, labels)
        higher = (found[0] > rank[0]) | ((found[0] == rank[0]) & (found[1] > rank[1]))
        higher &= inside(points, images, threat.eps, threat.norm)
        best, rank = (
            torch.where(per_row(higher, images), points, best),
            torch.where(higher, found, rank),
        )
        state = _ATTACK.tell(state, reply.logits, reply.values, reply.gradient)
    return best.cpu()


def _rank(reply: Reply, labels: Labels) -> Tensor:
    """Returns by what points are compared, `(2, n)`: whether the classifier is fooled, then the loss."""
    fooled = reply.logits[:, :-1].argmax(dim=1) != labels
    return torch.stack([fooled.to(reply.values.dtype), reply.values[0]])


def _outcomes(
    clean: Decision, worst: Decision, attacked: Iterable[Decision]
) -> list[tuple[float, float]]:
    """Returns the shares of answers that are accepted and wrong, and that reject, on each image known of an example."""
    refused = clean.rejected or 0.0
    others = [*attacked] if worst is clean else [worst, *attacked]
    # On a clean image to reject is to err.
    return [
        (max(0.0, clean.share - refused), refused),
        *((one.share, one.rejected or 0.0) for one in others),
    ]


def _suspicion(decision: Decision) -> tuple[bool, float]:
    """Returns what an attacker wants as low as possible: to fool the classifier first, then a low score."""
    return not decision.broken, decision.margin


def _roc(clean: list[float], attacked: Iterable[Decision]) -> Roc:
    found = list(attacked)
    successes = [decision.margin for decision in found if decision.broken]
    return Roc(
        clean=len(clean),
        attempts=_caught(clean, [decision.margin for decision in found]),
        successes=_caught(clean, successes),
    )


def _caught(clean: list[float], attacked: list[float]) -> Caught:
    below, above = (torch.tensor(scores, dtype=torch.float64) for scores in (clean, attacked))
    return Caught(
        n=len(attacked),
        auc=auc(below, above),
        tpr_5=caught(below, above, 5),
        tpr_10=caught(below, above, 10),
    )
