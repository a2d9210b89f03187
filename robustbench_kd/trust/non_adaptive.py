"""A composed defence was attacked as if it were a plain classifier."""

from robustbench_kd.core.records import Finding, Severity
from robustbench_kd.tensors.probe import Facts


def review(facts: Facts) -> list[Finding]:
    """Returns a yellow finding if a defence of several parts met no adaptive attack.

    Source: Tramer et al. 2020 (arXiv 2002.08347): attacks that are made for such defences break
    them.
    """
    if not facts.composite or any(stage.adaptive for stage in facts.stages):
        return []
    return [
        Finding(
            check="non-adaptive",
            severity=Severity.YELLOW,
            message="no adaptive attack was run on a defence of several parts: the number is an "
            "upper bound",
            advice="run --suite standard+adaptive",
        )
    ]
