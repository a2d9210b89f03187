"""What every engine is given, and what it can tell about where it stands."""

from dataclasses import dataclass

from robustbench_kd.core.ledger import Entry, decided
from robustbench_kd.core.suites import Suite
from robustbench_kd.core.threat import Threat
from robustbench_kd.engine.progress import Progress, Tracker
from robustbench_kd.tensors.contracts import Dataset, Logits
from robustbench_kd.tensors.oracle import Oracle

CLEAN = "clean"


@dataclass(frozen=True)
class Job:
    """One run: the whole data set with its clean logits, the threat, the suite, and how to run it."""

    oracle: Oracle
    data: Dataset
    threat: Threat
    suite: Suite
    logits: Logits
    seed: int
    batch_size: int
    tracker: Tracker

    @property
    def classes(self) -> int:
        """Returns how many classes the model tells apart."""
        return self.logits.shape[1]


def standing(job: Job, position: int, ledger: list[Entry]) -> list[int]:
    """Returns the example ids that every stage before the attack at `position` left standing, in order."""
    broken = {
        example
        for stage in (CLEAN, *job.suite.attacks[:position])
        for example, decision in decided(ledger, stage).items()
        if decision.broken
    }
    return [example for example in job.data.ids if example not in broken]


def pending(job: Job, position: int, ledger: list[Entry]) -> list[int]:
    """Returns the rows of the data set that the attack at `position` has still to decide."""
    done = decided(ledger, job.suite.attacks[position])
    waiting = {example for example in standing(job, position, ledger) if example not in done}
    return [row for row, example in enumerate(job.data.ids) if example in waiting]


def progress(job: Job, position: int, costs: list[int], ledger: list[Entry], passes: int) -> Progress:
    """Returns where the attack at `position` stands; `costs` are the passes of one survivor, attack by attack."""
    done = decided(ledger, job.suite.attacks[position])
    total = len(standing(job, position, ledger))
    robust = total - sum(decision.broken for decision in done.values())
    return Progress(
        stage=job.suite.attacks[position],
        decided=len(done),
        total=total,
        robust=robust,
        examples=len(job.data),
        passes=passes,
        passes_left=costs[position] * (total - len(done)) + sum(costs[position + 1 :]) * robust,
    )
