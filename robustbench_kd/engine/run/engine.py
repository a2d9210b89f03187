"""What an engine offers: it attacks, checks the model, and knows its costs."""

from collections.abc import Iterator
from typing import Protocol

from robustbench_kd.core.ledger import Entry
from robustbench_kd.engine.run.plan import Plan
from robustbench_kd.engine.run.run import Run
from robustbench_kd.engine.run.stages import Stage


class Engine(Protocol):
    """Runs the stages of a plan; the modules `native/cascade.py` and `autoattack/cascade.py` do."""

    def attack(self, run: Run) -> Iterator[Entry]:
        """Yields what the stages decide, batch by batch; the run's index grows meanwhile.

        Raises `IncompleteError` where even a batch of one image does not fit in memory.
        """
        ...

    def check_model(self, run: Run) -> Entry:
        """Returns what checks of the model find before any attack."""
        ...

    def passes(self, plan: Plan, stage: Stage, classes: int) -> float:
        """Returns the passes that one surviving example costs in a stage at most."""
        ...
