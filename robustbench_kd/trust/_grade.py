"""How checks turn what they measure into findings."""

from dataclasses import dataclass

from torch import Tensor

from robustbench_kd.core.records import Finding, Severity
from robustbench_kd.tensors.probe import Probe


@dataclass(frozen=True)
class Limits:
    """Above `yellow` a value is suspicious, above `red` it is proof; fewer than `least` examples are neither."""

    yellow: float
    red: float = float("inf")
    least: int = 2


def of_sample(
    check: str, sample: Probe, rows: Tensor, limits: Limits, *, message: str, advice: str
) -> list[Finding]:
    """Returns a finding where too large a share of the sample is affected; `message` is followed by the numbers."""
    numbers = f"{message} on {len(rows)} of {len(sample)} images"
    return of_examples(
        check, sample.examples(rows), len(sample), limits, message=numbers, advice=advice
    )


def of_examples(
    check: str, examples: list[int], n: int, limits: Limits, *, message: str, advice: str
) -> list[Finding]:
    """Returns a finding where too large a share of n examples is affected."""
    share = len(examples) / n
    if share <= limits.yellow or len(examples) < limits.least:
        return []
    red = share > limits.red
    return [
        Finding(
            check=check,
            severity=Severity.RED if red else Severity.YELLOW,
            message=message,
            advice=advice,
            value=share,
            threshold=limits.red if red else limits.yellow,
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
    """Returns a finding where a value is below a limit, or is no number."""
    if value >= yellow:
        return []
    is_red = not value >= red
    return [
        Finding(
            check=check,
            severity=Severity.RED if is_red else Severity.YELLOW,
            message=message,
            advice=advice,
            value=value,
            threshold=red if is_red else yellow,
            examples=examples,
        )
    ]


def median(values: Tensor) -> float:
    """Returns the median of values, NaN where there are none."""
    return float(values.median()) if values.numel() else float("nan")
