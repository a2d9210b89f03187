"""Another input normalisation fits the network better."""

from robustbench_kd.core.records import Finding, Severity
from robustbench_kd.tensors.probe import Probe

# A one-sided test at 5 %: another usual normalisation rarely fits better than the correct one.
_DEVIATIONS = 1.645
_LEAST = 0.01  # of accuracy
_RED = 0.1  # of accuracy


def probe(sample: Probe) -> list[Finding]:
    """Returns a finding that names a normalisation of significantly higher clean accuracy.

    Both are compared on the same images by McNemar's statistic; the finding is red if the accuracy
    is ten points higher.
    """
    used = sample.correct.get(sample.normalisation)
    if used is None:
        return []

    def rank(name: str) -> tuple[int, bool]:
        return int(sample.correct[name].sum()), name == sample.normalisation

    best = max(sample.correct, key=rank)
    other = sample.correct[best]
    gained = int((other & ~used).sum())
    lost = int((used & ~other).sum())
    by_chance = _DEVIATIONS * (gained + lost) ** 0.5
    if gained - lost <= max(by_chance, _LEAST * len(used)):
        return []

    before = float(used.float().mean())
    after = float(other.float().mean())
    is_red = after - before > _RED
    return [
        Finding(
            check="normalisation",
            severity=Severity.RED if is_red else Severity.YELLOW,
            message=f"clean accuracy is {before:.1%} with the normalisation "
            f"'{sample.normalisation}', but {after:.1%} with '{best}', on {len(used)} images",
            advice=f"give --normalisation {best}, or correct the card; if the network normalises "
            "its input itself, give none",
            value=after - before,
            threshold=_RED if is_red else _LEAST,
        )
    ]
