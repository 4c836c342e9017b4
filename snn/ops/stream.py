"""A whole network on one stream of events, step after step, in one compiled call.

The sums and the neurons are those of the batched kernels, in their order, so that spikes and potentials are the same
bits. A step costs what its events and spikes cost, and one update of each neuron.
"""

from typing import NamedTuple

import numpy as np
from numba import literal_unroll

from snn.events import step_of
from snn.ops.compiled import inlined, kernel
from snn.ops.cpu import TILE, forward_columns
from snn.ops.sparse import product_rows

# What is counted along the way, places in `tally`.
STEP, ENTRIES, EVENTS, SYNAPTIC, DECIDED, LABEL, COUNTERS = range(7)


class Layer(NamedTuple):
    """A layer's weights, values, states and outputs for one stream: N neurons, C inputs. None: it has no such thing.

    Kernels take it as a plain tuple.
    """

    WT_CN: np.ndarray
    bias_N: np.ndarray | None
    VT_NN: np.ndarray | None
    lam_m: np.ndarray
    lam_s: np.ndarray | None
    lam_w: np.ndarray | None
    a: np.ndarray | None
    b: np.ndarray | None
    theta: float
    soft: bool
    spike_first: bool
    v: np.ndarray
    i: np.ndarray | None
    w: np.ndarray | None
    z: np.ndarray | None
    offsets: np.ndarray  # (2,): one row of entries
    x_1N: np.ndarray
    s_1N: np.ndarray  # s_n and h_n
    h_1N: np.ndarray
    y_1N: np.ndarray  # output, and the potential it was compared with
    peak_1N: np.ndarray
    due_1N: np.ndarray  # what comes out one step later of a neuron that is `spike_first`
    peak_due_1N: np.ndarray


@kernel
def steps_of(times, ticks_per_second, dt_ms, T, steps):
    """steps[e] = the step of event e, counted from 0; T for one past the window."""
    for e in range(len(times)):
        steps[e] = step_of(times[e], ticks_per_second, dt_ms, T)


@inlined
def _run_layer(
    tally, channels, counts, number,
    WT_CN, bias_N, VT_NN, lam_m, lam_s, lam_w, a, b, theta, soft, spike_first, v, i, w, z,
    offsets, x_1N, s_1N, h_1N, y_1N, peak_1N, due_1N, peak_due_1N,
):  # fmt: skip
    """One step of a `Layer`. Its entries come in and its spikes go out in `channels` and `counts`: how many."""
    N = WT_CN.shape[1]
    offsets[1] = number
    product_rows(offsets, channels, counts, WT_CN, x_1N, 0, 1)
    tally[SYNAPTIC] += number * N
    if bias_N is not None:
        for j in range(N):
            x_1N[0, j] += bias_N[j]
    group = TILE
    if VT_NN is not None:
        group = N
        for j in range(N):
            if y_1N[0, j] != 0:
                tally[SYNAPTIC] += N
    forward_columns(
        x_1N, s_1N, h_1N, None, v, i, w, z, y_1N, VT_NN, lam_m, lam_s, lam_w, a, b, theta, soft, spike_first,
        group, 0, -(-N // group),
    )  # fmt: skip
    number = 0
    for j in range(N):
        spike, potential = s_1N[0, j], h_1N[0, j]
        if spike_first:
            spike, due_1N[0, j] = due_1N[0, j], spike
            potential, peak_due_1N[0, j] = peak_due_1N[0, j], potential
        y_1N[0, j] = spike
        peak_1N[0, j] = max(peak_1N[0, j], potential)
        if spike != 0:
            channels[number] = j
            counts[number] = spike
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
