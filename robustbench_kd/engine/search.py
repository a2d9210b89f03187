"""The model as the search sees it: frozen, possibly folded or in another layout; gradients by row; time and passes counted.

Whatever happens here can only make an attack weaker, never a verdict wrong: success is judged by the unmodified model.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustbench_kd.tensors.attack import take
from robustbench_kd.tensors.contracts import Classifier, Images, Logits

Objective = Callable[[Logits], Tensor]
_MOST = 0.5  # where at least this share of rows wants a gradient, all rows get one: splitting costs more


class Search:
    """Evaluates points for a slot batch; counts example-forwards, example-backwards and seconds inside the model."""

    def __init__(self, model: Classifier, on_pass: Callable[[int], None] = lambda _passes: None) -> None:
        self.forwards = 0
        self.backwards = 0
        self.seconds = 0.0
        self._model = model
        self._on_pass = on_pass

    def evaluate(
        self, points: Images, wanted: NDArray[np.bool_], state: Any, attack: Any
    ) -> tuple[Logits, Tensor | None]:
        """Returns logits `(n, classes)`, gradients `(k, n, c, h, w)`.

        A row that wants no gradient finds zeros, unless most rows want one; there are no gradients at all where none does.
        """
        share = wanted.mean()
        if share == 0:
            return self._forward(points), None
        if share >= _MOST:
            return self._differentiate(points, lambda output: attack.objective(state, output))
        return self._split(points, wanted, state, attack)

    def _forward(self, points: Images) -> Logits:
        start = time.perf_counter()
        with torch.no_grad():
            logits = self._model(points)
        self._count(start, len(points), 0)
        return logits.float() if logits.dtype in {torch.bfloat16, torch.float16} else logits

    def _differentiate(self, points: Images, objective: Objective) -> tuple[Logits, Tensor]:
        start = time.perf_counter()
        points = points.detach().requires_grad_()
        with torch.enable_grad():
            logits = self._model(points)
            logits = logits.float() if logits.dtype in {torch.bfloat16, torch.float16} else logits
            values = objective(logits)
            sums = values.sum(dim=1).unbind()
            gradients = [
                torch.autograd.grad(total, points, retain_graph=position + 1 < len(sums))[0]
                for position, total in enumerate(sums)
            ]
        self._count(start, len(points), len(points) * len(sums))
        return logits.detach(), torch.stack(gradients)

    def _split(self, points: Images, wanted: NDArray[np.bool_], state: Any, attack: Any) -> tuple[Logits, Tensor]:
        chosen, others = (torch.from_numpy(np.flatnonzero(mask)).to(points.device) for mask in (wanted, ~wanted))
        part = take(state, chosen)
        some, gradient = self._differentiate(points[chosen], lambda output: attack.objective(part, output))
        logits = some.new_empty(len(points), some.shape[1])
        logits[chosen], logits[others] = some, self._forward(points[others])
        spread = gradient.new_zeros(len(gradient), *points.shape)
        spread[:, chosen] = gradient
        return logits, spread

    def _count(self, start: float, forwards: int, backwards: int) -> None:
        self.forwards += forwards
        self.backwards += backwards
        self.seconds += time.perf_counter() - start
        self._on_pass(self.forwards + self.backwards)
