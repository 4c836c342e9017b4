"""Products with what is mostly zero, on the CPU: the work follows the events.

Rows R = T·B, inputs C, outputs N. `offsets` (R + 1), `channels` and `counts` are those of `snn.events.Events`. Weights
are WT, (C, N), so that an event adds one contiguous row.
"""

import numpy as np
import torch
from torch import Tensor

from snn.ops.compiled import in_parts, kernel

BLOCK = 1024  # rows, sorted by channel together for the weight gradient of a linear layer


@kernel
def product_rows(offsets, channels, counts, WT, out, begin, end):
    """out = counts @ WT over rows begin ... end; four events at a time, so that `out` goes to memory once for four."""
    N = WT.shape[1]
    for r in range(begin, end):
        row = out[r]
        for n in range(N):
            row[n] = 0
        e, stop = offsets[r], offsets[r + 1]
        while e + 4 <= stop:
            k0, k1, k2, k3 = counts[e], counts[e + 1], counts[e + 2], counts[e + 3]
            w0, w1, w2, w3 = WT[channels[e]], WT[channels[e + 1]], WT[channels[e + 2]], WT[channels[e + 3]]
            for n in range(N):
                row[n] += (k0 * w0[n] + k1 * w1[n]) + (k2 * w2[n] + k3 * w3[n])
            e += 4
        while e < stop:
            k0, w0 = counts[e], WT[channels[e]]
            for n in range(N):
                row[n] += k0 * w0[n]
            e += 1


@kernel
def _sort_blocks(offsets, channels, counts, block, starts, rows, values, begin, end):
    """Order the entries of each block of rows by channel: block k has those of channel c at starts[k, c]..."""
    R, C = len(offsets) - 1, starts.shape[1] - 1
    place = np.empty(C, np.int64)
    for k in range(begin, end):
        first, last = k * block, min((k + 1) * block, R)
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


@kernel
def _weight_gradient(starts, rows, values, gy, gWT, begin, end):
    """gWT[c] = Σ values · gy[rows] over the entries of channel c, for channels begin ... end.

    Block by block, so that the rows of gy at hand stay in the cache; four entries at a time, as in `product_rows`.
    """
    N = gWT.shape[1]
    gWT[begin:end] = 0
    for k in range(starts.shape[0]):
        for c in range(begin, end):
            e, stop = starts[k, c], starts[k, c + 1]
            target = gWT[c]
            while e + 4 <= stop:
                k0, k1, k2, k3 = values[e], values[e + 1], values[e + 2], values[e + 3]
                g0, g1, g2, g3 = gy[rows[e]], gy[rows[e + 1]], gy[rows[e + 2]], gy[rows[e + 3]]
                for n in range(N):
                    target[n] += (k0 * g0[n] + k1 * g1[n]) + (k2 * g2[n] + k3 * g3[n])
                e += 4
            while e < stop:
                k0, g0 = values[e], gy[rows[e]]
                for n in range(N):
                    target[n] += k0 * g0[n]
                e += 1


@kernel
def _count(x, numbers, begin, end):
    """How many entries of each row are not zero."""
    for r in range(begin, end):
        number = 0
        for c in range(x.shape[1]):
            number += x[r, c] != 0
        numbers[r] = number


@kernel
def _gather(x, offsets, channels, counts, begin, end):
    """Lay down the entries of each row that are not zero."""
    for r in range(begin, end):
        e, stop = offsets[r], offsets[r + 1]
        c = 0
        while e < stop:
            if x[r, c] != 0:
                channels[e] = c
                counts[e] = x[r, c]
                e += 1
            c += 1


def row_counts(x_RC: Tensor) -> Tensor:
    """How many entries of each row are not zero: (R,) int64."""
    x, numbers = x_RC.numpy(), np.empty(len(x_RC), np.int64)
    in_parts(lambda begin, end: _count(x, numbers, begin, end), len(x), torch.get_num_threads())
    return torch.from_numpy(numbers)


def compress(x_RC: Tensor, numbers_R: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(offsets, channels, counts) of the entries that are not zero; numbers_R from `row_counts`."""
    offsets = np.concatenate([[0], np.cumsum(numbers_R.numpy())])
    x, channels = x_RC.numpy(), np.empty(offsets[-1], np.int32)
    counts = np.empty(offsets[-1], x.dtype)
    in_parts(lambda begin, end: _gather(x, offsets, channels, counts, begin, end), len(x), torch.get_num_threads())
    return torch.from_numpy(offsets), torch.from_numpy(channels), torch.from_numpy(counts)


def product(offsets: Tensor, channels: Tensor, counts: Tensor, W_NC: Tensor) -> Tensor:
    """counts @ W^T: (R, N)."""
    R, WT = len(offsets) - 1, W_NC.T.contiguous().numpy()
    out_RN = torch.empty(R, len(W_NC), dtype=W_NC.dtype)
    arguments = (offsets.numpy(), channels.numpy(), counts.numpy(), WT, out_RN.numpy())
    in_parts(lambda begin, end: product_rows(*arguments, begin, end), R, torch.get_num_threads())
    return out_RN


def sort_by_channel(
    offsets: Tensor, channels: Tensor, counts: Tensor, num_channels: int, block: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(starts, rows, counts) of the entries, ordered by channel within each block of rows; see `_sort_blocks`."""
    blocks = -(-(len(offsets) - 1) // block)
    starts = np.empty((blocks, num_channels + 1), np.int64)
    rows, values = np.empty(len(channels), np.int32), np.empty(len(channels), counts.numpy().dtype)
    arguments = (offsets.numpy(), channels.numpy(), counts.numpy(), block, starts, rows, values)
    in_parts(lambda begin, end: _sort_blocks(*arguments, begin, end), blocks, torch.get_num_threads())
    return starts, rows, values


def weight_gradient(offsets: Tensor, channels: Tensor, counts: Tensor, gy_RN: Tensor, num_inputs: int) -> Tensor:
    """gy^T @ counts: (N, C)."""
    N = gy_RN.shape[1]
    by_channel = sort_by_channel(offsets, channels, counts, num_inputs, BLOCK)
    gWT = torch.empty(num_inputs, N, dtype=gy_RN.dtype)
    sums = (*by_channel, gy_RN.contiguous().numpy(), gWT.numpy())
    # a thread sums whole channels, in the order of the rows: the same bits for any number of threads
    in_parts(lambda begin, end: _weight_gradient(*sums, begin, end), num_inputs, torch.get_num_threads())
    return gWT.T
