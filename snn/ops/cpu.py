"""The neurons of `snn.ops.reference` compiled for the CPU by numba, equal to it in every bit of spikes, h and states.

Layout: samples and neurons are one axis of M = B·N columns, m = b·N + n. A tile of columns walks through all steps
while its states lie in a scratch row each, in the first-level cache; only x, y and h stream through memory. Arguments
that a neuron or a call does not have are None, and numba compiles a variant without them.

Order of operations and the absence of fastmath are what keeps the bits: do not contract, do not reorder.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from snn.ops.compiled import in_parts, inlined, kernel
from snn.ops.reference import SURROGATE_SLOPE, Dynamics, State, Values

TILE = 512  # columns
STRIDE = TILE + 16  # between scratch rows; the odd cache lines keep equal columns of two rows off one cache set

# Scratch rows. Values: lam_m, 1 - lam_m, lam_s, lam_w, a, b.
LAM_M, REST_M, LAM_S, LAM_W, A, B = (row * STRIDE for row in range(6))
# Forward: states.
V, I, W, Z = (row * STRIDE for row in range(6, 10))
FORWARD_SCRATCH = 10 * STRIDE
# Backward: gradients of the states, g of the step after, sums over the steps after, gradients of the values.
GV, GI, GW, GZ, G, P_I, Q_I, P_W, Q_W, D_LAM_M, D_LAM_S, D_LAM_W, D_A, D_B = (row * STRIDE for row in range(6, 20))
BACKWARD_SCRATCH = 20 * STRIDE

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
def forward_step(x, y, h, s, current, adaptation, theta, soft, strict):
    """One step of one tile, in the reference's order of operations."""
    zero = x.dtype.type(0)
    one = x.dtype.type(1)
    for j in range(x.size):
        drive = x[j] if current is None else s[I + j]
        if adaptation is not None:
            drive = drive - s[W + j]
        potential = s[LAM_M + j] * s[V + j] + s[REST_M + j] * drive
        u = potential - theta
        fired = u > zero if strict else u >= zero
        spike = one if fired else zero
        s[V + j] = (u if soft else zero) if fired else potential
        y[j] = spike
        if h is not None:
            h[j] = potential
        if current is not None:
            s[I + j] = s[LAM_S + j] * s[I + j] + x[j]
        if adaptation is not None:
            s[W + j] = s[LAM_W + j] * s[W + j] + s[Z + j]
            s[Z + j] = s[A + j] * potential + s[B + j] * spike


@inlined
def _backward_step(gy, gh, x, h, gx, s, learned, current, adaptation, theta, soft, strict):
    """One step k of one tile, backwards.

    i and w are not stored, but linear in what is: a gradient Σ_n g_n i_{n-1} is Σ_k x_k P_k, with
    P_k = Σ_{n>k} λ_s^{n-1-k} g_n kept up on the way back; Q likewise for the gradients of i, and both for w, where
    z_k takes the place of x_k and comes in one step later.
    """
    zero = h.dtype.type(0)
    one = h.dtype.type(1)
    slope = h.dtype.type(SURROGATE_SLOPE)
    for j in range(h.size):
        u = h[j] - theta
        fired = u > zero if strict else u >= zero
        spike = one if fired else zero
        gs = gy[j]
        if learned is not None:
            s[D_LAM_M + j] += s[G + j] * ((u if soft else zero) if fired else h[j])
            if adaptation is not None:
                z = s[A + j] * h[j] + s[B + j] * spike
                s[D_LAM_M + j] += z * s[P_W + j]
                s[D_LAM_W + j] += z * s[Q_W + j]
                s[P_W + j] = s[G + j] + s[LAM_W + j] * s[P_W + j]
                s[Q_W + j] = s[GZ + j] + s[LAM_W + j] * s[Q_W + j]
                s[D_A + j] += s[GZ + j] * h[j]
                s[D_B + j] += s[GZ + j] * spike
        if adaptation is not None:
            gs = gs + s[B + j] * s[GZ + j]
        width = one + slope * abs(u)
        g = gs / (width * width) + ((s[GV + j] if soft else zero) if fired else s[GV + j])
        if gh is not None:
            g = g + gh[j]
        if adaptation is not None:
            g = g + s[A + j] * s[GZ + j]
        g_drive = s[REST_M + j] * g
        if learned is not None:
            if current is None:
                s[D_LAM_M + j] -= g * x[j]
            else:
                s[D_LAM_M + j] -= x[j] * s[P_I + j]
                s[D_LAM_S + j] += x[j] * s[Q_I + j]
                s[P_I + j] = g + s[LAM_S + j] * s[P_I + j]
                s[Q_I + j] = s[GI + j] + s[LAM_S + j] * s[Q_I + j]
            s[G + j] = g
        s[GV + j] = s[LAM_M + j] * g
        if adaptation is not None:
            s[GZ + j] = s[GW + j]
            s[GW + j] = s[LAM_W + j] * s[GW + j] - g_drive
        if current is None:
            gx[j] = g_drive
        else:
            gx[j] = s[GI + j]
            s[GI + j] = s[LAM_S + j] * s[GI + j] + g_drive


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
    lam_m, lam_s, lam_w, a, b, theta, soft, strict, group, begin, end,
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
        for t in range(T):
            if VT_NN is None:
                x = x_TM[t, m : m + size]
            else:
                D = len(first_DM)
                for j in range(size):
                    row[j] = 0
                add_rows(row, first_DM[t, m : m + size] if t < D else y_TM[t - D, m : m + size], VT_NN, picked)
                for j in range(size):
                    row[j] = x_TM[t, m + j] + row[j]
                    if total_TM is not None:
                        total_TM[t, m + j] = row[j]
                x = row
            for c in range(0, size, TILE):
                width = min(TILE, size - c)
                forward_step(
                    x[c : c + width],
                    y_TM[t, m + c : m + c + width],
                    None if h_TM is None else h_TM[t, m + c : m + c + width],
                    s[c // TILE * FORWARD_SCRATCH :],
                    i, w, theta, soft, strict,
                )  # fmt: skip
        for c in range(0, size, TILE):
            r = s[c // TILE * FORWARD_SCRATCH :]
            width = min(TILE, size - c)
            _copy(v[m + c :], r[V:], width)
            if i is not None:
                _copy(i[m + c :], r[I:], width)
            if w is not None:
                _copy(w[m + c :], r[W:], width)
                _copy(z[m + c :], r[Z:], width)


@kernel
def backward_columns(
    gy_TM, gh_TM, x_TM, h_TM, gx_TM, sums_KM, gv, gi, gw, gz, gfirst_DM, v, i, w, z, V_NN,
    lam_m, lam_s, lam_w, a, b, theta, soft, strict, group, begin, end,
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
        for t in range(T - 1, -1, -1):
            gy = gy_TM[t, m : m + size]
            if V_NN is not None:
                D = len(gfirst_DM)
                for j in range(size):
                    row[j] = gy_TM[t, m + j]
                if t + D < T:
                    add_rows(row, gx_TM[t + D, m : m + size], V_NN, picked)
                gy = row
            for c in range(0, size, TILE):
                r = s[c // TILE * BACKWARD_SCRATCH :]
                width = min(TILE, size - c)
                _backward_step(
                    gy[c : c + width],
                    None if gh_TM is None else gh_TM[t, m + c : m + c + width],
                    None if x_TM is None else x_TM[t, m + c : m + c + width],
                    h_TM[t, m + c : m + c + width],
                    gx_TM[t, m + c : m + c + width],
                    r, sums_KM, gi, gw, theta, soft, strict,
                )  # fmt: skip
                if t == T - 1:
                    for j in range(width):
                        r[Q_W + j] = 0  # the gradient of the last z is not that of a later w
        if V_NN is not None:
            for d in range(min(len(gfirst_DM), T)):
                add_rows(gfirst_DM[d, m : m + size], gx_TM[d, m : m + size], V_NN, picked)
        for c in range(0, size, TILE):
            r = s[c // TILE * BACKWARD_SCRATCH :]
            for j in range(min(TILE, size - c)):
                k = m + c + j
                if sums_KM is not None:  # the initial state, as `_backward_step` for the stored steps
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


def _run(function: Callable, arguments: tuple, T: int, M: int, group: int) -> None:
    """Call a kernel on all groups of columns. Results do not depend on the number of threads."""
    groups = -(-M // group)
    threads = 1 if T * M < SERIAL_BELOW else min(torch.get_num_threads(), groups)
    in_parts(lambda begin, end: function(*arguments, group, begin, end), groups, threads)


def _columns(tensor: Tensor | None) -> np.ndarray | None:
    """(..., B, N) as (..., M), without a copy."""
    return None if tensor is None else tensor.detach().flatten(-2).numpy()


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
    (T, B, N) = x_TBN.shape
    tensors = (x_TBN, y_TBN, h_TBN, total_TBN, state.v, state.i, state.w, state.z, first_DBN)
    VT_NN = None if V_NN is None else V_NN.detach().T.contiguous().numpy()
    arguments = (*map(_columns, tensors), VT_NN, *_constants(values, neuron))
    _run(forward_columns, arguments, T, B * N, TILE if V_NN is None else N)


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
    (T, B, N) = h_TBN.shape
    tensors = (gy_TBN, gh_TBN, x_TBN, h_TBN, gx_TBN, sums_KBN, gstate.v, gstate.i, gstate.w, gstate.z, gfirst_DBN)
    tensors += (state.v, state.i, state.w, state.z)
    weights = None if V_NN is None else V_NN.detach().numpy()
    arguments = (*map(_columns, tensors), weights, *_constants(values, neuron))
    _run(backward_columns, arguments, T, B * N, TILE if V_NN is None else N)
