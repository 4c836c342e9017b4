"""The memory and the time per step of a long training: the network of configs/adlif_digits.yaml, on made-up data.

    python -m benchmarks.soak [--json FILE] [--minutes 30]

It runs train.py's own epoch, validation and checkpoint, on recordings made up as in benchmarks.step. Resident memory
and time per step are measured after each epoch, and their medians are taken in each of 30 parts of the time; the first
part warms up. The slope over the others is that of Theil and Sen with its 95 % interval, which a few slow parts on a
shared machine do not change.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import torch
from scipy.stats import theilslopes
from tqdm import tqdm

import tasks
import train
from benchmarks.kernels import processor
from benchmarks.step import make_recordings
from snn import checkpoint, cli, settings
from snn.memory import keep_freed_memory
from snn.team import Team

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "adlif_digits.yaml"
RECORDINGS, SPEAKERS, PARTS = 640, 10, 30


def write_recordings(path: Path, channels: int, classes: int) -> None:
    """Write a file in the layout of SHD."""
    recordings = make_recordings(RECORDINGS, channels, classes)
    with h5py.File(path, "w") as file:
        for name, values in (("times", recordings.times), ("units", recordings.channels)):
            rows = file.create_dataset(f"spikes/{name}", (RECORDINGS,), h5py.vlen_dtype(values.dtype))
            for r in range(RECORDINGS):
                rows[r] = values[recordings.offsets[r] : recordings.offsets[r + 1]]
        file["labels"] = np.arange(RECORDINGS) % classes
        file["extra/speaker"] = np.arange(RECORDINGS) // classes % SPEAKERS


def resident_megabytes() -> float:
    """Return the memory of this process now. Linux only."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def soak(folder: Path, minutes: float) -> list[dict[str, float]]:
    """Train, and return a row for each epoch: minutes since the start, milliseconds a step, resident megabytes."""
    values = settings.read_yaml(CONFIG)
    settings.override(values, "data.path", str(folder))
    settings.override(values, "train.device", "cpu")
    cfg = settings.build(values, str(CONFIG))
    write_recordings(cfg.data.train_path, cfg.data.channels, cfg.data.num_classes)
    team = Team(torch.device("cpu"))
    task = tasks.kind_of(cfg).training(cfg, team)
    random = np.random.default_rng(0)
    rows, started = [], time.perf_counter()
    interruption = cli.Interruption("interrupted")
    with interruption, tqdm(total=round(60 * minutes), unit="s", disable=None) as bar:
        while (seconds := time.perf_counter() - started) < 60 * minutes:
            bar.update(int(seconds) - bar.n)
            epoch = len(rows)
            task.begin_epoch(epoch % cfg.train.epochs, random)
            begun = time.perf_counter()
            order, last = random.permutation(task.kept), folder / "last.pt"
            if not train.train_epoch(task, order, train.Position(epoch), cfg.train, team, interruption, last):
                raise KeyboardInterrupt
            steps = -(-len(task.kept) // cfg.train.batch_size)
            ms = 1e3 * (time.perf_counter() - begun) / steps
            validation = task.validate()
            state = {"optimizer": task.optimizer.state_dict(), "validation": validation, "epoch": epoch}
            checkpoint.save(last, cfg, task.network, **state)
            rows.append({"minutes": seconds / 60, "ms_a_step": ms, "megabytes": resident_megabytes()})
    return rows


def slope(rows: list[dict[str, float]], name: str, minutes: float) -> dict[str, float]:
    """Return medians at the start and the end, and the change per minute with its 95 % interval, over the parts."""
    parts = [[row for row in rows if part <= row["minutes"] * PARTS / minutes < part + 1] for part in range(1, PARTS)]
    points = [
        (statistics.median(row["minutes"] for row in part), statistics.median(row[name] for row in part))
        for part in parts
        if part
    ]
    at, value = np.array(points).T
    middle, _, low, high = theilslopes(value, at)
    return {"first": value[0], "last": value[-1], "a_minute": float(middle), "low": float(low), "high": float(high)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", type=Path, help="file for the numbers (JSON)")
    parser.add_argument("--minutes", type=float, default=30.0, help="duration in minutes (30)")
    arguments = parser.parse_args()
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        rows = soak(Path(folder), arguments.minutes)
    slopes = {name: slope(rows, name, arguments.minutes) for name in ("megabytes", "ms_a_step")}
    print(f"{arguments.minutes:g} minutes, {len(rows)} epochs, {processor()}, {torch.get_num_threads()} threads")
    for name, found in slopes.items():
        print(
            f"  {name:<10} {found['first']:8.2f} at the start {found['last']:8.2f} at the end; a minute "
            f"{found['a_minute']:+.4f} (95 %: {found['low']:+.4f} to {found['high']:+.4f})"
        )
    if arguments.json:
        result = {"device": processor(), "threads": torch.get_num_threads(), "torch": torch.__version__}
        arguments.json.write_text(
            json.dumps(result | {"slopes": slopes, "rows": rows}, indent=1) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    cli.run(main)
