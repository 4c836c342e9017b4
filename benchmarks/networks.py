"""The time of a training step of a convolutional network, and of its parts: configs/culif_dvsgesture.yaml.

    python -m benchmarks.networks [--json FILE] [--rounds 3] [--T 160] [--batch 6]

Compares ours with the same layers from SpikingJelly alone: its convolutions, pools and plainest neuron, LIFNode, in
step mode "m", except that its hidden fully connected layer is not recurrent (ours is). They take turns; times are
medians. Ours is then split by kind of layer. Recordings are made up: 50,000 events a second from a spot that circles on
128x128 pixels; with the configuration's B = 16, 24 GB were not enough for SpikingJelly. The work of ours depends on how
active the layers are, so their shares are printed. The last parts measure convolutions alone, to find up to which share
of active inputs the event-driven one is faster (the rule in snn/conv.py), and from how many channels on the gradient of
the inputs is faster tile by tile (snn/ops/winograd.py).
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.figures import Figure, Other, add_option, duration, store
from benchmarks.kernels import high_water_megabytes, medians, processor
from datasets.binning import Bins, bin_events
from datasets.recordings import Recordings, downsampled
from snn import architecture, cli, config, conv, settings
from snn.conv import EventConv, Pooling, as_frames
from snn.linear import EventLinear
from snn.losses import objective
from snn.losses.firing_rate import firing_rate
from snn.memory import keep_freed_memory
from snn.network import Network
from snn.neurons import SpikingNeuron
from snn.ops import sparse, sparse_conv, winograd

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "culif_dvsgesture.yaml"
EVENTS_PER_S, SPOT_PIXELS = 50_000, 10
KINDS = {  # of layer -> the names in torch's profiler, of our modules forward and of autograd's nodes backward
    "convolutions": ("EventConv", "Convolution"),
    "neurons": ("SpikingNeuron", "_Fused"),
    "pools": ("Pooling", "Pool"),
    "fully connected": ("EventLinear", "EventProduct", "MmBackward"),
}
CHANNELS_AND_SIZES = ((32, 14), (64, 7), (64, 14), (128, 8), (128, 16), (256, 8))
SHARES = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3)

Step = Callable[[], None]


def make_recordings(n: int, length_s: float, sensor: config.Sensor, classes: int) -> Recordings:
    random = np.random.default_rng(0)
    events = round(EVENTS_PER_S * length_s)
    times = np.sort(random.uniform(0, length_s, (n, events)), axis=1)
    angle = 2 * np.pi * (times + random.uniform(size=(n, 1)))
    size = np.array([sensor.height, sensor.width])[:, None, None]
    centre = size * (0.5 + 0.25 * np.stack([np.sin(angle), np.cos(angle)]))
    y, x = np.clip(random.normal(centre, SPOT_PIXELS), 0, size - 1).astype(np.int64)
    return Recordings(
        offsets=np.arange(n + 1) * events,
        times=times.ravel(),
        ticks_per_second=1.0,
        channels=((random.integers(0, 2, (n, events)) * sensor.height + y) * sensor.width + x).ravel(),
        labels=random.integers(0, classes, n),
        speakers=None,
        where="made up",
    )


def our_step(cfg: config.Config, recordings: Recordings) -> tuple[Step, Network]:
    """Return a step of ours: binning, forward, loss, backward, optimiser."""
    torch.manual_seed(0)
    data = cfg.data
    network = cfg.new_network("cpu").train()
    optimizer = torch.optim.Adam(network.parameters(), cfg.train.lr, amsgrad=True, fused=True)
    goal = partial(objective, loss=cfg.loss, training=True)
    bins = Bins(data.dt_ms, data.T, data.T_empty, int(np.prod(data.shape)))
    batch, target_B = np.arange(len(recordings)), torch.from_numpy(recordings.labels)

    def step() -> None:
        network.reset()
        optimizer.zero_grad(set_to_none=True)
        goal(network(bin_events(recordings, batch, bins)), target_B).backward()
        nn.utils.clip_grad_norm_(network.parameters(), cfg.train.clip_norm)
        optimizer.step()
        network.clamp_values()

    return step, network


def spikingjelly_step(cfg: config.Config, recordings: Recordings) -> Step:
    """Return a step of the same layers from SpikingJelly alone: LIFNode, spike counts, cross-entropy."""
    torch.manual_seed(0)
    data, words = cfg.data, cfg.network.layers
    modules: list[nn.Module] = []
    shape: tuple[int, ...] = data.shape
    for one, after in zip(architecture.parse(words), architecture.shapes(words, shape), strict=True):
        if isinstance(one, architecture.Conv):
            modules.append(layer.Conv2d(shape[0], one.channels, one.kernel, one.stride, one.kernel // 2, bias=False))
        elif isinstance(one, architecture.Pool):
            modules.append(layer.MaxPool2d(one.kernel))
        else:
            modules += [layer.Flatten(), layer.Linear(int(np.prod(shape)), one.size, bias=False)]
        modules.append(neuron.LIFNode())
        shape = after
    network = nn.Sequential(*modules, layer.Linear(shape[0], data.num_classes, bias=False), neuron.LIFNode()).train()
    functional.set_step_mode(network, "m")
    optimizer = torch.optim.Adam(network.parameters(), cfg.train.lr, amsgrad=True, fused=True)
    bins = Bins(data.dt_ms, data.T, data.T_empty, int(np.prod(data.shape)))
    batch, target_B = np.arange(len(recordings)), torch.from_numpy(recordings.labels)

    def step() -> None:
        functional.reset_net(network)
        optimizer.zero_grad(set_to_none=True)
        x_TBPHW = bin_events(recordings, batch, bins).dense().unflatten(2, data.shape)
        firing_rate(network(x_TBPHW), target_B, cfg.loss.fr.alpha).backward()
        nn.utils.clip_grad_norm_(network.parameters(), cfg.train.clip_norm)
        optimizer.step()

    return step


def by_kind_of_layer(step: Step, network: Network) -> dict[str, float]:
    """Measure the milliseconds of a step in each kind of layer, forward and backward."""

    def enter(module: nn.Module, _: tuple) -> None:
        base = next(cls for cls in (EventConv, Pooling, EventLinear, SpikingNeuron) if isinstance(module, cls))
        module.range = record_function(base.__name__)
        module.range.__enter__()

    def leave(module: nn.Module, *_: object) -> None:
        module.range.__exit__(None, None, None)

    modules = [m for m in network.modules() if isinstance(m, EventConv | Pooling | EventLinear | SpikingNeuron)]
    hooks = [hook for m in modules for hook in (m.register_forward_pre_hook(enter), m.register_forward_hook(leave))]
    with profile(activities=[ProfilerActivity.CPU]) as profiler, record_function("step"):
        step()
    for hook in hooks:
        hook.remove()
    node = "autograd::engine::evaluate_function: "
    result: dict[str, float] = {}
    for event in profiler.key_averages():
        for kind, (module, *nodes) in KINDS.items():
            if event.key == module:
                name = f"{kind}, forward"
            elif event.key.startswith(node) and any(part in event.key for part in nodes):
                name = f"{kind}, backward"
            else:
                continue
            result[name] = result.get(name, 0.0) + event.cpu_time_total / 1e3
        if event.key == "step":
            whole = event.cpu_time_total / 1e3
    result["all else"] = whole - sum(result.values())
    return dict(sorted(result.items(), key=lambda item: -item[1]))


def peak_in_subprocess(who: str, T: int, batch: int) -> float:
    command = [sys.executable, "-m", "benchmarks.networks", "--peak", who, "--T", str(T), "--batch", str(batch)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def convolutions(share: float) -> dict[str, Step]:
    """Return forward and weight gradient of the network's second convolution, 64 to 128 channels at 32x32."""
    torch.manual_seed(0)
    frames, inputs, outputs, size = 80, 64, 128, 32
    shape = sparse_conv.Geometry(size, size, 3, 1)
    x_RC = (torch.rand(frames * size * size, inputs) < share).float()
    W_NCKK, gy_RN = torch.randn(outputs, inputs, 3, 3), torch.randn(len(x_RC), outputs)

    def events() -> None:
        entries = sparse.compress(x_RC, sparse.find(x_RC))
        sparse_conv.product(entries, W_NCKK, shape)
        sparse_conv.weight_gradient(entries, gy_RN, inputs, shape)

    def dense() -> None:
        x_FCHW, gy_FNHW = as_frames(x_RC, size, size), as_frames(gy_RN, size, size)
        F.conv2d(x_FCHW, W_NCKK, padding=1)
        nn.grad.conv2d_weight(x_FCHW, W_NCKK.shape, gy_FNHW, padding=1)

    return {"events": events, "dense": dense}


def input_gradients(channels: int, size: int) -> dict[str, Step]:
    """Return the gradient of the inputs of a 3 x 3 convolution with as many outputs as inputs."""
    torch.manual_seed(0)
    shape = sparse_conv.Geometry(size, size, 3, 1)
    gy_RN, W_NCKK = torch.randn(64 * size * size, channels), torch.randn(channels, channels, 3, 3)
    return {
        "tiles": lambda: winograd.input_gradient(gy_RN, W_NCKK, shape),
        "taps": lambda: conv.input_gradient_by_taps(gy_RN, W_NCKK, shape),
    }


def figure(T: int, batch: int, median: dict[str, float], binning_ms: float, peaks: dict[str, float]) -> Figure:
    """Return the row of docs/speed.md; peaks in MB."""
    (_, ours), (_, theirs) = median.items()
    return Figure(
        f"training step of `configs/culif_dvsgesture.yaml`, T = {T}, B = {batch}",
        f"{duration(ours)}, {peaks['ours'] / 1000:.2g} GB; making the batch {100 * binning_ms / ours:.1f} % of it",
        [
            Other(
                "SpikingJelly, layers and LIFNodes",
                f"{duration(theirs)}, {peaks['SpikingJelly'] / 1000:.2g} GB",
                theirs / ours,
            )
        ],
    )


def main() -> None:
    keep_freed_memory()  # as train.py does; it helps every contender
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", type=Path, help="file for the numbers (JSON)")
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds (3)")
    parser.add_argument("--T", type=int, default=160, help="steps, the empty ones included (160)")
    parser.add_argument("--batch", type=int, default=6, help="recordings (6)")
    parser.add_argument("--peak", choices=("ours", "SpikingJelly"), help=argparse.SUPPRESS)
    add_option(parser)
    arguments = parser.parse_args()
    values = settings.read_yaml(CONFIG)
    values["data"]["T"] = arguments.T - arguments.T * values["data"]["T_empty"] // 160
    values["data"]["T_empty"] = arguments.T - values["data"]["T"]
    cfg = settings.build(values, str(CONFIG))
    length_s = cfg.data.T * cfg.data.dt_ms / 1000
    recordings = downsampled(
        make_recordings(arguments.batch, length_s, cfg.data.sensor, cfg.data.num_classes), cfg.data.sensor
    )
    if arguments.peak:
        step = our_step(cfg, recordings)[0] if arguments.peak == "ours" else spikingjelly_step(cfg, recordings)
        before = high_water_megabytes()
        step()
        print(high_water_megabytes() - before)
        return

    ours, network = our_step(cfg, recordings)
    steps = {"ours": ours, "SpikingJelly, LIFNode": spikingjelly_step(cfg, recordings)}
    where = f"{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    print(f"a training step, T = {arguments.T}, B = {arguments.batch}, {where}")
    median = medians(steps, arguments.rounds, "cpu")
    for name, ms in median.items():
        print(f"  {name:<30}{ms:9.0f} ms {ms / median['ours']:6.2f} x")
    bins = Bins(cfg.data.dt_ms, cfg.data.T, cfg.data.T_empty, int(np.prod(cfg.data.shape)))
    index = np.arange(len(recordings))
    binning = medians({"batch": lambda: bin_events(recordings, index, bins)}, arguments.rounds, "cpu")["batch"]
    print(f"making our batch               {binning:9.1f} ms, {100 * binning / median['ours']:.2f} %")
    parts = by_kind_of_layer(ours, network)
    print("  ours by kind of layer, under torch's profiler:")
    for name, ms in parts.items():
        print(f"    {name:<28}{ms:9.0f} ms")
    linears = {name: m for name, m in network.named_modules() if isinstance(m, EventConv | EventLinear)}
    shares = {name: m.active_share for name, m in linears.items()}
    print("  active share of the inputs: " + ", ".join(f"{name} {100 * s:.1f} %" for name, s in shares.items()))
    peaks = {who: peak_in_subprocess(who, arguments.T, arguments.batch) for who in ("ours", "SpikingJelly")}
    print("  memory that a step adds: " + ", ".join(f"{who} {peak:.0f} MB" for who, peak in peaks.items()))

    print("64 to 128 channels, 3x3, 80 frames of 32x32, forward + weight gradient: active, events, dense (ms)")
    rule = {share: medians(convolutions(share), arguments.rounds, "cpu") for share in SHARES}
    for share, ms in rule.items():
        print(f"  {100 * share:4.0f} %{ms['events']:9.0f} ({ms['dense'] / ms['events']:4.1f} x){ms['dense']:9.0f}")
    print("gradient of the inputs, 3x3, 64 frames: channels, size, tile by tile, torch (ms)")
    gradients = {key: medians(input_gradients(*key), 5 * arguments.rounds, "cpu") for key in CHANNELS_AND_SIZES}
    for (channels, size), ms in gradients.items():
        print(f"  {channels:4} {size:4}{ms['tiles']:9.1f} ({ms['taps'] / ms['tiles']:4.1f} x){ms['taps']:9.1f}")
    if arguments.store:
        store([figure(arguments.T, arguments.batch, median, binning, peaks)])
    if arguments.json:
        result = {"where": where, "T": arguments.T, "batch": arguments.batch, "milliseconds": median}
        result |= {"batch_milliseconds": binning}
        result |= {"by_kind_milliseconds": parts, "active_shares": shares, "peak_megabytes": peaks}
        result["convolution_milliseconds"] = rule
        result["input_gradient_milliseconds"] = {f"{c} x {size} x {size}": ms for (c, size), ms in gradients.items()}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    cli.run(main)
