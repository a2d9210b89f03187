"""How good a defence that may reject is as a detector: what it rejects, and what its scores tell.

A robust accuracy alone would reward a defence that rejects a lot, so clean and attacked images are
reported side by side. The score of an image is how far the logit for "rejected" is above all
others, for a randomized defence the mean over draws. It is compared on clean images that the
classifier classifies correctly, rejected or not, and on the same images under attack: by an
attacker that knows the classifier only, and by one that knows the detector too. Adversarial images
are those that fool the classifier, rejected or not, as in Hu et al. 2019 (arXiv 1910.07629). Only
the second attacker shows how good a detector is: Tramer et al. 2020 (arXiv 2002.08347) and Pintor
et al. 2022 (arXiv 2106.09947).

All images of an example meet the same draws, those of the final scores. An attacker chooses among
the images by these draws, too. That flatters the attacker where the images differ little, and most
where the draws alone decide.
"""

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from robustbench_kd.attacks.apgd import Apgd
from robustbench_kd.core.ledger import Decision, Entry, RejectionScore
from robustbench_kd.core.records import Accuracy, Caught, Detection, Roc
from robustbench_kd.core.statistics import mean_accuracy
from robustbench_kd.engine.judging.rescore import DRAWS, SCORE_STREAM
from robustbench_kd.engine.passes import surfaces
from robustbench_kd.engine.passes.batching import in_batches
from robustbench_kd.engine.passes.meter import EntryClock
from robustbench_kd.engine.passes.search import Objective, Reply, search_on
from robustbench_kd.engine.run.ledger_index import LedgerIndex
from robustbench_kd.engine.run.run import Run
from robustbench_kd.tensors.attack import AttackState, Rows, begin_at_random, per_row, weighted_mean
from robustbench_kd.tensors.contracts import Dataset, Images, Labels, Logits
from robustbench_kd.tensors.defence import EXPECTED, OWN, Key, Surface, without_rejection
from robustbench_kd.tensors.geometry import inside

CLEAN, OBLIVIOUS, JOINT = "detection-clean", "detection-oblivious", "detection-joint"
_STAGES = (CLEAN, OBLIVIOUS, JOINT)
_DECLARED = {OBLIVIOUS: "classifier", JOINT: "joint"}
_ATTACK = Apgd(loss="margin", restarts=1, steps=50)

Scores: TypeAlias = Mapping[int, RejectionScore]


def entries(run: Run) -> Iterator[Entry]:
    """Yields the scores of clean and attacked images that the ledger lacks.

    A defence that never rejects has none. Raises like `Oracle.answers` and `Search`.
    """
    if not run.oracle.abstains:
        return
    for stage in _STAGES:
        rows = _waiting(run, stage)
        yield from in_batches(rows, run.batch_size, partial(_measured, run, stage))


def report(index: LedgerIndex, fates: Mapping[int, tuple[Decision, Decision]]) -> Detection | None:
    """Returns what the ledger of a finished run says, None for a defence that never rejects.

    `fates` are the decisions on the clean and on the worst image of each example; they may be the
    same one.
    """
    clean, oblivious, joint = (_scores(index, stage) for stage in _STAGES)
    if not clean:
        return None

    # The order is that of the examples, however the work was divided.
    correct = [example for example in fates if not clean[example].fooled]
    clean_scores = [clean[example].score for example in correct]
    # Who knows the detector may still attack the classifier alone, and show the detector the image
    # with the lower score.
    knowing = [min(oblivious[example], joint[example], key=_suspicion) for example in correct]

    rejected: dict[int, float] = {}
    handled: list[float] = []
    accepted: list[float] = []
    attacked_rejected: list[float] = []
    for example, fate in fates.items():
        rejected[example] = fate[0].rejected or 0.0
        outcomes = _outcomes(example, fate, (oblivious, joint))
        worst = max(outcomes, key=_not_accepted)
        handled.append(1 - max(outcomes)[0])
        attacked_rejected.append(max(outcomes)[1])
        accepted.append(1 - min(1, _not_accepted(worst)))

    return Detection(
        clean_rejected=mean_accuracy(rejected.values()),
        clean_rejected_right=_mean([rejected[example] for example in correct]),
        robust_handled=mean_accuracy(handled),
        attacked_rejected=mean_accuracy(attacked_rejected),
        robust_accepted=mean_accuracy(accepted),
        oblivious=_roc(clean_scores, oblivious.values()),
        joint=_roc(clean_scores, knowing),
    )


def auc(clean: Tensor, attacked: Tensor) -> float | None:
    """Returns the probability that an attacked image scores above a clean one, None without images.

    Ties count half: this is the area under the ROC curve by midranks (Hanley and McNeil 1982).

    >>> auc(torch.tensor([1.0, 2.0]), torch.tensor([2.0, 3.0]))
    0.875
    """
    if not len(clean) or not len(attacked):
        return None
    ordered = clean.sort().values
    below = torch.searchsorted(ordered, attacked, right=False)
    up_to = torch.searchsorted(ordered, attacked, right=True)
    return float((below + up_to).sum()) / (2 * len(clean) * len(attacked))


def caught(clean: Tensor, attacked: Tensor, percent: int) -> Accuracy | None:
    """Returns the fraction of attacked images that are rejected, None without images.

    The threshold is the lowest one that rejects at most `percent` % of the clean images. A score at
    the threshold is accepted, so that tied clean images are all rejected or all accepted.
    """
    if not len(clean) or not len(attacked):
        return None
    threshold = clean.sort(descending=True).values[len(clean) * percent // 100]
    return mean_accuracy((attacked > threshold).tolist())


def _scores(index: LedgerIndex, stage: str) -> dict[int, RejectionScore]:
    entries = index.entries(stage)
    return {score.index: score for entry in entries for score in entry.scores}


def _waiting(run: Run, stage: str) -> list[int]:
    """Returns the rows of the data set without a score.

    Only images that the classifier classifies correctly are attacked.
    """
    done = _scores(run.index, stage)
    clean = _scores(run.index, CLEAN)
    rows = []
    for row, example in enumerate(run.data.ids):
        attacked = stage != CLEAN
        if example not in done and not (attacked and clean[example].fooled):
            rows.append(row)
    return rows


def _measured(run: Run, stage: str, rows: list[int]) -> Entry:
    clock = EntryClock(run.oracle.meter)
    clean = run.data.take(torch.tensor(rows))
    points = clean.images if stage == CLEAN else _attacked(run, stage, clean, run.logits[rows])
    return clock.entry(stage, scores=_scored(run, clean, points))


def _scored(run: Run, clean: Dataset, points: Images) -> list[RejectionScore]:
    oracle = run.oracle
    ids = torch.tensor(clean.ids)
    answers = oracle.answers(
        points, ids, stream=SCORE_STREAM, draws=DRAWS, attacked=clean.labels
    ).double()
    weights = oracle.weights(len(answers))

    predictions = answers.argmax(dim=2)
    rejecting = answers.shape[2] - 1
    rejects = predictions == rejecting
    mean_logits = weighted_mean(answers, weights)
    prediction = mean_logits[:, :-1].argmax(dim=1)

    columns = (
        (prediction != clean.labels).tolist(),
        prediction.tolist(),
        (weights @ (answers[..., -1] - answers[..., :-1].amax(dim=2))).tolist(),
        (weights @ ((predictions != clean.labels) & ~rejects).double()).tolist(),
        (weights @ rejects.double()).tolist(),
    )
    scores = []
    for index, fooled, label, height, wrong, rejected in zip(clean.ids, *columns, strict=True):
        score = RejectionScore(
            index=index,
            fooled=fooled,
            prediction=label,
            score=height,
            accepted_wrong=wrong,
            rejected=rejected,
        )
        scores.append(score)
    return scores


def _classifier_loss(state: AttackState, logits: Logits) -> Tensor:
    """Returns the loss `(1, n)` of an attack on the classifier alone."""
    return state.objective(logits[:, :-1])


def _joint_loss(state: AttackState, logits: Logits) -> Tensor:
    """Returns the loss `(1, n)` of an attack on classifier and detector together."""
    return state.objective(without_rejection(logits, state.labels))


_LOSSES: dict[str, Objective] = {OBLIVIOUS: _classifier_loss, JOINT: _joint_loss}


def _surface(run: Run, stage: str) -> Surface:
    """Returns the surface that the defence declares for an attack, else the defence itself."""
    declared = surfaces.adaptive_surfaces(run.oracle, run.threat.eps)
    known = {surface.name: surface for surface in declared}
    return next(known[name] for name in (_DECLARED[stage], EXPECTED, OWN) if name in known)


def _attacked(run: Run, stage: str, clean: Dataset, logits: Logits) -> Images:
    """Returns for each image the point in the ball with the highest loss.

    Points that fool the classifier come before all others.
    """
    device = run.oracle.device
    images = clean.images.to(device)
    labels = clean.labels.to(device)
    ids = torch.tensor(clean.ids, device=device)
    rows = Rows(images, labels, logits.to(device), ids, torch.zeros_like(ids))

    search = search_on(_surface(run, stage), run.oracle)
    state = begin_at_random(_ATTACK, rows, run.threat, run.seed)
    best = images
    rank = images.new_full((2, len(images)), -torch.inf)

    for step, wants_gradient in enumerate(_ATTACK.schedule(run.threat.norm)):
        points = state.ask()
        key = Key(run.seed, f"search/{stage}", ids=ids, draw=torch.full_like(ids, step))
        wanted = np.full(len(images), wants_gradient)
        reply = search.evaluate(points, key, wanted, state, _LOSSES[stage])

        found = _rank(reply, labels)
        higher = (found[0] > rank[0]) | ((found[0] == rank[0]) & (found[1] > rank[1]))
        higher &= inside(points, images, run.threat.eps, run.threat.norm)
        best = torch.where(per_row(higher, images), points, best)
        rank = torch.where(higher, found, rank)
        state = state.tell(reply.logits, reply.values, reply.gradient)

    return best.cpu()


def _rank(reply: Reply, labels: Labels) -> Tensor:
    """Returns what points are compared by, `(2, n)`: is the classifier fooled, then the loss."""
    fooled = reply.logits[:, :-1].argmax(dim=1) != labels
    return torch.stack([fooled.to(reply.values.dtype), reply.values[0]])


def _outcomes(
    example: int, fate: tuple[Decision, Decision], attacks: Iterable[Scores]
) -> list[tuple[float, float]]:
    """Returns what the answers to each known image of an example are: wrong, and rejected.

    Both are fractions. On a clean image a rejection is wrong.
    """
    clean, worst = fate
    refused = clean.rejected or 0.0
    outcomes = [(max(0.0, clean.error_rate - refused), refused)]
    if worst is not clean:
        outcomes.append((worst.error_rate, worst.rejected or 0.0))
    for scores in attacks:
        if example in scores:
            outcomes.append((scores[example].accepted_wrong, scores[example].rejected))
    return outcomes


def _not_accepted(outcome: tuple[float, float]) -> float:
    """Returns the fraction of answers that are wrong or reject."""
    return sum(outcome)


def _suspicion(score: RejectionScore) -> tuple[bool, float]:
    """Returns what an attacker minimises: not to fool the classifier, then the score."""
    return not score.fooled, score.score


def _mean(values: list[float]) -> Accuracy | None:
    return mean_accuracy(values) if values else None


def _roc(clean: list[float], attacked: Iterable[RejectionScore]) -> Roc:
    attempts: list[float] = []
    successes: list[float] = []
    for attempt in attacked:
        attempts.append(attempt.score)
        if attempt.fooled:
            successes.append(attempt.score)
    return Roc(
        clean=len(clean),
        attempts=_caught(clean, attempts),
        successes=_caught(clean, successes),
    )


def _caught(clean: list[float], attacked: list[float]) -> Caught:
    below = torch.tensor(clean, dtype=torch.float64)
    above = torch.tensor(attacked, dtype=torch.float64)
    return Caught(
        n=len(attacked),
        auc=auc(below, above),
        tpr_5=caught(below, above, 5),
        tpr_10=caught(below, above, 10),
    )
