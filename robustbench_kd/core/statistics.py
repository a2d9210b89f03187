"""Intervals and tests for the accuracies that the tool reports and compares."""

import math
from collections.abc import Iterable, Sequence
from statistics import NormalDist

from robustbench_kd.core.records import Accuracy

CONFIDENCE = 0.95
_QUANTILE = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)


def interval(successes: float, n: int) -> tuple[float, float]:
    """Returns the 95 % Wilson score interval of a fraction (Wilson 1927).

    `(0, 1)` where nothing was counted. `successes` may be a sum of probabilities, as of a
    randomized defence. Among variables in [0, 1] with the same mean the yes-or-no ones vary most,
    so that the interval is then rather too wide than too narrow.

    >>> low, high = interval(500, 1000)
    >>> round(low, 3), round(high, 3)
    (0.469, 0.531)
    """
    if n == 0:
        return 0.0, 1.0
    fraction, weight = successes / n, _QUANTILE**2 / n
    centre = (fraction + weight / 2) / (1 + weight)
    half = math.sqrt(max(0.0, fraction * (1 - fraction)) * weight + weight**2 / 4) / (1 + weight)
    return max(0.0, min(fraction, centre - half)), min(1.0, max(fraction, centre + half))


def accuracy(right: float, n: int) -> Accuracy:
    """Returns the fraction of at least one example that is right, with its interval.

    Like `interval` for sums of fractions.

    >>> accuracy(1, 2).value
    0.5
    """
    low, high = interval(right, n)
    return Accuracy(value=right / n, n=n, ci_low=low, ci_high=high)


def mean_accuracy(fractions: Iterable[float]) -> Accuracy:
    """Returns the mean of at least one fraction as an accuracy."""
    known = list(fractions)
    return accuracy(sum(known), len(known))


def paired_interval(lost: int, gained: int, n: int) -> tuple[float, float]:
    """Returns the 95 % interval of the change of an accuracy on the same `n` examples.

    Source: Bonett and Price 2012, "Adjusted Wald confidence intervals for a difference of binomial
    proportions based on paired data": one example is added to the lost and one to the gained. Not a
    single flip leaves a doubt, too, and the interval nearly always excludes 0 where the exact test
    does. `(-1, 1)` where nothing was counted.

    >>> low, high = paired_interval(lost=30, gained=0, n=1000)
    >>> round(low, 3), round(high, 3)
    (-0.041, -0.019)
    """
    if n == 0:
        return -1.0, 1.0
    down, up = (lost + 1) / (n + 2), (gained + 1) / (n + 2)
    half = _QUANTILE * math.sqrt((down + up - (up - down) ** 2) / (n + 2))
    return max(-1.0, up - down - half), min(1.0, up - down + half)


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Returns p-values adjusted for being several, in their order (Holm 1979).

    The chance that any true null hypothesis has one of at most alpha is at most alpha, however the
    tests depend.

    >>> holm([0.01, 0.5, 0.02])
    (0.03, 0.5, 0.04)
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return tuple(adjusted)


def settled(
    successes: float,
    n: int,
    threshold: float,
    alpha: float = 0.05,
    *,
    population: int | None = None,
) -> bool | None:
    """Returns whether a mean reaches a threshold, or None while that is open.

    It may be asked after every example. The chance of ever returning a wrong answer is at most
    `alpha`, however often it is asked and whenever one stops: the answer is given when a confidence
    sequence leaves the threshold. Without `population` the examples are drawn independently, and
    `successes` may be a sum of values in [0, 1] (a beta mixture of likelihood ratios with a uniform
    prior: Robbins 1970, "Statistical methods related to the law of the iterated logarithm"; for
    values in [0, 1] Waudby-Smith and Ramdas 2023, "Estimating means of bounded random variables by
    betting"). With it, the question is of the `population` examples themselves, taken in random
    order, each yes or no (prior-posterior ratio with a uniform prior: Waudby-Smith and Ramdas 2020,
    "Confidence sequences for sampling without replacement"); after the last one the answer is
    exact.

    >>> settled(29, 100, 0.45), settled(40, 100, 0.45), settled(400, 950, 0.45, population=1000)
    (False, None, False)
    """
    if population is None:
        return _decided_of_many(successes, n, threshold, math.log(1 / alpha))
    return _decided_of(population, round(successes), n, threshold, math.log(1 / alpha))


def _decided_of_many(successes: float, n: int, threshold: float, enough: float) -> bool | None:
    if not 0 < threshold <= 1:
        return threshold <= 0
    misses = n - successes
    log_beta = math.lgamma(successes + 1) + math.lgamma(misses + 1) - math.lgamma(n + 2)
    evidence = log_beta - successes * math.log(threshold)
    if misses > 0:
        evidence = evidence - misses * math.log1p(-threshold) if threshold < 1 else math.inf
    if evidence >= enough:
        return successes > threshold * n
    return None


def _decided_of(
    population: int, successes: int, n: int, threshold: float, enough: float
) -> bool | None:
    least = math.floor(threshold * population)
    least += least / population < threshold  # the fewest successes of all that reach the threshold

    def evidence_against(total: int) -> float:
        """The log of prior over posterior probability that so many of all are successes."""
        likelihood = _log_choose(total, successes) + _log_choose(population - total, n - successes)
        return _log_choose(population + 1, n + 1) - math.log(population + 1) - likelihood

    if evidence_against(least) >= enough and successes * population <= least * n:
        return False
    if evidence_against(least - 1) >= enough and successes * population >= (least - 1) * n:
        return True
    return None


def _log_choose(n: int, k: int) -> float:
    if not 0 <= k <= n:
        return -math.inf
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
