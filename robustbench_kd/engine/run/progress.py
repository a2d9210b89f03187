"""What a running evaluation shows of itself."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

_INTERVAL = 0.1  # seconds between two displays within a batch


@dataclass(frozen=True)
class Progress:
    """A moment of a run: `decided` of `total` examples in this stage, `robust` of all `examples`.

    `passes` counts example-forwards and -backwards since the start of the process; `passes_left` is
    an upper bound of those to come.
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
    """Hands the current progress to an observer, within a batch at most ten times a second."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._shown_at = 0.0
        self._current: Progress | None = None
        self._planned = 0

    def at(self, progress: Progress) -> None:
        """Shows a new moment at once; its passes and `passes_left` are the new plan."""
        self._current = progress
        self._planned = progress.passes + progress.passes_left
        self._show(progress)

    def tick(self, passes: int) -> None:
        """Shows the passes so far within the current batch."""
        if self._current is None or time.monotonic() - self._shown_at <= _INTERVAL:
            return
        left = max(self._planned - passes, 0)
        self._show(replace(self._current, passes=passes, passes_left=left))

    def _show(self, progress: Progress) -> None:
        self._shown_at = time.monotonic()
        self._observer(progress)
