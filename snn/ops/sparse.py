"""Sparse products on the CPU: the work grows with the number of events.

Rows R = T·B, inputs C, outputs N. `offsets` (R + 1), `channels` and `counts` are those of `snn.inputs.Entries`.
Outputs are cut into S slices of L = LANES, the last padded with zeros. An event adds one contiguous row of W_SCL to a
slice. The sums stay in registers, and the weights of a slice stay in the second-level cache.

Tensors are float32 or float64 on the CPU. The functions rely on their arguments: the layers check what a caller gives,
and `snn.inputs.SparseCounts` checks entries.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from snn.inputs import Entries
from snn.ops.compiled import in_parts, inlined, kernel
from snn.ops.lanes import (
    LANES,
    LINE,
    add_product,
    load,
    load_part,
    lowest,
    ones,
    prefetch,
    store,
    store_part,
    total,
    unlike,
    zeros,
)  # fmt: skip

SECTION = 8192  # rows, at most, whose share of the weight gradient is one sum; many cores would prefer fewer rows
SERIAL_BELOW = 1024  # words: one thread searches fewer of them before a second one wakes up
PICKED = 4  # inputs whose gradients are summed side by side
AHEAD = 4  # rows to prefetch: a slice of a row is too short for the processor to foresee the next one


@kernel
def product_rows(offsets, channels, counts, W_SCL, out, begin, end):
    """Set out = counts @ W^T over rows begin ... end."""
    (S, C, _), N = W_SCL.shape, out.shape[1]
    for s in range(S):
        for r in range(begin, end):
            prefetch(out, min(r + AHEAD, end - 1) * N + s * LANES, LANES)
            total_L = zeros(out, LANES)
            for e in range(offsets[r], offsets[r + 1]):
                total_L = add_product(total_L, counts[e], load(W_SCL, (s * C + channels[e]) * LANES, LANES))
            store_part(out, r * N + s * LANES, N - s * LANES, total_L)


@kernel
def _weight_gradient(offsets, channels, counts, gy, gW_KSCL, begin, end):
    """Set gW_KSCL[k, s] = Σ counts · gy over section k of K equal ones of the rows, for begin <= k·S + s < end."""
    (R, N), (K, S, C, _) = gy.shape, gW_KSCL.shape
    for part in range(begin, end):
        k, s = part // S, part % S
        gW_KSCL[k, s] = 0
        for r in range(k * R // K, (k + 1) * R // K):
            prefetch(gy, min(r + AHEAD, R - 1) * N + s * LANES, LANES)
            gy_L = load_part(gy, r * N + s * LANES, N - s * LANES, LANES)
            for e in range(offsets[r], offsets[r + 1]):
                row = (part * C + channels[e]) * LANES
                store(gW_KSCL, row, add_product(load(gW_KSCL, row, LANES), counts[e], gy_L))


@inlined
def _put(out, rows, mask, b, C, c, sum_0, sum_1):
    """Write the entries of input c in two rows."""
    factor = mask[np.uint64(b * C + c)]
    out[np.uint64(rows[0] * C + c)] = factor * total(sum_0)
    out[np.uint64(rows[1] * C + c)] = factor * total(sum_1)


@kernel
def _input_gradient(near_TW, gy, W_CN, mask_BC, gs, begin, end):
    """Set gs = mask (gy @ W) where bit b·C + c of the step or of its neighbour is set, and 0 elsewhere.

    Steps 2k and 2k + 1 of sample b are computed together, for begin <= k·B + b < end: most neurons are near the
    threshold in both or in neither, and weights once loaded serve both. Rows of gy and W_CN are padded with zeros to
    whole lines.
    """
    T, (B, C), N = len(near_TW), mask_BC.shape, gy.shape[1]
    out, mask = gs.reshape(-1), mask_BC.reshape(-1)
    picked = np.empty(C + PICKED, np.int64)
    for part in range(begin, end):
        t, b = part // B * 2, part % B
        rows = t * B + b, min(t + 1, T - 1) * B + b
        for row in rows:
            for c in range(C):
                out[np.uint64(row * C + c)] = 0
        count = 0
        for w in range(b * C // LANES, -(-(b + 1) * C // LANES)):
            word = near_TW[t, w] | near_TW[min(t + 1, T - 1), w]
            while word:
                c = w * LANES + lowest(word) - b * C  # beyond the ends of the row, the bit belongs to another sample
                if 0 <= c < C:
                    picked[count] = c
                    count += 1
                word &= word - np.uint64(1)
        for k in range(count, count + PICKED - 1):
            picked[k] = picked[count - 1]  # repeats the last one to fill the group
        gy_0, gy_1 = rows[0] * N, rows[1] * N
        for k in range(0, count, PICKED):
            c_0, c_1, c_2, c_3 = picked[k], picked[k + 1], picked[k + 2], picked[k + 3]
            a_0, a_1, a_2, a_3 = zeros(gy, LINE), zeros(gy, LINE), zeros(gy, LINE), zeros(gy, LINE)
            b_0, b_1, b_2, b_3 = zeros(gy, LINE), zeros(gy, LINE), zeros(gy, LINE), zeros(gy, LINE)
            for n in range(0, N, LINE):
                g_0, g_1 = load(gy, gy_0 + n, LINE), load(gy, gy_1 + n, LINE)
                w_0, w_1 = load(W_CN, c_0 * N + n, LINE), load(W_CN, c_1 * N + n, LINE)
                w_2, w_3 = load(W_CN, c_2 * N + n, LINE), load(W_CN, c_3 * N + n, LINE)
                a_0, a_1 = add_product(a_0, g_0, w_0), add_product(a_1, g_0, w_1)
                a_2, a_3 = add_product(a_2, g_0, w_2), add_product(a_3, g_0, w_3)
                b_0, b_1 = add_product(b_0, g_1, w_0), add_product(b_1, g_1, w_1)
                b_2, b_3 = add_product(b_2, g_1, w_2), add_product(b_3, g_1, w_3)
            _put(out, rows, mask, b, C, c_0, a_0, b_0)
            _put(out, rows, mask, b, C, c_1, a_1, b_1)
            _put(out, rows, mask, b, C, c_2, a_2, b_2)
            _put(out, rows, mask, b, C, c_3, a_3, b_3)


@kernel
def _find(x, nothing, kept, words, numbers, others, begin, end):
    """Set bit k of words[w] if x[w · LANES + k] is kept and not `nothing`; numbers[w] counts the bits set.

    `kept` has words of the same kind, which are read cyclically; None keeps all. others[0] becomes 1 if any number,
    kept or not, is neither `nothing` nor 1.
    """
    again = 0 if kept is None else begin % len(kept)
    other = np.uint64(0)
    for w in range(begin, end):
        x_L = load_part(x, w * LANES, len(x) - w * LANES, LANES)
        word = unlike(x_L, nothing)
        if len(x) - w * LANES < LANES:  # the zeros that fill up the last word are no entries
            word &= (np.uint64(1) << np.uint64(len(x) - w * LANES)) - np.uint64(1)
        other |= word & unlike(x_L, 1)
        if kept is not None:
            word &= kept[again]
            again = again + 1 if again + 1 < len(kept) else 0
        words[w] = word
        numbers[w] = ones(word)
    if other:
        others[0] = 1


@kernel
def _gather(x, mask, words, firsts, C, offsets, channels, counts, begin, end):
    """Write the entries found in words begin ... end, and the offsets of those rows of C that begin there.

    x is None if all entries are ones, which then need not be read again.
    """
    for r in range(-(-begin * LANES // C), min(-(-end * LANES // C), len(offsets))):
        w, place = divmod(r * C, LANES)
        before = (np.uint64(1) << np.uint64(place)) - np.uint64(1)
        offsets[r] = firsts[w] + ones(words[w] & before)
    e = firsts[begin]
    c = begin * LANES % C  # the channel of a word's first bit
    again = 0 if mask is None else begin * LANES % len(mask)
    for w in range(begin, end):
        word = words[w]
        while word:
            place = lowest(word)
            channel = c + place
            while channel >= C:
                channel -= C
            channels[e] = channel
            number = counts.dtype.type(1) if x is None else x[w * LANES + place]
            counts[e] = number if mask is None else number * mask[again + place]
            e += 1
            word &= word - np.uint64(1)
        c = (c + LANES) % C
        if mask is not None:
            again = again + LANES if again + LANES < len(mask) else 0


class Nonzeros(NamedTuple):
    """The places of the entries that `find` found, a word for LANES entries in their order."""

    mask: Tensor | None  # repeated until it fills whole words, which are read cyclically
    words: np.ndarray  # (W,) uint64, a bit for each entry
    only_ones: bool  # all entries are ones, as spikes are
    firsts: np.ndarray  # (W + 1,) the number of entries found before each word, and the number of all

    @property
    def number(self) -> int:
        return int(self.firsts[-1])


def find(x_RC: Tensor, mask_BC: Tensor | None = None, nothing: float = 0) -> Nonzeros:
    """Find the entries that are not zero in a matrix of rows t·B + b, where each sample b is multiplied by its mask.

    With `nothing`, find those that are not this number.
    """
    x, kept = x_RC.detach().contiguous().view(-1), None
    if mask_BC is not None:
        mask_BC = mask_BC.detach().contiguous().view(-1)
        mask_BC = mask_BC.repeat(LANES // math.gcd(LANES, len(mask_BC)))
        kept = find(mask_BC[None]).words
    words = np.empty(-(-len(x) // LANES), np.uint64)
    firsts = np.zeros(len(words) + 1, np.int64)
    others = np.zeros(1, np.int8)
    arguments = (x.numpy(), x.numpy().dtype.type(nothing), kept, words, firsts[1:], others)
    in_parts(_find, arguments, len(words), None if len(words) > SERIAL_BELOW else 1)
    return Nonzeros(mask_BC, words, not others[0], np.cumsum(firsts, out=firsts))


def compress(x_RC: Tensor, found: Nonzeros) -> Entries:
    """Return the entries that `find` found in x."""
    (R, C), x = x_RC.shape, x_RC.detach().contiguous().view(-1).numpy()
    offsets, channels = np.empty(R + 1, np.int64), np.empty(found.number, np.int32)
    counts = np.empty(found.number, x.dtype)
    mask = None if found.mask is None else found.mask.numpy()
    arguments = (None if found.only_ones else x, mask, found.words, found.firsts, C, offsets, channels, counts)
    in_parts(_gather, arguments, len(found.words))
    offsets[R] = found.number  # no word sets it if the last one is full
    return Entries(*map(torch.from_numpy, (offsets, channels, counts)))


def slices(W: Tensor) -> Tensor:
    """Return weights (N, C) as W_SCL, and those of a convolution, (N, C, K, K), as W_SKCL."""
    N, C, *kernel = W.shape
    S = -(-N // LANES)
    W_KCN = F.pad(W.detach().movedim((0, 1), (-1, -2)).reshape(-1, C, N), (0, S * LANES - N))
    W_SKCL = W_KCN.view(-1, C, S, LANES).permute(2, 0, 1, 3).contiguous()
    return W_SKCL if kernel else W_SKCL[:, 0]


def arrays(entries: Entries, dtype: torch.dtype) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return entries as the kernels take them: with unsigned channels, as numba tests the sign of each signed index."""
    channels, counts = entries.channels.to(torch.int32).contiguous(), entries.counts.detach().to(dtype).contiguous()
    return entries.offsets.contiguous().numpy(), channels.numpy().view(np.uint32), counts.numpy()


def product(entries: Entries, W_NC: Tensor) -> Tensor:
    """Return counts @ W^T, (R, N)."""
    R = len(entries.offsets) - 1
    out_RN = torch.empty(R, len(W_NC), dtype=W_NC.dtype)
    arguments = (*arrays(entries, W_NC.dtype), slices(W_NC).numpy(), out_RN.numpy())
    in_parts(product_rows, arguments, R)
    return out_RN


def weight_gradient(entries: Entries, gy_RN: Tensor, num_inputs: int) -> Tensor:
    """Return gy^T @ counts, (N, C)."""
    R, N = gy_RN.shape
    K, S = -(-R // SECTION), -(-N // LANES)  # not by the number of threads: the bits do not depend on it
    gW_KSCL = torch.empty(K, S, num_inputs, LANES, dtype=gy_RN.dtype)
    arguments = (*arrays(entries, gy_RN.dtype), gy_RN.detach().contiguous().numpy(), gW_KSCL.numpy())
    in_parts(_weight_gradient, arguments, K * S)
    gW_SCL = gW_KSCL[0] if K == 1 else gW_KSCL.sum(0)
    return gW_SCL.transpose(1, 2).reshape(-1, num_inputs)[:N]


def kept(near_TW: Tensor, mask_BC: Tensor | None, shape: Sequence[int]) -> Tensor:
    """Return the bits of `snn.ops.near_room` without the entries that are dropped, for spikes of shape (T, B, C)."""
    mask = torch.ones(1, shape[1] * shape[2]) if mask_BC is None else mask_BC.reshape(1, -1)
    return near_TW & torch.from_numpy(find(mask).words.view(np.int64))


def input_gradient(gy_RN: Tensor, W_NC: Tensor, near_TW: Tensor, mask_BC: Tensor | None) -> Tensor:
    """Return (gy @ W) · mask where a bit of near_TW (from `kept`) is set, and in the step beside it; 0 elsewhere."""
    (R, N), C = gy_RN.shape, W_NC.shape[1]
    T, fill = len(near_TW), (0, -N % LINE)
    mask_BC = gy_RN.new_ones(R // T, C) if mask_BC is None else mask_BC
    gs_RC, words = gy_RN.new_empty(R, C), near_TW.numpy().view(np.uint64)
    gy_RN, W_CN = F.pad(gy_RN.detach(), fill).contiguous(), F.pad(W_NC.detach().T, fill).contiguous()
    arguments = (words, gy_RN.numpy(), W_CN.numpy(), mask_BC.contiguous().numpy(), gs_RC.numpy())
    pairs = -(-T // 2) * len(mask_BC)
    in_parts(_input_gradient, arguments, pairs)
    return gs_RC
