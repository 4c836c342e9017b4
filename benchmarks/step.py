"""The time of a whole training step, and of its parts: the network of configs/adlif_shd.yaml, B = 128.

    python -m benchmarks.step [--json FILE] [--rounds 11] [--device cpu] [--delays]

Contenders take turns within each round; times are medians. They are the same network on the torch reference (its loop
over time in Python), and SpikingJelly's network of the same size with its plainest neuron, LIFNode, and its own layers.
Recordings are made up, with as many events and channels as a spoken digit (5,800 in 0.45 s on 700 channels). With
`--device cuda`, events are sent and binned there for all contenders; times are those of CUDA events, and the profile is
that of the GPU. With `--delays`, the network also runs with learned delays of up to 25 steps in its hidden layers.
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
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.figures import Figure, add_option, duration, others, store
from benchmarks.kernels import medians, processor
from datasets.binning import Bins, bin_dense, bin_events
from datasets.recordings import Recordings
from snn import architecture, cli, config, settings
from snn.inputs import SparseCounts
from snn.linear import DENSE_ABOVE, EventLinear
from snn.losses import objective
from snn.losses.firing_rate import firing_rate
from snn.machine import find_device
from snn.memory import keep_freed_memory
from snn.replay import Replayed

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "adlif_shd.yaml"
EVENTS, LENGTH_S = 5800, 0.45
SURROGATES = {"boxcar": 2.0, "triangle": 5.0}  # of finite width, with their slopes
DELAYS = {"delays of inputs": "D25", "delays of synapses": "DS25"}


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


def binned(cfg: config.Config, recordings: Recordings, device: str) -> SparseCounts | Tensor:
    """Return the recordings as one batch on that device."""
    data = cfg.data
    bins, batch = Bins(data.dt_ms, data.T, data.T_empty, data.channels), np.arange(len(recordings))
    with record_function("binning"):
        if device == "cpu":
            return bin_events(recordings, batch, bins)
        return bin_dense(recordings, batch, bins, torch.device(device))


def our_step(
    cfg: config.Config,
    backend: str,
    recordings: Recordings,
    dense_above: float = DENSE_ABOVE,
    device: str = "cpu",
    replays: bool = False,
) -> Callable[[], None]:
    """Return a step: binning, forward, loss, backward, optimiser. Products are dense above a share of active inputs."""
    torch.manual_seed(0)
    network = cfg.new_network(backend).to(device).train()
    for module in network.modules():
        if isinstance(module, EventLinear):
            module.dense_above = dense_above
    optimizer = torch.optim.Adam(network.parameters(), cfg.train.lr, amsgrad=True, fused=True)
    goal = partial(objective, loss=cfg.loss, training=True)
    target_B = torch.from_numpy(recordings.labels).to(device)

    def loss(x_TBC: SparseCounts | Tensor, target_B: Tensor, _: float) -> Tensor:
        network.reset()
        return goal(network(x_TBC), target_B)

    loss = Replayed(network, loss) if replays else loss

    def step() -> None:
        x_TBC = binned(cfg, recordings, device)
        optimizer.zero_grad(set_to_none=True)
        loss(x_TBC, target_B, 1.0).backward()
        nn.utils.clip_grad_norm_(network.parameters(), cfg.train.clip_norm)
        optimizer.step()
        network.clamp_values()

    return step


def delayed(cfg: config.Config, word: str) -> config.Config:
    """Return the configuration with delays, D25 or DS25, in all hidden layers."""
    layers = tuple(layer + word for layer in cfg.network.layers)
    return cfg.model_copy(update={"network": cfg.network.model_copy(update={"layers": layers})})


def where_time_goes(step: Callable[[], None], rounds: int, device: str) -> dict[str, float]:
    """Measure ms per step in each operation alone, by torch's name (on a GPU the kernel's), for the ten largest."""
    on_gpu = device == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiler:
        for _ in range(rounds):
            step()
        if on_gpu:
            torch.cuda.synchronize()
    times = {
        event.key: (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e3 / rounds
        for event in profiler.key_averages()
    }
    return dict(sorted(times.items(), key=lambda item: -item[1])[:10])


def spikingjelly_step(cfg: config.Config, recordings: Recordings, device: str = "cpu") -> Callable[[], None]:
    """Return a step of the same sizes from SpikingJelly alone: LIFNode, spike counts, cross-entropy."""
    data = cfg.data
    sizes = (data.channels, *(layer.size for layer in architecture.parse(cfg.network.layers)))
    blocks: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        blocks += [layer.Linear(inputs, outputs, bias=False), layer.BatchNorm1d(outputs), neuron.LIFNode()]
        blocks += [layer.Dropout(cfg.network.dropout)]
    network = nn.Sequential(*blocks, layer.Linear(sizes[-1], data.num_classes, bias=False), neuron.LIFNode()).train()
    functional.set_step_mode(network, "m")
    network.to(device)
    optimizer = torch.optim.Adam(network.parameters(), cfg.train.lr, amsgrad=True, fused=True)
    target_B = torch.from_numpy(recordings.labels).to(device)

    def step() -> None:
        functional.reset_net(network)
        optimizer.zero_grad(set_to_none=True)
        x_TBC = binned(cfg, recordings, device)
        x_TBC = x_TBC.dense() if device == "cpu" else x_TBC
        firing_rate(network(x_TBC), target_B, cfg.loss.fr.alpha).backward()
        nn.utils.clip_grad_norm_(network.parameters(), cfg.train.clip_norm)
        optimizer.step()

    return step


def figures(median: dict[str, float]) -> list[Figure]:
    """Return the row of docs/speed.md."""
    who = {
        "SpikingJelly, LIFNode": "SpikingJelly, LIFNodes in like layers",
        "ours, not replayed": "ours, not replayed",
        "ours on the torch reference": "torch reference",
    }
    who |= {
        f"ours, {name} of slope {slope:g}": f"ours, {name} of slope {slope:g}" for name, slope in SURROGATES.items()
    }
    who |= {f"ours, {delays}": f"ours, {delays}" for delays in DELAYS}
    what = "training step of `configs/adlif_shd.yaml`, B = 128, binning included"
    what += ", against learned delays" if f"ours, {next(iter(DELAYS))}" in median else ""
    return [Figure(what, duration(median["ours"]), others(median, "ours", who))]


def main() -> None:
    keep_freed_memory()  # as train.py does; it helps every contender
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", type=Path, help="file for the numbers (JSON)")
    parser.add_argument("--rounds", type=int, default=11, help="timed rounds (11)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="device to measure on (cpu)")
    parser.add_argument("--delays", action="store_true", help="measure networks with delays")
    add_option(parser)
    arguments = parser.parse_args()
    device = find_device(arguments.device).type
    cfg = settings.load(CONFIG)
    recordings = make_recordings(cfg.train.batch_size, cfg.data.channels, cfg.data.num_classes)
    plain = partial(our_step, recordings=recordings, device=device)
    ours = partial(plain, replays=device == "cuda")
    steps = {"ours": ours(cfg, "auto")}
    if arguments.delays:
        steps |= {f"ours, {what}": ours(delayed(cfg, word), "auto") for what, word in DELAYS.items()}
    else:
        steps |= {
            "ours on the torch reference": plain(cfg, "torch"),
            "SpikingJelly, LIFNode": spikingjelly_step(cfg, recordings, device),
        }
        for name, slope in SURROGATES.items():
            of_width = cfg.network.model_copy(update={"surrogate": name, "surrogate_slope": slope})
            steps[f"ours, {name} of slope {slope:g}"] = ours(cfg.model_copy(update={"network": of_width}), "auto")
    if device == "cuda":
        steps["ours, not replayed"] = plain(cfg, "auto")
    median = medians(steps, arguments.rounds, device)
    parts = where_time_goes(steps["ours"], arguments.rounds, device)
    where = f"{torch.cuda.get_device_name() if device == 'cuda' else processor()}, {torch.get_num_threads()} threads"
    print(f"a training step, T = {cfg.data.T}, B = {cfg.train.batch_size}, {where}")
    for name, ms in median.items():
        print(f"  {name:<30}{ms:8.1f} ms {ms / median['ours']:6.2f} x")
    print("  the largest parts of ours, under torch's profiler:")
    for name, ms in parts.items():
        print(f"    {name[:60]:<62}{ms:8.3f} ms")
    if arguments.store:
        store(figures(median), device)
    if arguments.json:
        versions = {"torch": torch.__version__}
        result = {"device": where, "threads": torch.get_num_threads(), "versions": versions}
        result |= {"milliseconds": median, "profile_milliseconds": parts}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    cli.run(main)
