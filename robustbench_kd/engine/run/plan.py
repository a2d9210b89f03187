"""What will be done: the stages of a request against a defence, and the identity of the run."""

from dataclasses import dataclass, replace
from pathlib import Path

from robustbench_kd.core.records import Finding, Identity
from robustbench_kd.core.rundir import run_folder
from robustbench_kd.core.suites import Suite
from robustbench_kd.engine.passes.speedups import Speedups
from robustbench_kd.engine.run.few_classes import for_classes
from robustbench_kd.engine.run.identity import identify
from robustbench_kd.engine.run.request import Request
from robustbench_kd.engine.run.stages import Stage, plan_stages
from robustbench_kd.tensors.defence import Surface
from robustbench_kd.tensors.oracle import Oracle


@dataclass(frozen=True)
class Look:
    """What a look at a defence has shown.

    Args:
        oracle: The defence as it is evaluated, where its model declares less than there is.
        surfaces: What adaptive attacks may search on, besides what is declared.
        findings: What a reader must know.
    """

    oracle: Oracle
    surfaces: tuple[Surface, ...] = ()
    findings: tuple[Finding, ...] = ()


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
        seen: What a look at the defence has shown before the plan was made.
    """

    request: Request
    oracle: Oracle
    suite: Suite
    changes: list[str]
    stages: tuple[Stage, ...]
    identity: Identity
    seen: tuple[Finding, ...] = ()

    def folder(self, results: Path) -> Path:
        """Returns where the run lives."""
        return run_folder(results, self.identity.model, self.identity.run_id())


def make_plan(request: Request, oracle: Oracle, classes: int) -> Plan:
    """Returns the plan for a defence that distinguishes so many classes.

    Raises `UsageError` where the suite has no attack for them.
    """
    request = _without_speedups(request, oracle)
    suite, changes = for_classes(request.suite, classes, request.threat.norm)
    stages = plan_stages(suite, oracle, request.threat, request.extra)
    identity = identify(request, suite, stages)
    return Plan(request, oracle, suite, changes, stages, identity)


def after_look(plan: Plan, look: Look) -> Plan:
    """Returns the plan with what a look at the defence has shown.

    It follows from the request, so it is no part of the identity: the folder of a run is known
    before its model is asked.
    """
    request = _without_speedups(plan.request, look.oracle)
    stages = plan_stages(plan.suite, look.oracle, request.threat, request.extra, look.surfaces)
    return replace(plan, request=request, oracle=look.oracle, stages=stages, seen=look.findings)


def _without_speedups(request: Request, oracle: Oracle) -> Request:
    return replace(request, speedups=Speedups()) if oracle.randomized else request
