"""Another input normalisation fits the network better."""

from robustbench_kd.core.records import Finding, Severity
from robustbench_kd.tensors.probe import Probe

# A one-sided test at 5 %: another usual normalisation rarely fits better than the right one.
_DEVIATIONS = 1.645
_LEAST = 0.01  # of accuracy
_RED = 0.1  # of accuracy


def probe(sample: Probe) -> list[Finding]:
    """Returns a finding that names the normalisation under which significantly more clean images are right.

    Compared on the same images by McNemar's statistic; red where the accuracy is ten points higher.
    """
    used = sample.right.get(sample.normalisation)
    if used is None:
        return []
    best = max(
        sample.right, key=lambda name: (int(sample.right[name].sum()), name == sample.normalisation)
    )
    fits = sample.right[best]
    gained, lost = int((fits & ~used).sum()), int((used & ~fits).sum())
    if gained - lost <= max(_DEVIATIONS * (gained + lost) ** 0.5, _LEAST * len(used)):
        return []
    before, after = float(used.float().mean()), float(fits.float().mean())
    red = after - before > _RED
    return [
        Finding(
            check="normalisation",
            severity=Severity.RED if red else Severity.YELLOW,
            message=f"clean accuracy is {before:.1%} with the normalisation '{sample.normalisation}', but {after:.1%} with "
            f"'{best}', on {len(used)} images",
            advice=f"give --normalisation {best}, or mend the card; what a network normalises inside it must not be given again",
            value=after - before,
            threshold=_RED if red else _LEAST,
        )
    ]
