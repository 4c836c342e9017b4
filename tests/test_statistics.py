"""Intervals that contain the truth as often as they claim, and paired comparisons."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from snn import statistics


@pytest.mark.parametrize(("right", "n"), [(0, 10), (10, 10), (348, 400), (1, 3)])
def test_wilson_solves_its_equation(right, n):
    """The limits are where (p - right / n)² = z² p (1 - p) / n; scipy has them too."""
    low, high = statistics.wilson(right, n)
    expected = stats.binomtest(right, n).proportion_ci(0.95, "wilson")
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_confusion():
    assert statistics.confusion(np.array([0, 0, 1, 2]), np.array([0, 2, 1, 2]), 3).tolist() == [
        [1, 0, 1],
        [0, 1, 0],
        [0, 0, 1],
    ]


def pairs(both: int, first: int, second: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    counts = (both, first, second, neither)
    return np.repeat([True, True, False, False], counts), np.repeat([True, False, True, False], counts)


def test_mcnemar_by_hand():
    assert statistics.mcnemar(*pairs(90, 1, 6, 3)) == pytest.approx(2 * (1 + 7) / 2**7)
    assert statistics.mcnemar(*pairs(90, 0, 0, 3)) == 1


def test_paired_proportions_hold_the_truth():
    """Over all tables of 20 pairs, weighted by probability, the 95 % interval holds the truth that often."""
    n = 20
    for p in ((0.6, 0.05, 0.15, 0.2), (0.4, 0.1, 0.1, 0.4), (0.3, 0.2, 0.4, 0.1)):
        held = total = 0.0
        for both, first, second in itertools.product(range(n + 1), repeat=3):
            if both + first + second > n:
                continue
            table = (both, first, second, n - both - first - second)
            weight = stats.multinomial.pmf(table, n, p)
            if weight < 1e-6:
                continue
            value, low, high = statistics.paired_proportions(*pairs(*table))
            assert low <= value <= high
            total += weight
            held += weight * (low <= p[2] - p[1] <= high)
        assert total > 0.99
        assert 0.93 < held / total < 0.99


def test_paired_proportions_at_the_edges_and_turned_round():
    assert statistics.paired_proportions(*pairs(10, 0, 0, 0))[0] == 0
    one, other = pairs(50, 3, 9, 7)
    value, low, high = statistics.paired_proportions(one, other)
    assert value == pytest.approx(6 / 69)
    assert statistics.paired_proportions(other, one) == pytest.approx((-value, -high, -low))
    # correlated pairs say more than as many uncorrelated samples
    random = np.random.default_rng(0)
    _, low_apart, high_apart = statistics.paired_proportions(one, random.permutation(other))
    assert high - low < high_apart - low_apart


def test_paired_mean():
    random = np.random.default_rng(0)
    one, other = random.normal(0, 5, 40), random.normal(1, 5, 40)
    value, low, high = statistics.paired_mean(one, other)
    expected = stats.ttest_rel(other, one).confidence_interval(0.95)
    assert (low, high) == pytest.approx((expected.low, expected.high))
    assert value == pytest.approx((low + high) / 2)
    assert statistics.paired_mean(np.array([]), np.array([])) == (None, None, None)
    assert statistics.paired_mean(np.array([1.0]), np.array([3.0])) == (2.0, None, None)


def test_delay_is_the_first_step_that_reaches_the_share():
    curves = np.array([[0, 1, 4, 5, 9, 10, 8], [0] * 7])
    assert [statistics.delays(curves, percent)[0] for percent in (10, 50, 90, 100)] == [2, 4, 5, 6]
    assert math.isnan(statistics.delays(curves, 50)[1])


def test_delays_of_pairs():
    """If a network is right k steps earlier on every sample, the interval is a point; shuffled, it is wider."""
    random = np.random.default_rng(1)
    first_n = random.integers(10, 40, 200)
    steps = np.arange(1, 61)
    right, earlier = steps >= first_n[:, None], steps >= first_n[:, None] - 4
    for percent in (50, 90):
        assert statistics.paired_delays(right, earlier, percent, (5.0, 5.0)) == (-20, -20, -20)
        value, low, high = statistics.paired_delays(right, random.permutation(earlier), percent, (5.0, 5.0))
        assert value == -20
        assert low < -20 < high
    assert statistics.delays(right.sum(0)[None].astype(float), 50)[0] == np.ceil(np.median(first_n))
    never = np.zeros_like(right)
    assert statistics.paired_delays(right, never, 50, (5.0, 5.0)) == (None, None, None)
    assert math.isnan(statistics.delays(never.sum(0)[None].astype(float), 50)[0])
