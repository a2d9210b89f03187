"""The model as the search sees it: possibly folded or a stand-in, with gradients by row.

Whatever happens here can only make an attack weaker, never a verdict wrong: success is judged by
the unmodified model.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustbench_kd.tensors.attack import AttackState, take, weighted_mean
from robustbench_kd.tensors.contracts import Images, Logits
from robustbench_kd.tensors.defence import Answer, Key, Surface, without_rejection
from robustbench_kd.tensors.meter import Meter
from robustbench_kd.tensors.oracle import Oracle, guarded
from robustbench_kd.tensors.undefined import settled

Objective: TypeAlias = Callable[[AttackState, Logits], Tensor]

# Where at least this fraction of rows wants a gradient, all rows are differentiated: it costs less
# than to split the batch.
_DIFFERENTIATE_ALL = 0.5


@dataclass(frozen=True)
class Reply:
    """The answers to the asked points.

    `answers` `(m, n, classes)` are the m answers to each point, one for a plain model; `logits`
    `(n, classes)` are their mean and `values` `(k, n)` the mean of their objectives. `gradient`
    `(k, n, c, h, w)` is that of `values`: zero in rows that wanted none, None where no row did.
    """

    logits: Logits
    values: Tensor
    gradient: Tensor | None
    answers: Tensor


def own_objective(state: AttackState, logits: Logits) -> Tensor:
    """Returns the objective that the attack itself states."""
    return state.objective(logits)


class Search:
    """Evaluates points for a slot batch.

    Args:
        answer: Maps images `(n, c, h, w)` and a key to logits `(n, classes)` or, for m answers,
            `(m, n, classes)`.
        weights: The weight of each of m answers, `(m,)`, with sum 1 and on the device of the
            answers; equal if None.
        passes: Passes of a network that one image costs.
        meter: Counts the passes; a run has one for all its searches.
        abstains: Whether the last logit rejects the image, which counts as correct.
        within: Gives the context that passes run in.
    """

    def __init__(
        self,
        answer: Answer,
        *,
        weights: Tensor | None = None,
        passes: int = 1,
        meter: Meter | None = None,
        abstains: bool = False,
        within: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.meter = meter or Meter()
        self.weights = weights
        self._undefined: int | Tensor = 0
        self._answer = answer
        self._passes = passes
        self._abstains = abstains
        self._within = within

    def evaluate(
        self,
        points: Images,
        key: Key,
        wanted: NDArray[np.bool_],
        state: AttackState,
        objective: Objective = own_objective,
    ) -> Reply:
        """Returns the answers to the points, and the gradients of the rows `(n,)` that want one."""
        count = np.count_nonzero(wanted)
        if count == 0:
            answers = self._forward(points, key, state)
            return self._reply(answers, self._values(answers, state, objective), None)
        if count < _DIFFERENTIATE_ALL * len(wanted):
            return self._split(points, key, wanted, state, objective)

        answers, values, gradient = self._differentiate(points, key, state, objective)
        if count < len(wanted):
            gradient.index_fill_(1, _indices(~wanted, points), 0)
        return self._reply(answers, values, gradient)

    def _forward(self, points: Images, key: Key, state: AttackState) -> Tensor:
        start = time.perf_counter()
        with torch.no_grad(), self._within():
            answers = self._answers(points, key, state)
        self._count(start, forwards=len(points))
        return answers

    def _differentiate(
        self, points: Images, key: Key, state: AttackState, objective: Objective
    ) -> tuple[Tensor, Tensor, Tensor]:
        start = time.perf_counter()
        points = points.detach().requires_grad_()
        with torch.enable_grad(), self._within():
            answers = self._answers(points, key, state)
            values = self._values(answers, state, objective)
            gradient = _gradient(values, points)

        backwards = gradient.shape[0] * gradient.shape[1]
        self._count(start, forwards=len(points), backwards=backwards)
        return answers.detach(), values.detach(), gradient

    def _split(
        self,
        points: Images,
        key: Key,
        wanted: NDArray[np.bool_],
        state: AttackState,
        objective: Objective,
    ) -> Reply:
        """Returns the reply of two calls: with gradient for the rows that want one, and without."""
        with_gradient = _indices(wanted, points)
        without = _indices(~wanted, points)

        differentiated, _, rows_gradient = self._differentiate(
            points[with_gradient], key.take(with_gradient), take(state, with_gradient), objective
        )
        plain = self._forward(points[without], key.take(without), take(state, without))

        m, _, classes = differentiated.shape
        answers = differentiated.new_empty(m, len(points), classes)
        answers[:, with_gradient] = differentiated
        answers[:, without] = plain
        gradient = rows_gradient.new_zeros(len(rows_gradient), *points.shape)
        gradient[:, with_gradient] = rows_gradient
        return self._reply(answers, self._values(answers, state, objective), gradient)

    def _answers(self, points: Images, key: Key, state: AttackState) -> Tensor:
        """Returns the answers `(m, n, classes)`, finite and in float32 or better."""
        with guarded("the model failed under attack"):
            answers = self._answer(points, key)
        if answers.ndim == 2:
            answers = answers[None]
        if answers.dtype in {torch.bfloat16, torch.float16}:
            answers = answers.float()
        if self._abstains:
            answers = without_rejection(answers, state.labels)
        answers, undefined = settled(answers, state.labels)
        self._undefined = self._undefined + undefined.sum()
        return answers

    def undefined(self) -> int:
        """Returns how many answers were no numbers since the last question; asks the device."""
        count = int(self._undefined)
        self._undefined = 0
        return count

    def _values(self, answers: Tensor, state: AttackState, objective: Objective) -> Tensor:
        """Returns the mean objective `(k, n)` of the answers."""
        values = [objective(state, logits) for logits in answers.unbind()]
        if len(values) == 1:
            return values[0]
        return weighted_mean(torch.stack(values), self.weights)

    def _reply(self, answers: Tensor, values: Tensor, gradient: Tensor | None) -> Reply:
        logits = answers[0] if len(answers) == 1 else weighted_mean(answers, self.weights)
        return Reply(logits, values, gradient, answers)

    def _count(self, start: float, *, forwards: int, backwards: int = 0) -> None:
        self.meter.add(
            forwards=self._passes * forwards,
            backwards=self._passes * backwards,
            model_seconds=time.perf_counter() - start,
        )


def search_on(
    surface: Surface,
    oracle: Oracle,
    *,
    abstains: bool = False,
    within: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Search:
    """Returns a search on a surface, whose passes are counted with those of the defence."""
    weights = None if surface.weights is None else surface.weights.to(oracle.device)
    return Search(
        surface.answer,
        weights=weights,
        passes=surface.passes,
        meter=oracle.meter,
        abstains=abstains,
        within=within,
    )


def _gradient(values: Tensor, points: Images) -> Tensor:
    """Returns the gradients `(k, n, c, h, w)` of values `(k, n)`; zero without dependence.

    Raises `ModelError` where the model's own backward pass fails.
    """
    totals = values.sum(dim=1).unbind()
    if not values.requires_grad:
        return points.new_zeros(len(totals), *points.shape)

    gradients = []
    with guarded("the model cannot be differentiated"):
        for index, total in enumerate(totals):
            is_last = index + 1 == len(totals)
            (gradient,) = torch.autograd.grad(
                total, points, retain_graph=not is_last, materialize_grads=True
            )
            gradients.append(gradient)
    return torch.stack(gradients)


def _indices(rows: NDArray[np.bool_], points: Images) -> Tensor:
    # Without `non_blocking` a GPU would be waited for.
    return torch.from_numpy(np.flatnonzero(rows)).to(points.device, non_blocking=True)
