"""Test a trained network under first-spike and firing-rate decoding: python test.py --load_pt_file runs/<name>/best.pt

The network comes from the checkpoint alone. Prints a table and writes runs/<name>/test/: metrics.json (percent, steps,
ms) and decision.png, one recording from its events to its decision.
"""

import json
import math
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from datasets import prepare, readers
from datasets.events import Bins, batches
from snn import checkpoint, cli, config, report
from snn.coding import Window
from snn.errors import InputError
from snn.evaluation import evaluate
from snn.loss import objective
from snn.network import Network


def main() -> None:
    path, cfg, weights = read_command_line()
    data, fs = cfg.data, cfg.loss.fs
    device = cli.device(cfg.train.device)
    network = Network(cfg.network, data.channels, data.num_classes, cfg.train.backend).to(device)
    checkpoint.load_weights(network, weights, path)

    prepare.make_if_missing(data.test_path, data.dataset_name, data.prepare)
    recordings = readers.read(data.layout, data.test_path, "test", data.channels, data.num_classes)
    T, T_empty = data.test_T or data.T, data.T_empty if data.test_T_empty is None else data.test_T_empty
    bins = Bins(data.dt_ms, T, T_empty, data.channels)
    goal = partial(objective, loss=cfg.loss, window=Window.of(T + T_empty, fs.D, fs.A, fs.window), training=False)

    size = cfg.train.test_batch_size
    everything = batches(recordings, np.arange(len(recordings)), bins, size)
    bar = tqdm(everything, "test", math.ceil(len(recordings) / size), leave=False, disable=None)
    metrics = evaluate(network, bar, goal, device).metrics(data.dt_ms)

    out = path.parent / "test"
    out.mkdir(exist_ok=True)
    about = {"checkpoint": str(path), "data": str(data.test_path), "dt_ms": data.dt_ms, "T": T, "T_empty": T_empty}
    (out / "metrics.json").write_text(json.dumps(metrics | about, indent=2) + "\n")
    x_TBC, target_B = next(batches(recordings, np.arange(1), bins, 1))
    report.draw_decision(network, x_TBC.to(device), int(target_B), data.dt_ms, out / "decision.png")
    print_table(metrics)
    print(f"numbers in {out / 'metrics.json'}, one decision in {out / 'decision.png'}")


def read_command_line() -> tuple[Path, config.Config, dict[str, torch.Tensor]]:
    """Checkpoint, its configuration (the data of --path_to_yaml and then the other words over it) and its weights."""
    parser = cli.Parser(__doc__.splitlines()[0], cli.TEST)
    args = parser.parse_args()
    if args.load_pt_file is None:
        raise InputError("command line: --load_pt_file is missing: a checkpoint such as runs/<name>/best.pt")
    path = cli.find_checkpoint(args.load_pt_file, args.best_model)
    trained, content = checkpoint.load(path)
    values = trained.model_dump(mode="json")
    if args.path_to_yaml is not None:
        given = config.read_yaml(cli.find_yaml(args.path_to_yaml))
        values["data"] = given.get("data", {})
    return path, parser.override(values, args), content["network"]


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
