"""A whole network on one stream of events, step after step, in one compiled call.

The sums and the neurons are those of the batched kernels, in their order, so that spikes and potentials are the same
bits. A step costs what its events and spikes cost, and one update of each neuron.
"""

from typing import Literal, NamedTuple

import numpy as np
from numba import literal_unroll

from snn.events import step_of
from snn.ops.compiled import inlined, kernel
from snn.ops.cpu import TILE, forward_columns
from snn.ops.sparse import product_rows

# What is counted along the way, places in `tally`.
STEP, ENTRIES, EVENTS, SYNAPTIC, DECIDED, LABEL, COUNTERS = range(7)


# Rows of a layer's memory: values, states, then x_n, s_n, h_n, the output y_n, the highest potential so far, and what
# comes out one step later of a neuron that is `spike_first`.
LAM_M, LAM_S, LAM_W, A, B, V, I, W, Z, X, S, H, Y, PEAK, DUE, PEAK_DUE, ROWS = range(17)
VALUES, STATES = (LAM_M, LAM_S, LAM_W, A, B), slice(V, ROWS)


class Layer(NamedTuple):
    """A layer for one stream, C inputs and N neurons; None: it has no such thing. Few arrays: numba counts references.

    Kernels take it as a plain tuple.
    """

    rows: np.ndarray  # (ROWS, 1, N)
    WT_CN: np.ndarray
    bias_N: np.ndarray | None
    VT_NN: np.ndarray | None
    offsets: np.ndarray  # (2,): one row of entries
    current: Literal[True] | None
    adaptation: Literal[True] | None
    theta: float
    soft: bool
    spike_first: bool


@inlined
def _row(rows, k, is_there):
    """Row k, where the neuron has it."""
    if is_there is None:
        return None
    return rows[k, 0]


@kernel
def steps_of(times, ticks_per_second, dt_ms, T, steps):
    """steps[e] = the step of event e, counted from 0; T for one past the window."""
    for e in range(len(times)):
        steps[e] = step_of(times[e], ticks_per_second, dt_ms, T)


@inlined
def _run_layer(
    tally, channels, counts, number,
    rows, WT_CN, bias_N, VT_NN, offsets, current, adaptation, theta, soft, spike_first,
):  # fmt: skip
    """One step of a `Layer`. Its entries come in and its spikes go out in `channels` and `counts`: how many."""
    N = WT_CN.shape[1]
    offsets[1] = number
    product_rows(offsets, channels, counts, WT_CN, rows[X], 0, 1)
    tally[SYNAPTIC] += number * N
    x, s, h, y = rows[X, 0], rows[S, 0], rows[H, 0], rows[Y, 0]
    if bias_N is not None:
        for j in range(N):
            x[j] += bias_N[j]
    group = TILE
    if VT_NN is not None:
        group = N
        for j in range(N):
            if y[j] != 0:
                tally[SYNAPTIC] += N
    forward_columns(
        rows[X], rows[S], rows[H], None,
        rows[V, 0], _row(rows, I, current), _row(rows, W, adaptation), _row(rows, Z, adaptation), rows[Y], VT_NN,
        rows[LAM_M, 0], _row(rows, LAM_S, current), _row(rows, LAM_W, adaptation),
        _row(rows, A, adaptation), _row(rows, B, adaptation), theta, soft, spike_first, group, 0, -(-N // group),
    )  # fmt: skip
    if spike_first:
        due, peak_due = rows[DUE, 0], rows[PEAK_DUE, 0]
        for j in range(N):
            s[j], due[j] = due[j], s[j]
            h[j], peak_due[j] = peak_due[j], h[j]
    peak = rows[PEAK, 0]
    for j in range(N):
        y[j] = s[j]
        peak[j] = max(peak[j], h[j])
    number = 0
    for j in range(N):
        if y[j] != 0:
            channels[number] = j
            counts[number] = y[j]
            number += 1
    return number


@inlined
def _run_step(layers, channels, counts, entry_of_channel, tally, spikes, output_counts):
    """Run the step whose entries are gathered, through all layers."""
    number = tally[ENTRIES]
    for k in range(number):
        entry_of_channel[channels[k]] = -1
    tally[ENTRIES] = 0
    tally[STEP] += 1
    k = 0
    for layer in literal_unroll(layers):  # which cannot be enumerated
        number = _run_layer(tally, channels, counts, number, *layer)
        spikes[k] += number
        k += 1  # noqa: SIM113
    for k in range(number):
        output_counts[channels[k]] += 1
    if number > 0 and tally[DECIDED] == 0:
        tally[DECIDED] = tally[STEP]
        tally[LABEL] = channels[0]  # in rising order: of those that fire at once, the lower class


@kernel
def advance(
    steps, event_channels, T, end, stops, layers, channels, counts, entry_of_channel, tally, spikes, output_counts
):  # fmt: skip
    """Take events, in time order, and run each step that is complete; then all steps up to `end`.

    A step is complete once an event comes after it. With `stops`, end with the step in which an output fires first.
    """
    if stops and tally[DECIDED] > 0:
        return
    for e in range(len(steps)):
        while tally[STEP] < steps[e]:
            _run_step(layers, channels, counts, entry_of_channel, tally, spikes, output_counts)
            if stops and tally[DECIDED] > 0:
                return
        if steps[e] == T:
            continue
        c = event_channels[e]
        if entry_of_channel[c] < 0:
            entry_of_channel[c] = tally[ENTRIES]
            channels[tally[ENTRIES]] = c
            counts[tally[ENTRIES]] = 0
            tally[ENTRIES] += 1
        counts[entry_of_channel[c]] += 1
        tally[EVENTS] += 1
    while tally[STEP] < end:
        _run_step(layers, channels, counts, entry_of_channel, tally, spikes, output_counts)
        if stops and tally[DECIDED] > 0:
            return
