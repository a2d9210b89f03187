"""What will be done: the stages of a request against a defence, and the identity of the run."""

from dataclasses import dataclass, replace
from pathlib import Path

from robustbench_kd.core.records import Identity
from robustbench_kd.core.rundir import run_folder
from robustbench_kd.core.suites import Suite
from robustbench_kd.engine.passes.speedups import Speedups
from robustbench_kd.engine.run.few_classes import for_classes
from robustbench_kd.engine.run.identity import identify
from robustbench_kd.engine.run.request import Request
from robustbench_kd.engine.run.stages import Stage, plan_stages
from robustbench_kd.tensors.oracle import Oracle


@dataclass(frozen=True)
class Plan:
    """A request whose defence and classes are known.

    Args:
        request: What was asked; a randomized defence takes no speedups.
        oracle: The defence.
        suite: The suite as it is defined for so many classes.
        changes: One sentence for each attack that few classes changed.
        stages: All attacks in their order.
        identity: Everything that can change a verdict; its hash names the folder of the run.
    """

    request: Request
    oracle: Oracle
    suite: Suite
    changes: list[str]
    stages: tuple[Stage, ...]
    identity: Identity

    def folder(self, results: Path) -> Path:
        """Returns where the run lives."""
        return run_folder(results, self.identity.model, self.identity.run_id())


def make_plan(request: Request, oracle: Oracle, classes: int) -> Plan:
    """Returns the plan for a defence that distinguishes so many classes.

    Raises `UsageError` where the suite has no attack for them.
    """
    if oracle.randomized:
        request = replace(request, speedups=Speedups())

    suite, changes = for_classes(request.suite, classes, request.threat.norm)
    stages = plan_stages(suite, oracle, request.threat, request.extra)
    identity = identify(request, suite, stages)
    return Plan(request, oracle, suite, changes, stages, identity)
