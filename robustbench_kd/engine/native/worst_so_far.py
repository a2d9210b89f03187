"""The worst image of each example so far, and what the search for it has cost."""

import math
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from robustbench_kd.core.ledger import Decision
from robustbench_kd.engine.judging.judge import Judgement, decisions, survival
from robustbench_kd.engine.judging.packing import pack
from robustbench_kd.engine.native.queue import Ints
from robustbench_kd.engine.native.slot_rows import Bools
from robustbench_kd.engine.run.run import Run
from robustbench_kd.engine.run.stages import Stage
from robustbench_kd.tensors.contracts import Dataset, Images

_ROUNDING = 1e-6  # by how much the weights of members may differ from 1 in sum


class WorstSoFar:
    """Keeps for one stage the decision with the highest error rate of each example.

    It starts with what the stages before have found.
    """

    def __init__(self, run: Run, stage: Stage) -> None:
        self._run = run
        self._stage = stage
        self._ids = np.array(run.data.ids)
        self._worst = run.worst_before(stage)
        self._stores_images = run.stores_images or stage.feeds_later_stage
        self._forwards = np.zeros(len(run.data), dtype=np.int64)
        self._backwards = np.zeros(len(run.data), dtype=np.int64)

    def ids(self, rows: Ints) -> Ints:
        """Returns the example ids of rows of the data set."""
        ids: Ints = self._ids[rows]
        return ids

    def count_step(self, rows: Ints, live: Bools, wanted: Bools) -> None:
        """Adds the passes of a step to the rows `(n,)` that are live."""
        passes = self._stage.surface.passes
        self._forwards[rows[live]] += passes
        self._backwards[rows[live & wanted]] += passes

    def count_judgement(self, rows: Ints, forwards: int) -> None:
        """Adds the passes of a judgement to its rows, in equal parts."""
        self._forwards[rows] += forwards // len(rows)

    def floors(self, rows: Ints) -> Tensor:
        """Returns the error rates `(n,)` that a point must exceed to be worse than all before."""
        rates = [self._error_rate(example) + _ROUNDING for example in self.ids(rows).tolist()]
        return torch.tensor(rates)

    def update(self, clean: Dataset, judgement: Judgement, points: Images) -> Tensor:
        """Keeps the points that are worse than all before; returns which `(n,)` these are."""
        known = torch.tensor([self._error_rate(example) for example in clean.ids])
        worse = judgement.wrong > known + _ROUNDING
        kept = worse | self._nearer(clean.ids, judgement)

        found = decisions(clean.ids, judgement)
        for row in torch.nonzero(kept).flatten().tolist():
            image = pack(points[row]) if self._stores_images else ""
            self._worst[clean.ids[row]] = found[row].model_copy(update={"image": image})
        return worse

    def broken(self, rows: Iterable[int]) -> list[Decision]:
        """Returns the decisions on rows of the data set that are broken."""
        return [self._with_costs(self._worst[self._run.data.ids[row]], row) for row in rows]

    def survived(self, row: int) -> Decision:
        """Returns the decision on a row of the data set that is not broken."""
        worst = self._worst.get(self._run.data.ids[row])
        if worst is None:
            worst = survival(self._run.data, self._run.logits, row)
        return self._with_costs(worst, row)

    def _error_rate(self, example: int) -> float:
        worst = self._worst.get(example)
        return worst.error_rate if worst else 0.0

    def _nearer(self, examples: Iterable[int], judgement: Judgement) -> Tensor:
        """Returns which points `(n,)` are nearer to an error than all before.

        A later stage starts from them; without such a stage there are none.
        """
        wrong = judgement.wrong.tolist()
        if not self._stage.feeds_later_stage:
            return torch.zeros(len(wrong), dtype=torch.bool)

        nearer = []
        columns = zip(examples, wrong, judgement.margin.tolist(), strict=True)
        for example, error_rate, margin in columns:
            worst = self._worst.get(example)
            least_margin = worst.margin if worst and worst.image else math.inf
            nearer.append(error_rate >= self._error_rate(example) and margin < least_margin)
        return torch.tensor(nearer)

    def _with_costs(self, decision: Decision, row: int) -> Decision:
        costs = {"forwards": int(self._forwards[row]), "backwards": int(self._backwards[row])}
        return decision.model_copy(update=costs)
