"""A whole network on one stream of events, step after step, in one compiled call.

It adds in the order of the batched kernels and uses their neurons, so that spikes and potentials are equal in every
bit. The cost of a step is that of its events and spikes, and of one update of each neuron.
"""

from collections.abc import Sequence
from types import ModuleType
from typing import NamedTuple

import numpy as np

from snn.ops import cpu, printer
from snn.ops.binning import step_of
from snn.ops.compiled import kernel, printed
from snn.ops.cpu import STRIDE, TILE
from snn.ops.drives import Drive
from snn.ops.reference import Dynamics

IMPORTS = """import numpy as np

from snn.ops.compiled import inlined, kernel
from snn.ops.cpu import TILE, add_rows
from snn.ops.lanes import LANES, load_part, lowest, unlike
from snn.ops.stream import (
    DECIDED, DUE, ENTRIES, EVENTS, FED, H, LABEL, PEAK, PEAK_DUE, S, STEP, SYNAPTIC, X
)
"""

# Places in `tally` of what is counted along the way.
STEP, ENTRIES, EVENTS, SYNAPTIC, DECIDED, LABEL, COUNTERS = range(7)

# Rows of a layer's memory: input, spikes and potentials of a step, what is fed back, and the highest potentials so far;
# then, for neurons that are `spike_first`, the spikes and potentials that come out one step later.
X, S, H, FED, PEAK, DUE, PEAK_DUE, ROWS = range(8)


class Layer(NamedTuple):
    """A layer for one stream, with C inputs and N neurons, p · n + k for neuron k of n at pixel p of an image.

    A part that the layer does not have is None.

    Kernels take it as a plain tuple. It has few arrays, because numba counts references to each.
    """

    scratch: np.ndarray  # (tiles · rows · STRIDE,): values and states of TILE neurons each, as in kernels/neuron.py
    rows: np.ndarray  # (ROWS, 1, N)
    drive: tuple  # the arrays of its drive
    fan_out_C: np.ndarray | None  # see `snn.operations`: (1,) if all are equal, which costs less to count
    bias_N: np.ndarray | None
    VT_NN: np.ndarray | None
    whole_N: np.ndarray | None  # delays of what a recurrent layer feeds back, in steps
    past_DN: np.ndarray | None  # its last outputs; that of step t is in row t mod D
    fan_out_N: np.ndarray | None  # of its feedback, likewise
    picked: np.ndarray  # (N,) scratch
    spike_first: bool
    is_output: bool

    def reset(self, first_state_row: int, waiting: tuple[np.ndarray, ...]) -> None:
        """Return to the state before the first step; `waiting` is that of its drive."""
        tiles = -(-self.rows.shape[-1] // TILE)
        self.scratch.reshape(tiles, -1, STRIDE)[:, first_state_row:] = 0
        self.rows[:] = 0
        self.rows[PEAK] = -np.inf
        for array in (*waiting, *(() if self.past_DN is None else (self.past_DN,))):
            array[:] = 0


def new_scratch(neuron: Dynamics, values_PN: np.ndarray) -> np.ndarray:
    """Return a layer's `scratch`, which holds its values."""
    (P, N), S = values_PN.shape, len(neuron.states)
    tiles = -(-N // TILE)
    scratch = np.zeros((tiles, P + S, STRIDE), values_PN.dtype)
    for k in range(tiles):
        width = min(TILE, N - k * TILE)
        scratch[k, :P, :width] = values_PN[:, k * TILE : k * TILE + width]
    return scratch.reshape(-1)


def kernels(neurons: Sequence[Dynamics], drives: Sequence[Drive]) -> ModuleType:
    """Return the compiled loop over the steps of a network with layers of these neurons and drives."""
    layer, rest = printer.file("stream.py").split("# ALL LAYERS\n")
    text = "import sys\n\n" + IMPORTS
    layers = [(neuron, drive.step) for neuron, drive in zip(neurons, drives, strict=True)]
    kinds = list(dict.fromkeys(layers))  # layers that are alike share their code, as it takes a second to compile
    for k, (neuron, step) in enumerate(kinds):
        text += f'\nsteps_{k} = sys.modules["{cpu.kernels(neuron).__name__}"].forward_steps\n'
        text += f'drive_{k} = sys.modules["{step.__module__}"].{step.__name__}\n'
        text += layer.replace("_K(", f"_{k}(")
    calls = []
    for n, k in enumerate(map(kinds.index, layers)):
        calls += [f"number = run_layer_{k}(tally, channels, counts, number, *layers[{n}])", f"spikes[{n}] += number"]
    return printed("stream", text + rest.replace("# EACH LAYER", "\n            ".join(calls)))


@kernel
def steps_of(times, channels, before, num_channels, ticks_per_second, dt_ms, T, steps):
    """Set steps[e] to the step of event e, counted from 0, or to T if the event is past the window.

    Return the number of the first event whose time falls or is not finite, or whose channel does not exist; without
    such an event, return how many there are.
    """
    wrong = 0  # counted without a branch, so that the loop becomes vector instructions
    for e in range(len(times)):
        steps[e] = step_of(times[e], ticks_per_second, dt_ms, T)
        wrong += not times[max(e - 1, 0)] <= times[e]
        wrong += np.uint64(channels[e]) >= np.uint64(num_channels)
    if wrong == 0 and (len(times) == 0 or (before <= times[0] and times[-1] < np.inf)):
        return len(times)
    for e in range(len(times)):
        if not (before <= times[e] < np.inf and 0 <= channels[e] < num_channels):
            return e
        before = times[e]
    return len(times)
