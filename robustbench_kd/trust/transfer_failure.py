"""What the search took for adversarial was not so for the defence itself (IoAF I5)."""

from robustbench_kd.core.records import Finding, Severity
from robustbench_kd.tensors.probe import WHOLE, Facts

_SHARE, _LEAST = 0.1, 5  # of the candidates; rounding alone refuses hardly any


def review(facts: Facts) -> list[Finding]:
    """Returns a yellow finding where the defence refuses many points that broke what the standard attacks searched on.

    Both should be the same function, computed at another precision or in another batch. Source:
    indicator I5 of Pintor et al. 2022 (arXiv 2106.09947).
    """
    stages = [stage for stage in facts.stages if stage.surface in WHOLE]
    refused, broken = (
        sum(stage.refused for stage in stages),
        sum(len(stage.broken) for stage in stages),
    )
    share = refused / max(refused + broken, 1)
    if refused < _LEAST or share <= _SHARE:
        return []
    return [
        Finding(
            check="transfer-failure",
            severity=Severity.YELLOW,
            message=f"transfer failure (IoAF I5): the defence refused {refused} of {refused + broken} points that the search "
            "took for adversarial",
            advice="look for chance or batch statistics in the defence, and search in full precision",
            value=share,
            threshold=_SHARE,
        )
    ]
