"""Sparse convolutions on the CPU: the work grows with the number of events.

An input row is a pixel, r = (f·H + y)·W + x of frame f, and its entries are its active channels: offsets, channels and
counts as in `snn.ops.sparse`. An output row is a pixel of the (padded, strided) result. Weights are WT, (K, K, C, N),
so that an event adds one contiguous row for each output pixel that sees it.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from snn import checks
from snn.errors import InputError
from snn.ops.compiled import in_parts, inlined, kernel
from snn.ops.lanes import LINE, load_part, store_part
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
def _add_rows(target, at, N, rows, picked, values, n_picked):
    """Add Σ values · rows[picked] to target[at : at + N], a line at a time, which stays in registers meanwhile."""
    for n in range(0, N, LINE):
        left = N - n
        sum_L = load_part(target, at + n, left, LINE)
        e = 0
        while e + 8 <= n_picked:
            low = _four(rows, n, N, left, picked, values, e)
            sum_L = sum_L + (low + _four(rows, n, N, left, picked, values, e + 4))
            e += 8
        while e + 4 <= n_picked:
            sum_L = sum_L + _four(rows, n, N, left, picked, values, e)
            e += 4
        while e < n_picked:
            sum_L = sum_L + values[e] * load_part(rows, picked[e] * N + n, left, LINE)
            e += 1
        store_part(target, at + n, left, sum_L)


@inlined
def _four(rows, n, N, left, picked, values, e):
    """Return the sum of four products, which do not wait for one another."""
    a = values[e] * load_part(rows, picked[e] * N + n, left, LINE)
    b = values[e + 1] * load_part(rows, picked[e + 1] * N + n, left, LINE)
    c = values[e + 2] * load_part(rows, picked[e + 2] * N + n, left, LINE)
    d = values[e + 3] * load_part(rows, picked[e + 3] * N + n, left, LINE)
    return (a + b) + (c + d)


@kernel
def product_lines(offsets, channels, counts, weights, out, height, width, K, stride, begin, end):
    """Compute the lines begin ... end of `out`, counted over all frames; weights are those of `rows_of_weights`."""
    C, N = len(weights) // (K * K), weights.shape[1]
    out_height, out_width = -(-height // stride), -(-width // stride)
    picked, values = np.empty(len(weights), np.int64), np.empty(len(weights), out.dtype)
    for line in range(begin, end):
        frame, top = line // out_height, line % out_height * stride - K // 2
        above, below = max(0, -top), min(K, height - top)
        out[line * out_width : (line + 1) * out_width] = 0
        start = (frame * height + top) * width
        if offsets[start + above * width] == offsets[start + below * width]:
            continue
        for column in range(out_width):
            left = column * stride - K // 2
            n_picked = 0
            at = (line * out_width + column) * N
            for dy in range(above, below):
                r = start + dy * width + left
                first, last = max(0, -left), min(K, width - left)
                if offsets[r + first] == offsets[r + last]:
                    continue
                for dx in range(first, last):
                    for e in range(offsets[r + dx], offsets[r + dx + 1]):
                        if n_picked == picked.size:  # only if a channel occurs several times in a row of entries
                            _add_rows(out, at, N, weights, picked, values, n_picked)
                            n_picked = 0
                        picked[n_picked] = (dy * K + dx) * C + channels[e]
                        values[n_picked] = counts[e]
                        n_picked += 1
            if n_picked > 0:
                _add_rows(out, at, N, weights, picked, values, n_picked)


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
                            picked[n_picked] = (frame * out_height + line) * out_width + column
                            scales[n_picked] = values[e]
                            n_picked += 1
                    _add_rows(gWT, ((dy * K + dx) * C + c) * N, N, gy, picked, scales, n_picked)


def _sort_by_channel(
    offsets: np.ndarray, channels: np.ndarray, counts: np.ndarray, num_channels: int, pixels: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (starts, rows, counts) of the entries, ordered by channel within each frame; see `_sort_frames`."""
    frames = (len(offsets) - 1) // pixels
    starts = np.empty((frames, num_channels + 1), np.int64)
    rows, values = np.empty(len(channels), np.int32), np.empty(len(channels), counts.dtype)
    arguments = (offsets, channels, counts, starts, rows, values)
    in_parts(lambda begin, end: _sort_frames(*arguments, begin, end), frames, torch.get_num_threads())
    return starts, rows, values


def _frames(offsets: Tensor, shape: Geometry) -> int:
    """Return how many frames the rows make up; InputError if that is not a whole number."""
    frames, left = divmod(len(offsets) - 1, shape.height * shape.width)
    if left or not frames:
        raise InputError(f"{len(offsets) - 1} rows are not whole frames of {shape.height} x {shape.width} pixels")
    return frames


def rows_of_weights(W_NCKK: Tensor) -> np.ndarray:
    """Return WT as (K·K·C, N)."""
    return W_NCKK.detach().permute(2, 3, 1, 0).reshape(-1, len(W_NCKK)).contiguous().numpy()


def pixel_rows(offsets: Tensor, channels: Tensor, counts: Tensor, pixels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Turn entries with a row for each image into entries with a row for each pixel, in the order of their channels.

    In a row of an image, pixel p has the channels c · pixels + p.
    """
    offsets, channels, counts = arrays(offsets, channels, counts, counts.dtype)
    images = len(offsets) - 1
    pixel_offsets = np.zeros(images * pixels + 1, np.int64)
    pixel_offsets[0] = offsets[0]
    entries = pixel_offsets, np.empty(len(channels), np.int32), np.empty_like(counts)
    arguments = (offsets, channels, counts, pixels, False, *entries)
    in_parts(lambda begin, end: rows_of_pixels(*arguments, begin, end), images, torch.get_num_threads())
    return tuple(map(torch.from_numpy, entries))


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
    entries = arrays(offsets, channels, counts, gy_RN.dtype)
    starts, rows, values = _sort_by_channel(*entries, num_inputs, shape.height * shape.width)
    gWT = torch.empty(shape.kernel, shape.kernel, num_inputs, gy_RN.shape[1], dtype=gy_RN.dtype)
    most = int(np.diff(starts).max())
    sums = (starts, rows, values, most, gy_RN.detach().contiguous().numpy(), gWT.numpy(), *shape[:2], shape.stride)
    # A thread sums whole channels, in the order of the rows, so the bits are the same for any number of threads.
    in_parts(lambda begin, end: _weight_gradient(*sums, begin, end), num_inputs, torch.get_num_threads())
    return gWT.permute(3, 2, 0, 1)
