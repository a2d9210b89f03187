"""Turns what a check measured into findings."""

from dataclasses import dataclass

from torch import Tensor

from robustbench_kd.core.records import Finding, Severity
from robustbench_kd.tensors.probe import Probe


@dataclass(frozen=True)
class Limits:
    """The fractions of examples above which a check raises a finding.

    Above `yellow` a fraction is suspicious, above `red` it is proof. Fewer than `least` examples
    raise nothing.
    """

    yellow: float
    red: float = float("inf")
    least: int = 2


def of_sample(
    check: str, sample: Probe, rows: Tensor, limits: Limits, *, message: str, advice: str
) -> list[Finding]:
    """Returns a finding if too many rows of the sample are affected; its message counts them."""
    numbers = f"{message} on {len(rows)} of {len(sample)} images"
    return of_examples(
        check, sample.examples(rows), len(sample), limits, message=numbers, advice=advice
    )


def of_examples(
    check: str, examples: list[int], n: int, limits: Limits, *, message: str, advice: str
) -> list[Finding]:
    """Returns a finding if too large a fraction of n examples is affected."""
    fraction = len(examples) / n
    if fraction <= limits.yellow or len(examples) < limits.least:
        return []

    severity = Severity.YELLOW
    threshold = limits.yellow
    if fraction > limits.red:
        severity = Severity.RED
        threshold = limits.red
    return [
        Finding(
            check=check,
            severity=severity,
            message=message,
            advice=advice,
            value=fraction,
            threshold=threshold,
            examples=examples,
        )
    ]


def too_low(
    check: str,
    value: float,
    *,
    yellow: float,
    red: float = -float("inf"),
    message: str,
    advice: str,
    examples: list[int],
) -> list[Finding]:
    """Returns a finding if a value is below a limit or NaN."""
    if value >= yellow:
        return []

    severity = Severity.RED
    threshold = red
    if value >= red:
        severity = Severity.YELLOW
        threshold = yellow
    return [
        Finding(
            check=check,
            severity=severity,
            message=message,
            advice=advice,
            value=value,
            threshold=threshold,
            examples=examples,
        )
    ]


def median(values: Tensor) -> float:
    """Returns the median of values, NaN of an empty tensor."""
    if values.numel():
        return float(values.median())
    return float("nan")
