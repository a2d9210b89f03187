"""What a running evaluation tells whoever watches it."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Progress:
    """A moment of a run: `decided` of `total` examples in this stage, `robust` of `examples` still standing.

    `passes` counts example-forwards and -backwards since the start of the process; `passes_left`
    bounds what is to come.
    """

    stage: str
    decided: int
    total: int
    robust: int
    examples: int
    passes: int
    passes_left: int


Observer = Callable[[Progress], None]


def nobody(_progress: Progress) -> None:
    """Watches nothing."""


class Tracker:
    """Hands the current progress to an observer, at most ten times a second between stages and batches."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._told = 0.0
        self._current: Progress | None = None
        self._planned = 0

    def at(self, progress: Progress) -> None:
        """States a new moment and tells it at once; its `passes_left` is what this moment plans for."""
        self._current = progress
        self._planned = progress.passes + progress.passes_left
        self._tell(progress)

    def tick(self, passes: int) -> None:
        """Tells that passes were spent within the current batch."""
        if self._current is not None and time.monotonic() - self._told > 0.1:
            left = max(self._planned - passes, 0)
            self._tell(replace(self._current, passes=passes, passes_left=left))

    def _tell(self, progress: Progress) -> None:
        self._told = time.monotonic()
        self._observer(progress)
