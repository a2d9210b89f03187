"""Intervals and tests against closed forms and scipy, and against what they promise."""

import math
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from robustbench_kd.core.mcnemar import mcnemar, mcnemar_drop
from robustbench_kd.core.statistics import holm, interval, paired_interval, settled

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


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_of_whole_numbers_the_interval_is_scipys(counts):
    expected = binomtest(*counts).proportion_ci(method="wilson")
    assert interval(*counts) == pytest.approx((expected.low, expected.high), abs=1e-12)


@given(
    st.integers(1, 200).flatmap(
        lambda n: st.lists(st.floats(0, n), min_size=2, max_size=2).map(lambda s: (s, n))
    )
)
def test_fractional_successes_lie_between_whole_ones(counts):
    (less, more), n = sorted(counts[0]), counts[1]
    (low, high), (later_low, later_high) = interval(less, n), interval(more, n)
    assert 0 <= low <= less / n <= high <= 1
    assert low <= later_low + 1e-12
    assert high <= later_high + 1e-12


FLIPS = st.tuples(st.integers(0, 300), st.integers(0, 300))


@given(FLIPS)
def test_mcnemars_test_is_the_exact_binomial_one(flips):
    lost, gained = flips
    if lost + gained == 0:
        assert mcnemar(0, 0) == mcnemar_drop(0, 0) == 1.0
        return
    assert mcnemar(lost, gained) == pytest.approx(binomtest(lost, lost + gained).pvalue, rel=1e-9)
    one_sided = binomtest(lost, lost + gained, alternative="greater").pvalue
    assert mcnemar_drop(lost, gained) == pytest.approx(one_sided, rel=1e-9)


@given(FLIPS)
def test_losses_and_gains_count_alike_in_two_sides_and_unlike_in_one(flips):
    lost, gained = flips
    assert mcnemar(lost, gained) == mcnemar(gained, lost)
    assert mcnemar_drop(lost + 1, gained) <= mcnemar_drop(lost, gained)
    assert mcnemar_drop(lost, gained + 1) >= mcnemar_drop(lost, gained)


def test_a_million_flips_are_tested_in_a_moment():
    assert mcnemar(500_000, 500_000) == 1.0
    assert 0 <= mcnemar(600_000, 400_000) < 1e-300


P_VALUES = st.lists(st.floats(0, 1), max_size=8)


@given(P_VALUES)
def test_holm_rejects_what_the_step_down_procedure_rejects(p_values):
    for alpha in (0.01, 0.05, 0.3):
        rejected, ordered = set(), sorted(range(len(p_values)), key=p_values.__getitem__)
        for rank, place in enumerate(ordered):
            if p_values[place] * (len(p_values) - rank) > alpha:
                break
            rejected.add(place)
        assert {place for place, p in enumerate(holm(p_values)) if p <= alpha} == rejected


@given(P_VALUES)
def test_adjusted_p_values_are_larger_in_the_same_order_and_at_most_one(p_values):
    adjusted = holm(p_values)
    assert all(p <= larger <= 1 for p, larger in zip(p_values, adjusted, strict=True))
    pairs = sorted(zip(p_values, adjusted, strict=True))
    assert [larger for _, larger in pairs] == sorted(adjusted)


@given(
    st.integers(1, 400).flatmap(
        lambda n: st.tuples(st.integers(0, n), st.integers(0, n), st.just(n))
    )
)
def test_a_paired_interval_holds_the_difference_and_mirrors(counts):
    lost, gained, n = counts
    if lost + gained > n:
        lost, gained = n - lost, n - gained
    low, high = paired_interval(lost, gained, n)
    assert -1 <= low <= (gained - lost) / n <= high <= 1
    assert paired_interval(gained, lost, n) == pytest.approx((-high, -low), abs=1e-12)


def test_nothing_paired_is_nothing_known():
    assert paired_interval(0, 0, 0) == (-1.0, 1.0)


@pytest.mark.parametrize(
    ("down", "up"), [(0.0, 0.0), (0.02, 0.02), (0.1, 0.0), (0.1, 0.05), (0.3, 0.3), (0.05, 0.6)]
)
def test_a_paired_interval_covers_the_truth_as_often_as_it_says(down, up):
    """Exactly, by summing over all outcomes of 60 pairs."""
    n, covered = 60, 0.0
    for lost, gained in product(range(n + 1), repeat=2):
        rest = n - lost - gained
        low, high = paired_interval(lost, gained, n)
        if rest >= 0 and low <= up - down <= high:
            ways = math.comb(n, lost) * math.comb(n - lost, gained)
            covered += ways * down**lost * up**gained * (1 - down - up) ** rest
    assert covered > 0.94


def test_a_paired_interval_agrees_with_the_exact_test_but_at_its_edge():
    def contradicts(lost, gained):
        low, high = paired_interval(lost, gained, 1000)
        return (mcnemar(lost, gained) <= 0.05) == (low <= 0 <= high)

    wrong = [
        (lost, gained) for lost, gained in product(range(60), repeat=2) if contradicts(lost, gained)
    ]
    assert all(0.03 < mcnemar(*flips) < 0.1 for flips in wrong)
    assert len(wrong) < 0.05 * 60**2


def chance_to_err(correct, threshold, alpha, population=None, horizon=400):
    """The exact chance of ever answering wrongly when asked after every example, and of having
    answered at the end.

    `correct` is the chance of success, or of a population the number of successes in it.
    """
    truth = correct / (population or 1) >= threshold
    alive, wrong, right = {0: 1.0}, 0.0, 0.0
    for n in range((population or horizon) + 1):
        following: dict[int, float] = {}
        for successes, chance in alive.items():
            answer = settled(successes, n, threshold, alpha, population=population)
            if answer is not None:
                wrong, right = (
                    wrong + chance * (answer != truth),
                    right + chance * (answer == truth),
                )
                continue
            p = correct if population is None else (correct - successes) / max(1, population - n)
            following[successes + 1] = following.get(successes + 1, 0.0) + chance * p
            following[successes] = following.get(successes, 0.0) + chance * (1 - p)
        alive = {successes: chance for successes, chance in following.items() if chance > 0}
    return wrong, right


@pytest.mark.parametrize("alpha", [0.05, 0.3])
@pytest.mark.parametrize("share", [0.3, 0.44, 0.4499, 0.45, 0.46, 0.6])
def test_asked_after_every_independent_example_it_errs_at_most_as_often_as_it_says(share, alpha):
    wrong, _ = chance_to_err(share, 0.45, alpha, horizon=250)
    assert wrong <= alpha


@pytest.mark.parametrize("alpha", [0.05, 0.3])
@pytest.mark.parametrize("correct", [0, 30, 53, 54, 55, 90, 120])
def test_asked_after_every_example_of_a_population_it_errs_as_seldom_and_answers_in_the_end(
    correct, alpha
):
    wrong, right = chance_to_err(correct, 0.45, alpha, population=120)
    assert wrong <= alpha
    assert wrong + right == pytest.approx(1)


def test_what_is_far_from_the_threshold_is_decided_early():
    assert settled(10, 60, 0.45) is False
    assert settled(50, 60, 0.45) is True
    assert settled(27, 60, 0.45) is None
    assert settled(10, 60, 0.45, population=1000) is False


def test_a_known_population_decides_no_later_than_an_endless_one():
    for n, successes in product((40, 200, 600), range(0, 600, 7)):
        if successes <= n and (endless := settled(successes, n, 0.45)) is not None:
            assert settled(successes, n, 0.45, population=1000) is endless


@given(
    st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0, 1)
)
def test_after_the_last_example_of_a_population_the_answer_is_exact(counts, threshold):
    successes, n = counts
    assert settled(successes, n, threshold, population=n) is (successes / n >= threshold)


@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_a_fraction_of_the_population_is_its_own_threshold(counts):
    successes, n = counts
    assert settled(successes, n, successes / n, population=n) is True


@pytest.mark.parametrize("population", [None, 50])
def test_what_every_outcome_answers_needs_no_example(population):
    assert settled(0, 0, 0.0, population=population) is True
    assert settled(0, 0, 1.5, population=population) is False
    assert settled(0, 0, 0.5, population=population) is None


def test_one_miss_refutes_a_hundred_percent_and_no_number_of_hits_proves_it():
    assert settled(9, 10, 1.0) is False
    assert settled(10_000, 10_000, 1.0) is None
    assert settled(9, 10, 1.0, population=20) is False


def test_sums_of_probabilities_are_judged_like_counts():
    assert settled(29.0, 100, 0.45) is settled(28.6, 100, 0.45) is False
    assert settled(40.5, 100, 0.45) is None
