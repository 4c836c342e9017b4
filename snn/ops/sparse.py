"""Products with what is mostly zero, on the CPU: the work follows the events.

Rows R = T·B, inputs C, outputs N. `offsets` (R + 1), `channels` and `counts` are those of `snn.events.Events`. Outputs
are cut into S slices of L = LANES, the last filled up with zeros. What an event adds to a slice is one contiguous row
of W_SCL, what it is added to stays in registers, and the weights of a slice stay in the second-level cache.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from snn.ops.compiled import in_parts, kernel
from snn.ops.lanes import LANES, add_product, load, load_part, lowest, nonzero, ones, prefetch, store, store_part, zeros

SECTION = 8192  # rows, at most, whose share of the weight gradient is one sum
AHEAD = 4  # rows; a slice of them is too short for the processor to see what comes next


@kernel
def product_rows(offsets, channels, counts, W_SCL, out, begin, end):
    """out = counts @ W^T over rows begin ... end."""
    for s in range(W_SCL.shape[0]):
        W_CL = W_SCL[s]
        for r in range(begin, end):
            prefetch(out[min(r + AHEAD, end - 1)], s * LANES)
            total_L = zeros(out[r])
            for e in range(offsets[r], offsets[r + 1]):
                total_L = add_product(total_L, counts[e], load(W_CL[channels[e]], 0))
            store_part(out[r], s * LANES, total_L)


@kernel
def _weight_gradient(offsets, channels, counts, gy, gW_KSCL, begin, end):
    """gW_KSCL[k, s] = Σ counts · gy over section k of the rows, one of K of equal size, for begin <= k·S + s < end."""
    R, (K, S) = len(gy), gW_KSCL.shape[:2]
    for part in range(begin, end):
        k, s = part // S, part % S
        gW_CL = gW_KSCL[k, s]
        gW_CL[:] = 0
        for r in range(k * R // K, (k + 1) * R // K):
            prefetch(gy[min(r + AHEAD, R - 1)], s * LANES)
            gy_L = load_part(gy[r], s * LANES)
            for e in range(offsets[r], offsets[r + 1]):
                row = gW_CL[channels[e]]
                store(row, 0, add_product(load(row, 0), counts[e], gy_L))


@kernel
def _find(x, words, numbers, begin, end):
    """Bit k of words[w]: whether x[w · LANES + k] is not zero; numbers[w]: how many of them are not."""
    for w in range(begin, end):
        words[w] = nonzero(load_part(x, w * LANES))
        numbers[w] = ones(words[w])


@kernel
def _gather(x, words, firsts, C, offsets, channels, counts, begin, end):
    """Lay down the entries that words begin ... end found, and where the rows of C begin that begin there."""
    e = firsts[begin]
    r = -(-begin * LANES // C)  # the next row to begin
    next_row = r * C
    for w in range(begin, end):
        word = words[w]
        while word:
            at = w * LANES + lowest(word)
            while at >= next_row:
                offsets[r] = e
                r += 1
                next_row += C
            channels[e] = at - (next_row - C)
            counts[e] = x[at]
            e += 1
            word &= word - np.uint64(1)
    while next_row < end * LANES and r < len(offsets):
        offsets[r] = e
        r += 1
        next_row += C


class Found(NamedTuple):
    """Which entries of a matrix are not zero, LANES at a time in its own order."""

    words: np.ndarray  # (W,) uint64, a bit for an entry
    firsts: np.ndarray  # (W + 1,) how many there are before each word, and in all


def find(x_RC: Tensor) -> Found:
    """The entries of a contiguous matrix that are not zero."""
    x = x_RC.view(-1).numpy()
    words = np.empty(-(-len(x) // LANES), np.uint64)
    firsts = np.zeros(len(words) + 1, np.int64)
    in_parts(lambda begin, end: _find(x, words, firsts[1:], begin, end), len(words), torch.get_num_threads())
    return Found(words, np.cumsum(firsts, out=firsts))


def compress(x_RC: Tensor, found: Found) -> tuple[Tensor, Tensor, Tensor]:
    """(offsets, channels, counts) of what `find` found in it."""
    x, (R, C), entries = x_RC.view(-1).numpy(), x_RC.shape, found.firsts[-1]
    offsets, channels, counts = np.empty(R + 1, np.int64), np.empty(entries, np.int32), np.empty(entries, x.dtype)
    arguments = (x, *found, C, offsets, channels, counts)
    in_parts(lambda begin, end: _gather(*arguments, begin, end), len(found.words), torch.get_num_threads())
    offsets[R] = entries  # where the last word is full, no row begins behind it
    return torch.from_numpy(offsets), torch.from_numpy(channels), torch.from_numpy(counts)


def slices(W_NC: Tensor) -> Tensor:
    """Weights as W_SCL."""
    N, C = W_NC.shape
    S = -(-N // LANES)
    return F.pad(W_NC, (0, 0, 0, S * LANES - N)).view(S, LANES, C).transpose(1, 2).contiguous()


def product(offsets: Tensor, channels: Tensor, counts: Tensor, W_NC: Tensor) -> Tensor:
    """counts @ W^T: (R, N)."""
    R = len(offsets) - 1
    out_RN = torch.empty(R, len(W_NC), dtype=W_NC.dtype)
    arguments = (offsets.numpy(), channels.numpy(), counts.numpy(), slices(W_NC).numpy(), out_RN.numpy())
    in_parts(lambda begin, end: product_rows(*arguments, begin, end), R, torch.get_num_threads())
    return out_RN


def weight_gradient(offsets: Tensor, channels: Tensor, counts: Tensor, gy_RN: Tensor, num_inputs: int) -> Tensor:
    """gy^T @ counts: (N, C)."""
    R, N = gy_RN.shape
    # sections and slices do not depend on the number of threads, so that the bits do not either
    gW_KSCL = torch.empty(-(-R // SECTION), -(-N // LANES), num_inputs, LANES, dtype=gy_RN.dtype)
    K, S = gW_KSCL.shape[:2]
    arguments = (offsets.numpy(), channels.numpy(), counts.numpy(), gy_RN.contiguous().numpy(), gW_KSCL.numpy())
    in_parts(lambda begin, end: _weight_gradient(*arguments, begin, end), K * S, torch.get_num_threads())
    gW_SCL = gW_KSCL[0] if K == 1 else gW_KSCL.sum(0)
    return gW_SCL.transpose(1, 2).reshape(-1, num_inputs)[:N]
