"""The neurons of `snn.ops.reference` compiled for the CPU by numba, equal to it in every bit of spikes, h and states.

Layout: samples and neurons are one axis of M = B·N columns, m = b·N + n. A tile of columns walks through all steps
while its states lie in a scratch row each, in the caches next to the core, and for a few steps at a time a line of them
in registers; only x, y and h stream through memory. Arguments that a neuron or a call does not have are None, and numba
compiles a variant without them.

Order of operations and the absence of fastmath are what keeps the bits: do not contract, do not reorder.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from snn.ops.compiled import in_parts, inlined, kernel
from snn.ops.lanes import CACHE_LINE_BYTES, LINE, fence, load, load_part, store, store_part, store_past, where, zeros
from snn.ops.reference import SURROGATE_SLOPE, Dynamics, State, Values

TILE = 512  # columns, a multiple of LINE
STEPS = 4  # at a time in registers; of more steps, the rows of memory would crowd each other out of the cache
STRIDE = TILE + 16  # between scratch rows; the odd cache lines keep equal columns of two rows off one cache set

# Scratch rows. Values: lam_m, 1 - lam_m, lam_s, lam_w, a, b.
LAM_M, REST_M, LAM_S, LAM_W, A, B = (row * STRIDE for row in range(6))
# Forward: states.
V, I, W, Z = (row * STRIDE for row in range(6, 10))
FORWARD_SCRATCH = 10 * STRIDE
# Backward: gradients of the states, g of the step after, sums over the steps after, gradients of the values.
GV, GI, GW, GZ, G, P_I, Q_I, P_W, Q_W, D_LAM_M, D_LAM_S, D_LAM_W, D_A, D_B = (row * STRIDE for row in range(6, 20))
BACKWARD_SCRATCH = 20 * STRIDE

PAST_ABOVE_BYTES = 1 << 21  # a larger result goes past the caches, which mostly lose it before it is read again
SERIAL_BELOW = 1 << 15  # neuron-steps: less is done before a second thread has woken up


@inlined
def _copy(to, source, size):
    """Places counted from 0 of slices: with any other index numba asks each time whether it is negative."""
    for j in range(size):
        to[j] = source[j]


@inlined
def load_values(s, m, width, lam_m, lam_s, lam_w, a, b):
    """Lay the values of columns m... into scratch; column m is neuron m mod N, as there are N values."""
    N = lam_m.size
    n, j = m % N, 0
    while j < width:
        run = min(N - n, width - j)  # up to the last neuron
        _copy(s[LAM_M + j :], lam_m[n:], run)
        for k in range(run):
            s[REST_M + j + k] = s.dtype.type(1) - s[LAM_M + j + k]
        if lam_s is not None:
            _copy(s[LAM_S + j :], lam_s[n:], run)
        if lam_w is not None:
            _copy(s[LAM_W + j :], lam_w[n:], run)
            _copy(s[A + j :], a[n:], run)
            _copy(s[B + j :], b[n:], run)
        n, j = 0, j + run


@inlined
def forward_steps(
    x_TM, fed, y_TM, h_TM, s, m, width, begin, end, current, adaptation, theta, soft, strict, past
):  # fmt: skip
    """Steps begin ... end of the tile m ... m + width, in the reference's order of operations.

    fed: the input of that tile, for one step of a recurrent layer, in place of x. past: write past the caches.
    """
    zero, one = s.dtype.type(0), s.dtype.type(1)
    M = y_TM.shape[1]
    for j in range(0, width, LINE):
        left = width - j
        lam_m, rest_m, v = load(s, LAM_M + j, LINE), load(s, REST_M + j, LINE), load(s, V + j, LINE)
        if current is not None:
            lam_s, i = load(s, LAM_S + j, LINE), load(s, I + j, LINE)
        if adaptation is not None:
            lam_w, w, z = load(s, LAM_W + j, LINE), load(s, W + j, LINE), load(s, Z + j, LINE)
            a, b = load(s, A + j, LINE), load(s, B + j, LINE)
        for t in range(begin, end):
            x = load_part(x_TM, t * M + m + j, left, LINE) if fed is None else load_part(fed, j, left, LINE)
            drive = x if current is None else i
            if adaptation is not None:
                drive = drive - w
            potential = lam_m * v + rest_m * drive
            u = potential - theta
            fired = u > zero if strict else u >= zero
            spike = where(fired, one, zeros(s, LINE))
            v = where(fired, u if soft else zeros(s, LINE), potential)
            if current is not None:
                i = lam_s * i + x
            if adaptation is not None:
                w = lam_w * w + z
                z = a * potential + b * spike
            if past:
                store_past(y_TM, t * M + m + j, spike)
            else:
                store_part(y_TM, t * M + m + j, left, spike)
            if h_TM is not None:
                if past:
                    store_past(h_TM, t * M + m + j, potential)
                else:
                    store_part(h_TM, t * M + m + j, left, potential)
        store(s, V + j, v)
        if current is not None:
            store(s, I + j, i)
        if adaptation is not None:
            store(s, W + j, w)
            store(s, Z + j, z)


@inlined
def _backward_steps(
    gy_TM, gy_fed, gh_TM, x_TM, h_TM, gx_TM, s, m, width, begin, end,
    learned, current, adaptation, theta, soft, strict, past,
):  # fmt: skip
    """As `forward_steps`, backwards from step end - 1 to begin.

    gy_fed: for one step of a recurrent layer, in place of gy, that and what comes back through its weights. learned:
    not None if the gradients of the values are wanted, too.

    i and w are not stored, but linear in what is: a gradient Σ_n g_n i_{n-1} is Σ_k x_k P_k, with
    P_k = Σ_{n>k} λ_s^{n-1-k} g_n kept up on the way back; Q likewise for the gradients of i, and both for w, where
    z_k takes the place of x_k and comes in one step later.
    """
    zero, one, slope = s.dtype.type(0), s.dtype.type(1), s.dtype.type(SURROGATE_SLOPE)
    M = h_TM.shape[1]
    for j in range(0, width, LINE):
        left = width - j
        lam_m, rest_m, gv = load(s, LAM_M + j, LINE), load(s, REST_M + j, LINE), load(s, GV + j, LINE)
        if current is not None:
            lam_s, gi = load(s, LAM_S + j, LINE), load(s, GI + j, LINE)
        if adaptation is not None:
            lam_w, gw, gz = load(s, LAM_W + j, LINE), load(s, GW + j, LINE), load(s, GZ + j, LINE)
            a, b = load(s, A + j, LINE), load(s, B + j, LINE)
        if learned is not None:
            g, d_lam_m = load(s, G + j, LINE), load(s, D_LAM_M + j, LINE)
            if current is not None:
                p_i, q_i, d_lam_s = load(s, P_I + j, LINE), load(s, Q_I + j, LINE), load(s, D_LAM_S + j, LINE)
            if adaptation is not None:
                p_w, q_w, d_lam_w = load(s, P_W + j, LINE), load(s, Q_W + j, LINE), load(s, D_LAM_W + j, LINE)
                d_a, d_b = load(s, D_A + j, LINE), load(s, D_B + j, LINE)
        for t in range(end - 1, begin - 1, -1):
            potential = load_part(h_TM, t * M + m + j, left, LINE)
            u = potential - theta
            fired = u > zero if strict else u >= zero
            spike = where(fired, one, zeros(s, LINE))
            gs = load_part(gy_TM, t * M + m + j, left, LINE) if gy_fed is None else load_part(gy_fed, j, left, LINE)
            if learned is not None:
                d_lam_m = d_lam_m + g * where(fired, u if soft else zeros(s, LINE), potential)
                if adaptation is not None:
                    z = a * potential + b * spike
                    d_lam_m = d_lam_m + z * p_w
                    d_lam_w = d_lam_w + z * q_w
                    p_w = g + lam_w * p_w
                    # the gradient of the last z is not that of a later w
                    q_w = gz + lam_w * q_w if t < len(h_TM) - 1 else zeros(s, LINE)
                    d_a = d_a + gz * potential
                    d_b = d_b + gz * spike
            if adaptation is not None:
                gs = gs + b * gz
            reach = one + slope * abs(u)
            g = gs / (reach * reach) + where(fired, gv if soft else zeros(s, LINE), gv)
            if gh_TM is not None:
                g = g + load_part(gh_TM, t * M + m + j, left, LINE)
            if adaptation is not None:
                g = g + a * gz
            g_drive = rest_m * g
            if learned is not None:
                x = load_part(x_TM, t * M + m + j, left, LINE)
                if current is None:
                    d_lam_m = d_lam_m - g * x
                else:
                    d_lam_m = d_lam_m - x * p_i
                    d_lam_s = d_lam_s + x * q_i
                    p_i = g + lam_s * p_i
                    q_i = gi + lam_s * q_i
            gv = lam_m * g
            if adaptation is not None:
                gz = gw
                gw = lam_w * gw - g_drive
            gx = g_drive if current is None else gi
            if past:
                store_past(gx_TM, t * M + m + j, gx)
            else:
                store_part(gx_TM, t * M + m + j, left, gx)
            if current is not None:
                gi = lam_s * gi + g_drive
        store(s, GV + j, gv)
        if current is not None:
            store(s, GI + j, gi)
        if adaptation is not None:
            store(s, GW + j, gw)
            store(s, GZ + j, gz)
        if learned is not None:
            store(s, G + j, g)
            store(s, D_LAM_M + j, d_lam_m)
            if current is not None:
                store(s, P_I + j, p_i)
                store(s, Q_I + j, q_i)
                store(s, D_LAM_S + j, d_lam_s)
            if adaptation is not None:
                store(s, P_W + j, p_w)
                store(s, Q_W + j, q_w)
                store(s, D_LAM_W + j, d_lam_w)
                store(s, D_A + j, d_a)
                store(s, D_B + j, d_b)


@inlined
def add_rows(out, c, rows_KN, picked):
    """out += c @ rows, left out where c is zero: spikes are sparse. How many are not; `picked` is room for them."""
    count = 0
    for k in range(c.size):
        if c[k] != 0:
            picked[count] = k
            count += 1
    done = 0
    # Four rows at a time, so that `out` is loaded and stored once for four products.
    while done + 4 <= count:
        k0, k1, k2, k3 = picked[done], picked[done + 1], picked[done + 2], picked[done + 3]
        c0, c1, c2, c3 = c[k0], c[k1], c[k2], c[k3]
        row0, row1, row2, row3 = rows_KN[k0], rows_KN[k1], rows_KN[k2], rows_KN[k3]
        for j in range(out.size):
            out[j] = out[j] + c0 * row0[j] + c1 * row1[j] + c2 * row2[j] + c3 * row3[j]
        done += 4
    while done < count:
        c0, row0 = c[picked[done]], rows_KN[picked[done]]
        for j in range(out.size):
            out[j] += c0 * row0[j]
        done += 1
    return count


@kernel
def forward_columns(
    x_TM, y_TM, h_TM, total_TM, v, i, w, z, first_DM, VT_NN,
    lam_m, lam_s, lam_w, a, b, theta, soft, strict, past, group, begin, end,
):  # fmt: skip
    """Groups begin ... end of `group` columns; a recurrent layer's group is a sample. States are updated in place."""
    T, M = x_TM.shape
    theta = x_TM.dtype.type(theta)
    s = np.empty(-(-group // TILE) * FORWARD_SCRATCH, x_TM.dtype)
    row = np.empty(group, x_TM.dtype)
    picked = np.empty(group, np.int64)
    for m in range(begin * group, min(end * group, M), group):
        size = min(group, M - m)
        for c in range(0, size, TILE):
            r = s[c // TILE * FORWARD_SCRATCH :]
            width = min(TILE, size - c)
            load_values(r, m + c, width, lam_m, lam_s, lam_w, a, b)
            _copy(r[V:], v[m + c :], width)
            if i is not None:
                _copy(r[I:], i[m + c :], width)
            if w is not None:
                _copy(r[W:], w[m + c :], width)
                _copy(r[Z:], z[m + c :], width)
        for t in range(0, T, STEPS if VT_NN is None else 1):
            if VT_NN is not None:
                D = len(first_DM)
                for j in range(size):
                    row[j] = 0
                add_rows(row, first_DM[t, m : m + size] if t < D else y_TM[t - D, m : m + size], VT_NN, picked)
                for j in range(size):
                    row[j] = x_TM[t, m + j] + row[j]
                    if total_TM is not None:
                        total_TM[t, m + j] = row[j]
            for c in range(0, size, TILE):
                r, width = s[c // TILE * FORWARD_SCRATCH :], min(TILE, size - c)
                if VT_NN is None:  # two calls, as numba does not know before running whether `None if ... else` is None
                    end_t = min(t + STEPS, T)
                    forward_steps(x_TM, None, y_TM, h_TM, r, m + c, width, t, end_t, i, w, theta, soft, strict, past)
                else:
                    fed = row[c : c + width]
                    forward_steps(x_TM, fed, y_TM, h_TM, r, m + c, width, t, t + 1, i, w, theta, soft, strict, past)
        for c in range(0, size, TILE):
            r = s[c // TILE * FORWARD_SCRATCH :]
            width = min(TILE, size - c)
            _copy(v[m + c :], r[V:], width)
            if i is not None:
                _copy(i[m + c :], r[I:], width)
            if w is not None:
                _copy(w[m + c :], r[W:], width)
                _copy(z[m + c :], r[Z:], width)
    fence()


@kernel
def backward_columns(
    gy_TM, gh_TM, x_TM, h_TM, gx_TM, sums_KM, gv, gi, gw, gz, gfirst_DM, v, i, w, z, V_NN,
    lam_m, lam_s, lam_w, a, b, theta, soft, strict, past, group, begin, end,
):  # fmt: skip
    """As `forward_columns`, in reverse. State gradients are updated in place, those of the values go to sums."""
    T, M = h_TM.shape
    theta = h_TM.dtype.type(theta)
    s = np.empty(-(-group // TILE) * BACKWARD_SCRATCH, h_TM.dtype)
    row = np.empty(group, h_TM.dtype)
    picked = np.empty(group, np.int64)
    for m in range(begin * group, min(end * group, M), group):
        size = min(group, M - m)
        for c in range(0, size, TILE):
            r = s[c // TILE * BACKWARD_SCRATCH :]
            for j in range(GV, BACKWARD_SCRATCH):
                r[j] = 0
            width = min(TILE, size - c)
            load_values(r, m + c, width, lam_m, lam_s, lam_w, a, b)
            for j in range(width):
                r[GV + j] = gv[m + c + j]
                if gi is not None:
                    r[GI + j] = gi[m + c + j]
                if gw is not None:
                    r[GW + j] = gw[m + c + j]
                    r[GZ + j] = gz[m + c + j]
        for t in range(T, 0, -STEPS if V_NN is None else -1):
            if V_NN is not None:
                D = len(gfirst_DM)
                for j in range(size):
                    row[j] = gy_TM[t - 1, m + j]
                if t - 1 + D < T:
                    add_rows(row, gx_TM[t - 1 + D, m : m + size], V_NN, picked)
            for c in range(0, size, TILE):
                r, width = s[c // TILE * BACKWARD_SCRATCH :], min(TILE, size - c)
                if V_NN is None:
                    _backward_steps(
                        gy_TM, None, gh_TM, x_TM, h_TM, gx_TM, r, m + c, width, max(t - STEPS, 0), t,
                        sums_KM, gi, gw, theta, soft, strict, past,
                    )  # fmt: skip
                else:
                    _backward_steps(
                        gy_TM, row[c : c + width], gh_TM, x_TM, h_TM, gx_TM, r, m + c, width, t - 1, t,
                        sums_KM, gi, gw, theta, soft, strict, past,
                    )  # fmt: skip
        if V_NN is not None:
            for d in range(min(len(gfirst_DM), T)):
                add_rows(gfirst_DM[d, m : m + size], gx_TM[d, m : m + size], V_NN, picked)
        for c in range(0, size, TILE):
            r = s[c // TILE * BACKWARD_SCRATCH :]
            for j in range(min(TILE, size - c)):
                k = m + c + j
                if sums_KM is not None:  # the initial state, as `_backward_steps` for the stored steps
                    sums_KM[0, k] = r[D_LAM_M + j] + r[G + j] * v[k]
                    if i is not None:
                        sums_KM[0, k] -= i[k] * r[P_I + j]
                        sums_KM[1, k] = r[D_LAM_S + j] + i[k] * r[Q_I + j]
                    if w is not None:
                        p = r[G + j] + r[LAM_W + j] * r[P_W + j]
                        q = r[GZ + j] + r[LAM_W + j] * r[Q_W + j]
                        sums_KM[0, k] += z[k] * r[P_W + j] + w[k] * p
                        sums_KM[2, k] = r[D_LAM_W + j] + z[k] * r[Q_W + j] + w[k] * q
                        sums_KM[3, k] = r[D_A + j]
                        sums_KM[4, k] = r[D_B + j]
                gv[k] = r[GV + j]
                if gi is not None:
                    gi[k] = r[GI + j]
                if gw is not None:
                    gw[k] = r[GW + j]
                    gz[k] = r[GZ + j]
    fence()


def _run(function: Callable, arguments: tuple, results: tuple[Tensor | None, ...], recurrent: bool) -> None:
    """Call a kernel on all groups of columns. Results (T, B, N) do not depend on the number of threads."""
    tensors = [tensor for tensor in results if tensor is not None]
    T, B, N = tensors[0].shape
    group = N if recurrent else TILE
    groups = -(-B * N // group)
    threads = 1 if T * B * N < SERIAL_BELOW else min(torch.get_num_threads(), groups)
    # A recurrent layer reads at once what it wrote. Past the caches go whole lines of them; as M is a multiple of LINE,
    # all rows begin one if the first does.
    past = not recurrent and tensors[0].nbytes > PAST_ABOVE_BYTES and B * N % LINE == 0
    past = past and all(tensor.data_ptr() % CACHE_LINE_BYTES == 0 for tensor in tensors)
    in_parts(lambda begin, end: function(*arguments, past, group, begin, end), groups, threads)


def _columns(tensor: Tensor | None) -> np.ndarray | None:
    """(..., B, N) as (..., M), without a copy."""
    return None if tensor is None else tensor.detach().view(*tensor.shape[:-2], -1).numpy()


def _constants(values: Values, neuron: Dynamics) -> tuple:
    arrays = (None if value is None else value.detach().numpy() for value in values)
    return *arrays, neuron.theta, neuron.reset == "soft", neuron.spike_first


def forward(
    x_TBN: Tensor,
    y_TBN: Tensor,
    h_TBN: Tensor | None,
    total_TBN: Tensor | None,
    state: State,
    first_DBN: Tensor | None,
    values: Values,
    neuron: Dynamics,
    V_NN: Tensor | None,
) -> None:
    """See `snn.ops.fused.Backend`."""
    tensors = (x_TBN, y_TBN, h_TBN, total_TBN, state.v, state.i, state.w, state.z, first_DBN)
    VT_NN = None if V_NN is None else V_NN.detach().T.contiguous().numpy()
    arguments = (*map(_columns, tensors), VT_NN, *_constants(values, neuron))
    _run(forward_columns, arguments, (y_TBN, h_TBN), V_NN is not None)


def backward(
    gy_TBN: Tensor,
    gh_TBN: Tensor | None,
    x_TBN: Tensor | None,
    h_TBN: Tensor,
    gx_TBN: Tensor,
    sums_KBN: Tensor | None,
    gstate: State,
    gfirst_DBN: Tensor | None,
    state: State,
    values: Values,
    neuron: Dynamics,
    V_NN: Tensor | None,
) -> None:
    """See `snn.ops.fused.Backend`."""
    tensors = (gy_TBN, gh_TBN, x_TBN, h_TBN, gx_TBN, sums_KBN, gstate.v, gstate.i, gstate.w, gstate.z, gfirst_DBN)
    tensors += (state.v, state.i, state.w, state.z)
    weights = None if V_NN is None else V_NN.detach().numpy()
    arguments = (*map(_columns, tensors), weights, *_constants(values, neuron))
    _run(backward_columns, arguments, (gx_TBN,), V_NN is not None)
