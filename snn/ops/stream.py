"""A whole network on one stream of events, step after step, in one compiled call.

The sums and the neurons are those of the batched kernels, in their order, so that spikes and potentials are the same
bits. A step costs what its events and spikes cost, and one update of each neuron.
"""

from functools import cache
from types import ModuleType
from typing import Literal, NamedTuple

import numpy as np

from snn.events import step_of
from snn.ops import cpu
from snn.ops.compiled import inlined, kernel, printed
from snn.ops.cpu import STRIDE, TILE, add_rows
from snn.ops.lanes import LANES, load_part, lowest, unlike
from snn.ops.reference import Dynamics
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

    scratch: np.ndarray  # (tiles · rows · STRIDE,): values and states of TILE neurons each, as in kernels/neuron.py
    rows: np.ndarray  # (ROWS, 1, N)
    W_SCL: np.ndarray  # see `snn.ops.sparse`
    bias_N: np.ndarray | None
    VT_NN: np.ndarray | None
    whole_N: np.ndarray | None  # delays of what a recurrent layer feeds back, in steps
    past_DN: np.ndarray | None  # its last outputs, that of step t in row t mod D
    picked: np.ndarray  # (N,) room
    offsets: np.ndarray  # (2,): one row of entries
    spike_first: bool
    is_output: Literal[True] | None

    def reset(self, first_state_row: int) -> None:
        """The state before the first step."""
        tiles = -(-self.rows.shape[-1] // TILE)
        self.scratch.reshape(tiles, -1, STRIDE)[:, first_state_row:] = 0
        self.rows[:] = 0
        self.rows[PEAK] = -np.inf
        if self.past_DN is not None:
            self.past_DN[:] = 0


def new_scratch(neuron: Dynamics, values_PN: np.ndarray) -> np.ndarray:
    """A layer's `scratch` with its values."""
    (P, N), S = values_PN.shape, len(neuron.states)
    tiles = -(-N // TILE)
    scratch = np.zeros((tiles, P + S, STRIDE), values_PN.dtype)
    for k in range(tiles):
        width = min(TILE, N - k * TILE)
        scratch[k, :P, :width] = values_PN[:, k * TILE : k * TILE + width]
    return scratch.reshape(-1)


@cache
def kernels(neurons: tuple[Dynamics, ...]) -> ModuleType:
    """The compiled loop over the steps of a network with layers of these neurons."""
    modules = [cpu.kernels(neuron).__name__ for neuron in neurons]
    steps = "\n".join(f'steps_{k} = sys.modules["{module}"].forward_steps' for k, module in enumerate(modules))
    layers = "\n".join(
        f"    number = run_layer(steps_{k}, tally, channels, counts, number, *layers[{k}])\n    spikes[{k}] += number"
        for k in range(len(neurons))
    )
    frame = (cpu.printer.KERNELS / "stream.py").read_text(encoding="utf-8")
    imports = "import sys\n\nfrom snn.ops.compiled import inlined, kernel\nfrom snn.ops.stream import *\n"
    return printed("stream", f"{imports}\n{steps}\n\n{frame.replace('    # LAYERS', layers)}")


@kernel
def steps_of(times, ticks_per_second, dt_ms, T, steps):
    """steps[e] = the step of event e, counted from 0; T for one past the window."""
    for e in range(len(times)):
        steps[e] = step_of(times[e], ticks_per_second, dt_ms, T)


@inlined
def run_layer(
    steps, tally, channels, counts, number, scratch, rows, W_SCL, bias_N, VT_NN, whole_N, past_DN, picked, offsets,
    spike_first, is_output,
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
        if whole_N is not None:
            for n in range(N):
                s[n] = past_DN[(tally[STEP] - 1 - whole_N[n]) % len(past_DN), n]
        tally[SYNAPTIC] += N * add_rows(fed, s, VT_NN, picked)
        for j in range(N):
            x[j] += fed[j]
    size_of_tile = len(scratch) // -(-N // TILE)
    for k in range(0, N, TILE):
        at, width = k // TILE * size_of_tile, min(TILE, N - k)
        steps(rows[X], None, rows[S], rows[H], None, scratch, at, k, width, 0, 1, False)
    if spike_first:
        due, peak_due = rows[DUE, 0], rows[PEAK_DUE, 0]
        for j in range(N):
            s[j], due[j] = due[j], s[j]
            h[j], peak_due[j] = peak_due[j], h[j]
    if whole_N is not None:
        past_DN[tally[STEP] % len(past_DN)] = s
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


__all__ = ["DECIDED", "ENTRIES", "EVENTS", "LABEL", "STEP", "run_layer"]
