"""Products with a delay for each synapse, on the CPU: an event adds to the steps it reaches, forward and backward.

Rows r = t·B + b, inputs C, outputs N; taps (`first`, K of them) as in `snn.ops.taps`, and `past` as in
`snn.ops.delays`. A_KNC are the weights times the shares of their taps.

Each synapse shifts the same events by its own delay, which is the same for all samples. So LINE samples, a group, lie
side by side as lanes, in rows (neuron, step). A row of a channel and the row before it add to one row of a neuron, by
two taps. Kernels work on one tile of neurons and one block of channels at a time, so that both stay in the caches.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from snn.inputs import Entries
from snn.ops.compiled import in_parts, inlined, kernel
from snn.ops.lanes import LINE, add_product, load, scratch, store, total, zeros
from snn.ops.sparse import arrays

TILE = 16  # neurons, an even number
BLOCK = 64  # channels, whose events stay in the caches while all neurons of a tile take them
STEPS = 8  # steps whose input gradient is summed in registers together,
SPAN = STEPS * LINE  # and their lanes
SECTION = 4  # groups, at most, whose share of the weight gradient is one sum


class Rows(NamedTuple):
    """The events of the input. Each group and channel has a row of x for each step with events and for the step after.

    Group i and channel c have rows firsts[i·C + c] to firsts[i·C + c + 1] - 1. Where a step is missing between two
    rows, the first of the two is all zeros.
    """

    firsts: np.ndarray  # (groups·C + 1,) uint64
    places: np.ndarray  # (rows,) uint64, step · LINE
    x: np.ndarray  # (rows·LINE,)


@kernel
def _fill_rows(offsets, channels, counts, B, rows_IC, places, x, begin, end):
    """Write the rows of groups begin ... end; rows_IC has the first of each channel. Without x, only count them."""
    for i in range(begin, end):
        row_C, last_C = rows_IC[i] if x is None else rows_IC[i] - 2, np.full(rows_IC.shape[1], -2)
        for t in range((len(offsets) - 1) // B):
            for b in range(i * LINE, min(B, (i + 1) * LINE)):
                for e in range(offsets[t * B + b], offsets[t * B + b + 1]):
                    c = channels[e]
                    if t > last_C[c]:
                        row_C[c] += min(t - last_C[c], 2)
                        last_C[c] = t
                        if x is not None:
                            places[row_C[c]], places[row_C[c] + 1] = t * LINE, (t + 1) * LINE
                    if x is not None:
                        x[row_C[c] * LINE + b - i * LINE] += counts[e]


def in_rows(events: Entries, C: int, B: int) -> Rows:
    """Sort events into rows."""
    entries = arrays(events, events.counts.dtype)
    groups = -(-B // LINE)
    firsts = np.zeros(groups * C + 1, np.int64)
    in_parts(_fill_rows, (*entries, B, firsts[1:].reshape(groups, C), None, None), groups)
    np.cumsum(firsts, out=firsts)
    places, x = np.empty(firsts[-1], np.uint64), events.counts.new_zeros(firsts[-1] * LINE).numpy()
    arguments = *entries, B, firsts[:-1].reshape(groups, C), places, x
    in_parts(_fill_rows, arguments, groups)
    return Rows(firsts.view(np.uint64), places, x)


class Synapses(NamedTuple):
    """Delays and weights, tile after tile, and `width`, the rows of a neuron: one for each step its sums may reach."""

    firsts_SCN: np.ndarray  # uint32, (tiles, C, TILE)
    A_SCNK: np.ndarray
    width: int


def synapses(first_NC: Tensor, A_KNC: Tensor, steps: int) -> Synapses:
    """Return the synapses for an input of `steps` steps; neurons that pad the last tile have weights of 0."""
    K, N, _ = A_KNC.shape
    K += K % 2  # kernels take two taps at a time
    S = -(-N // TILE)
    filled = F.pad(first_NC, (0, 0, 0, S * TILE - N)), F.pad(A_KNC, (0, 0, 0, S * TILE - N, 0, K - len(A_KNC)))
    first_SNC, A_KSNC = (each.unflatten(-2, (S, TILE)) for each in filled)
    first_SCN, A_SCNK = first_SNC.transpose(1, 2).to(torch.int32).contiguous(), A_KSNC.permute(1, 3, 2, 0).contiguous()
    width = -(-steps // STEPS) * STEPS + int(first_NC.max()) + K + 1
    return Synapses(first_SCN.numpy().view(np.uint32), A_SCNK.numpy(), width)


@kernel
def _product(firsts, places, x, firsts_SCN, A_SCNK, width, out_TBN, past, begin, end):
    """Compute `out` of group i and tile s, for begin <= i·S + s < end."""
    S, C, _, K = A_SCNK.shape
    lags, A, tile = firsts_SCN.reshape(-1), A_SCNK.reshape(-1), scratch(out_TBN, TILE * width * LINE)
    for part in range(begin, end):
        i, s = part // S, part % S
        tile[:] = 0
        for block in range(0, C, BLOCK):
            for n in range(0, TILE, 2):  # two at a time: the sums of one need not wait for those of the other
                for c in range(block, min(C, block + BLOCK)):
                    at = np.uint64((s * C + c) * TILE + n)
                    for j in range(0, K, 2):
                        w, v = at * np.uint64(K) + np.uint64(j), (at + np.uint64(1)) * np.uint64(K) + np.uint64(j)
                        w_0, w_1, v_0, v_1 = A[w], A[w + np.uint64(1)], A[v], A[v + np.uint64(1)]
                        lag = (np.uint64(n * width + j) + lags[at]) * np.uint64(LINE)
                        other_lag = (np.uint64((n + 1) * width + j) + lags[at + np.uint64(1)]) * np.uint64(LINE)
                        before_L = zeros(x, LINE)
                        for row in range(firsts[i * C + c], firsts[i * C + c + 1]):
                            x_L = load(x, row * np.uint64(LINE), LINE)
                            to, other_to = lag + places[row], other_lag + places[row]
                            sum_L = add_product(load(tile, to, LINE), w_0, x_L)
                            store(tile, to, add_product(sum_L, w_1, before_L))
                            sum_L = add_product(load(tile, other_to, LINE), v_0, x_L)
                            store(tile, other_to, add_product(sum_L, v_1, before_L))
                            before_L = x_L
        _hand_out(tile, i, s, width, past, out_TBN)


@inlined
def _hand_out(tile, i, s, width, past, out_TBN):
    """Copy what a tile holds for group i to its place in the output."""
    T, B, N = out_TBN.shape
    step, out = np.uint64(width * LINE), out_TBN.reshape(-1)
    for t in range(T):
        for b in range(i * LINE, min(B, (i + 1) * LINE)):
            at, to = np.uint64((past + t) * LINE + b - i * LINE), np.uint64((t * B + b) * N + s * TILE)
            for _ in range(min(TILE, N - s * TILE)):
                out[to] = tile[at]
                at, to = at + step, to + np.uint64(1)


def product(events: Rows, of: Synapses, N: int, B: int, past: int, steps: int) -> Tensor:
    """Return the product of the delayed events and the weights, (R, N)."""
    S, groups = len(of.A_SCNK), -(-B // LINE)
    out_TBN = torch.empty(steps - past, B, N, dtype=torch.from_numpy(of.A_SCNK).dtype)
    in_parts(_product, (*events, *of, out_TBN.numpy(), past), groups * S)
    return out_TBN.flatten(0, 1)


@inlined
def whole_step(x_1N, t, channels, counts, number, W_CN, places_CN, sums_M):
    """Set x to what is due at step t, after adding the entries of this step (see `snn.ops.drives.Drive`).

    Delays are whole steps. places_CN is delay · N + n: where an entry adds, from the sums of step t on, in a ring.
    """
    N, M = np.uint64(x_1N.shape[1]), np.uint64(len(sums_M))
    now = np.uint64(t) * N % M
    for e in range(number):
        c = np.uint64(channels[e])
        for n in range(N):
            to = now + places_CN[c, n]
            sums_M[to - M if to >= M else to] += counts[e] * W_CN[c, n]
    for n in range(N):
        x_1N[0, n], sums_M[now + n] = sums_M[now + n], 0


@kernel
def _whole_product(offsets, channels, counts, W_CN, places_CN, sums_M, out_TBN, past, begin, end):
    """Compute `out` of samples begin ... end, step by step."""
    T, B, N = out_TBN.shape
    sums_M, x_1N = np.empty_like(sums_M), np.empty((1, N), out_TBN.dtype)  # its own, as each thread needs one
    for b in range(begin, end):
        sums_M[:] = 0
        for t in range(past + T):
            first, last = offsets[t * B + b], offsets[t * B + b + 1]
            whole_step(x_1N, t, channels[first:last], counts[first:last], last - first, W_CN, places_CN, sums_M)
            if t >= past:
                out_TBN[t - past, b] = x_1N[0]


def whole_synapses(first_NC: Tensor, W_NC: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (W_CN, places_CN, sums_M) for `whole_step`."""
    N = len(W_NC)
    places_NC = first_NC * N + torch.arange(N)[:, None]
    sums_M = W_NC.new_zeros((int(first_NC.max()) + 1) * N)
    return W_NC.detach().T.contiguous().numpy(), places_NC.T.contiguous().numpy().astype(np.uint32), sums_M.numpy()


def whole_product(events: Entries, first_NC: Tensor, W_NC: Tensor, B: int, past: int) -> Tensor:
    """Return what `product` does, for delays of whole steps, as a stream computes it."""
    out_TBN = events.counts.new_empty((len(events.offsets) - 1) // B - past, B, len(W_NC))
    arguments = (*arrays(events, events.counts.dtype), *whole_synapses(first_NC, W_NC), out_TBN.numpy(), past)
    in_parts(_whole_product, arguments, B)
    return out_TBN.flatten(0, 1)


@kernel
def _lay_out(gy_TBN, past, width, rows, begin, end):
    """Set rows[((i·M + n)·width + past + t)·LINE + lane] = gy for groups begin ... end and M neurons; 0 elsewhere."""
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
    """Return the gradient of a product in rows of groups, for all neurons of all tiles, with zeros before and after."""
    gy_TBN = gy_RN.contiguous().view(-1, B, gy_RN.shape[1])
    groups = -(-B // LINE)
    rows_INWL = gy_RN.new_empty(groups, len(of.A_SCNK) * TILE, of.width, LINE)
    arguments = gy_TBN.numpy(), past, of.width, rows_INWL.view(-1).numpy()
    in_parts(_lay_out, arguments, groups)
    return rows_INWL


@kernel
def _gradient(firsts, places, x, firsts_SCN, gy, groups, width, gA_ISCNK, begin, end):
    """Set gA[section, s] of channel block p to Σ x gy over its groups, for begin <= (section·S + s)·P + p < end."""
    I, S, C, _, K = gA_ISCNK.shape
    P, lags = -(-C // BLOCK), firsts_SCN.reshape(-1)
    for part in range(begin, end):
        section, s, block = part // P // S, part // P % S, part % P * BLOCK
        gA_CNK = gA_ISCNK[section, s]
        gA_CNK[block : block + BLOCK] = 0
        for i in range(section * groups // I, (section + 1) * groups // I):
            for n in range(0, TILE, 2):
                for c in range(block, min(C, block + BLOCK)):
                    m, neuron = np.uint64((s * C + c) * TILE + n), (i * S + s) * TILE + n
                    for j in range(0, K, 2):
                        lag = (np.uint64(neuron * width + j) + lags[m]) * np.uint64(LINE)
                        other_lag = (np.uint64((neuron + 1) * width + j) + lags[m + np.uint64(1)]) * np.uint64(LINE)
                        w_0 = w_1 = v_0 = v_1 = before_L = zeros(x, LINE)
                        for row in range(firsts[i * C + c], firsts[i * C + c + 1]):
                            x_L = load(x, row * np.uint64(LINE), LINE)
                            gy_L, other_L = load(gy, lag + places[row], LINE), load(gy, other_lag + places[row], LINE)
                            w_0, w_1 = add_product(w_0, x_L, gy_L), add_product(w_1, before_L, gy_L)
                            v_0, v_1 = add_product(v_0, x_L, other_L), add_product(v_1, before_L, other_L)
                            before_L = x_L
                        gA_CNK[c, n, j] += total(w_0)
                        gA_CNK[c, n, j + 1] += total(w_1)
                        gA_CNK[c, n + 1, j] += total(v_0)
                        gA_CNK[c, n + 1, j + 1] += total(v_1)


def gradient(events: Rows, rows_INWL: Tensor, of: Synapses, N: int, num_taps: int) -> Tensor:
    """Return the gradient of A, (num_taps, N, C)."""
    (S, C, _, K), groups = of.A_SCNK.shape, len(rows_INWL)
    sections = -(-groups // SECTION)  # does not depend on the number of threads, so neither do the bits
    gA_ISCNK = rows_INWL.new_empty(sections, S, C, TILE, K)
    arguments = (*events, of.firsts_SCN, rows_INWL.numpy(), groups, of.width, gA_ISCNK.numpy())
    parts = sections * S * -(-C // BLOCK)
    in_parts(_gradient, arguments, parts)
    gA_SCNK = gA_ISCNK[0] if sections == 1 else gA_ISCNK.sum(0)
    return gA_SCNK.permute(3, 0, 2, 1).flatten(1, 2)[:num_taps, :N]


@kernel
def _input_gradient(firsts_SCN, A_SCNK, rows, width, mask_BC, gs_TBC, begin, end):
    """Set gs = Σ A gy over neurons and taps, of group i and STEPS steps from q·STEPS on, for begin <= i·Q + q < end."""
    (S, C, _, K), (T, B, _) = A_SCNK.shape, gs_TBC.shape
    Q = -(-T // STEPS)
    lags, A, gs = firsts_SCN.reshape(-1), A_SCNK.reshape(-1), gs_TBC.reshape(-1)
    room = scratch(gs_TBC, C * SPAN)
    for part in range(begin, end):
        i, q = part // Q, part % Q
        room[:] = 0
        for s in range(S):
            for c in range(C):
                sum_L = load(room, c * SPAN, SPAN)
                for n in range(TILE):
                    at = np.uint64((s * C + c) * TILE + n)
                    row = (((i * S + s) * TILE + n) * width + q * STEPS + lags[at]) * LINE
                    for j in range(0, K, 2):
                        w = at * np.uint64(K) + np.uint64(j)
                        gy_L, next_L = load(rows, row, SPAN), load(rows, row + LINE, SPAN)
                        sum_L = add_product(add_product(sum_L, A[w], gy_L), A[w + np.uint64(1)], next_L)
                        row += 2 * LINE
                store(room, c * SPAN, sum_L)
        for t in range(q * STEPS, min(T, (q + 1) * STEPS)):
            for b in range(i * LINE, min(B, (i + 1) * LINE)):
                at, to = np.uint64((t - q * STEPS) * LINE + b - i * LINE), np.uint64((t * B + b) * C)
                for c in range(C):
                    gs[to] = room[at] if mask_BC is None else room[at] * mask_BC[b, c]
                    at, to = at + np.uint64(SPAN), to + np.uint64(1)


def input_gradient(rows_INWL: Tensor, of: Synapses, mask_BC: Tensor | None, B: int, steps: int) -> Tensor:
    """Return the gradient of the input of `steps` steps, (steps·B, C)."""
    C = of.A_SCNK.shape[1]
    gs_TBC = rows_INWL.new_empty(steps, B, C)
    mask = None if mask_BC is None else mask_BC.contiguous().numpy()
    arguments = of.firsts_SCN, of.A_SCNK, rows_INWL.numpy(), of.width, mask, gs_TBC.numpy()
    in_parts(_input_gradient, arguments, len(rows_INWL) * -(-steps // STEPS))
    return gs_TBC.flatten(0, 1)
