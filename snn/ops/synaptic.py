"""Products with a delay of each synapse on the CPU: an event adds to the steps it reaches, forward and backward.

Rows r = t·B + b, inputs C, outputs N; taps (`first`, K of them) as in `snn.ops.taps`, and `past` as in
`snn.ops.delays`. A_NCK are the weights times the shares of their taps.

Each synapse adds the same events at another place in time, but at the same one for all samples. So LINE samples, a
group, lie side by side as lanes, in rows (neuron, step). What a channel has in a run of steps adds to a run of rows
of a neuron, two taps at a time. A tile of neurons is worked on at a time, for the caches.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from snn.ops.compiled import in_parts, inlined, kernel
from snn.ops.lanes import LINE, add_product, load, store, total, zeros

TILE = 16  # neurons, an even number
STEPS = 8  # whose input gradient is summed in registers at a time
SECTION = 4  # groups, at most, whose share of the weight gradient is one sum


class Runs(NamedTuple):
    """The events of the input: for a group and channel the runs of steps that have any, not two without in between.

    Those of group i and channel c are runs firsts[i·C + c] to firsts[i·C + c + 1] - 1. A run has a row of x for each of
    its steps, and a row of zeros lies before and after it.
    """

    firsts: np.ndarray  # (groups·C + 1,)
    begins: np.ndarray  # (runs,) steps
    lengths: np.ndarray  # (runs,)
    rows: np.ndarray  # (runs,) of x, the first of the run
    x: np.ndarray  # (rows·LINE,)


@kernel
def _mark(offsets, channels, B, T, i, is_there):
    """is_there[c·T + t]: whether group i has an event there."""
    is_there[:] = False
    for t in range(T):
        for e in range(offsets[t * B + i * LINE], offsets[t * B + min(B, (i + 1) * LINE)]):
            is_there[channels[e] * T + t] = True


@kernel
def _count_runs(offsets, channels, B, C, numbers_IC, rows_IC, begin, end):
    """Return how many runs group i has of channel c, and how many rows with that behind each."""
    T = (len(offsets) - 1) // B
    is_there = np.empty(T * C, np.bool_)
    for i in range(begin, end):
        _mark(offsets, channels, B, T, i, is_there)
        for c in range(C):
            last = -3
            for t in range(T):
                if is_there[c * T + t]:
                    begins = t - last > 2
                    numbers_IC[i, c] += begins
                    rows_IC[i, c] += 2 if begins else t - last
                    last = t


@kernel
def _fill_runs(offsets, channels, counts, B, C, firsts_IC, rows_IC, begins, lengths, rows, x, begin, end):
    """Lay the runs of groups begin ... end down."""
    T = (len(offsets) - 1) // B
    is_there, row_of = np.empty(T * C, np.bool_), np.empty(T * C, np.int64)
    for i in range(begin, end):
        _mark(offsets, channels, B, T, i, is_there)
        for c in range(C):
            k, row, last = firsts_IC[i, c] - 1, rows_IC[i, c], -3
            for t in range(T):
                if is_there[c * T + t]:
                    if t - last > 2:
                        k, row = k + 1, row + 1  # behind the zeros
                        begins[k], rows[k] = t, row
                    else:
                        row += t - last - 1
                    lengths[k] = t - begins[k] + 1
                    row_of[c * T + t] = row
                    row, last = row + 1, t
        for t in range(T):
            for b in range(i * LINE, min(B, (i + 1) * LINE)):
                for e in range(offsets[t * B + b], offsets[t * B + b + 1]):
                    x[row_of[channels[e] * T + t] * LINE + b - i * LINE] += counts[e]


def runs(offsets: Tensor, channels: Tensor, counts: Tensor, C: int, B: int) -> Runs:
    """Sort events into runs."""
    arrays = offsets.numpy(), channels.to(torch.int32).numpy().view(np.uint32)
    groups, threads = -(-B // LINE), torch.get_num_threads()
    ends, ends_of_rows = (np.zeros(groups * C + 1, np.int64) for _ in range(2))
    totals = [each[1:].reshape(groups, C) for each in (ends, ends_of_rows)]
    in_parts(lambda begin, end: _count_runs(*arrays, B, C, *totals, begin, end), groups, threads)
    for each in (ends, ends_of_rows):
        np.cumsum(each, out=each)
    x = counts.new_zeros((ends_of_rows[-1] + 1) * LINE).numpy()
    results = *(np.empty(ends[-1], np.int64) for _ in range(3)), x
    firsts = [each[:-1].reshape(groups, C) for each in (ends, ends_of_rows)]
    in_parts(
        lambda begin, end: _fill_runs(*arrays, counts.numpy(), B, C, *firsts, *results, begin, end), groups, threads
    )
    return Runs(ends, *results)


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
def _product(firsts, begins, lengths, rows, x, firsts_SCN, A_SCNK, width, out_TBN, past, tile, begin, end):
    """out of group i and tile s, for begin <= i·S + s < end."""
    S, C, _, K = A_SCNK.shape
    lags, A = firsts_SCN.reshape(-1), A_SCNK.reshape(-1)
    for part in range(begin, end):
        i, s = part // S, part % S
        tile[:] = 0
        for c in range(C):
            for n in range(0, TILE, 2):  # two at a time, so that one's sums need not wait for the other's
                at = np.uint64((s * C + c) * TILE + n)
                for j in range(0, K, 2):
                    w, v = at * np.uint64(K) + np.uint64(j), (at + np.uint64(1)) * np.uint64(K) + np.uint64(j)
                    w_0, w_1, v_0, v_1 = A[w], A[w + np.uint64(1)], A[v], A[v + np.uint64(1)]
                    lag, other_lag = n * width + lags[at] + j, (n + 1) * width + lags[at + np.uint64(1)] + j
                    for k in range(firsts[i * C + c], firsts[i * C + c + 1]):
                        to, other_to = (lag + begins[k]) * LINE, (other_lag + begins[k]) * LINE
                        row, before_L = rows[k] * LINE, zeros(x, LINE)
                        for _ in range(lengths[k] + 1):
                            x_L = load(x, row, LINE)
                            sum_L = add_product(load(tile, to, LINE), w_0, x_L)
                            store(tile, to, add_product(sum_L, w_1, before_L))
                            sum_L = add_product(load(tile, other_to, LINE), v_0, x_L)
                            store(tile, other_to, add_product(sum_L, v_1, before_L))
                            to, other_to, row, before_L = to + LINE, other_to + LINE, row + LINE, x_L
        _hand_out(tile, i, s, width, past, out_TBN)


@inlined
def _hand_out(tile, i, s, width, past, out_TBN):
    """Return what a tile holds for group i to where it belongs."""
    T, B, N = out_TBN.shape
    step, out = np.uint64(width * LINE), out_TBN.reshape(-1)
    for t in range(T):
        for b in range(i * LINE, min(B, (i + 1) * LINE)):
            at, to = np.uint64((past + t) * LINE + b - i * LINE), np.uint64((t * B + b) * N + s * TILE)
            for _ in range(min(TILE, N - s * TILE)):
                out[to] = tile[at]
                at, to = at + step, to + np.uint64(1)


def product(events: Runs, of: Synapses, N: int, B: int, past: int, steps: int) -> Tensor:
    """(R, N): what the delayed events add."""
    S, groups = len(of.A_SCNK), -(-B // LINE)
    out_TBN = torch.empty(steps - past, B, N, dtype=torch.from_numpy(of.A_SCNK).dtype)

    def work(begin: int, end: int) -> None:
        tile = out_TBN.new_empty(TILE * of.width * LINE).numpy()
        _product(*events, *of, out_TBN.numpy(), past, tile, begin, end)

    in_parts(work, groups * S, torch.get_num_threads())
    return out_TBN.flatten(0, 1)


@kernel
def _whole_product(offsets, channels, counts, firsts_SCN, A_SCNK, width, out_TBN, past, room, begin, end):
    """out of samples begin ... end where delays are whole steps: one tap a synapse."""
    (S, C, _, K), (T, B, N) = A_SCNK.shape, out_TBN.shape
    lags, A = firsts_SCN.reshape(-1), A_SCNK.reshape(-1)
    for b in range(begin, end):
        for s in range(S):
            room[:] = 0
            for t in range(past + T):
                for e in range(offsets[t * B + b], offsets[t * B + b + 1]):
                    at = np.uint64((s * C + channels[e]) * TILE)
                    for n in range(TILE):
                        to = np.uint64(n * width + t) + lags[at]
                        room[to] += counts[e] * A[at * np.uint64(K)]
                        at += np.uint64(1)
            for t in range(T):
                for n in range(min(TILE, N - s * TILE)):
                    out_TBN[t, b, s * TILE + n] = room[n * width + past + t]


def whole_product(offsets: Tensor, channels: Tensor, counts: Tensor, of: Synapses, N: int, B: int, past: int) -> Tensor:
    """As `product`, of whole delays: each sum takes its events as they come, step by step, as a stream does."""
    arrays = offsets.numpy(), channels.to(torch.int32).numpy().view(np.uint32), counts.numpy()
    out_TBN = counts.new_empty((len(offsets) - 1) // B - past, B, N)

    def work(begin: int, end: int) -> None:
        room = out_TBN.new_empty(TILE * of.width).numpy()
        _whole_product(*arrays, *of, out_TBN.numpy(), past, room, begin, end)

    in_parts(work, B, torch.get_num_threads())
    return out_TBN.flatten(0, 1)


@kernel
def _lay_out(gy_TBN, past, width, rows, begin, end):
    """rows[((i·M + n)·width + past + t)·LINE + lane] = gy, of groups begin ... end and M neurons; elsewhere zeros."""
    T, B, N = gy_TBN.shape
    step = np.uint64(width * LINE)
    size = len(rows) // -(-B // LINE)
    gy = gy_TBN.reshape(-1)
    for i in range(begin, end):
        rows[i * size : (i + 1) * size] = 0
        for n in range(0, N, LINE):
            for t in range(T):
                for b in range(i * LINE, min(B, (i + 1) * LINE)):
                    to = np.uint64(i * size + (n * width + past + t) * LINE + b - i * LINE)
                    at = np.uint64((t * B + b) * N + n)
                    for _ in range(min(LINE, N - n)):
                        rows[to] = gy[at]
                        to, at = to + step, at + np.uint64(1)


def laid_out(gy_RN: Tensor, of: Synapses, B: int, past: int) -> Tensor:
    """The gradient of a product in rows of groups, for all neurons of all tiles, zeros before and after it."""
    gy_TBN = gy_RN.contiguous().view(-1, B, gy_RN.shape[1])
    groups = -(-B // LINE)
    rows_INWL = gy_RN.new_empty(groups, len(of.A_SCNK) * TILE, of.width, LINE)
    arguments = gy_TBN.numpy(), past, of.width, rows_INWL.view(-1).numpy()
    in_parts(lambda begin, end: _lay_out(*arguments, begin, end), groups, torch.get_num_threads())
    return rows_INWL


@kernel
def _gradient(firsts, begins, lengths, rows, x, firsts_SCN, gy, groups, width, gA_ISCNK, begin, end):
    """gA[section, s] = Σ x gy over its groups, for begin <= section·S + s < end."""
    I, S, C, _, K = gA_ISCNK.shape
    lags = firsts_SCN.reshape(-1)
    for part in range(begin, end):
        section, s = part // S, part % S
        gA_ISCNK[section, s] = 0
        for i in range(section * groups // I, (section + 1) * groups // I):
            for c in range(C):
                if firsts[i * C + c] == firsts[i * C + c + 1]:
                    continue
                for n in range(0, TILE, 2):
                    m, neuron = np.uint64((s * C + c) * TILE + n), (i * S + s) * TILE + n
                    lag, other_lag = neuron * width + lags[m], (neuron + 1) * width + lags[m + np.uint64(1)]
                    for j in range(0, K, 2):
                        w_0, w_1, v_0, v_1 = zeros(x, LINE), zeros(x, LINE), zeros(x, LINE), zeros(x, LINE)
                        for k in range(firsts[i * C + c], firsts[i * C + c + 1]):
                            at, other_at = (lag + j + begins[k]) * LINE, (other_lag + j + begins[k]) * LINE
                            row, before_L = rows[k] * LINE, zeros(x, LINE)
                            for _ in range(lengths[k] + 1):
                                x_L, gy_L, other_L = load(x, row, LINE), load(gy, at, LINE), load(gy, other_at, LINE)
                                w_0, w_1 = add_product(w_0, x_L, gy_L), add_product(w_1, before_L, gy_L)
                                v_0, v_1 = add_product(v_0, x_L, other_L), add_product(v_1, before_L, other_L)
                                at, other_at, row, before_L = at + LINE, other_at + LINE, row + LINE, x_L
                        gA_ISCNK[section, s, c, n, j] += total(w_0)
                        gA_ISCNK[section, s, c, n, j + 1] += total(w_1)
                        gA_ISCNK[section, s, c, n + 1, j] += total(v_0)
                        gA_ISCNK[section, s, c, n + 1, j + 1] += total(v_1)


def gradient(events: Runs, rows_INWL: Tensor, of: Synapses, N: int, num_taps: int) -> Tensor:
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
    lags, A, gs = firsts_SCN.reshape(-1), A_SCNK.reshape(-1), gs_TBC.reshape(-1)
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
                at, to = np.uint64((t - q * STEPS) * LINE + b - i * LINE), np.uint64((t * B + b) * C)
                for c in range(C):
                    gs[to] = room[at] if mask_BC is None else room[at] * mask_BC[b, c]
                    at, to = at + np.uint64(STEPS * LINE), to + np.uint64(1)


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
