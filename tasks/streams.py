"""A test on streams: compare decisions on single events with those in batches, and measure their cost."""

import time

import numpy as np
import torch
from tqdm import tqdm

from datasets.binning import Bins, batches
from datasets.recordings import AnyRecordings, sorted_by_time
from snn.coding import decide as decisions_of
from snn.evaluation import NOTHING
from snn.inputs import SparseCounts
from snn.network import Network
from snn.streaming import Stream, first_difference

COSTS = ("events", "synaptic operations", "neuron updates", "time (ms)")


def measure(network: Network, recordings: AnyRecordings, bins: Bins, batch_size: int) -> dict:
    """Run every recording as a stream. Return the accuracy, the mean costs and the number of decisions that differ."""
    recordings, everything = sorted_by_time(recordings), np.arange(len(recordings))
    folded = network.folded()
    of_batches = {
        name: np.concatenate([decide(net, x_TBC) for x_TBC, _ in batches(recordings, everything, bins, batch_size)])
        for name, net in (("trained", network), ("folded", folded))
    }
    streams = {
        name: Stream(network, bins.dt_ms, bins.T, bins.T_empty, recordings.ticks_per_second, stops)
        for name, stops in (("to_decision", True), ("whole_window", False))
    }
    decisions = np.full((len(recordings), 2), NOTHING)  # the value if no event lies within the window
    costs = {name: np.empty((len(recordings), len(COSTS))) for name in streams}
    for r in tqdm([0, *everything], "streaming", leave=False, disable=None):  # run the first one twice: once to compile
        loaded, (place,) = recordings.load(np.array([r]))
        events = slice(loaded.offsets[place], loaded.offsets[place + 1])
        times, channels = loaded.times[events], loaded.channels[events]
        for name, stream in streams.items():
            stream.reset()
            started = time.perf_counter()
            stream.push(times, channels)
            decision = stream.finish()
            milliseconds = 1e3 * (time.perf_counter() - started)
            work = stream.work
            costs[name][r] = work.events, work.synaptic_operations, work.neuron_updates, milliseconds
            if decision:
                decisions[r] = decision.label, decision.step or NOTHING
    moved = (of_batches["trained"] != of_batches["folded"]).any(1)
    for r in np.flatnonzero(moved):
        x_T1C, _ = next(batches(recordings, np.array([r]), bins, 1))
        print(f"recording {r}: folding BatchNorm changes the decision; {first_difference(network, folded, x_T1C)}")
    empty = decisions[:, 0] == NOTHING
    decisions[empty] = of_batches["folded"][
        empty
    ]  # a stream without events makes no decision, so take that of the batch, by potential
    return {
        "fs_accuracy": 100 * float(np.mean(decisions[:, 0] == recordings.labels)),
        "without_events": int(empty.sum()),
        "differ_from_batches": int((decisions != of_batches["folded"]).any(1).sum()),
        "moved_by_folding": int(moved.sum()),
        **{name: dict(zip(COSTS, cost.mean(0).tolist(), strict=True)) for name, cost in costs.items()},
    }


@torch.inference_mode()
def decide(network: Network, x_TBC: SparseCounts | torch.Tensor) -> np.ndarray:
    """Return (B, 2): the FS decision and the step of the first output spike, or NOTHING if there is no spike."""
    s_TBN, h_TBN, _ = network.run(x_TBC.to(next(network.parameters()).device))
    label_B, first_B = decisions_of(s_TBN, h_TBN)
    return torch.stack([label_B, torch.where(first_B > len(s_TBN), NOTHING, first_B)], 1).cpu().numpy()
