"""Recordings are cut into windows, and lose hot pixels and noise: `datasets.prepare.cut`."""

from pathlib import Path

import numpy as np
import pytest

from datasets.prepare import cameras, cut
from datasets.prepare.cameras.pieces import Piece


def pieces_of(t: list[int], x: list[int] | None = None, sizes: int = 3):
    x = x or [0] * len(t)
    for k in range(0, len(t), sizes):
        part = slice(k, k + sizes)
        n = len(t[part])
        yield Piece(np.array(t[part]), np.array(x[part], np.uint16), np.zeros(n, np.uint16), np.zeros(n, np.uint8))


def windows(t: list[int], window: int, stride: int, sizes: int) -> list[tuple[list[int], list[int]]]:
    opened = cameras.Opened(Path("x"), 1, 1000, pieces_of(t, list(range(len(t))), sizes))
    made = list(cut._windows(Path("x"), cut._checked(opened, False), window, stride))
    assert all(is_last for _, _, is_last in made)
    return [(times.tolist(), units.tolist()) for times, units, _ in made]


@pytest.mark.parametrize("sizes", [1, 2, 100])
def test_windows_hold_what_falls_into_them(sizes):
    t = [100, 105, 119, 120, 121, 159, 5_000_000_100, 5_000_000_119, 5_000_000_140]
    assert windows(t, 20, 20, sizes) == [
        ([0, 5, 19], [0, 1, 2]),
        ([0, 1], [3, 4]),
        ([19], [5]),
        ([0, 19], [6, 7]),
    ]
    assert windows(t[:6], 20, 10, sizes) == [
        ([0, 5, 19], [0, 1, 2]),
        ([9, 10, 11], [2, 3, 4]),
        ([0, 1], [3, 4]),
    ]
    assert windows(t[:3], 20, 20, sizes) == [([0, 5, 19], [0, 1, 2])]  # shorter than a window
    random = np.random.default_rng(0)
    t = np.sort(random.integers(0, 1000, 200)).tolist()
    last = t[-1] - t[0]
    expected = [
        ([v - t[0] - a for v in t if a <= v - t[0] < a + 70], [k for k, v in enumerate(t) if a <= v - t[0] < a + 70])
        for a in range(0, last - 70 + 1, 30)
    ]
    assert windows(t, 70, 30, sizes) == [pair for pair in expected if pair[0]]


def test_hot_pixels_noise_and_divide(tmp_path):
    height, width = 8, 10
    random = np.random.default_rng(0)
    n = 400
    t, x, y = np.sort(random.integers(0, 100_000, n)), random.integers(0, width, n), random.integers(0, height, n)
    p = random.integers(0, 2, n)
    hot = np.arange(n) % 4 == 0
    x[hot], y[hot] = 3, 5
    units = ((p * height + y) * width + x).astype(np.uint32)
    keep = ~cut._hot_pixels([(t, units)], (height, width), 500.0)[units % (height * width)]
    counts = np.array([((x == a) & (y == b)).sum() for a, b in zip(x, y, strict=True)])
    seconds = (t[-1] - t[0]) / 1e6
    assert np.array_equal(keep, counts <= 500 * seconds)
    assert not keep[hot].any()
    assert keep.any()
    expected = [
        any(t[e] - t[k] <= 900 and max(abs(x[e] - x[k]), abs(y[e] - y[k])) == 1 for k in range(e)) for e in range(n)
    ]
    # of a pixel only its latest event counts, which is the nearest in time
    latest, found = np.full((height + 2, width + 2), -(2**62), np.int64), np.empty(n, bool)
    for part in (slice(0, 150), slice(150, n)):
        cut._find_supported(t[part], units[part], height, width, 900, latest, found[part])
    assert found.tolist() == expected
    assert 0 < sum(expected) < n
    assert np.array_equal(cut._shrunk(units, height, width, 3), (p * 3 + y // 3) * 4 + x // 3)
