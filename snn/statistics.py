"""Statistics of test results: 95 % intervals, and comparisons of two networks on the same samples."""

import math
from typing import NamedTuple

import numpy as np
from scipy.special import bdtr, ndtri, stdtrit  # importing scipy.stats takes a fifth of a program's start

CONFIDENCE = 0.95
Z = float(ndtri((1 + CONFIDENCE) / 2))
RESAMPLES = 2000  # of a bootstrap
AT_ONCE = 100  # resamples at a time


class Difference(NamedTuple):
    """An estimate of second minus first, and its interval; either is None if it does not exist."""

    value: float | None
    low: float | None
    high: float | None


def wilson(right: int, n: int) -> tuple[float, float]:
    """Return the interval of a proportion (Wilson 1927), as shares."""
    p, half = right / n, Z * math.sqrt(right * (n - right) / n + Z**2 / 4)
    centre = n * p + Z**2 / 2
    return max(0.0, (centre - half) / (n + Z**2)), min(1.0, (centre + half) / (n + Z**2))


def confusion(target_n: np.ndarray, label_n: np.ndarray, classes: int) -> np.ndarray:
    """Return (classes, classes): the number of samples of each true class (row) by decided class (column)."""
    return np.bincount(target_n * classes + label_n, minlength=classes**2).reshape(classes, classes)


def mcnemar(right_1_n: np.ndarray, right_2_n: np.ndarray) -> float:
    """Return the exact two-sided p of McNemar's test that both networks are right equally often on these samples."""
    first_alone, second_alone = int((right_1_n & ~right_2_n).sum()), int((right_2_n & ~right_1_n).sum())
    if first_alone + second_alone == 0:
        return 1.0
    return min(1.0, 2 * float(bdtr(min(first_alone, second_alone), first_alone + second_alone, 0.5)))


def paired_proportions(right_1_n: np.ndarray, right_2_n: np.ndarray) -> Difference:
    """Return the share of the same samples by which the second network is right more often.

    The interval is method 10 of Newcombe, Statistics in Medicine 17 (1998) 2635: it combines Wilson's limits of both
    shares with their correlation.
    """
    n = len(right_1_n)
    both, neither = int((right_1_n & right_2_n).sum()), int((~right_1_n & ~right_2_n).sum())
    k_1, k_2 = int(right_1_n.sum()), int(right_2_n.sum())
    first_alone, second_alone = k_1 - both, k_2 - both
    margins = math.sqrt(k_1 * (n - k_1) * k_2 * (n - k_2))
    product = both * neither - first_alone * second_alone
    phi = (max(product - n / 2, 0) if product > 0 else product) / margins if margins else 0.0
    p_1, p_2 = k_1 / n, k_2 / n
    (low_1, high_1), (low_2, high_2) = wilson(k_1, n), wilson(k_2, n)

    def reach(of_1: float, of_2: float) -> float:
        return math.sqrt(max(0.0, of_1**2 - 2 * phi * of_1 * of_2 + of_2**2))

    value = p_2 - p_1
    return Difference(value, value - reach(high_1 - p_1, p_2 - low_2), value + reach(p_1 - low_1, high_2 - p_2))


def paired_decisions(right_1_n: np.ndarray, right_2_n: np.ndarray) -> tuple[Difference, int, int, float]:
    """Compare two networks on the same samples.

    Returns `paired_proportions`, on how many samples only the first is right, on how many only the second, and the p
    of `mcnemar`.
    """
    first_alone, second_alone = int((right_1_n & ~right_2_n).sum()), int((right_2_n & ~right_1_n).sum())
    return paired_proportions(right_1_n, right_2_n), first_alone, second_alone, mcnemar(right_1_n, right_2_n)


def paired_mean(x_1_n: np.ndarray, x_2_n: np.ndarray) -> Difference:
    """Return the mean of x_2 - x_1 over pairs, with the interval of Student's t."""
    d_n = x_2_n - x_1_n
    if len(d_n) < 2:
        return Difference(float(d_n.mean()) if len(d_n) else None, None, None)
    half = float(stdtrit(len(d_n) - 1, (1 + CONFIDENCE) / 2)) * float(d_n.std(ddof=1)) / math.sqrt(len(d_n))
    return Difference(float(d_n.mean()), float(d_n.mean()) - half, float(d_n.mean()) + half)


def delays(right_RT: np.ndarray, percent: float) -> np.ndarray:
    """Return t_d(p) of each curve: the first step, from 1, that reaches p % of its maximum; NaN if that is 0."""
    highest_R = right_RT.max(1)
    reached_RT = right_RT * 100 >= percent * highest_R[:, None]
    return np.where(highest_R > 0, reached_RT.argmax(1) + 1.0, np.nan)


def paired_delays(
    right_1_nT: np.ndarray, right_2_nT: np.ndarray, percent: float, dt_ms: tuple[float, float]
) -> Difference:
    """Return t_d(p) of the second network minus that of the first (ms); a bootstrap resamples pairs."""
    n = len(right_1_nT)
    random = np.random.default_rng(0)  # the same files give the same interval
    right_1_nT, right_2_nT = right_1_nT.astype(np.float32), right_2_nT.astype(np.float32)

    def difference(weights_Rn: np.ndarray) -> np.ndarray:
        first, second = (delays(weights_Rn @ right_nT, percent) for right_nT in (right_1_nT, right_2_nT))
        return second * dt_ms[1] - first * dt_ms[0]

    value = float(difference(np.ones((1, n), np.float32))[0])
    if math.isnan(value):
        return Difference(None, None, None)
    drawn = [
        difference(random.multinomial(n, np.full(n, 1 / n), AT_ONCE).astype(np.float32))
        for _ in range(RESAMPLES // AT_ONCE)
    ]
    low, high = np.nanpercentile(np.concatenate(drawn), [50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)])
    return Difference(value, float(low), float(high))
