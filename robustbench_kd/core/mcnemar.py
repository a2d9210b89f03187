"""McNemar's exact test: has an accuracy changed on the same examples?"""

from scipy.special import betainc


def mcnemar(lost: int, gained: int) -> float:
    """Returns McNemar's exact two-sided p-value that losses and gains are equally likely.

    Source: McNemar 1947, with the binomial distribution.

    >>> mcnemar(lost=5, gained=0)
    0.0625
    """
    return min(1.0, 2 * mcnemar_drop(max(lost, gained), min(lost, gained)))


def mcnemar_drop(lost: int, gained: int) -> float:
    """Returns the exact one-sided p-value of the losses, if losses and gains are equally likely.

    >>> mcnemar_drop(lost=5, gained=0)
    0.03125
    """
    return float(betainc(lost, gained + 1, 0.5)) if lost else 1.0
