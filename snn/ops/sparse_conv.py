"""Sparse convolutions on the CPU: the work grows with the number of events.

An input row is a pixel, r = (f·H + y)·W + x of frame f, and its entries are its active channels: offsets, channels and
counts as in `snn.ops.sparse`. An output row is a pixel of the (padded, strided) result. Weights are WT, (K, K, C, N),
so that an event adds one contiguous row for each output pixel that sees it.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from snn import checks
from snn.errors import InputError
from snn.ops.compiled import in_parts, inlined, kernel
from snn.ops.lanes import LINE, load, load_part, store_part
from snn.ops.sparse import arrays, check_matrix, check_on_cpu


class Geometry(NamedTuple):
    """The size of the input image, and the kernel and stride of the convolution."""

    height: int
    width: int
    kernel: int  # K, odd; the padding is K // 2
    stride: int

    def check(self) -> None:
        """Raise InputError unless an image can have this size and such a kernel can slide over it."""
        for name, value in self._asdict().items():
            checks.whole(name, value, 1)
        if self.kernel % 2 == 0:
            raise InputError(f"the kernel of a convolution must be odd, but is {self.kernel}")

    @property
    def out_height(self) -> int:
        return -(-self.height // self.stride)

    @property
    def out_width(self) -> int:
        return -(-self.width // self.stride)


@kernel
def rows_of_pixels(
    offsets, channels, counts, inner, is_pixel_first, pixel_offsets, pixel_channels, pixel_counts, begin, end
):  # fmt: skip
    """Write the entries of the images begin ... end pixel by pixel; `pixel_offsets` must hold zeros at the start.

    Entries are numbered pixel · inner + channel if `is_pixel_first`, otherwise channel · inner + pixel.
    """
    inner, pixels = np.uint32(inner), (len(pixel_offsets) - 1) // (len(offsets) - 1)
    for r in range(begin, end):
        first, last = offsets[r], offsets[r + 1]
        ends = pixel_offsets[r * pixels + 1 :]  # first the entries of each pixel, then where its next one goes
        for e in range(first, last):
            ends[channels[e] // inner if is_pixel_first else channels[e] % inner] += 1
        at = first
        for p in range(pixels):
            number = ends[p]
            ends[p] = at
            at += number
        for e in range(first, last):
            c = channels[e] // inner
            p = channels[e] - c * inner
            if is_pixel_first:
                p, c = c, p
            to = ends[p]
            pixel_channels[to], pixel_counts[to] = c, counts[e]
            ends[p] = to + 1
        for p in range(pixels):
            for e in range(first + 1, ends[p]):  # sorts these few by channel, the order of the dense product
                c, count = pixel_channels[e], pixel_counts[e]
                k = e
                while k > first and pixel_channels[k - 1] > c:
                    pixel_channels[k], pixel_counts[k] = pixel_channels[k - 1], pixel_counts[k - 1]
                    k -= 1
                pixel_channels[k], pixel_counts[k] = c, count
            first = ends[p]


@kernel
def _sort_frames(offsets, channels, counts, starts, rows, values, begin, end):
    """Order the entries of each frame by channel: those of channel c in frame k begin at starts[k, c]."""
    frames, C = starts.shape[0], starts.shape[1] - 1
    pixels = (len(offsets) - 1) // frames
    place = np.empty(C, np.int64)
    for k in range(begin, end):
        first, last = k * pixels, (k + 1) * pixels
        place[:] = 0
        for e in range(offsets[first], offsets[last]):
            place[channels[e]] += 1
        at = offsets[first]
        for c in range(C):
            starts[k, c] = at
            at += place[c]
            place[c] = starts[k, c]
        starts[k, C] = at
        for r in range(first, last):
            for e in range(offsets[r], offsets[r + 1]):
                to = place[channels[e]]
                rows[to] = r
                values[to] = counts[e]
                place[channels[e]] = to + 1


@inlined
def _add_rows(target, at, N, rows, picked, values, begin, end):
    """Add Σ values[e] · rows[picked[e] : picked[e] + N] to target[at : at + N], for begin <= e < end.

    `at` and `picked` are places among all numbers. Rows are padded to whole lines; a line of the target stays in a
    register meanwhile.
    """
    for n in range(0, N, LINE):
        left = N - n
        sum_L = load_part(target, at + n, left, LINE)
        e = begin
        while e + 8 <= end:
            low = _four(rows, n, picked, values, e)
            sum_L = sum_L + (low + _four(rows, n, picked, values, e + 4))
            e += 8
        while e + 4 <= end:
            sum_L = sum_L + _four(rows, n, picked, values, e)
            e += 4
        while e < end:
            sum_L = sum_L + values[e] * load(rows, picked[e] + n, LINE)
            e += 1
        store_part(target, at + n, left, sum_L)


@inlined
def _four(rows, n, picked, values, e):
    """Return the sum of four products, which do not wait for one another."""
    a = values[e] * load(rows, picked[e] + n, LINE)
    b = values[e + 1] * load(rows, picked[e + 1] + n, LINE)
    c = values[e + 2] * load(rows, picked[e + 2] + n, LINE)
    d = values[e + 3] * load(rows, picked[e + 3] + n, LINE)
    return (a + b) + (c + d)


@kernel
def product_lines(offsets, channels, counts, weights, out, height, width, K, stride, begin, end):
    """Compute the lines begin ... end of `out`, counted over all frames; weights are those of `rows_of_weights`.

    An entry is picked for each output pixel that sees it, in the order of the rows of weights.
    """
    (most, width_of_row), N, C = weights.shape, out.shape[1], len(weights) // (K * K)
    out_height, out_width = -(-height // stride), -(-width // stride)
    picked, values = np.empty(out_width * most, np.int64), np.empty(out_width * most, out.dtype)
    ends = np.empty(out_width, np.int64)
    for line in range(begin, end):
        out[line * out_width : (line + 1) * out_width] = 0
        frame, top = line // out_height, line % out_height * stride - K // 2
        for column in range(out_width):
            ends[column] = column * most
        for dy in range(max(0, -top), min(K, height - top)):
            row = (frame * height + top + dy) * width
            if offsets[row] == offsets[row + width]:
                continue
            left = right = 0  # the columns whose windows hold x
            for x in range(width):
                first, last = offsets[row + x], offsets[row + x + 1]
                if first == last:
                    continue
                while left * stride + K // 2 < x:
                    left += 1
                while right < out_width and right * stride - K // 2 <= x:
                    right += 1
                for column in range(left, right):
                    dx = x + K // 2 - column * stride
                    to = ends[column]
                    for e in range(first, last):
                        if to == (column + 1) * most:  # only if a channel occurs several times in a row of entries
                            to = column * most
                            _add_rows(out, (line * out_width + column) * N, N, weights, picked, values, to, to + most)
                        picked[to] = ((dy * K + dx) * C + channels[e]) * width_of_row
                        values[to] = counts[e]
                        to += 1
                    ends[column] = to
        for column in range(out_width):
            if ends[column] > column * most:
                at = (line * out_width + column) * N
                _add_rows(out, at, N, weights, picked, values, column * most, ends[column])


@kernel
def _weight_gradient(starts, rows, values, most, gy, gWT, height, width, stride, begin, end):
    """Set gWT[dy, dx, c] = Σ values · gy[the output row that sees the entry there], for channels c = begin ... end.

    `most` is the largest number of entries that a channel has in a frame.
    """
    K, _, C, N = gWT.shape
    out_height, out_width = -(-height // stride), -(-width // stride)
    below, right = np.empty(most, np.int64), np.empty(most, np.int64)
    picked, scales = np.empty(most, np.int64), np.empty(most, gy.dtype)
    gWT[:, :, begin:end] = 0
    for frame in range(starts.shape[0]):
        for c in range(begin, end):
            first, stop = starts[frame, c], starts[frame, c + 1]
            for e in range(first, stop):
                pixel = rows[e] - frame * height * width
                below[e - first] = pixel // width + K // 2
                right[e - first] = pixel % width + K // 2
            for dy in range(K):
                for dx in range(K):
                    n_picked = 0
                    for e in range(first, stop):
                        line, column = below[e - first] - dy, right[e - first] - dx
                        if stride > 1:
                            if line % stride != 0 or column % stride != 0:
                                continue
                            line, column = line // stride, column // stride
                        if 0 <= line < out_height and 0 <= column < out_width:
                            picked[n_picked] = ((frame * out_height + line) * out_width + column) * gy.shape[1]
                            scales[n_picked] = values[e]
                            n_picked += 1
                    _add_rows(gWT, ((dy * K + dx) * C + c) * N, N, gy, picked, scales, 0, n_picked)


def _frames(offsets: Tensor, shape: Geometry) -> int:
    """Return how many frames the rows make up; InputError if that is not a whole number."""
    frames, left = divmod(len(offsets) - 1, shape.height * shape.width)
    if left or not frames:
        raise InputError(f"{len(offsets) - 1} rows are not whole frames of {shape.height} x {shape.width} pixels")
    return frames


def _in_lines(x_RN: Tensor) -> np.ndarray:
    """Return rows that are padded with zeros to whole lines."""
    left = -x_RN.shape[1] % LINE
    return (F.pad(x_RN, (0, left)) if left else x_RN).detach().contiguous().numpy()


def rows_of_weights(W_NCKK: Tensor) -> np.ndarray:
    """Return WT as (K·K·C, N), its rows padded to whole lines."""
    return _in_lines(W_NCKK.permute(2, 3, 1, 0).flatten(0, 2))


def pixel_rows(offsets: Tensor, channels: Tensor, counts: Tensor, pixels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Turn entries with a row for each image into entries with a row for each pixel, in the order of their channels.

    In a row of an image, pixel p has the channels c · pixels + p.
    """
    begins, places, numbers = arrays(offsets, channels, counts, counts.dtype)
    images = len(begins) - 1
    pixel_begins = np.zeros(images * pixels + 1, np.int64)
    pixel_begins[0] = begins[0]
    entries = pixel_begins, np.empty(len(places), np.int32), np.empty_like(numbers)
    arguments = (begins, places, numbers, pixels, False, *entries)
    in_parts(lambda begin, end: rows_of_pixels(*arguments, begin, end), images, torch.get_num_threads())
    pixel_offsets, pixel_channels, pixel_counts = map(torch.from_numpy, entries)
    return pixel_offsets, pixel_channels, pixel_counts


def product(
    offsets: Tensor,
    channels: Tensor,
    counts: Tensor,
    W_NCKK: Tensor,
    shape: Geometry,
    are_checked: bool = False,
) -> Tensor:
    """Return the convolution, (output rows, N). `are_checked` as in `snn.ops.sparse.product`."""
    if not are_checked:
        shape.check()
        check_matrix("W", W_NCKK, ("outputs", "inputs", shape.kernel, shape.kernel))
        check_on_cpu(offsets, channels, counts, W_NCKK.shape[1])
    lines = _frames(offsets, shape) * shape.out_height
    out_RN = torch.empty(lines * shape.out_width, len(W_NCKK), dtype=W_NCKK.dtype)
    arguments = (*arrays(offsets, channels, counts, W_NCKK.dtype), rows_of_weights(W_NCKK), out_RN.numpy(), *shape)
    in_parts(lambda begin, end: product_lines(*arguments, begin, end), lines, torch.get_num_threads())
    return out_RN


def weight_gradient(
    offsets: Tensor,
    channels: Tensor,
    counts: Tensor,
    gy_RN: Tensor,
    num_inputs: int,
    shape: Geometry,
    are_checked: bool = False,
) -> Tensor:
    """Return the gradient of the weights, (N, C, K, K), from that of the output rows. `are_checked` as in `product`."""
    if not are_checked:
        checks.whole("the number of inputs", num_inputs, 1)
        shape.check()
        check_on_cpu(offsets, channels, counts, num_inputs)
        check_matrix("gy", gy_RN, (_frames(offsets, shape) * shape.out_height * shape.out_width, "outputs"))
    entries, frames = arrays(offsets, channels, counts, gy_RN.dtype), _frames(offsets, shape)
    starts = np.empty((frames, num_inputs + 1), np.int64)
    rows, values = np.empty(len(counts), np.int32), np.empty_like(entries[2])
    sorting = (*entries, starts, rows, values)
    in_parts(lambda begin, end: _sort_frames(*sorting, begin, end), frames, torch.get_num_threads())
    gWT = torch.empty(shape.kernel, shape.kernel, num_inputs, gy_RN.shape[1], dtype=gy_RN.dtype)
    most = int(np.diff(starts).max())
    sums = (starts, rows, values, most, _in_lines(gy_RN), gWT.numpy(), *shape[:2], shape.stride)
    # A thread sums whole channels, in the order of the rows, so the bits are the same for any number of threads.
    in_parts(lambda begin, end: _weight_gradient(*sums, begin, end), num_inputs, torch.get_num_threads())
    return gWT.permute(3, 2, 0, 1)
