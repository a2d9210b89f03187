"""The model as the search sees it: frozen, possibly folded or a stand-in; gradients by row; time and passes counted.

Whatever happens here can only make an attack weaker, never a verdict wrong: success is judged by
the unmodified model.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustbench_kd.core.errors import ModelError
from robustbench_kd.tensors.attack import per_row, take
from robustbench_kd.tensors.contracts import Images, Logits
from robustbench_kd.tensors.defence import Answer, Key, without_rejection
from robustbench_kd.tensors.oracle import is_out_of_memory

# Where at least this share of rows wants a gradient, all rows are differentiated: splitting costs
# more.
_MOST = 0.5


@dataclass(frozen=True)
class Reply:
    """What came back for the asked points.

    `answers` `(m, n, classes)` are the m answers to each point, one for a plain model; `logits`
    `(n, classes)` are their mean and `values` `(k, n)` the mean of their objectives. `gradient`
    `(k, n, c, h, w)` is that of `values`: zero in rows that wanted none, None where no row did.
    """

    logits: Logits
    values: Tensor
    gradient: Tensor | None
    answers: Tensor


@dataclass
class Spent:
    """What searches have spent so far: example-forwards, example-backwards, and seconds inside the model."""

    forwards: int = 0
    backwards: int = 0
    seconds: float = 0.0


class Search:
    """Evaluates points for a slot batch.

    Args:
        answer: Maps images `(n, c, h, w)` and a key to logits `(n, classes)` or, for m answers,
            `(m, n, classes)`.
        weights: What each of m answers counts, `(m,)`, with sum 1 and on the device of the answers;
            equal if None.
        passes: Passes of a network that one image costs.
        spent: Is added to; a run has one for all its searches.
        abstains: Whether the last logit rejects the image, which counts as right.
        within: Gives the context that passes run in.
        on_pass: Runs after each pass, for progress only.
    """

    def __init__(
        self,
        answer: Answer,
        *,
        weights: Tensor | None = None,
        passes: int = 1,
        spent: Spent | None = None,
        abstains: bool = False,
        within: Callable[[], AbstractContextManager[None]] = nullcontext,
        on_pass: Callable[[], None] = lambda: None,
    ) -> None:
        self.spent = spent or Spent()
        self.weights = weights
        self._answer = answer
        self._passes = passes
        self._abstains = abstains
        self._within = within
        self._on_pass = on_pass

    def evaluate(
        self, points: Images, key: Key, wanted: NDArray[np.bool_], state: Any, attack: Any
    ) -> Reply:
        """Returns the answers to the points, and the gradients of the rows `(n,)` that want one."""
        some = np.count_nonzero(wanted)
        if some == 0:
            answers = self._forward(points, key, state)
            return self._reply(answers, self._values(answers, state, attack), None)
        if some < _MOST * len(wanted):
            return self._split(points, key, wanted, state, attack)
        answers, values, gradient = self._differentiate(points, key, state, attack)
        if some < len(wanted):
            gradient.index_fill_(1, _indices(~wanted, points), 0)
        return self._reply(answers, values, gradient)

    def _forward(self, points: Images, key: Key, state: Any) -> Tensor:
        start = time.perf_counter()
        with torch.no_grad(), self._within():
            answers = self._asked(points, key, state)
        self._count(start, len(points), 0)
        return answers

    def _differentiate(
        self, points: Images, key: Key, state: Any, attack: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        start = time.perf_counter()
        points = points.detach().requires_grad_()
        with torch.enable_grad(), self._within():
            answers = self._asked(points, key, state)
            values = self._values(answers, state, attack)
            gradient = _gradient(values, points)
        self._count(start, len(points), gradient.shape[0] * gradient.shape[1])
        return answers.detach(), values.detach(), gradient

    def _split(
        self, points: Images, key: Key, wanted: NDArray[np.bool_], state: Any, attack: Any
    ) -> Reply:
        chosen, others = _indices(wanted, points), _indices(~wanted, points)
        some, _, steep = self._differentiate(
            points[chosen], key.take(chosen), take(state, chosen), attack
        )
        answers = some.new_empty(len(some), len(points), some.shape[2])
        answers[:, chosen], answers[:, others] = (
            some,
            self._forward(points[others], key.take(others), take(state, others)),
        )
        gradient = steep.new_zeros(len(steep), *points.shape)
        gradient[:, chosen] = steep
        return self._reply(answers, self._values(answers, state, attack), gradient)

    def _asked(self, points: Images, key: Key, state: Any) -> Tensor:
        """Returns the answers `(m, n, classes)` in float32 or better."""
        output = self._answer(points, key)
        answers = output if output.ndim == 3 else output[None]
        answers = answers.float() if answers.dtype in {torch.bfloat16, torch.float16} else answers
        return without_rejection(answers, state.labels) if self._abstains else answers

    def _values(self, answers: Tensor, state: Any, attack: Any) -> Tensor:
        """Returns the mean objective `(k, n)` of the answers."""
        values = [attack.objective(state, logits) for logits in answers.unbind()]
        return values[0] if len(values) == 1 else self._mean(torch.stack(values))

    def _reply(self, answers: Tensor, values: Tensor, gradient: Tensor | None) -> Reply:
        logits = answers[0] if len(answers) == 1 else self._mean(answers)
        return Reply(logits, values, gradient, answers)

    def _mean(self, parts: Tensor) -> Tensor:
        """Returns the mean over the first dimension."""
        return (
            parts.mean(dim=0)
            if self.weights is None
            else (per_row(self.weights, parts) * parts).sum(dim=0)
        )

    def _count(self, start: float, forwards: int, backwards: int) -> None:
        self.spent.forwards += self._passes * forwards
        self.spent.backwards += self._passes * backwards
        self.spent.seconds += time.perf_counter() - start
        self._on_pass()


def _gradient(values: Tensor, points: Images) -> Tensor:
    """Returns the gradients `(k, n, c, h, w)` of values `(k, n)`; zero where they do not depend on the points.

    Raises `ModelError` where the model's own backward pass fails.
    """
    sums = values.sum(dim=1).unbind()
    if not values.requires_grad:
        return points.new_zeros(len(sums), *points.shape)
    try:
        found = [
            torch.autograd.grad(
                total, points, retain_graph=place + 1 < len(sums), materialize_grads=True
            )[0]
            for place, total in enumerate(sums)
        ]
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        first_line = str(error).partition("\n")[0]
        raise ModelError(
            f"the model cannot be differentiated: {first_line}; use --suite square"
        ) from error
    return torch.stack(found)


def _indices(rows: NDArray[np.bool_], points: Images) -> Tensor:
    # Without `non_blocking` a GPU would be waited for.
    return torch.from_numpy(np.flatnonzero(rows)).to(points.device, non_blocking=True)
