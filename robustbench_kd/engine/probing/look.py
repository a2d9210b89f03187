"""Looks at a model before its evaluation: hidden chance, and surfaces for adaptive attacks."""

from robustbench_kd.engine.passes.batching import one_must_fit
from robustbench_kd.engine.probing.anatomy import examine
from robustbench_kd.engine.probing.anatomy import findings as anatomy_findings
from robustbench_kd.engine.probing.undeclared import with_chance
from robustbench_kd.engine.run.plan import Look, Plan, after_look
from robustbench_kd.tensors.defence import Surface


def looked_at(plan: Plan) -> Plan:
    """Returns the plan after a look at the model.

    Raises `IncompleteError` where not even one image fits in memory.
    """
    request = plan.request
    data = request.data
    with one_must_fit():
        oracle, findings = with_chance(plan.oracle, data.images)
        surfaces: tuple[Surface, ...] = ()
        if plan.suite.adaptive:
            anatomy = examine(oracle, data, request.threat, request.seed)
            surfaces = tuple(anatomy.surfaces)
            findings = (*findings, *anatomy_findings(anatomy))
    return after_look(plan, Look(oracle, surfaces, findings))
