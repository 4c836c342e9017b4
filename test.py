"""Test a trained network: python test.py --load_pt_file runs/<name>/best.pt

The network comes from the checkpoint alone. Prints a table and writes runs/<name>/test/.

A first-spike network is tested under first-spike and firing-rate decoding: metrics.json (percent, steps, ms) and
decision.png, one recording from its events to its decision. --show draws a decision of every class, and
--test_single_delay the output spikes of one recording of each class together.

Of a TTFS network: metrics.json and spike_times.png. --simulate runs every image through a simulation over time, too,
and counts the decisions that differ.
"""

import argparse
import json
import math
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import tasks
from datasets import images, prepare, readers
from datasets.events import Bins, batches, check_window
from snn import checkpoint, cli, config, report
from snn.coding import Window
from snn.errors import InputError
from snn.evaluation import evaluate
from snn.loss import objective
from snn.memory import keep_freed_memory
from snn.network import Network
from snn.ttfs.evaluation import evaluate as evaluate_ttfs
from snn.ttfs.network import Network as TTFSNetwork
from snn.ttfs.report import draw_spike_times
from snn.ttfs.simulation import Simulation


def main() -> None:
    keep_freed_memory()
    args, path, cfg, weights = read_command_line()
    test = test_images if isinstance(cfg, config.TTFSConfig) else test_recordings
    test(args, path, cfg, weights)


def test_recordings(args: argparse.Namespace, path: Path, cfg: config.Config, weights: dict[str, torch.Tensor]) -> None:
    """A first-spike network on recordings of events."""
    data, fs = cfg.data, cfg.loss.fs
    device = cli.device(cfg.train.device)
    network = Network(cfg.network, data.channels, data.num_classes, cfg.train.backend).to(device)
    checkpoint.load_weights(network, weights, path)

    prepare.make_if_missing(data.test_path, data.dataset_name, data.prepare)
    recordings = readers.read(data.layout, data.test_path, "test", data.channels, data.num_classes)
    T, T_empty = data.test_T or data.T, data.T_empty if data.test_T_empty is None else data.test_T_empty
    bins = Bins(data.dt_ms, T, T_empty, data.channels)
    check_window(recordings, bins)
    goal = partial(objective, loss=cfg.loss, window=Window.of(T + T_empty, fs.D, fs.A, fs.window), training=False)

    size = cfg.train.test_batch_size
    everything = batches(recordings, np.arange(len(recordings)), bins, size)
    bar = tqdm(everything, "test", math.ceil(len(recordings) / size), leave=False, disable=None)
    metrics = evaluate(network, bar, goal, device).metrics(data.dt_ms)

    about = {"checkpoint": str(path), "data": str(data.test_path), "dt_ms": data.dt_ms, "T": T, "T_empty": T_empty}
    out = write_metrics(path, metrics | about)

    def draw(r: int, name: str) -> None:
        x_T1C, target_1 = next(batches(recordings, np.array([r]), bins, 1))
        report.draw_decision(network, x_T1C.to(device), int(target_1), data.dt_ms, out / name)

    draw(0, "decision.png")
    classes, first_of_class = np.unique(recordings.labels, return_index=True)
    if args.show:
        for label, r in zip(classes, first_of_class, strict=True):
            draw(r, f"decision_{label}.png")
    if args.test_single_delay:
        x_TBC, target_B = next(batches(recordings, first_of_class, bins, len(classes)))
        report.draw_single_delay(network, x_TBC.to(device), target_B, data.dt_ms, out / "single_delay.png")
    print_table(metrics)
    print(f"numbers in {out / 'metrics.json'}; drawn: {', '.join(sorted(p.name for p in out.glob('*.png')))}")


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
    if changed := list(config.differences(getattr(cfg, section), getattr(trained, section), f"{section}.")):
        raise InputError(f"{path}: belongs to another network: it was trained with another {', '.join(changed)}")
    return args, path, cfg, content["network"]


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
    for name, left, right in rows:
        print(f"{name:<16}{left:<22}{right}".rstrip())


if __name__ == "__main__":
    cli.run(main)
