"""Convolutions of what is mostly zero, on the CPU: the work follows the events.

An input row is a pixel, r = (f·H + y)·W + x of frame f, and its entries are its active channels: offsets, channels and
counts as in `snn.ops.sparse`. An output row is a pixel of the (padded, strided) result. Weights are WT, (K, K, C, N),
so that an event adds one contiguous row for each output pixel that sees it.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from snn.ops.compiled import in_parts, inlined, kernel


class Geometry(NamedTuple):
    """Size of the input image, and what slides over it."""

    height: int
    width: int
    kernel: int  # K, odd; the padding is K // 2
    stride: int

    @property
    def out_height(self) -> int:
        return -(-self.height // self.stride)

    @property
    def out_width(self) -> int:
        return -(-self.width // self.stride)


@kernel
def _sort_frames(offsets, channels, counts, starts, rows, values, begin, end):
    """Order the entries of each frame by channel: frame k has those of channel c at starts[k, c]..."""
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
def _add_rows(target, rows, picked, values, n_picked):
    """target += Σ values · rows[picked], eight rows at a time: `target` goes to memory once for eight."""
    e = 0
    while e + 8 <= n_picked:
        k0, k1, k2, k3 = values[e], values[e + 1], values[e + 2], values[e + 3]
        k4, k5, k6, k7 = values[e + 4], values[e + 5], values[e + 6], values[e + 7]
        w0, w1, w2, w3 = rows[picked[e]], rows[picked[e + 1]], rows[picked[e + 2]], rows[picked[e + 3]]
        w4, w5, w6, w7 = rows[picked[e + 4]], rows[picked[e + 5]], rows[picked[e + 6]], rows[picked[e + 7]]
        for n in range(target.size):
            low = (k0 * w0[n] + k1 * w1[n]) + (k2 * w2[n] + k3 * w3[n])
            target[n] += low + ((k4 * w4[n] + k5 * w5[n]) + (k6 * w6[n] + k7 * w7[n]))
        e += 8
    while e + 4 <= n_picked:
        k0, k1, k2, k3 = values[e], values[e + 1], values[e + 2], values[e + 3]
        w0, w1, w2, w3 = rows[picked[e]], rows[picked[e + 1]], rows[picked[e + 2]], rows[picked[e + 3]]
        for n in range(target.size):
            target[n] += (k0 * w0[n] + k1 * w1[n]) + (k2 * w2[n] + k3 * w3[n])
        e += 4
    while e < n_picked:
        k0, w0 = values[e], rows[picked[e]]
        for n in range(target.size):
            target[n] += k0 * w0[n]
        e += 1


@kernel
def _product(offsets, channels, counts, weights, out, height, width, K, stride, begin, end):
    """The lines begin ... end of `out`, counted over all frames; weights are WT as (K·K·C, N)."""
    C = len(weights) // (K * K)
    out_height, out_width = -(-height // stride), -(-width // stride)
    picked, values = np.empty(len(weights), np.int64), np.empty(len(weights), out.dtype)
    for line in range(begin, end):
        frame, top = line // out_height, line % out_height * stride - K // 2
        for column in range(out_width):
            left = column * stride - K // 2
            n_picked = 0
            for dy in range(max(0, -top), min(K, height - top)):
                for dx in range(max(0, -left), min(K, width - left)):
                    r = (frame * height + top + dy) * width + left + dx
                    for e in range(offsets[r], offsets[r + 1]):
                        picked[n_picked] = (dy * K + dx) * C + channels[e]
                        values[n_picked] = counts[e]
                        n_picked += 1
            target = out[line * out_width + column]
            target[:] = 0
            _add_rows(target, weights, picked, values, n_picked)


@kernel
def _weight_gradient(starts, rows, values, gy, gWT, height, width, stride, begin, end):
    """gWT[dy, dx, c] = Σ values · gy[the output row that sees the entry there], for the channels c = begin ... end."""
    K = gWT.shape[0]
    out_height, out_width = -(-height // stride), -(-width // stride)
    below, right = np.empty(height * width, np.int64), np.empty(height * width, np.int64)
    picked, scales = np.empty(height * width, np.int64), np.empty(height * width, gy.dtype)
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
                    _add_rows(gWT[dy, dx, c], gy, picked, scales, n_picked)


def _sort_by_channel(
    offsets: Tensor, channels: Tensor, counts: Tensor, num_channels: int, pixels: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(starts, rows, counts) of the entries, ordered by channel within each frame; see `_sort_frames`."""
    frames = (len(offsets) - 1) // pixels
    starts = np.empty((frames, num_channels + 1), np.int64)
    rows, values = np.empty(len(channels), np.int32), np.empty(len(channels), counts.numpy().dtype)
    arguments = (offsets.numpy(), channels.numpy(), counts.numpy(), starts, rows, values)
    in_parts(lambda begin, end: _sort_frames(*arguments, begin, end), frames, torch.get_num_threads())
    return starts, rows, values


def product(offsets: Tensor, channels: Tensor, counts: Tensor, W_NCKK: Tensor, shape: Geometry) -> Tensor:
    """The convolution: (output rows, N)."""
    N = len(W_NCKK)
    weights = W_NCKK.permute(2, 3, 1, 0).reshape(-1, N).contiguous().numpy()
    frames = (len(offsets) - 1) // (shape.height * shape.width)
    out_RN = torch.empty(frames * shape.out_height * shape.out_width, N, dtype=W_NCKK.dtype)
    arguments = (offsets.numpy(), channels.numpy(), counts.numpy(), weights, out_RN.numpy(), *shape)
    in_parts(lambda begin, end: _product(*arguments, begin, end), frames * shape.out_height, torch.get_num_threads())
    return out_RN


def weight_gradient(
    offsets: Tensor, channels: Tensor, counts: Tensor, gy_RN: Tensor, num_inputs: int, shape: Geometry
) -> Tensor:
    """The gradient of the weights, (N, C, K, K), given that of the output rows."""
    by_channel = _sort_by_channel(offsets, channels, counts, num_inputs, shape.height * shape.width)
    gWT = torch.empty(shape.kernel, shape.kernel, num_inputs, gy_RN.shape[1], dtype=gy_RN.dtype)
    sums = (*by_channel, gy_RN.contiguous().numpy(), gWT.numpy(), shape.height, shape.width, shape.stride)
    # a thread sums whole channels, in the order of the rows: the same bits for any number of threads
    in_parts(lambda begin, end: _weight_gradient(*sums, begin, end), num_inputs, torch.get_num_threads())
    return gWT.permute(3, 2, 0, 1)
