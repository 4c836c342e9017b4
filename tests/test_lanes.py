"""The type that numba does not have: each of its functions against numpy."""

import numpy as np
import pytest

from snn.ops.compiled import kernel
from snn.ops.lanes import (
    LANES,
    add_product,
    load,
    load_part,
    lowest,
    nonzero,
    ones,
    prefetch,
    store,
    store_part,
    zeros,
)

SIZES = [1, LANES - 1, LANES, LANES + 7, 2 * LANES]


@kernel
def scaled_sum(x, y, k, out):
    """out = x + k · y, the last lanes a part."""
    for at in range(0, len(out), LANES):
        total = add_product(load_part(x, at), k, load_part(y, at))
        prefetch(x, at + LANES)
        store_part(out, at, total)


@kernel
def swap_halves(x, out):
    store(out, 0, load(x, LANES))
    store(out, LANES, add_product(zeros(x), x[0], load(x, 0)))


@kernel
def bits_of(x):
    return nonzero(load_part(x, 0))


@kernel
def ones_and_lowest(bits):
    return ones(bits), lowest(bits)


def numbers(size: int, dtype: str) -> np.ndarray:
    return np.random.default_rng(size).normal(size=size).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", SIZES)
def test_sums_and_what_lies_past_the_end_is_left_alone(size, dtype):
    x, y, k = numbers(size, dtype), numbers(size + 1, dtype)[1:], np.dtype(dtype).type(0.3)
    room = np.full(size + 2 * LANES, 7, dtype)
    scaled_sum(x, y, k, room[LANES:-LANES])
    np.testing.assert_allclose(room[LANES:-LANES], x + k * y, rtol=0, atol=4 * np.finfo(dtype).eps)
    assert (room[:LANES] == 7).all()
    assert (room[-LANES:] == 7).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_whole_lanes(dtype):
    x, out = numbers(2 * LANES, dtype), np.empty(2 * LANES, dtype)
    swap_halves(x, out)
    assert (out[:LANES] == x[LANES:]).all()
    np.testing.assert_allclose(out[LANES:], x[0] * x[:LANES], rtol=2 * np.finfo(dtype).eps)


@pytest.mark.parametrize("size", SIZES)
def test_bits(size):
    x = numbers(size, "float32") * (np.random.default_rng(1).random(size) < 0.3)
    x[size // 2] = -0.0
    x[0] = np.nan  # no zero
    bits = int(bits_of(x))
    places = np.flatnonzero(x[:LANES] != 0)
    assert bits == sum(1 << int(place) for place in places)
    assert ones_and_lowest(np.uint64(bits)) == (len(places), places[0])


def test_every_place_of_a_bit():
    for place in range(LANES):
        x = np.zeros(LANES, np.float32)
        x[place] = 1e-45  # the smallest number that is not zero
        assert ones_and_lowest(np.uint64(bits_of(x))) == (1, place)
