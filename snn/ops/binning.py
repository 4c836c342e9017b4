"""The rule by which an event falls into a step: one for training, test and streams, on the CPU and for the GPU."""

import numpy as np

from snn.ops.compiled import inlined


@inlined
def step_of(time, ticks_per_second, dt_ms, T):
    """Return the step, from 0, of an event at `time` ticks: floor(1000 t / dt) (Liu et al. 2023), but at most T.

    1000 t and dt · ticks are both exact, so an event on the edge of two bins falls into the later one.
    """
    return np.int64(min(np.floor(1000.0 * np.float64(time) / (dt_ms * ticks_per_second)), np.float64(T)))
