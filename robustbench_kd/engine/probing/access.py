"""How probes ask a defence: with the same draw of each image in every call, passes counted."""

import torch
from torch import Tensor

from robustbench_kd.tensors import keyed_random
from robustbench_kd.tensors.attack import weighted_mean
from robustbench_kd.tensors.contracts import Images, Labels, Logits
from robustbench_kd.tensors.defence import (
    Key,
    Mixture,
    Surface,
    Surfaced,
    is_randomized,
    without_rejection,
)
from robustbench_kd.tensors.meter import Meter
from robustbench_kd.tensors.oracle import Oracle, guarded
from robustbench_kd.tensors.probe import Ask
from robustbench_kd.tensors.undefined import settled

_STREAM = "trust"
_MOST_SURFACES = 4


def counted(ask: Ask, meter: Meter, passes: int = 1) -> Ask:
    """Returns the same function with its calls counted, each image as so many passes.

    It raises `ModelError` where the model fails.
    """

    def answer(points: Images, rows: Tensor) -> Logits:
        logits = _checked(ask, points, rows)
        meter.add_call(logits, len(points), passes)
        return logits

    return answer


def one_draw(oracle: Oracle, ids: Tensor, labels: Labels, seed: int) -> Ask:
    """Returns the defence itself, asked about rows of a sample with these ids and labels `(n,)`.

    Each image keeps its draw of a randomized defence, or its member of a finite ensemble.
    """
    return _credited(_one_draw(oracle, ids, seed), oracle, labels)


def declared_surfaces(
    oracle: Oracle, ids: Tensor, labels: Labels, seed: int
) -> dict[str, tuple[Ask, int]]:
    """Returns the four cheapest surfaces that a defence declares, with their passes, by name."""
    with guarded("the surfaces of the model cannot be had"):
        declared = oracle.model.surfaces() if isinstance(oracle.model, Surfaced) else []
    asks = {}
    for surface in declared[:_MOST_SURFACES]:
        ask = _credited(_mean_answer(surface, ids, seed), oracle, labels)
        asks[surface.name] = (ask, surface.passes)
    return asks


def _checked(ask: Ask, points: Images, rows: Tensor) -> Logits:
    with guarded(f"the model failed on {len(points)} images in [0, 1]"):
        logits = ask(points, rows)
    if logits.dtype in {torch.bfloat16, torch.float16}:
        return logits.float()
    return logits


def _one_draw(oracle: Oracle, ids: Tensor, seed: int) -> Ask:
    model = oracle.model
    if not is_randomized(model):
        return lambda points, _rows: model(points.clone())
    if isinstance(model, Mixture):
        return _drawn_member(model, ids, seed)
    return lambda points, rows: model.draw(points.clone(), _key(ids[rows], seed))


def _drawn_member(model: Mixture, ids: Tensor, seed: int) -> Ask:
    with guarded("the members of the model cannot be had"):
        members = model.members()
    drawn = keyed_random.uniform(seed, f"{_STREAM}/member", ids, ids * 0, 0, 1)[:, 0]
    bounds = model.weights.to(ids.device).cumsum(dim=0)[:-1]
    chosen = torch.bucketize(drawn, bounds.float(), right=True)

    def answer(points: Images, rows: Tensor) -> Logits:
        order = chosen[rows].argsort(stable=True)
        counts = torch.bincount(chosen[rows], minlength=len(members)).tolist()
        groups = zip(members, torch.split(points[order], counts), strict=True)
        logits = torch.cat([member(group) for member, group in groups if len(group)])
        return logits[order.argsort()]

    return answer


def _mean_answer(surface: Surface, ids: Tensor, seed: int) -> Ask:
    """Returns the mean of the answers of a surface, or its only one."""

    def answer(points: Images, rows: Tensor) -> Logits:
        answers = surface.answer(points, _key(ids[rows], seed))
        if answers.ndim == 2:
            return answers
        weights = None if surface.weights is None else surface.weights.to(answers)
        return weighted_mean(answers, weights)

    return answer


def _credited(ask: Ask, oracle: Oracle, labels: Labels) -> Ask:
    """Returns the same function where what says nothing of the class is an answer for the label.

    That is a rejection, whose column is taken away, and an answer that is no number.
    """

    def answer(points: Images, rows: Tensor) -> Logits:
        logits = ask(points, rows)
        if oracle.abstains:
            logits = without_rejection(logits, labels[rows])
        return settled(logits, labels[rows])[0]

    return answer


def _key(ids: Tensor, seed: int) -> Key:
    return Key(seed, _STREAM, ids=ids, draw=torch.zeros_like(ids))
