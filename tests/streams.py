"""Recordings of events, a network that has learned from some, and its decisions event by event."""

import numpy as np
import pytest
import torch

from datasets.binning import Bins, bin_events
from datasets.recordings import Recordings
from snn.config import NeuronParams
from snn.inputs import SparseCounts
from snn.network import Network
from snn.neurons import NEURONS
from snn.streaming import Stream
from tests.networks import build, small, small_conv

T, T_EMPTY, DT_MS, N_RECORDINGS = 25, 4, 10.0, 12
VARIANTS = [
    {},
    {"layers": ("16R", "12R"), "variant": "superspike", "neuron": "PCuLIF", "output_neuron": "CuLIF"},
    {"neuron": "CuAdLIF", "reset": "soft", "batch_norm": False, "layers": ("16R", "12F")},
    {"neuron": "SEAdLIF", "layers": ("16FD5", "12RDR4"), "output_delay": "D3"},
    {"layers": ("16FDS6", "12RDS3DR2"), "variant": "superspike", "output_delay": "DS4"},
    {"layers": ("16F+D5", "12R+D3DR2"), "output_delay": "+D4"},
]
EASY, LATE, *LOW = (
    NeuronParams(tau_mem_steps=5.0, tau_syn_steps=5.0, theta=theta) for theta in (0.05, 0.3, 0.01, 0.005)
)
_HERE = {"AdLIF", *(each.get(part) for each in VARIANTS for part in ("neuron", "output_neuron"))}
REST = [
    {"neuron": name, "output_neuron": name} | ({"neuron1": LOW[0], "neuron2": LOW[1]} if name == "BRF" else {})
    for name in NEURONS
    if name not in _HERE
]
IMAGES = [
    {"layers": ("6C3", "P2", "4C3S2", "9R"), "batch_norm": True, "neuron": "AdLIF", "neuron1": EASY, "neuron2": LATE},
    {"layers": ("A2", "20C5S2"), "variant": "superspike", "batch_norm": True},
    {"layers": ("6C3S2", "A3"), "neuron": "CuAdLIF", "reset": "soft", "output_delay": "DS4"},
]
# Each stream must be compiled, which takes seconds: the fast tests have the simplest ones, and those with delays


def _over(variants: list[dict], slow: tuple[int, ...]) -> pytest.MarkDecorator:
    marked = [pytest.param(each, marks=[pytest.mark.slow] * (k in slow)) for k, each in enumerate(variants)]
    return pytest.mark.parametrize("changes", marked, ids=str)


over_variants, over_all = _over(VARIANTS, (1, 2)), _over([*VARIANTS, *IMAGES], (1, 2, 7, 8))
over_rest = _over(REST, tuple(range(len(REST))))


def recordings(n: int = N_RECORDINGS, num_channels: int = 30) -> Recordings:
    """Make recordings in µs, with times at edges of bins, after the window and equal ones; one has a single event."""
    random = np.random.default_rng(5)
    lengths = np.array([1, *random.integers(30, 400, n - 1)])
    times = [np.sort(random.integers(0, 280, k)) * 1000 for k in lengths]
    times[0][:] = 0
    return Recordings(
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        times=np.concatenate(times).astype(np.uint32),
        ticks_per_second=1e6,
        channels=random.integers(0, num_channels, lengths.sum()).astype(np.uint16),
        labels=np.zeros(n, np.int64),
        speakers=None,
        where="made up",
    )


@torch.no_grad()
def trained(pruned: bool = True, **changes) -> Network:
    """Return a network whose BatchNorm has seen data, with a tenth of its weights 0 if `pruned`."""
    return used(build((small_conv if changes in IMAGES else small)(**changes)), pruned)


@torch.no_grad()
def used(network: Network, pruned: bool = False) -> Network:
    """Return the network after it has seen data, so that its BatchNorm is not that of an untrained one."""
    network.train()
    for layer in network.layers:
        if layer.norm is not None:
            layer.norm.weight.uniform_(0.5, 2)
            layer.norm.bias.uniform_(-0.2, 0.2)
    for name, weight in network.named_parameters():
        if pruned and name.endswith(("linear.weight", ".V")):
            weight[weight.abs() < weight.abs().quantile(0.1)] = 0
    for _ in range(3):
        network(binned(network))
        network.reset()
    return network.eval()


def binned(network: Network) -> SparseCounts:
    bins = Bins(DT_MS, T, T_EMPTY, network.num_channels)
    return bin_events(recordings(num_channels=network.num_channels), np.arange(N_RECORDINGS), bins)


def activity(network: Network, x_TBC=None):
    network.reset()
    x_TBC = binned(network) if x_TBC is None else x_TBC
    with torch.no_grad():
        return network(x_TBC)


def make_stream(network: Network, **changes) -> Stream:
    return Stream(network, **({"dt_ms": DT_MS, "T": T, "T_empty": T_EMPTY, "ticks_per_second": 1e6} | changes))


def decide(stream: Stream, r: int, chunk: int):
    data = recordings(num_channels=stream.num_channels)
    begin, end = data.offsets[r : r + 2]
    stream.reset()
    for k in range(begin, end, chunk):
        few = slice(k, min(k + chunk, end))
        if decision := stream.push(data.times[few], data.channels[few]):
            assert stream.finish() == decision
            return decision
        assert stream.push(data.times[:0], data.channels[:0]) is None
    return stream.finish()
