"""Products with delayed inputs on the CPU: an event adds to the rows it reaches, forward and backward.

Rows r = t·B + b, slices and LANES as in `snn.ops.sparse`; taps (`first`, K of them) as in `snn.ops.taps`. The first
`past` steps of an input came in before: their events are still on their way, and the result has no rows for them.

A delay for each input moves its events to the row that its first tap reaches, sample by sample; from there they reach
K rows. Forward takes them row by row and the gradient channel by channel, so that the sums of both stay in registers.
The gradient of the products A_KNC = w_nc h_kc, each a sum over events, gives that of the weights and of the shares.

An input may arrive several times. Of C inputs, input c arrives as channels c, C + c, 2·C + c ..., each of which has a
delay and weights.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from snn.ops.compiled import in_parts, kernel
from snn.ops.lanes import LANES, add_product, load, load_part, prefetch, scratch, store, store_part, zeros
from snn.ops.sparse import AHEAD, arrays, slices

PAD = 16  # between scratch rows: strides of a power of two would crowd one cache set
SECTION = 64  # samples, at most, whose share of the weight gradient is one sum


class Moved(NamedTuple):
    """Delayed events. Row b·U + u, u = 0 ... U - 1, holds those of sample b whose taps reach steps u - K + 1 to u.

    Sorted by channel, row b·C + c holds the events of channel c, and `channels` holds their u.
    """

    offsets: np.ndarray  # (rows + 1,)
    channels: np.ndarray  # (events,) uint32
    counts: np.ndarray


@kernel
def _move(offsets, channels, counts, lags, C, U, by_channel, numbers, moved_channels, moved_counts, begin, end):
    """Write the events of samples begin ... end, in the order of their steps, into rows that begin at numbers[b, row].

    If there is no `moved_counts`, only set `numbers` to the number of events that each sample has in each row.
    """
    B, rows = numbers.shape
    place = np.zeros(rows, np.uint64)  # counted here, then copied once
    for b in range(begin, end):
        if moved_counts is None:
            place[:] = 0
        else:
            place[:] = numbers[b]
        for t in range((len(offsets) - 1) // B):
            for first in range(0, len(lags), C):
                for e in range(np.uint64(offsets[t * B + b]), np.uint64(offsets[t * B + b + 1])):
                    c = np.uint64(first) + np.uint64(channels[e])
                    u = np.uint64(t + lags[c])  # a step before the first is a huge number
                    if u < np.uint64(U):
                        row = c if by_channel else u
                        if moved_counts is not None:
                            moved_channels[place[row]] = u if by_channel else c
                            moved_counts[place[row]] = counts[e]
                        place[row] += np.uint64(1)
        if moved_counts is None:
            numbers[b] = place


def moved(
    offsets: Tensor,
    channels: Tensor,
    counts: Tensor,
    first_C: Tensor,
    K: int,
    B: int,
    past: int,
    num_inputs: int,
    by_channel: bool = False,
) -> Moved:
    """Return the events delayed, by row or by channel."""
    U = (len(offsets) - 1) // B - past + K - 1
    entries = arrays(offsets, channels, counts, counts.dtype)
    rule = first_C.numpy() - past + K - 1, num_inputs, U, by_channel
    ends = np.zeros(B * (len(first_C) if by_channel else U) + 1, np.int64)
    numbers = ends[1:].reshape(B, -1)
    in_parts(_move, (*entries, *rule, numbers, None, None), B)
    np.cumsum(ends, out=ends)
    results = np.empty(ends[-1], np.uint32), np.empty(ends[-1], entries[2].dtype)
    firsts = ends[:-1].reshape(B, -1)
    in_parts(_move, (*entries, *rule, firsts, *results), B)
    return Moved(ends, *results)


@kernel
def _product(offsets, channels, counts, h_CK, K, W_SCL, out_TBN, begin, end):
    """Set out = Σ_j h[c, j] W x over samples begin ... end; h_CK has a column of zeros more if K is odd.

    Two taps share each row of weights. The later ones come first, so that sums take events in the order of their steps.
    """
    (S, C, _), (T, B, N) = W_SCL.shape, out_TBN.shape
    for b in range(begin, end):
        for s in range(S):
            for j in range(K - 1 - (K - 1) % 2, -1, -2):
                total_L = zeros(out_TBN, LANES)
                for t in range(-1, T):
                    prefetch(out_TBN, (min(t + AHEAD, T - 1) * B + b) * N + s * LANES, LANES)
                    to = (min(t + 1, T - 1) * B + b) * N + s * LANES
                    next_L = zeros(out_TBN, LANES) if j + 2 >= K else load_part(out_TBN, to, N - s * LANES, LANES)
                    row = b * (T + K - 1) + max(t + K - 1 - j, 0)
                    for e in range(np.uint64(offsets[row]), np.uint64(offsets[row + 1])):
                        c = np.uint64(channels[e])
                        w_L = load(W_SCL, (np.uint64(s * C) + c) * np.uint64(LANES), LANES)
                        total_L = add_product(total_L, counts[e] * h_CK[c, j], w_L)
                        next_L = add_product(next_L, counts[e] * h_CK[c, j + 1], w_L)
                    if t >= 0:
                        store_part(out_TBN, (t * B + b) * N + s * LANES, N - s * LANES, total_L)
                    total_L = next_L


def product(events: Moved, h_KC: Tensor, W_NC: Tensor, B: int) -> Tensor:
    """Return the product of the delayed events and the weights, (R, N)."""
    K = len(h_KC)
    T = (len(events.offsets) - 1) // B - K + 1
    h_CK = F.pad(h_KC, (0, 0, 0, K % 2)).T.contiguous()
    out_TBN = torch.empty(T, B, len(W_NC), dtype=W_NC.dtype)
    arguments = (*events, h_CK.numpy(), K, slices(W_NC).numpy(), out_TBN.numpy())
    in_parts(_product, arguments, B)
    return out_TBN.flatten(0, 1)


@kernel
def _gradient(offsets, places, counts, gy_TBN, before, gA_ISCKL, begin, end):
    """Set gA[i, s, c, j] = Σ counts · gy over section i of the samples, for begin <= i·S + s < end; K is even.

    `room` takes a sample's gy of one slice, contiguous, with `before` rows of zeros before it and K after it.
    """
    (T, B, N), (I, S, C, K, _) = gy_TBN.shape, gA_ISCKL.shape
    room = scratch(gy_TBN, (before + T + K) * LANES)
    room[:] = 0
    for part in range(begin, end):
        i, s = part // S, part % S
        gA_ISCKL[i, s] = 0
        for b in range(i * B // I, (i + 1) * B // I):
            for t in range(T):
                prefetch(gy_TBN, (min(t + AHEAD, T - 1) * B + b) * N + s * LANES, LANES)
                gy_L = load_part(gy_TBN, (t * B + b) * N + s * LANES, N - s * LANES, LANES)
                store(room, (before + t) * LANES, gy_L)
            for c in range(C):
                if offsets[b * C + c] == offsets[b * C + c + 1]:
                    continue
                for j in range(0, K, 2):
                    at = ((part * C + c) * K + j) * LANES
                    sum_L, next_L = load(gA_ISCKL, at, LANES), load(gA_ISCKL, at + LANES, LANES)
                    for e in range(np.uint64(offsets[b * C + c]), np.uint64(offsets[b * C + c + 1])):
                        row = (np.uint64(places[e]) + np.uint64(j)) * np.uint64(LANES)
                        sum_L = add_product(sum_L, counts[e], load(room, row, LANES))
                        next_L = add_product(next_L, counts[e], load(room, row + np.uint64(LANES), LANES))
                    store(gA_ISCKL, at, sum_L)
                    store(gA_ISCKL, at + LANES, next_L)


def gradient(events: Moved, gy_RN: Tensor, K: int, C: int, B: int) -> Tensor:
    """Return the gradient of the products w h, (K, N, C), from events by channel."""
    N, even = gy_RN.shape[1], K + K % 2
    gy_TBN = gy_RN.contiguous().view(-1, B, N)
    sections, S = -(-B // SECTION), -(-N // LANES)  # do not depend on the number of threads, so neither do the bits
    gA_ISCKL = torch.empty(sections, S, C, even, LANES, dtype=gy_RN.dtype)
    in_parts(_gradient, (*events, gy_TBN.numpy(), K - 1, gA_ISCKL.numpy()), sections * S)
    gA_SCKL = gA_ISCKL[0] if sections == 1 else gA_ISCKL.sum(0)
    return gA_SCKL.permute(2, 0, 3, 1).reshape(even, -1, C)[:K, :N]


@kernel
def _move_back(gx_TBC, places, h_KC, mask_BC, past, steps, gs_TBC, begin, end):
    """Set gs[t, b, c] = mask Σ_j h[j, c] gx[t + first[c] + j - past, b, c] for samples begin ... end; K is even.

    If an input arrives as several channels, the sum is also over these.

    places[c] is that of step first[c] in the scratch, which holds gx from step `past` on and zeros elsewhere.
    """
    (T, _, C), width = gs_TBC.shape, len(places) + PAD
    room = np.zeros(steps * width, gs_TBC.dtype)
    for b in range(begin, end):
        for t in range(len(gx_TBC)):
            for c in range(len(places)):
                room[(past + t) * width + c] = gx_TBC[t, b, c]
        for t in range(T):
            gs_C = gs_TBC[t, b]
            gs_C[:] = 0
            for first in range(0, len(places), C):
                h_KD, places_D = h_KC[:, first : first + C], places[first : first + C]
                for j in range(0, len(h_KC), 2):
                    for c in range(C):
                        at = np.uint64((t + j) * width) + places_D[c]
                        gs_C[c] += h_KD[j, c] * room[at] + h_KD[j + 1, c] * room[at + np.uint64(width)]
            if mask_BC is not None:
                for c in range(C):
                    gs_C[c] *= mask_BC[b, c]


def moved_back(
    gx_RC: Tensor, first_C: Tensor, h_KC: Tensor, mask_BC: Tensor | None, B: int, past: int, num_inputs: int
) -> Tensor:
    """Return the gradient of an input, ((past + T)·B, num_inputs), from that of the delayed input."""
    h_KC = F.pad(h_KC, (0, 0, 0, len(h_KC) % 2))
    K, C = h_KC.shape
    gx_TBC = gx_RC.contiguous().view(-1, B, C)
    gs_TBC = gx_TBC.new_empty(past + len(gx_TBC), B, num_inputs)
    places = (first_C.numpy() * (C + PAD) + np.arange(C)).astype(np.uint64)
    mask = None if mask_BC is None else mask_BC.contiguous().numpy()
    steps = len(gs_TBC) + int(first_C.max()) + K
    arguments = (gx_TBC.numpy(), places, h_KC.numpy(), mask, past, steps, gs_TBC.numpy())
    in_parts(_move_back, arguments, B)
    return gs_TBC.flatten(0, 1)
