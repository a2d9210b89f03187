"""Lets a row rest after a judgement in vain, twice as long each time.

A defence whose draws serve a whole batch is judged by one call for each draw. Most points that one
draw misclassifies are no worse than what is known, and a search asks for a judgement at nearly
every step.
"""

import numpy as np

from robustbench_kd.engine.native.queue import Ints
from robustbench_kd.engine.native.slot_rows import Bools

_LONGEST = 128  # steps


class Patience:
    """Counts the steps that rows of the data set rest."""

    def __init__(self, rows: int) -> None:
        self._left = np.zeros(rows, dtype=np.int64)
        self._next = np.zeros(rows, dtype=np.int64)

    def resting(self, rows: Ints) -> Bools:
        """Returns which rows rest in this step."""
        rests: Bools = self._left[rows] > 0
        self._left[rows] = np.maximum(self._left[rows] - 1, 0)
        return rests

    def judged(self, rows: Ints, worse: Bools) -> None:
        """Sends rows to rest whose point was no worse, and forgets the past of the others."""
        self._left[rows] = np.where(worse, 0, self._next[rows])
        longer = np.minimum(2 * self._next[rows] + 1, _LONGEST)
        self._next[rows] = np.where(worse, 0, longer)
