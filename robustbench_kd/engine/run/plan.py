"""What a request asks of a defence once its classes are known: which attacks, in which run."""

from dataclasses import dataclass, replace
from pathlib import Path

from robustbench_kd.core.records import Identity
from robustbench_kd.core.rundir import run_folder
from robustbench_kd.core.suites import Suite, for_classes
from robustbench_kd.engine.passes.speedups import Speedups
from robustbench_kd.engine.run.identity import identify
from robustbench_kd.engine.run.request import Request
from robustbench_kd.engine.run.stages import Stage, plan
from robustbench_kd.tensors.oracle import Oracle


@dataclass(frozen=True)
class Question:
    """A request with its stages and the identity of its run; `changes` say where few classes altered the suite."""

    request: Request
    suite: Suite
    changes: list[str]
    steps: tuple[Stage, ...]
    identity: Identity

    def folder(self, results: Path) -> Path:
        """Returns where the run lives."""
        return run_folder(results, self.identity.model, self.identity.run_id())


def question(request: Request, oracle: Oracle, classes: int) -> Question:
    """Returns what is asked of a defence that tells so many classes apart; one that answers by chance takes no levers."""
    request = replace(request, speedups=Speedups()) if oracle.randomized else request
    suite, changes = for_classes(request.suite, classes)
    steps = plan(suite, oracle, request.threat, request.extra)
    return Question(request, suite, changes, steps, identify(request, suite, steps))
