"""Each function of lanes, the type that numba does not have, against numpy."""

import numpy as np
import pytest

from snn.ops.compiled import kernel
from snn.ops.lanes import (
    CACHE_LINE_BYTES,
    LANES,
    LINE,
    add_product,
    fence,
    load,
    load_part,
    load_rows,
    lowest,
    ones,
    prefetch,
    store,
    store_part,
    store_past,
    total,
    unlike,
    where,
    zeros,
)

SIZES = [1, LANES - 1, LANES, LANES + 7, 2 * LANES]


@kernel
def scaled_sum(x, y, k, out):
    """Set out = x + k · y; the last lanes are only partly used."""
    for at in range(0, len(out), LANES):
        left = len(out) - at
        total = add_product(load_part(x, at, left, LANES), k, load_part(y, at, left, LANES))
        prefetch(x, at + LANES, LANES)
        store_part(out, at, left, total)


@kernel
def swap_halves(x, out):
    store(out, 0, load(x, LANES, LANES))
    store(out, LANES, add_product(zeros(x, LANES), x[0], load(x, 0, LANES)))


@kernel
def bits_of(x, number):
    return unlike(load_part(x, 0, len(x), LANES), number)


@kernel
def lane_by_lane(x, y, k, out_OL):
    """Compute everything that is rounded as for a single number."""
    a, b = load(x, 0, LINE), load_part(y, 0, LINE, LINE)
    store(out_OL[0], 0, a + b)
    store(out_OL[1], 0, k - a)
    store(out_OL[2], 0, a * k + b)
    store(out_OL[3], 0, a / b)
    store(out_OL[4], 0, abs(a))
    store(out_OL[5], 0, where(a > b, k, b))
    store(out_OL[6], 0, where(a >= b, a, zeros(x, LINE)))


@kernel
def rows_of(x, out_3L):
    a, b, c = load_rows(x, 1, LINE + 5, 3)
    store(out_3L[0], 0, a)
    store(out_3L[1], 0, b)
    store(out_3L[2], 0, c)


@kernel
def copy_past(x, out):
    for at in range(0, len(out), LINE):
        store_past(out, at, load(x, at, LINE))
    fence()


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


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rows(dtype):
    x, out_3L = numbers(3 * LINE + 11, dtype), np.empty((3, LINE), dtype)
    rows_of(x, out_3L)
    assert (out_3L == [x[at : at + LINE] for at in (1, LINE + 6, 2 * LINE + 11)]).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_arithmetic_is_that_of_single_numbers(dtype):
    x, y, k = numbers(LINE, dtype), numbers(2 * LINE, dtype)[LINE:], np.dtype(dtype).type(0.3)
    x[:4] = y[:4] = 0.0, np.nan, np.inf, 1e-40
    y[0] = -0.0
    out_OL = np.empty((7, LINE), dtype)
    lane_by_lane(x, y, k, out_OL)
    with np.errstate(all="ignore"):
        expected = x + y, k - x, x * k + y, x / y, abs(x), np.where(x > y, k, y), np.where(x >= y, x, 0)
    for got, want in zip(out_OL, expected, strict=True):
        np.testing.assert_array_equal(got, want)
        np.testing.assert_array_equal(np.signbit(got), np.signbit(want.astype(dtype)))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_past_the_caches(dtype):
    x, room = numbers(3 * LINE, dtype), np.zeros(5 * LINE, dtype)
    begin = -room.ctypes.data % CACHE_LINE_BYTES // room.itemsize
    copy_past(x, room[begin : begin + len(x)])
    assert (room[begin : begin + len(x)] == x).all()
    assert not room[:begin].any()
    assert not room[begin + len(x) :].any()


@pytest.mark.parametrize("size", SIZES)
def test_bits(size):
    x = numbers(size, "float32") * (np.random.default_rng(1).random(size) < 0.3)
    x[size // 2] = -0.0
    x[0] = np.nan  # no zero
    bits = int(bits_of(x, 0))
    places = np.flatnonzero(x[:LANES] != 0)
    assert bits == sum(1 << int(place) for place in places)
    x[size // 3] = 2.0
    assert int(bits_of(x, 2)) == (1 << LANES) - 1 - sum(1 << int(at) for at in np.flatnonzero(x[:LANES] == 2))
    assert ones_and_lowest(np.uint64(bits)) == (len(places), places[0])


def test_every_place_of_a_bit():
    for place in range(LANES):
        x = np.zeros(LANES, np.float32)
        x[place] = 1e-45  # the smallest number that is not zero
        assert ones_and_lowest(np.uint64(bits_of(x, 0))) == (1, place)


@kernel
def sums(x, y, out_2):
    a, b = load(x, 0, LINE), load(y, 0, LINE)
    out_2[0] = total(a)
    out_2[1] = total(add_product(a, a, b))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sums_of_lanes_and_products_of_lanes(dtype):
    x, y = np.random.default_rng(0).integers(-99, 99, (2, LINE)).astype(dtype)  # whole, so that all sums are exact
    out_2 = np.empty(2, dtype)
    sums(x, y, out_2)
    assert out_2.tolist() == [x.sum(), (x + x * y).sum()]
