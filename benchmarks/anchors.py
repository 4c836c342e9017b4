"""Ordinary networks, trained on the data of a configuration, with which a first-spike network is compared.

    python -m benchmarks.anchors --path_to_yaml configs/fsdd.yaml --anchor gru [--seeds 0 1 2 3 4] [options of train.py]

Recordings, bins, held-out speakers, order and augmentation are those of train.py, because the same code makes the
batches. The rest is the anchor's own, and the same for every data set: the network, AdamW, a learning rate that falls
along a cosine, label smoothing. The best epoch is chosen on the held-out recordings, and the test file is read when the
training of a seed is complete. An anchor decides at the end of the recording.

Writes results/anchors/<dataset_name>_<anchor>.json, in the form of results/. The file is written after each seed, and
the same command continues with the seeds that are missing in it.
"""

import argparse
import copy
import functools
import json
import math
import operator
import os
import shlex
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from benchmarks.figures import machine_in_use, mean_of, packed
from benchmarks.results import RESULTS, stored_before
from datasets import binning, prepare
from datasets.binning import Bins
from snn import arguments, cli, config, settings, statistics
from snn.classes import Named
from snn.errors import InputError
from snn.files import write_whole
from snn.inputs import as_tensor
from snn.machine import find_device, versions
from snn.memory import keep_freed_memory
from snn.team import Team
from tasks.events import EventTraining, look_at_test_data, read_recordings
from tasks.kind import fingerprint, named, say_missing

COMMAND = ("python", "-m", "benchmarks.anchors")
EPOCHS, LR, WEIGHT_DECAY, CLIP_NORM, SMOOTHING = 50, 2e-3, 0.01, 1.0, 0.1
TAKEN = {"train.batch_size", "train.test_batch_size"}  # from the configuration, besides data


class GRU(nn.Module):
    """Two layers of 128 gated recurrent units, read out by their mean over the steps up to the last event."""

    CHANNELS, UNITS, DROPOUT = 140, 128, 0.3  # at most so many channels: neighbours are summed

    def __init__(self, bins: Bins, num_classes: int):
        super().__init__()
        self.pool = 1, math.ceil(bins.channels / self.CHANNELS)
        inputs = math.ceil(bins.channels / self.pool[1])
        self.recurrent = nn.GRU(inputs, self.UNITS, num_layers=2, dropout=self.DROPOUT)
        self.readout = nn.Sequential(nn.Dropout(self.DROPOUT), nn.Linear(self.UNITS, num_classes))
        self.words = f"GRU, {inputs} channels, 2 layers of {self.UNITS}"

    def forward(self, x_TBC: Tensor) -> Tensor:
        """Return the logits, (B, classes), of counts (T, B, channels)."""
        x_TBC = pooled(x_TBC, *self.pool)
        has_events_TB = x_TBC.any(2).float()
        lasts_TB1 = has_events_TB.flip(0).cummax(0).values.flip(0).unsqueeze(2)
        h_TBN, _ = self.recurrent(x_TBC.log1p())
        return self.readout((h_TBN * lasts_TB1).sum(0) / lasts_TB1.sum(0).clamp(min=1))


class CNN(nn.Module):
    """Four convolutions with BatchNorm over a picture of at most 50 x 70 bins, read out by its mean."""

    STEPS, CHANNELS, FILTERS, DROPOUT = 50, 70, (16, 32, 64, 64), 0.3

    def __init__(self, bins: Bins, num_classes: int):
        super().__init__()
        T = bins.T + bins.T_empty
        self.pool = math.ceil(T / self.STEPS), math.ceil(bins.channels / self.CHANNELS)
        size = math.ceil(T / self.pool[0]), math.ceil(bins.channels / self.pool[1])
        parts: list[nn.Module] = []
        for inputs, outputs in zip((1, *self.FILTERS), self.FILTERS, strict=False):
            parts += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
            parts.append(nn.MaxPool2d(2, ceil_mode=True))
        self.layers = nn.Sequential(*parts[:-1])
        self.readout = nn.Sequential(nn.Dropout(self.DROPOUT), nn.Linear(self.FILTERS[-1], num_classes))
        self.to(memory_format=torch.channels_last)  # half as long on a CPU
        self.words = f"CNN on {size[0]} x {size[1]} bins, {len(self.FILTERS)} layers"

    def forward(self, x_TBC: Tensor) -> Tensor:
        """Return the logits, (B, classes), of counts (T, B, channels)."""
        x_B1TC = pooled(x_TBC, *self.pool).log1p().transpose(0, 1).unsqueeze(1)
        return self.readout(self.layers(x_B1TC).mean((2, 3)))


ANCHORS: dict[str, type[GRU | CNN]] = {"gru": GRU, "cnn": CNN}


def pooled(x_TBC: Tensor, steps: int, channels: int) -> Tensor:
    """Sum groups of `steps` neighbouring steps and `channels` channels; zeros fill up the last groups."""
    T, _, C = x_TBC.shape
    whole_TBC = F.pad(x_TBC, (0, -C % channels, 0, 0, 0, -T % steps))
    return whole_TBC.unflatten(2, (-1, channels)).unflatten(0, (-1, steps)).sum((1, 4))


class Trained(NamedTuple):
    """An anchor with the weights of its best epoch, and the training that chose it."""

    network: GRU | CNN
    task: EventTraining
    epoch: int
    validation_accuracy: float


def train(cfg: config.Config, anchor: str) -> Trained:
    """Train an anchor. Keep the epoch with the best held-out accuracy and, among equals, the lowest loss."""
    task = EventTraining(cfg, Team(find_device(cfg.train.device)))
    device, size = task.team.device, cfg.train.test_batch_size
    if not len(task.held_out):
        raise InputError("data.validation_share = 0: an anchor chooses its epoch on held-out data; hold some out")
    torch.manual_seed(cfg.train.seed)
    network = ANCHORS[anchor](task.bins, cfg.data.num_classes).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), LR, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    best, best_epoch, weights = (-math.inf, -math.inf), 0, {}
    for epoch in tqdm(range(EPOCHS), f"{anchor}, seed {cfg.train.seed}", leave=False, disable=None):
        started = time.perf_counter()
        random = np.random.default_rng([cfg.train.seed, epoch])  # the order and the changes of train.py
        torch.manual_seed(int(random.integers(2**62)))
        order = random.permutation(task.kept)
        task.begin_epoch(epoch, random)
        network.train()
        for x_TBC, target_B in task.batches(order):
            optimizer.zero_grad(set_to_none=True)
            logits_BK = network(as_tensor(x_TBC))
            F.cross_entropy(logits_BK, target_B.to(device), label_smoothing=SMOOTHING).backward()
            nn.utils.clip_grad_norm_(network.parameters(), CLIP_NORM)
            optimizer.step()
        schedule.step()
        batches = binning.batches(task.validation, task.held_out, task.bins, size, device=device)
        right_n, loss = examine(network, batches)
        accuracy = 100 * float(right_n.mean())
        if (accuracy, -loss) > best:
            best, best_epoch, weights = (accuracy, -loss), epoch + 1, copy.deepcopy(network.state_dict())
        seconds = time.perf_counter() - started
        tqdm.write(
            f"epoch {epoch + 1:3}  {accuracy:6.2f} % of {len(right_n)} held out  loss {loss:.3f}  {seconds:.1f} s"
        )
    network.load_state_dict(weights)
    return Trained(network, task, best_epoch, best[0])


@torch.no_grad()
def examine(network: nn.Module, batches: Iterable) -> tuple[np.ndarray, float]:
    """Return which decisions are right, (n,) bool, and the mean cross-entropy."""
    network.eval()
    rights, loss = [], 0.0
    for x_TBC, target_B in batches:
        logits_BK = network(as_tensor(x_TBC)).cpu()
        rights.append((logits_BK.argmax(1) == target_B).numpy())
        loss += F.cross_entropy(logits_BK, target_B, reduction="sum").item()
    right_n = np.concatenate(rights)
    return right_n, loss / len(right_n)


def test(trained: Trained) -> dict:
    """Return the metrics on the test file, which is read here for the first time."""
    task, data = trained.task, trained.task.cfg.data
    bins = Bins.of(data, "test")
    prepare.make_if_missing(data.test_path, data.dataset_name, data.prepare)
    recordings = read_recordings(data, "test", bins, Named(task.class_names, task.recordings.where))
    say_missing(recordings.labels, data.num_classes, str(data.test_path), "recording")
    everything, size = np.arange(len(recordings)), task.cfg.train.test_batch_size
    batches = binning.batches(recordings, everything, bins, size, device=task.team.device)
    right_n, _ = examine(trained.network, batches)
    names = recordings.class_names and named(recordings.class_names, data.num_classes)
    low, high = statistics.wilson(int(right_n.sum()), len(right_n))
    return {
        "samples": len(right_n),
        "accuracy": 100 * float(right_n.mean()),
        "accuracy_interval": [100 * low, 100 * high],
        "epoch": trained.epoch,
        "validation_accuracy": trained.validation_accuracy,
        "samples_of": fingerprint(recordings.labels, names, np.diff(recordings.offsets)),
        "right": packed(right_n),
    }


def main() -> None:
    keep_freed_memory()
    parser = arguments.Parser(__doc__, arguments.TRAIN)
    parser.add_argument("--anchor", choices=ANCHORS, required=True, help="the network")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="0 1 2 3 4")
    parser.add_argument("--out", type=Path, help="the result; default results/anchors/<dataset_name>_<anchor>.json")
    args = parser.parse_args()
    cfg_by_seed, words = read_configurations(parser, args)
    cfg = cfg_by_seed[args.seeds[0]]
    look_at_test_data(cfg.data, Named(None, ""))  # at names, sizes and types, before the work begins
    out = args.out or RESULTS / "anchors" / f"{cfg.data.dataset_name}_{args.anchor}.json"
    result = describe(cfg, args.anchor, words)
    result["seeds"] = seeds = stored_before(out, result, "seeds", "command", "network", "training") or {}
    out.parent.mkdir(parents=True, exist_ok=True)
    for seed, cfg in cfg_by_seed.items():
        if str(seed) in seeds:
            continue
        started, busy = time.perf_counter(), time.process_time()
        trained = train(cfg, args.anchor)
        took = {"train_seconds": time.perf_counter() - started, "train_processor_seconds": time.process_time() - busy}
        found = seeds[str(seed)] = test(trained) | {name: round(seconds, 1) for name, seconds in took.items()}
        result["finished"] = time.strftime("%Y-%m-%d")
        write_whole(out, json.dumps(result, indent=1) + "\n")
        print(f"seed {seed}: epoch {found['epoch']}, {found['accuracy']:.1f} % of {found['samples']} test recordings")
    print(f"{result['network']}: {mean_of(list(seeds.values()), 'accuracy', 1, ' %')}; stored in {out}")


def read_configurations(
    parser: arguments.Parser, args: argparse.Namespace
) -> tuple[dict[int, config.Config], list[str]]:
    """Return the configuration of each seed, and the command-line options that give them, without paths."""
    if args.path_to_yaml is None:
        parser.error("--path_to_yaml is missing: the configuration whose data are learned")
    path = arguments.find_yaml(args.path_to_yaml)
    plain, values = settings.load(path), settings.read_yaml(path)
    cfg = parser.override(values, args, path)
    if not isinstance(cfg, config.Config) or (cfg.data.sensor and cfg.data.sensor.height > 1):
        raise InputError(f"{path}: anchors learn from channels in a row, such as those of a cochlea; take such data")
    changed = settings.changes(plain, cfg)
    if others := [name for name in changed if name not in TAKEN and not name.startswith("data.")]:
        taken = ", ".join(sorted(TAKEN))
        raise InputError(f"{', '.join(others)}: an anchor has its own; it takes data, {taken} from a configuration")
    words = ["--path_to_yaml", f"configs/{path.name}", "--anchor", args.anchor]
    for name in sorted(changed):
        value = functools.reduce(operator.getitem, name.split("."), cfg.model_dump(mode="json"))
        words += ["--set", f"{name}={value if isinstance(value, str) else json.dumps(value)}"]
    cfg_by_seed = {}
    for seed in args.seeds:
        values["train"] |= {"seed": seed, "epochs": EPOCHS}
        cfg_by_seed[seed] = settings.build(values, str(path))
    return cfg_by_seed, [*words, "--seeds", *map(str, args.seeds)]


def describe(cfg: config.Config, anchor: str, words: list[str]) -> dict:
    """Return a stored result without its seeds and its day."""
    bins = Bins.of(cfg.data, "train")
    network = ANCHORS[anchor](bins, cfg.data.num_classes).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(bins.T + bins.T_empty, 1, bins.channels))
    weights = sum(parameter.numel() for parameter in network.parameters())
    return {
        "configuration": words[1],
        "command": shlex.join([*COMMAND, *words]),
        "network": f"{network.words}, {weights / 1000:.0f} k weights",
        "weights": weights,
        "multiply_accumulates": counter.get_total_flops() // 2,  # of a recording
        "training": {"epochs": EPOCHS, "lr": LR, "weight_decay": WEIGHT_DECAY, "label_smoothing": SMOOTHING},
        "finished": None,
        "machine": machine_in_use(find_device(cfg.train.device), load_at_start=os.getloadavg()[0]),
        "versions": versions(),
    }


if __name__ == "__main__":
    cli.run(main)
