"""The defence itself refuses points that the search found adversarial (IoAF I5)."""

from robustbench_kd.core.records import Finding, Severity
from robustbench_kd.tensors.probe import DEFENCE_ITSELF, Facts

_FRACTION, _LEAST = 0.1, 5  # of the candidates; rounding alone refuses hardly any


def review(facts: Facts) -> list[Finding]:
    """Returns a yellow finding if the defence refuses many points that the search found.

    Only searches on the defence itself count: search and defence should be the same function,
    computed at another precision or in another batch. Source: indicator I5 of Pintor et al. 2022
    (arXiv 2106.09947).
    """
    refused = 0
    broken = 0
    for stage in facts.stages:
        if stage.surface in DEFENCE_ITSELF:
            refused += stage.refused
            broken += len(stage.broken)

    candidates = refused + broken
    fraction = refused / max(candidates, 1)
    if refused < _LEAST or fraction <= _FRACTION:
        return []
    return [
        Finding(
            check="transfer-failure",
            severity=Severity.YELLOW,
            message=f"transfer failure (IoAF I5): the defence refused {refused} of {candidates} "
            "points that the search found adversarial",
            advice="look for randomness or batch statistics in the defence, and search in full "
            "precision",
            value=fraction,
            threshold=_FRACTION,
        )
    ]
