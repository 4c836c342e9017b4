"""Test a trained network: python test.py --load_pt_file runs/<name>/best.pt

The network comes from the checkpoint alone. Prints a table and writes runs/<name>/test/.

A first-spike network is tested under first-spike and firing-rate decoding: metrics.json (percent, steps, ms),
decision.png, one recording from its events to its decision, and anytime.png, accuracy against time and events seen.
--show draws a decision of every class, and --test_single_delay the output spikes of one recording of each class
together. --streaming decides on events as they come and compares the cost with that of whole windows. --energy counts
operations, memory traffic and energy (`snn/energy.py`).

Of a TTFS network: metrics.json and spike_times.png. --simulate runs every image through a simulation over time, too,
and counts the decisions that differ.
"""

import argparse
import json
import math
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import tasks
from datasets import images, prepare
from datasets.events import AnyRecordings, Bins, batches
from snn import checkpoint, cli, config, energy, report
from snn.coding import Window, first_times, fs_decision
from snn.errors import InputError
from snn.evaluation import evaluate
from snn.events import Events
from snn.loss import objective
from snn.memory import keep_freed_memory
from snn.network import Network
from snn.streaming import Stream, first_difference
from snn.ttfs.evaluation import evaluate as evaluate_ttfs
from snn.ttfs.network import Network as TTFSNetwork
from snn.ttfs.report import draw_spike_times
from snn.ttfs.simulation import Simulation

NOTHING = -1  # stands for a decision, or the step of a first spike, that there is not
OF_THE_OTHER_KIND = {"ttfs": ("show", "streaming", "test_single_delay", "energy"), "network": ("simulate",)}  # words
COSTS = ("events", "synaptic ops", "neuron updates", "time (ms)")


def main() -> None:
    keep_freed_memory()
    args, path, cfg, weights = read_command_line()
    test = test_images if isinstance(cfg, config.TTFSConfig) else test_recordings
    test(args, path, cfg, weights)


def test_recordings(args: argparse.Namespace, path: Path, cfg: config.Config, weights: dict[str, torch.Tensor]) -> None:
    """A first-spike network on recordings of events."""
    data, fs = cfg.data, cfg.loss.fs
    device = cli.device(cfg.train.device)
    network = Network(cfg.network, data.shape, data.num_classes, cfg.train.backend).to(device)
    checkpoint.load_weights(network, weights, path)

    prepare.make_if_missing(data.test_path, data.dataset_name, data.prepare)
    T, T_empty = data.test_T or data.T, data.T_empty if data.test_T_empty is None else data.test_T_empty
    bins = Bins(data.dt_ms, T, T_empty, math.prod(data.shape))
    recordings = tasks.read_recordings(data, "test", bins)
    goal = partial(objective, loss=cfg.loss, window=Window.of(T + T_empty, fs.D, fs.A, fs.window), training=False)

    size = cfg.train.test_batch_size
    everything = batches(recordings, np.arange(len(recordings)), bins, size)
    bar = tqdm(everything, "test", math.ceil(len(recordings) / size), leave=False, disable=None)
    meter = energy.Meter(network)
    with meter if args.energy else nullcontext():
        evaluation = evaluate(network, bar, goal, device)
    metrics, curves = evaluation.metrics(data.dt_ms), evaluation.anytime(data.dt_ms)
    if args.energy:
        metrics["energy"] = meter.result()
    if args.streaming:
        metrics["streaming"] = stream(network, recordings, bins, size)

    about = {"checkpoint": str(path), "data": str(data.test_path), "dt_ms": data.dt_ms, "T": T, "T_empty": T_empty}
    out = write_metrics(path, metrics | about | {"anytime": curves})
    report.draw_anytime(curves, out / "anytime.png")
    names = recordings.class_names

    def draw(r: int, name: str) -> None:
        x_T1C, target_1 = next(batches(recordings, np.array([r]), bins, 1))
        report.draw_decision(network, x_T1C.to(device), data.dt_ms, out / name, names=names, target=int(target_1))

    draw(0, "decision.png")
    classes, first_of_class = np.unique(recordings.labels, return_index=True)
    if args.show:
        for label, r in zip(classes, first_of_class, strict=True):
            draw(r, f"decision_{label}.png")
    if args.test_single_delay:
        x_TBC, target_B = next(batches(recordings, first_of_class, bins, len(classes)))
        report.draw_single_delay(network, x_TBC.to(device), target_B, data.dt_ms, out / "single_delay.png", names)
    print_table(metrics)
    if args.energy:
        print(f"\na recording costs\n{energy.table(metrics['energy'])}")
    print(f"numbers in {out / 'metrics.json'}, {len(list(out.glob('*.png')))} pictures beside it")


def test_images(args: argparse.Namespace, path: Path, cfg: config.TTFSConfig, weights: dict[str, torch.Tensor]) -> None:
    """A TTFS network on images."""
    data, size = cfg.data, cfg.train.test_batch_size
    device = cli.device(cfg.train.device)
    network = TTFSNetwork(cfg.ttfs, data.shape, data.num_classes).to(device)
    checkpoint.load_weights(network, weights, path)
    images.fetch_if_missing(data.layout, data.folder, data.dataset_name)
    test_set = tasks.read_images(data, "test")

    bar = tqdm(
        images.batches(test_set, np.arange(len(test_set)), size),
        "test",
        math.ceil(len(test_set) / size),
        leave=False,
        disable=None,
    )
    result = evaluate_ttfs(network, bar, device, Simulation(network).run if args.simulate else None)
    metrics = result.metrics()
    about = {"checkpoint": str(path), "data": test_set.where, "T": cfg.ttfs.T}
    histograms = {"spike_time_histograms": result.histograms.tolist()}
    out = write_metrics(path, metrics | histograms | about)
    draw_spike_times(result.histograms, cfg.ttfs.T, out / "spike_times.png")

    shares, operations = metrics["spikes_per_neuron_by_layer"], metrics["synaptic_operations_per_image"]
    rows = [
        ("images", str(metrics["images"])),
        ("accuracy", f"{metrics['accuracy']:.2f} %"),
        ("spikes/neuron", f"{metrics['spikes_per_neuron']:.3f}, by layer: {', '.join(f'{s:.3f}' for s in shares)}"),
        ("synaptic operations", f"{operations:,.0f} an image, of {metrics['synapses']:,} synapses"),
        ("latency", f"{metrics['latency_windows']} windows"),
    ]
    if args.simulate:
        rows.append(("simulation over time", f"{metrics['disagreements_with_simulation']} decisions differ"))
    for name, value in rows:
        print(f"{name:<22}{value}")
    print(f"numbers in {out / 'metrics.json'}; drawn: spike_times.png")


def write_metrics(path: Path, metrics: dict) -> Path:
    """metrics.json in the folder test/ beside the checkpoint, which is returned."""
    out = path.parent / "test"
    out.mkdir(exist_ok=True)
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    return out


def read_command_line() -> tuple[argparse.Namespace, Path, config.AnyConfig, dict[str, torch.Tensor]]:
    """Words, checkpoint, its configuration (data of --path_to_yaml, then the other words over it) and its weights."""
    parser = cli.Parser(__doc__.splitlines()[0], cli.TEST, "take the data section from this configuration")
    parser.add_argument("--show", action="store_true", help="draw one decision of every class")
    parser.add_argument("--energy", action="store_true", help="count operations, memory traffic and energy")
    parser.add_argument(
        "--streaming", action="store_true", help="also decide on events as they come, and what it costs"
    )
    parser.add_argument("--test_single_delay", action="store_true", help="draw output spikes, one recording a class")
    parser.add_argument("--simulate", action="store_true", help="run a TTFS network over time as well")
    args = parser.parse_args()
    if args.load_pt_file is None:
        raise InputError("command line: --load_pt_file is missing: a checkpoint such as runs/<name>/best.pt")
    path = cli.find_checkpoint(args.load_pt_file)
    trained, content = checkpoint.load(path)
    values = trained.model_dump(mode="json")
    if args.path_to_yaml is not None:
        given = config.read_yaml(cli.find_yaml(args.path_to_yaml))
        values["data"] = given.get("data", {})
    cfg = parser.override(values, args)
    section = "ttfs" if isinstance(trained, config.TTFSConfig) else "network"
    for word in OF_THE_OTHER_KIND[section]:
        if getattr(args, word):
            raise InputError(f"command line: --{word} is not for a network with a section `{section}`, as in {path}")
    if changed := list(config.differences(getattr(cfg, section), getattr(trained, section), f"{section}.")):
        raise InputError(f"{path}: belongs to another network: it was trained with another {', '.join(changed)}")
    return args, path, cfg, content["network"]


def stream(network: Network, recordings: AnyRecordings, bins: Bins, batch_size: int) -> dict:
    """Every recording as a stream: accuracy, means of what a decision costs, and what differs from batches."""
    everything = np.arange(len(recordings))
    folded = network.folded()
    of_batches = {
        name: np.concatenate([decide(net, x_TBC) for x_TBC, _ in batches(recordings, everything, bins, batch_size)])
        for name, net in (("trained", network), ("folded", folded))
    }
    streams = {
        name: Stream(network, bins.dt_ms, bins.T, bins.T_empty, recordings.ticks_per_second, stops)
        for name, stops in (("to_decision", True), ("whole_window", False))
    }
    decisions = np.full((len(recordings), 2), NOTHING)  # where no event lies within the window
    costs = {name: np.empty((len(recordings), len(COSTS))) for name in streams}
    for r in tqdm([0, *everything], "streaming", leave=False, disable=None):  # the first one twice: compiled, warm
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
        print(f"recording {r}: folding BatchNorm moves the decision; {first_difference(network, folded, x_T1C)}")
    empty = decisions[:, 0] == NOTHING
    return {
        "fs_accuracy": 100 * float(np.mean(decisions[:, 0] == recordings.labels)),
        "without_events": int(empty.sum()),
        "differ_from_batches": int((decisions != of_batches["folded"])[~empty].any(1).sum()),
        "moved_by_folding": int(moved.sum()),
        **{name: dict(zip(COSTS, cost.mean(0).tolist(), strict=True)) for name, cost in costs.items()},
    }


@torch.inference_mode()
def decide(network: Network, x_TBC: Events) -> np.ndarray:
    """(B, 2): decision under FS, and the step of the first output spike, NOTHING where there is none."""
    network.reset()
    s_TBN, h_TBN, _ = network(x_TBC.to(next(network.parameters()).device))
    network.reset()
    t_BN = first_times(s_TBN, h_TBN)
    first_B = t_BN.amin(-1).long()
    return torch.stack([fs_decision(t_BN), torch.where(first_B > len(s_TBN), NOTHING, first_B)], 1).cpu().numpy()


def print_table(metrics: dict) -> None:
    """The numbers for people. A delay that does not exist is a dash."""

    def delay(name: str) -> str:
        steps, ms = metrics[f"{name}_steps"], metrics[f"{name}_ms"]
        return "-" if steps is None else f"{steps} steps, {ms:g} ms"

    layers = ", ".join(f"{spikes:.2f}" for spikes in metrics["spikes_per_neuron_by_layer"])
    rows = [
        ("recordings", str(metrics["samples"]), ""),
        ("code", "first spike (FS)", "firing rate (FR)"),
        ("accuracy", f"{metrics['fs_accuracy']:.2f} %", f"{metrics['fr_accuracy']:.2f} %"),
        ("t_d50", delay("t_d50"), delay("fr_t_d50")),
        ("t_d90", delay("t_d90"), delay("fr_t_d90")),
        ("spikes/neuron", f"{metrics['spikes_per_neuron']:.2f}", f"by layer: {layers}"),
        ("silent samples", str(metrics["silent_samples"]), ""),
    ]
    if streaming := metrics.get("streaming"):
        rows += [
            ("", "", ""),
            ("streaming", "to the decision", "whole window"),
            *((what, *(f"{streaming[part][what]:,.4g}" for part in ("to_decision", "whole_window"))) for what in COSTS),
            ("FS accuracy", f"{streaming['fs_accuracy']:.2f} %", ""),
            ("unlike batches", f"{streaming['differ_from_batches']} of {metrics['samples']} decisions", ""),
            ("moved by folding", f"{streaming['moved_by_folding']} of {metrics['samples']} decisions", ""),
        ]
    for name, left, right in rows:
        print(f"{name:<18}{left:<22}{right}".rstrip())


if __name__ == "__main__":
    cli.run(main)
