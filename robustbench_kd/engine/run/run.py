"""What is under way: a plan on some examples, and how far it is."""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from robustbench_kd.core.ledger import Decision
from robustbench_kd.core.threat import Threat
from robustbench_kd.engine.run.ledger_index import LedgerIndex
from robustbench_kd.engine.run.plan import Plan
from robustbench_kd.engine.run.progress import Progress, Tracker
from robustbench_kd.engine.run.stages import Stage
from robustbench_kd.tensors.contracts import Dataset, Logits
from robustbench_kd.tensors.oracle import Oracle

CLEAN = "clean"
RESUMED = "resumed"  # marks where a process went on that another one had left
SMALLER = "smaller-radius"  # an example that a smaller radius breaks is broken at this one


@dataclass(frozen=True)
class Run:
    """A plan under way.

    Args:
        plan: What will be done.
        data: The examples to decide, all of the request or a part of them.
        logits: The clean logits of these examples, `(n, classes)` on the CPU.
        stages: The stages of the plan, with the model that their searches ask.
        batch_size: Images per batch.
        tracker: Shows the progress.
        index: The decisions so far.
        saves_images: Whether the images that decide are kept.
    """

    plan: Plan
    data: Dataset
    logits: Logits
    stages: tuple[Stage, ...]
    batch_size: int
    tracker: Tracker
    index: LedgerIndex
    saves_images: bool = False

    @property
    def oracle(self) -> Oracle:
        """Returns the defence."""
        return self.plan.oracle

    @property
    def threat(self) -> Threat:
        """Returns the threat."""
        return self.plan.request.threat

    @property
    def seed(self) -> int:
        """Returns the seed of all randomness."""
        return self.plan.request.seed

    @property
    def classes(self) -> int:
        """Returns how many classes the model distinguishes."""
        return self.logits.shape[1]

    @property
    def stores_images(self) -> bool:
        """Returns whether decisions hold their images, because they are saved or rescored.

        An error rate that was drawn is not exact, so its image is rescored on draws that no search
        has seen.
        """
        return self.saves_images or not self.oracle.exact

    def seed_of(self, stage: Stage) -> int:
        """Returns the seed of a stage; an adaptive one must not repeat the standard attack's."""
        if not stage.adaptive:
            return self.seed
        return self.seed ^ (zlib.crc32(stage.name.encode()) << 16)

    def survivors(self, stage: Stage) -> list[int]:
        """Returns the ids of the examples that no stage before this one has broken, in order."""
        broken = self.index.broken(self._names_before(stage))
        return [example for example in self.data.ids if example not in broken]

    def pending(self, stage: Stage) -> list[int]:
        """Returns the rows of the data set that a stage has still to decide."""
        done = (
            self.index.broken(self._names_before(stage)) | self.index.decisions(stage.name).keys()
        )
        return [row for row, example in enumerate(self.data.ids) if example not in done]

    def worst_before(self, stage: Stage) -> dict[int, Decision]:
        """Returns the worst decision of each example with a wrong answer before a stage."""
        return self.index.worst(self._names_before(stage))

    def worst(self, *, standard_only: bool = False) -> dict[int, Decision]:
        """Returns the worst decision of each example with a wrong answer, in all stages."""
        names = [CLEAN, SMALLER]
        for stage in self.stages:
            if not (standard_only and stage.adaptive):
                names.append(stage.name)
        return self.index.worst(names)

    def progress(self, stage: Stage, costs: Mapping[str, float]) -> Progress:
        """Returns how far a stage is; `costs` are the passes of one survivor by stage."""
        survivors = self.survivors(stage)
        decided = self.index.decisions(stage.name).keys() & survivors
        robust = len(set(survivors) - self.index.broken([stage.name]))

        position = self._position(stage)
        later = sum(costs[following.name] for following in self.stages[position + 1 :])
        left = costs[stage.name] * (len(survivors) - len(decided)) + later * robust
        return Progress(
            stage=stage.name,
            decided=len(decided),
            total=len(survivors),
            robust=robust,
            examples=len(self.data),
            passes=self.oracle.meter.passes,
            passes_left=round(left),
        )

    def _names_before(self, stage: Stage) -> list[str]:
        return [CLEAN, SMALLER, *self._names[: self._position(stage)]]

    def _position(self, stage: Stage) -> int:
        return self._names.index(stage.name)

    @property
    def _names(self) -> list[str]:
        return [stage.name for stage in self.stages]
