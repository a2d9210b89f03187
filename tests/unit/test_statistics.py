"""Intervals against the closed form, and against what they promise."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustbench_kd.core.statistics import interval

Z = 1.959963984540054  # the 97.5 % quantile of the standard normal distribution


def wilson(successes, n):
    """The score interval as Wilson wrote it in 1927."""
    share, weight = successes / n, Z * Z / n
    centre = (share + weight / 2) / (1 + weight)
    half = Z / (1 + weight) * math.sqrt(share * (1 - share) / n + weight / (4 * n))
    return centre - half, centre + half


@given(st.integers(1, 100_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_is_wilsons(counts):
    assert interval(*counts) == pytest.approx(wilson(*counts), abs=1e-9)


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_holds_the_fraction_and_stays_within_zero_and_one(counts):
    low, high = interval(*counts)
    assert 0 <= low <= counts[0] / counts[1] <= high <= 1


@given(st.integers(1, 1000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_losses_mirror_successes(counts):
    successes, n = counts
    low, high = interval(successes, n)
    assert interval(n - successes, n) == pytest.approx((1 - high, 1 - low), abs=1e-12)


def test_more_examples_narrow_the_interval():
    widths = [high - low for low, high in (interval(n // 2, n) for n in (10, 100, 1000, 10_000))]
    assert widths == sorted(widths, reverse=True)


def test_nothing_counted_is_nothing_known():
    assert interval(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("successes", "bound"), [(0, (0.0, 0.2775)), (10, (0.7225, 1.0))])
def test_none_and_all_of_ten_keep_a_one_sided_doubt(successes, bound):
    assert interval(successes, 10) == pytest.approx(bound, abs=1e-4)
