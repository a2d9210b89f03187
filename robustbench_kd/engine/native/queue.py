"""The order of work: examples wait in line, each with its restarts until the first success."""

from collections import deque
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


class Queue:
    """Rows of the data set that wait for a slot, each with its next restart."""

    def __init__(self, rows: Iterable[int], restarts: int) -> None:
        self._waiting = deque((row, 0) for row in rows)
        self._restarts = restarts

    def __len__(self) -> int:
        return len(self._waiting)

    def next(self, most: int) -> tuple[Ints, Ints]:
        """Takes at most `most` rows; returns their rows of the data set and their restarts."""
        count = min(most, len(self._waiting))
        taken = [self._waiting.popleft() for _ in range(count)]
        pairs = np.array(taken, dtype=np.int64).reshape(-1, 2)
        return pairs[:, 0], pairs[:, 1]

    def failed(self, row: int, restart: int) -> bool:
        """Puts a row whose restart failed at the head of the line.

        Returns False where no restart is left: the row survives.
        """
        if restart + 1 >= self._restarts:
            return False
        self._waiting.appendleft((row, restart + 1))
        return True
