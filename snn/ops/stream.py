"""A whole network on one stream of events, step after step, in one compiled call.

The sums and the neurons are those of the batched kernels, in their order, so that spikes and potentials are the same
bits. A step costs what its events and spikes cost, and one update of each neuron.
"""

from typing import Literal, NamedTuple

import numpy as np
from numba import literal_unroll

from snn.events import step_of
from snn.ops.compiled import inlined, kernel
from snn.ops.cpu import FORWARD_SCRATCH, TILE, V, add_rows, forward_steps, load_values
from snn.ops.lanes import LANES, load_part, lowest, unlike
from snn.ops.sparse import product_rows

# What is counted along the way, places in `tally`.
STEP, ENTRIES, EVENTS, SYNAPTIC, DECIDED, LABEL, COUNTERS = range(7)

# Rows of a layer's memory: input, spikes and potentials of a step, what is fed back, the highest potentials so far; and
# of neurons that are `spike_first` what comes out one step later.
X, S, H, FED, PEAK, DUE, PEAK_DUE, ROWS = range(8)


class Layer(NamedTuple):
    """A layer for one stream, C inputs and N neurons; None: it has no such thing. Few arrays: numba counts references.

    Kernels take it as a plain tuple.
    """

    scratch: np.ndarray  # (tiles, FORWARD_SCRATCH): values and states of TILE neurons each, as in `snn.ops.cpu`
    rows: np.ndarray  # (ROWS, 1, N)
    W_SCL: np.ndarray  # see `snn.ops.sparse`
    bias_N: np.ndarray | None
    VT_NN: np.ndarray | None
    picked: np.ndarray  # (N,) room
    offsets: np.ndarray  # (2,): one row of entries
    current: Literal[True] | None
    adaptation: Literal[True] | None
    theta: float
    soft: bool
    spike_first: bool
    is_output: Literal[True] | None

    def reset(self) -> None:
        """The state before the first step."""
        self.scratch[:, V:] = 0
        self.rows[:] = 0
        self.rows[PEAK] = -np.inf


@kernel
def new_scratch(lam_m, lam_s, lam_w, a, b):
    """A layer's `scratch` with its values, each (N,) or None."""
    N = len(lam_m)
    scratch = np.zeros((-(-N // TILE), FORWARD_SCRATCH), lam_m.dtype)
    for k in range(len(scratch)):
        load_values(scratch[k], k * TILE, min(TILE, N - k * TILE), lam_m, lam_s, lam_w, a, b)
    return scratch


@kernel
def steps_of(times, ticks_per_second, dt_ms, T, steps):
    """steps[e] = the step of event e, counted from 0; T for one past the window."""
    for e in range(len(times)):
        steps[e] = step_of(times[e], ticks_per_second, dt_ms, T)


@inlined
def _run_layer(
    tally, channels, counts, number, scratch, rows, W_SCL, bias_N, VT_NN, picked, offsets,
    current, adaptation, theta, soft, spike_first, is_output,
):  # fmt: skip
    """One step of a `Layer`. Its entries come in and its spikes go out in `channels` and `counts`: how many."""
    x, s, h = rows[X, 0], rows[S, 0], rows[H, 0]
    N = len(x)
    offsets[1] = number
    product_rows(offsets, channels, counts, W_SCL, rows[X], 0, 1)
    tally[SYNAPTIC] += number * N
    if bias_N is not None:
        for j in range(N):
            x[j] += bias_N[j]
    if VT_NN is not None:  # s still holds the spikes of the step before
        fed = rows[FED, 0]
        fed[:] = 0
        tally[SYNAPTIC] += N * add_rows(fed, s, VT_NN, picked)
        for j in range(N):
            x[j] += fed[j]
    for k in range(len(scratch)):
        m, width = k * TILE, min(TILE, N - k * TILE)
        forward_steps(
            rows[X], None, rows[S], rows[H], scratch[k], m, width, 0, 1,
            current, adaptation, x.dtype.type(theta), soft, spike_first, False,
        )  # fmt: skip
    if spike_first:
        due, peak_due = rows[DUE, 0], rows[PEAK_DUE, 0]
        for j in range(N):
            s[j], due[j] = due[j], s[j]
            h[j], peak_due[j] = peak_due[j], h[j]
    if is_output is not None:
        peak = rows[PEAK, 0]
        for j in range(N):
            peak[j] = max(peak[j], h[j])
    number = 0
    for first in range(0, N, LANES):
        fired = unlike(load_part(s, first, N - first, LANES), 0)
        while fired:
            channels[number] = first + lowest(fired)
            counts[number] = s[channels[number]]
            number += 1
            fired &= fired - np.uint64(1)
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
