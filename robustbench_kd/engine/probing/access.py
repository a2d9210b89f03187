"""How probes ask a defence: one draw for each image, the same in every call; passes counted in examples."""

from collections.abc import Callable

import torch
from torch import Tensor

from robustbench_kd.core.errors import ModelError
from robustbench_kd.tensors import keyed_random
from robustbench_kd.tensors.attack import per_row
from robustbench_kd.tensors.contracts import Images, Labels, Logits
from robustbench_kd.tensors.defence import (
    Key,
    Mixture,
    Randomized,
    Surface,
    Surfaced,
    without_rejection,
)
from robustbench_kd.tensors.oracle import Oracle, is_out_of_memory
from robustbench_kd.tensors.probe import Ask

_STREAM = "trust"
_PARTS = 4


class Meter:
    """Counts the forward and backward passes of all that goes through it; `on_pass` is told their sum, for progress only."""

    def __init__(self, on_pass: Callable[[int], None] = lambda _passes: None) -> None:
        self.forwards = 0
        self.backwards = 0
        self._on_pass = on_pass

    def counted(self, ask: Ask, passes: int = 1) -> Ask:
        """Returns the same with its calls counted, each image as so many passes; it raises `ModelError` where it fails."""

        def answer(points: Images, rows: Tensor) -> Logits:
            logits = _asked(ask, points, rows)
            self.forwards += passes * len(points)
            if logits.requires_grad:
                logits.register_hook(lambda gradient: self._back(passes * len(gradient)))  # type: ignore[no-untyped-call]  # torch leaves it untyped
            self._on_pass(self.forwards + self.backwards)
            return logits

        return answer

    def _back(self, passes: int) -> None:
        self.backwards += passes


def fixed(oracle: Oracle, ids: Tensor, labels: Labels, seed: int) -> Ask:
    """Returns the defence itself, asked about rows of a sample with these ids and labels `(n,)`.

    Of a randomized one each image keeps its draw, of a finite ensemble its member.
    """
    model = oracle.model
    if not isinstance(model, Randomized):
        ask: Ask = lambda points, _rows: model(points)  # noqa: E731  # the shortest of three ways
    elif isinstance(model, Mixture):
        ask = _member(model, ids, seed)
    else:
        ask = lambda points, rows: model.draw(points, _key(ids[rows], seed))  # noqa: E731
    return _known(ask, labels) if oracle.abstains else ask


def in_place(oracle: Oracle, ids: Tensor, labels: Labels, seed: int) -> dict[str, tuple[Ask, int]]:
    """Returns the four cheapest surfaces that a defence declares, each with its passes, by their names."""
    declared = oracle.model.surfaces() if isinstance(oracle.model, Surfaced) else []
    asks = {
        surface.name: (_surface(surface, ids, seed), surface.passes)
        for surface in declared[:_PARTS]
    }
    if not oracle.abstains:
        return asks
    return {name: (_known(ask, labels), passes) for name, (ask, passes) in asks.items()}


def _asked(ask: Ask, points: Images, rows: Tensor) -> Logits:
    try:
        logits = ask(points, rows)
    except Exception as error:  # a model is a person's own code and can raise anything
        if is_out_of_memory(error):
            raise
        first_line = str(error).partition("\n")[0] or type(error).__name__
        raise ModelError(
            f"the model failed on {len(points)} images in [0, 1]: {first_line}"
        ) from error
    return logits.float() if logits.dtype in {torch.bfloat16, torch.float16} else logits


def _member(model: Mixture, ids: Tensor, seed: int) -> Ask:
    members = model.members()
    drawn = keyed_random.uniform(seed, f"{_STREAM}/member", ids, ids * 0, 0, 1)[:, 0]
    bounds = model.weights.to(ids.device).cumsum(dim=0)[:-1]
    chosen = torch.bucketize(drawn, bounds.float(), right=True)

    def answer(points: Images, rows: Tensor) -> Logits:
        order = chosen[rows].argsort(stable=True)
        counts = torch.bincount(chosen[rows], minlength=len(members)).tolist()
        groups = zip(members, torch.split(points[order], counts), strict=True)
        return torch.cat([member(group) for member, group in groups if len(group)])[order.argsort()]

    return answer


def _surface(surface: Surface, ids: Tensor, seed: int) -> Ask:
    """Returns a surface with the mean of its answers, where it gives several."""

    def answer(points: Images, rows: Tensor) -> Logits:
        answers = surface.answer(points, _key(ids[rows], seed))
        if answers.ndim == 2:
            return answers
        weights = surface.weights
        return (
            answers.mean(dim=0)
            if weights is None
            else (per_row(weights.to(answers), answers) * answers).sum(dim=0)
        )

    return answer


def _known(ask: Ask, labels: Labels) -> Ask:
    """Returns the same without the column for "rejected"."""
    return lambda points, rows: without_rejection(ask(points, rows), labels[rows])


def _key(ids: Tensor, seed: int) -> Key:
    return Key(seed, _STREAM, ids=ids, draw=torch.zeros_like(ids))
