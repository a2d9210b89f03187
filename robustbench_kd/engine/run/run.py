"""What every engine is given, and what it can tell about where it stands."""

import zlib
from dataclasses import dataclass, field

from robustbench_kd.core.ledger import Decision, Entry, decisions_of
from robustbench_kd.core.suites import Suite
from robustbench_kd.core.threat import Threat
from robustbench_kd.engine.passes.speedups import Speedups
from robustbench_kd.engine.run.progress import Progress, Tracker
from robustbench_kd.engine.run.stages import Stage
from robustbench_kd.tensors.contracts import Dataset, Logits
from robustbench_kd.tensors.oracle import Oracle

CLEAN = "clean"
SMALLER = "smaller-radius"  # what a run at a smaller radius has broken is broken at this one


@dataclass(frozen=True)
class Job:
    """One run: the whole data set with its clean logits, the threat, the suite with its stages, and how to run it."""

    oracle: Oracle
    data: Dataset
    threat: Threat
    suite: Suite
    steps: tuple[Stage, ...]
    logits: Logits
    seed: int
    batch_size: int
    tracker: Tracker
    speedups: Speedups = field(default_factory=Speedups)
    saves: bool = False

    @property
    def stores_images(self) -> bool:
        """Returns whether decisions hold their images: where they are asked for, and where they are scored again.

        What is drawn cannot be told exactly, so its image is scored on draws that no search has
        seen.
        """
        return self.saves or not self.oracle.exact

    @property
    def classes(self) -> int:
        """Returns how many classes the model tells apart."""
        return self.logits.shape[1]

    def seed_of(self, step: Stage) -> int:
        """Returns the seed of a stage: an adaptive one must not repeat the random numbers of the standard attack."""
        return self.seed ^ (zlib.crc32(step.name.encode()) << 16) if step.adaptive else self.seed


def standing(job: Job, position: int, ledger: list[Entry]) -> list[int]:
    """Returns the example ids that every stage before the attack at `position` left standing, in order."""
    broken = {
        example
        for stage in _before(job, position)
        for example, decision in decisions_of(ledger, stage).items()
        if decision.broken
    }
    return [example for example in job.data.ids if example not in broken]


def worst(job: Job, position: int, ledger: list[Entry]) -> dict[int, Decision]:
    """Returns, of examples that some answers of a randomized defence get wrong, the decision with the most of them."""
    found: dict[int, Decision] = {}
    for stage in _before(job, position):
        for example, decision in decisions_of(ledger, stage).items():
            if decision.share > (found[example].share if example in found else 0):
                found[example] = decision
    return found


def _before(job: Job, position: int) -> tuple[str, ...]:
    return (CLEAN, SMALLER, *(step.name for step in job.steps[:position]))


def pending(job: Job, position: int, ledger: list[Entry]) -> list[int]:
    """Returns the rows of the data set that the attack at `position` has still to decide."""
    done = decisions_of(ledger, job.steps[position].name)
    waiting = {example for example in standing(job, position, ledger) if example not in done}
    return [row for row, example in enumerate(job.data.ids) if example in waiting]


def progress(
    job: Job, position: int, costs: list[int], ledger: list[Entry], passes: int
) -> Progress:
    """Returns where the attack at `position` stands; `costs` are the passes of one survivor, attack by attack."""
    done, alive = decisions_of(ledger, job.steps[position].name), standing(job, position, ledger)
    known = [done[example].broken for example in alive if example in done]
    robust = len(alive) - sum(known)
    return Progress(
        stage=job.steps[position].name,
        decided=len(known),
        total=len(alive),
        robust=robust,
        examples=len(job.data),
        passes=passes,
        passes_left=costs[position] * (len(alive) - len(known))
        + sum(costs[position + 1 :]) * robust,
    )
