"""Counts what an evaluation spends: passes of examples, and seconds in the model."""

from collections.abc import Callable

from torch import Tensor


class Meter:
    """A running count that everything which calls a model adds to.

    `on_pass` is called with the number of passes so far after each of them, for progress only.

    >>> meter = Meter()
    >>> meter.add(forwards=64, backwards=64)
    >>> meter.passes
    128
    """

    def __init__(self, on_pass: Callable[[int], None] = lambda _passes: None) -> None:
        self.forwards = 0
        self.backwards = 0
        self.model_seconds = 0.0
        self._on_pass = on_pass

    @property
    def passes(self) -> int:
        """Returns forward and backward passes together."""
        return self.forwards + self.backwards

    def add(self, *, forwards: int = 0, backwards: int = 0, model_seconds: float = 0.0) -> None:
        """Adds passes, counted in examples, and the seconds that a search spent in the model."""
        self.forwards += forwards
        self.backwards += backwards
        self.model_seconds += model_seconds
        self._on_pass(self.passes)

    def add_call(self, output: object, examples: int, passes: int = 1) -> None:
        """Adds a call of the model, and its backward pass if and when there is one.

        One example costs so many `passes` of a network.
        """
        if isinstance(output, Tensor) and output.requires_grad:

            def count(gradient: Tensor) -> None:
                self.add(backwards=passes * len(gradient))

            output.register_hook(count)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.add(forwards=passes * examples)
