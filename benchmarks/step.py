"""How long is a whole training step, and where does it go? The network of configs/adlif_shd.yaml, B = 128.

    python -m benchmarks.step [--json FILE] [--rounds 11]

Contenders take turns within each round; medians. The same network on the torch reference (its loop over time in
Python), and SpikingJelly's network of the same size with its plainest neuron, LIFNode, and its own layers. Recordings
are made up: as many events, on as many channels, as a spoken digit has (5,800 in .45 s on 700 channels).
"""

import argparse
import json
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.kernels import medians, processor
from datasets.events import Bins, Recordings, counts
from snn import architecture, config
from snn.coding import Window
from snn.linear import DENSE_ABOVE, EventLinear
from snn.loss import firing_rate, objective
from snn.memory import keep_freed_memory
from snn.network import Network

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "adlif_shd.yaml"
EVENTS, LENGTH_S = 5800, 0.45


def make_recordings(n: int, channels: int, classes: int) -> Recordings:
    random = np.random.default_rng(0)
    return Recordings(
        offsets=np.arange(n + 1) * EVENTS,
        times=np.sort(random.uniform(0, LENGTH_S, (n, EVENTS)), axis=1).astype(np.float32).ravel(),
        ticks_per_second=1.0,
        channels=np.clip(random.normal(0.7 * channels, 0.18 * channels, n * EVENTS), 0, channels - 1).astype(np.uint16),
        labels=random.integers(0, classes, n),
        speakers=None,
        where="made up",
    )


def our_step(
    cfg: config.Config, backend: str, recordings: Recordings, dense_above: float = DENSE_ABOVE
) -> Callable[[], None]:
    """Binning, forward, loss, backward, optimiser; products are dense above that share of active inputs."""
    torch.manual_seed(0)
    data, fs = cfg.data, cfg.loss.fs
    bins, batch = Bins(data.dt_ms, data.T, data.T_empty, data.channels), np.arange(len(recordings))
    network = Network(cfg.network, data.shape, data.num_classes, backend).train()
    for module in network.modules():
        if isinstance(module, EventLinear):
            module.dense_above = dense_above
    optimizer = torch.optim.Adam(network.parameters(), cfg.train.lr, amsgrad=True)
    window = Window.of(data.T + data.T_empty, fs.D, fs.A, fs.window)
    goal = partial(objective, loss=cfg.loss, window=window, training=True)
    target_B = torch.from_numpy(recordings.labels)

    def step() -> None:
        with record_function("binning"):
            x_TBC = counts(recordings, batch, bins)
        network.reset()
        optimizer.zero_grad(set_to_none=True)
        goal(network(x_TBC), target_B).backward()
        nn.utils.clip_grad_norm_(network.parameters(), cfg.train.clip_norm)
        optimizer.step()
        network.clamp_values()

    return step


def where_time_goes(step: Callable[[], None], rounds: int) -> dict[str, float]:
    """Milliseconds a step in each operation itself, by torch's name for it, the ten largest."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(rounds):
            step()
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_cpu_time_total)
    return {event.key: event.self_cpu_time_total / 1e3 / rounds for event in events[:10]}


def spikingjelly_step(cfg: config.Config, recordings: Recordings) -> Callable[[], None]:
    """The same sizes from SpikingJelly alone: LIFNode, spike counts, cross-entropy."""
    data = cfg.data
    sizes = (data.channels, *(layer.size for layer in architecture.parse(cfg.network.layers)))
    blocks: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        blocks += [layer.Linear(inputs, outputs, bias=False), layer.BatchNorm1d(outputs), neuron.LIFNode()]
        blocks += [layer.Dropout(cfg.network.dropout)]
    network = nn.Sequential(*blocks, layer.Linear(sizes[-1], data.num_classes, bias=False), neuron.LIFNode()).train()
    functional.set_step_mode(network, "m")
    optimizer = torch.optim.Adam(network.parameters(), cfg.train.lr, amsgrad=True)
    bins, batch = Bins(data.dt_ms, data.T, data.T_empty, data.channels), np.arange(len(recordings))
    target_B = torch.from_numpy(recordings.labels)

    def step() -> None:
        functional.reset_net(network)
        optimizer.zero_grad(set_to_none=True)
        firing_rate(network(counts(recordings, batch, bins).dense()), target_B, cfg.loss.fr.alpha).backward()
        nn.utils.clip_grad_norm_(network.parameters(), cfg.train.clip_norm)
        optimizer.step()

    return step


def main() -> None:
    keep_freed_memory()  # as train.py does; it helps every contender
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the numbers here")
    parser.add_argument("--rounds", type=int, default=11, help="timed rounds (11)")
    arguments = parser.parse_args()
    cfg = config.build(config.read_yaml(CONFIG), str(CONFIG))
    recordings = make_recordings(cfg.train.batch_size, cfg.data.channels, cfg.data.num_classes)
    steps = {
        "ours": our_step(cfg, "cpu", recordings),
        "ours on the torch reference": our_step(cfg, "torch", recordings),
        "SpikingJelly, LIFNode": spikingjelly_step(cfg, recordings),
    }
    median = medians(steps, arguments.rounds, "cpu")
    parts = where_time_goes(steps["ours"], arguments.rounds)
    where = f"{processor()}, {torch.get_num_threads()} threads"
    print(f"a training step, T = {cfg.data.T}, B = {cfg.train.batch_size}, {where}")
    for name, ms in median.items():
        print(f"  {name:<30}{ms:8.1f} ms {ms / median['ours']:6.2f} x")
    print("  the largest parts of ours, under torch's profiler:")
    for name, ms in parts.items():
        print(f"    {name[:36]:<38}{ms:8.1f} ms")
    if arguments.json:
        versions = {"torch": torch.__version__}
        result = {"device": processor(), "threads": torch.get_num_threads(), "versions": versions}
        result |= {"milliseconds": median, "profile_milliseconds": parts}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
