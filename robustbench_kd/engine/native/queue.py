"""The order of work: examples wait in line, each with its jobs one after the other until the first success."""

from collections import deque
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


class Queue:
    """Rows of the data set that wait for a slot; a row that fails its job waits for the next one at the head."""

    def __init__(self, rows: Iterable[int], jobs: int) -> None:
        self._waiting = deque((row, 0) for row in rows)
        self._jobs = jobs

    def __len__(self) -> int:
        return len(self._waiting)

    def next(self, most: int) -> tuple[Ints, Ints]:
        """Takes at most `most` jobs; returns their rows of the data set and job numbers."""
        taken = [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]
        pairs = np.array(taken, dtype=np.int64).reshape(-1, 2)
        return pairs[:, 0], pairs[:, 1]

    def failed(self, row: int, job: int) -> bool:
        """Puts a row whose job failed back in line; returns False where no job is left, and the row stands."""
        if job + 1 >= self._jobs:
            return False
        self._waiting.appendleft((row, job + 1))
        return True
