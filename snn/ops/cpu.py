"""Neurons compiled for the CPU by numba, equal to `snn.ops.reference` in every bit of spikes, potentials and states.

The kernels are printed from the neuron's definition (`snn.ops.printer`) with the frame of `kernels/neuron.py`. The
order of operations and the absence of fast-math keep the bits.
"""

from functools import cache
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from snn.ops import printer
from snn.ops.compiled import in_parts, inlined, printed
from snn.ops.fused import Call
from snn.ops.lanes import CACHE_LINE_BYTES, LANES, LINE, load_part, store_part
from snn.ops.reference import Dynamics
from snn.ops.trace import trace

TILE = 512  # columns, a multiple of LINE
STRIDE = TILE + 16  # between rows of scratch; the odd cache lines keep equal columns of two rows off one cache set
STEPS = 8  # at a time in registers; with more, their rows of memory would crowd each other out of the cache
PAST_ABOVE_BYTES = 1 << 21  # a larger result goes past the caches, which mostly lose it before it is read again
SERIAL_BELOW = 1 << 15  # neuron-steps: one thread finishes fewer of them before a second one wakes up


@inlined
def add_rows(out, c, rows_KN, picked):
    """Add c @ rows to `out`, without the zeros of c: spikes are sparse. `picked` is scratch for places."""
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


@inlined
def copy(to, at, source, begin, number):
    """Copy numbers a line at a time; without this, the compiler would copy them one by one."""
    for j in range(0, number, LINE):
        store_part(to, at + j, number - j, load_part(source, begin + j, number - j, LINE))


@inlined
def spread(r, at, source_XN, N, m, width):
    """Write rows of values for the columns from m on; column m is neuron m mod N."""
    for k in range(len(source_XN)):
        n, j = m % N, 0
        while j < width:
            run = min(N - n, width - j)  # up to the last neuron
            copy(r, at + k * STRIDE + j, source_XN, k * N + n, run)
            n, j = 0, j + run


@inlined
def delayed(fed, s_TM, past_DM, m, t, lag, whole_N, share_N):
    """Set `fed` to the outputs that come back at step t: those of `lag` steps before, or older by their delays."""
    D = len(past_DM)
    for n in range(len(fed)):
        u = t - lag - whole_N[n]
        near = s_TM[u, m + n] if u >= 0 else past_DM[D + u, m + n]
        if share_N[n] == 0:
            fed[n] = near
        else:
            far = s_TM[u - 1, m + n] if u >= 1 else past_DM[D + u - 1, m + n]
            fed[n] = (1 - share_N[n]) * near + share_N[n] * far


@cache
def kernels(neuron: Dynamics, learned: frozenset[str] = frozenset()) -> ModuleType:
    """Return the compiled module of a neuron, with the gradients of these values."""
    return printed(neuron.name, printer.numba(neuron, learned))


def near_room(x_TBN: Tensor, neuron: Dynamics, recurrent: bool) -> Tensor | None:
    """Return the tensor that `snn.ops.near_room` describes, or None."""
    T, B, N = x_TBN.shape
    if trace(neuron).near is None or (recurrent and N % LINE):  # samples, which are computed apart, would share words
        return None
    return torch.empty(T, -(-B * N // LANES), dtype=torch.int64)


def _run(kernel, arguments: tuple, results: tuple[Tensor | None, ...], recurrent: bool) -> None:
    """Call a kernel on all groups of columns. Results (T, B, N) do not depend on the number of threads."""
    tensors = [tensor for tensor in results if tensor is not None]
    T, B, N = tensors[0].shape
    # A recurrent layer needs its samples whole; a narrow one is shared by all threads.
    group = N if recurrent else min(TILE, -(-B * N // (torch.get_num_threads() * LINE)) * LINE)
    groups = -(-B * N // group)
    # A recurrent layer soon reads what it wrote, so it keeps the caches. Only whole cache lines can go past them; as M
    # is a multiple of LINE, all rows begin a line if the first does.
    past = not recurrent and tensors[0].nbytes > PAST_ABOVE_BYTES and B * N % LINE == 0
    past = past and all(tensor.data_ptr() % CACHE_LINE_BYTES == 0 for tensor in tensors)
    in_parts(kernel, (*arguments, past, group), groups, 1 if T * B * N < SERIAL_BELOW else None)


def _columns(tensor: Tensor | None) -> np.ndarray | None:
    """Return a tensor (..., B, N) as an array (..., M), without a copy."""
    return None if tensor is None else tensor.detach().flatten(-2).numpy()


def _feedback(call: Call, transposed: bool) -> tuple:
    """Return (weights, whole delays, shares of the step after, lag)."""
    lag = 1 + call.neuron.spike_first
    if call.feedback is None:
        return None, None, None, lag
    V_NN = call.feedback.V_NN.detach()
    weights = (V_NN.T if transposed else V_NN).contiguous().numpy()
    whole_N, share_N = (None if part is None else part.detach().numpy() for part in call.feedback.parts)
    return weights, whole_N, share_N, lag


def forward(call: Call, x_TBN, s_TBN, h_TBN, total_TBN, marks_CSBN, state_SBN, past_DBN, values_PN) -> None:
    """See `snn.ops.fused.Backend`."""
    near_TW = None if call.near_TW is None else call.near_TW.numpy().view(np.uint16)
    x_TM, s_TM, h_TM, *others = map(_columns, (x_TBN, s_TBN, h_TBN, total_TBN, marks_CSBN, state_SBN, past_DBN))
    arguments = (x_TM, s_TM, h_TM, near_TW, *others, *_feedback(call, transposed=True), values_PN.detach().numpy())
    _run(kernels(call.neuron).forward_columns, arguments, (s_TBN, h_TBN), call.feedback is not None)


def backward(
    call: Call, gs_TBN, gh_TBN, x_TBN, gx_TBN, marks_CSBN, state_SBN, gstate_SBN, gvalues_QBN, values_PN
) -> None:
    """See `snn.ops.fused.Backend`."""
    tensors = (gs_TBN, gh_TBN, x_TBN, gx_TBN, marks_CSBN, state_SBN, gstate_SBN, gvalues_QBN)
    longest = 0 if call.feedback is None else call.feedback.longest
    arguments = (*map(_columns, tensors), *_feedback(call, transposed=False), longest, values_PN.detach().numpy())
    _run(kernels(call.neuron, call.learned).backward_columns, arguments, (gx_TBN,), call.feedback is not None)
