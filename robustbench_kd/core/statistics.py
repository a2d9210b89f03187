"""Intervals for the accuracies that the tool reports."""

from scipy.stats import binomtest

CONFIDENCE = 0.95


def interval(successes: int, n: int) -> tuple[float, float]:
    """Returns the 95 % Wilson score interval of a fraction (Wilson 1927); `(0, 1)` where nothing was counted.

    >>> low, high = interval(500, 1000)
    >>> round(low, 3), round(high, 3)
    (0.469, 0.531)
    """
    if n == 0:
        return 0.0, 1.0
    bounds = binomtest(successes, n).proportion_ci(CONFIDENCE, method="wilson")
    return float(bounds.low), float(bounds.high)
