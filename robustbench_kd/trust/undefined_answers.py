"""The defence answers with NaN or infinity where an attack has been."""

from robustbench_kd.core.records import Finding, Severity
from robustbench_kd.tensors.probe import Facts

_RED = 0.1  # fraction of the answers


def review(facts: Facts) -> list[Finding]:
    """Returns a finding if a search met answers that were no numbers, red if many were none.

    Such a point does not count, so that the attack gains nothing there. No honest network gives
    one.
    """
    undefined = sum(stage.undefined for stage in facts.stages)
    computed = sum(stage.computed for stage in facts.stages)
    if not undefined:
        return []

    is_red = undefined > _RED * computed
    return [
        Finding(
            check="undefined-answers",
            severity=Severity.RED if is_red else Severity.YELLOW,
            message=f"{undefined} answers to attacked images were NaN or infinite; they do not "
            "count, as if the defence had been right",
            advice="find the operation that overflows or divides by zero, and bound it",
            value=float(undefined),
            threshold=_RED * computed if is_red else 0.0,
        )
    ]
