"""Products with a delay of each synapse on the CPU: an event adds to the steps it reaches, forward and backward.

Rows r = t·B + b, inputs C, outputs N; taps (`first`, K of them) as in `snn.ops.taps`, and `past` as in
`snn.ops.delays`. A_NCK are the weights times the shares of their taps.

Each synapse adds the same events at another place in time, but at the same one for all samples. So LINE samples, a
group, lie side by side as lanes, in rows (neuron, step). What a channel has in a step for a group is one block; it adds
to K rows of a neuron that follow each other. A tile of neurons is worked on at a time, for the caches.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from snn.ops.compiled import in_parts, kernel
from snn.ops.lanes import LINE, add_product, load, store, total, zeros

TILE = 4  # neurons
STEPS = 8  # whose input gradient is summed in registers at a time
SECTION = 4  # groups, at most, whose share of the weight gradient is one sum


class Blocks(NamedTuple):
    """The events of the input, sorted by group and by a key: their step, or their channel."""

    firsts: np.ndarray  # (groups·keys + 1,) from which block on are those of a group and key
    others: np.ndarray  # (blocks,) their channels, or their steps
    x: np.ndarray  # (blocks·LINE,)


@kernel
def _count(offsets, channels, B, C, by_channel, numbers_IK, begin, end):
    """numbers[i, k]: how many blocks group i has of key k."""
    T = (len(offsets) - 1) // B
    for i in range(begin, end):
        is_there = np.zeros(T * C, np.bool_)
        for t in range(T):
            for e in range(offsets[t * B + i * LINE], offsets[t * B + min(B, (i + 1) * LINE)]):
                is_there[t * C + channels[e]] = True
        for t in range(T):
            for c in range(C):
                numbers_IK[i, c if by_channel else t] += is_there[t * C + c]


@kernel
def _fill(offsets, channels, counts, B, C, by_channel, firsts_IK, others, x, begin, end):
    """Lay the blocks of groups begin ... end down."""
    T = (len(offsets) - 1) // B
    for i in range(begin, end):
        block = np.full(T * C, -1)
        for t in range(T):
            for e in range(offsets[t * B + i * LINE], offsets[t * B + min(B, (i + 1) * LINE)]):
                block[t * C + channels[e]] = 0
        place_K = firsts_IK[i].copy()
        for t in range(T):
            for c in range(C):
                if block[t * C + c] == 0:
                    key = c if by_channel else t
                    block[t * C + c] = place_K[key]
                    others[place_K[key]] = t if by_channel else c
                    place_K[key] += 1
        for t in range(T):
            for b in range(i * LINE, min(B, (i + 1) * LINE)):
                for e in range(offsets[t * B + b], offsets[t * B + b + 1]):
                    x[block[t * C + channels[e]] * LINE + b - i * LINE] += counts[e]


def blocks(offsets: Tensor, channels: Tensor, counts: Tensor, C: int, B: int, by_channel: bool) -> Blocks:
    """Sort events into blocks."""
    arrays = offsets.numpy(), channels.to(torch.int32).numpy().view(np.uint32)
    groups, threads = -(-B // LINE), torch.get_num_threads()
    keys = C if by_channel else (len(offsets) - 1) // B
    ends = np.zeros(groups * keys + 1, np.int64)
    numbers_IK = ends[1:].reshape(groups, keys)
    in_parts(lambda begin, end: _count(*arrays, B, C, by_channel, numbers_IK, begin, end), groups, threads)
    np.cumsum(ends, out=ends)
    others, x = np.empty(ends[-1], np.uint32), counts.new_zeros(ends[-1] * LINE).numpy()
    arguments = (*arrays, counts.numpy(), B, C, by_channel, ends[:-1].reshape(groups, keys), others, x)
    in_parts(lambda begin, end: _fill(*arguments, begin, end), groups, threads)
    return Blocks(ends, others, x)


class Synapses(NamedTuple):
    """Delays and weights, tile after tile, and how many rows a neuron has: as many steps as its sums may reach."""

    firsts_SCN: np.ndarray  # uint32, (tiles, C, TILE)
    A_SCNK: np.ndarray
    width: int


def synapses(first_NC: Tensor, A_NCK: Tensor, steps: int) -> Synapses:
    """For an input of so many steps; neurons that fill up the last tile have weights of 0."""
    A_NCK = F.pad(A_NCK, (0, A_NCK.shape[2] % 2))  # kernels take two taps at a time
    N, _, K = A_NCK.shape
    S = -(-N // TILE)
    filled = F.pad(first_NC, (0, 0, 0, S * TILE - N)).to(torch.int32), F.pad(A_NCK, (0, 0, 0, 0, 0, S * TILE - N))
    first_SCN, A_SCNK = (each.unflatten(0, (S, TILE)).transpose(1, 2).contiguous() for each in filled)
    width = -(-steps // STEPS) * STEPS + int(first_NC.max()) + K + 1
    return Synapses(first_SCN.numpy().view(np.uint32), A_SCNK.numpy(), width)


@kernel
def _product(firsts, others, x, firsts_SCN, A_SCNK, width, out_TBN, past, tile, begin, end):
    """out of group i and tile s, for begin <= i·S + s < end, by blocks sorted by step."""
    (S, C, _, K), (T, B, N) = A_SCNK.shape, out_TBN.shape
    lags, A = firsts_SCN.reshape(-1), A_SCNK.reshape(-1)
    for part in range(begin, end):
        i, s = part // S, part % S
        tile[:] = 0
        for t in range(past + T):
            for k in range(firsts[i * (past + T) + t], firsts[i * (past + T) + t + 1]):
                x_L = load(x, k * LINE, LINE)
                at = np.uint64((s * C + others[k]) * TILE)
                for n in range(TILE):
                    to = (n * width + t + lags[at]) * LINE
                    for j in range(0, K, 2):
                        w = at * np.uint64(K) + np.uint64(j)
                        sum_L, next_L = load(tile, to, LINE), load(tile, to + LINE, LINE)
                        store(tile, to, add_product(sum_L, A[w], x_L))
                        store(tile, to + LINE, add_product(next_L, A[w + np.uint64(1)], x_L))
                        to += 2 * LINE
                    at += np.uint64(1)
        for t in range(T):
            for b in range(i * LINE, min(B, (i + 1) * LINE)):
                for n in range(min(TILE, N - s * TILE)):
                    out_TBN[t, b, s * TILE + n] = tile[(n * width + past + t) * LINE + b - i * LINE]


def product(events: Blocks, of: Synapses, N: int, B: int, past: int) -> Tensor:
    """(R, N): what the delayed events add."""
    S, groups = len(of.A_SCNK), -(-B // LINE)
    T = (len(events.firsts) - 1) // groups - past
    out_TBN = torch.empty(T, B, N, dtype=torch.from_numpy(of.A_SCNK).dtype)

    def work(begin: int, end: int) -> None:
        tile = out_TBN.new_empty(TILE * of.width * LINE).numpy()
        _product(*events, *of, out_TBN.numpy(), past, tile, begin, end)

    in_parts(work, groups * S, torch.get_num_threads())
    return out_TBN.flatten(0, 1)


@kernel
def _lay_out(gy_TBN, past, rows_INWL, begin, end):
    """rows[i, n, past + t, lane]: gy of groups begin ... end."""
    T, B, N = gy_TBN.shape
    for i in range(begin, end):
        for n in range(0, N, LINE):
            for t in range(T):
                for b in range(i * LINE, min(B, (i + 1) * LINE)):
                    for m in range(n, min(N, n + LINE)):
                        rows_INWL[i, m, past + t, b - i * LINE] = gy_TBN[t, b, m]


def laid_out(gy_RN: Tensor, of: Synapses, B: int, past: int) -> Tensor:
    """The gradient of a product in rows of groups, for all neurons of all tiles, zeros before and after it."""
    gy_TBN = gy_RN.contiguous().view(-1, B, gy_RN.shape[1])
    groups = -(-B // LINE)
    rows_INWL = gy_RN.new_zeros(groups, len(of.A_SCNK) * TILE, of.width, LINE)
    arguments = gy_TBN.numpy(), past, rows_INWL.numpy()
    in_parts(lambda begin, end: _lay_out(*arguments, begin, end), groups, torch.get_num_threads())
    return rows_INWL


@kernel
def _gradient(firsts, others, x, firsts_SCN, rows, groups, width, gA_ISCNK, begin, end):
    """gA[section, s] = Σ x gy over its groups, for begin <= section·S + s < end, by blocks sorted by channel."""
    I, S, C, _, K = gA_ISCNK.shape
    lags = firsts_SCN.reshape(-1)
    for part in range(begin, end):
        section, s = part // S, part % S
        gA_ISCNK[section, s] = 0
        for i in range(section * groups // I, (section + 1) * groups // I):
            for c in range(C):
                k_begin, k_end = firsts[i * C + c], firsts[i * C + c + 1]
                if k_begin == k_end:
                    continue
                for n in range(TILE):
                    lag = ((i * S + s) * TILE + n) * width + lags[np.uint64((s * C + c) * TILE + n)]
                    for j in range(0, K, 2):
                        sum_L, next_L = zeros(rows, LINE), zeros(rows, LINE)
                        for k in range(k_begin, k_end):
                            x_L, row = load(x, k * LINE, LINE), (lag + j + others[k]) * LINE
                            sum_L = add_product(sum_L, x_L, load(rows, row, LINE))
                            next_L = add_product(next_L, x_L, load(rows, row + LINE, LINE))
                        gA_ISCNK[section, s, c, n, j] += total(sum_L)
                        gA_ISCNK[section, s, c, n, j + 1] += total(next_L)


def gradient(events: Blocks, rows_INWL: Tensor, of: Synapses, N: int, num_taps: int) -> Tensor:
    """(N, C, num_taps): the gradient of A."""
    (S, C, _, K), groups = of.A_SCNK.shape, len(rows_INWL)
    sections = -(-groups // SECTION)  # whatever the number of threads: the bits do not go by it
    gA_ISCNK = rows_INWL.new_empty(sections, S, C, TILE, K)
    arguments = (*events, of.firsts_SCN, rows_INWL.numpy(), groups, of.width, gA_ISCNK.numpy())
    in_parts(lambda begin, end: _gradient(*arguments, begin, end), sections * S, torch.get_num_threads())
    gA_SCNK = gA_ISCNK[0] if sections == 1 else gA_ISCNK.sum(0)
    return gA_SCNK.transpose(1, 2).flatten(0, 1)[:N, :, :num_taps]


@kernel
def _input_gradient(firsts_SCN, A_SCNK, rows, width, mask_BC, gs_TBC, room, begin, end):
    """gs of group i and STEPS steps from q·STEPS on, for begin <= i·Q + q < end: Σ A gy over neurons and taps."""
    (S, C, _, K), (T, B, _) = A_SCNK.shape, gs_TBC.shape
    Q, size = -(-T // STEPS), STEPS * LINE
    lags, A = firsts_SCN.reshape(-1), A_SCNK.reshape(-1)
    for part in range(begin, end):
        i, q = part // Q, part % Q
        room[:] = 0
        for s in range(S):
            for c in range(C):
                sum_L = load(room, c * size, 128)
                for n in range(TILE):
                    at = np.uint64((s * C + c) * TILE + n)
                    row = (((i * S + s) * TILE + n) * width + q * STEPS + lags[at]) * LINE
                    for j in range(K):
                        gy_L = load(rows, row, 128)
                        sum_L = add_product(sum_L, A[at * np.uint64(K) + np.uint64(j)], gy_L)
                        row += LINE
                store(room, c * size, sum_L)
        for t in range(q * STEPS, min(T, (q + 1) * STEPS)):
            for b in range(i * LINE, min(B, (i + 1) * LINE)):
                for c in range(C):
                    value = room[c * size + (t - q * STEPS) * LINE + b - i * LINE]
                    gs_TBC[t, b, c] = value if mask_BC is None else value * mask_BC[b, c]


def input_gradient(rows_INWL: Tensor, of: Synapses, mask_BC: Tensor | None, B: int, steps: int) -> Tensor:
    """The gradient of the input of so many steps: (steps·B, C)."""
    C = of.A_SCNK.shape[1]
    gs_TBC = rows_INWL.new_empty(steps, B, C)
    mask = None if mask_BC is None else mask_BC.contiguous().numpy()

    def work(begin: int, end: int) -> None:
        room = gs_TBC.new_empty(C * STEPS * LINE).numpy()
        _input_gradient(of.firsts_SCN, of.A_SCNK, rows_INWL.numpy(), of.width, mask, gs_TBC.numpy(), room, begin, end)

    in_parts(work, len(rows_INWL) * -(-steps // STEPS), torch.get_num_threads())
    return gs_TBC.flatten(0, 1)
