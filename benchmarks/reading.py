"""The speed of reading and batching recordings, from generated files in a warm disk cache.

    python -m benchmarks.reading [--json FILE] [--rounds 5] [--recordings 10000]

"shd": recordings of 6,000 events in the layout of SHD, half precision as in the official files, read by our reader and
by h5py in one go; "dvsgesture": a hundredth as many recordings of 400,000 events over 6 s in the layout of DVSGesture.
"in file": checked, but left there. Each is read in a process of its own, whose peak memory is reported. "batch": 16 of
these gestures binned to 160 steps of 2 x 32 x 32 (for their training step, see benchmarks.networks), and SHD's batch of
128, as it is and augmented. "from file": random recordings of those files.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import h5py
import numpy as np
from tqdm import tqdm

from benchmarks.kernels import high_water_megabytes, medians, processor
from datasets import readers
from datasets.augment import augment
from datasets.binning import Bins, bin_events
from datasets.binning import batches as batches_of
from datasets.recordings import AnyRecordings, Recordings, downsampled
from snn import cli, config
from snn.errors import InputError

EVENTS, CHANNELS, CLASSES = 6_000, 700, 20
GESTURE_EVENTS, GESTURE_S = 400_000, 6


def make_shd(path: Path, recordings: int) -> None:
    random = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        times = file.create_dataset("spikes/times", (recordings,), h5py.vlen_dtype(np.float16))
        units = file.create_dataset("spikes/units", (recordings,), h5py.vlen_dtype(np.uint16))
        for r in tqdm(range(recordings), "making a file", leave=False, disable=None):
            times[r] = np.sort(random.random(EVENTS, np.float32)).astype(np.float16)
            units[r] = random.integers(0, CHANNELS, EVENTS, np.uint16)
        file["labels"] = np.arange(recordings) % CLASSES


def make_gestures(path: Path, recordings: int) -> None:
    random = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for r in range(recordings):
            times_us = np.sort(random.uniform(0, 1e6 * GESTURE_S, GESTURE_EVENTS))
            file[f"train/{r}/time"] = times_us.astype(np.uint32)
            file[f"train/{r}/data"] = random.integers(0, (128, 128, 2), (GESTURE_EVENTS, 3), np.uint8)
            file[f"train/{r}/labels"] = np.uint8(r % 10)


def made(number: int, events: int, seconds: float, channels: int) -> Recordings:
    random = np.random.default_rng(0)
    times_us = np.sort(random.uniform(0, 1e6 * seconds, (number, events)), axis=1).astype(np.uint32)
    units = random.integers(0, channels, number * events, np.uint16)
    offsets = np.arange(number + 1) * events
    return Recordings(offsets, times_us.ravel(), 1e6, units, np.zeros(number, np.int64), None, "made")


def read(path: Path, in_memory: bool = True) -> AnyRecordings:
    return readers.read("shd", path, "train", CHANNELS, CLASSES, in_memory=in_memory)


def read_gestures(path: Path, in_memory: bool = True) -> AnyRecordings:
    recordings = readers.read("dvsgesture", path, "train", 2 * 128 * 128, 10, in_memory=in_memory)
    return downsampled(recordings, config.Sensor(height=128, width=128, divide=4))


def in_one_go(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read with h5py alone, which makes an object for each recording, then one array."""
    with h5py.File(path) as file:
        times, units = file["spikes/times"][()], file["spikes/units"][()]
    return np.concatenate(times).astype(np.float32), np.concatenate(units)


def measure(function: Callable[[Path], object], path: Path) -> dict[str, float]:
    """Measure seconds, the memory in use before, and the peak of this process since then (MiB)."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the high water mark falls to what is in use now
    before = high_water_megabytes()
    started = time.perf_counter()
    kept = function(path)
    seconds = time.perf_counter() - started
    del kept
    return {"seconds": seconds, "before": before, "peak": high_water_megabytes()}


READERS = {
    "shd": read,
    "shd in file": partial(read, in_memory=False),
    "shd in one go": in_one_go,
    "dvsgesture": read_gestures,
    "dvsgesture in file": partial(read_gestures, in_memory=False),
}


def batches_from_file(shd: Path, gestures: Path) -> dict[str, Callable[[], object]]:
    random = np.random.default_rng(0)

    def batch(recordings: AnyRecordings, size: int, bins: Bins) -> object:
        index = random.integers(0, len(recordings), size)
        return next(batches_of(recordings, index, bins, size))

    words, camera = read(shd, in_memory=False), read_gestures(gestures, in_memory=False)
    return {
        "gestures, from file": partial(batch, camera, 16, Bins(10.0, 120, 40, 2 * 32 * 32)),
        "SHD, from file": partial(batch, words, 128, Bins(10.0, 100, 0, CHANNELS)),
    }


def batches() -> dict[str, Callable[[], object]]:
    gestures, words = made(16, GESTURE_EVENTS, GESTURE_S, 2 * 32 * 32), made(128, EVENTS, 1, CHANNELS)
    everything = config.Augment(stretch=0.1, time_jitter_ms=3, drop=0.1, shift=5, unit_jitter=2)
    index = np.arange(128)
    bins = Bins(10.0, 100, 0, CHANNELS)
    return {
        "gestures": lambda: bin_events(gestures, index[:16], Bins(10.0, 120, 40, 2 * 32 * 32)),
        "SHD": lambda: bin_events(words, index, bins),
        "SHD, augmented": lambda: bin_events(augment(words, index, index, everything, (CHANNELS, 1), 1), index, bins),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", type=Path, help="file for the numbers (JSON)")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds (5)")
    parser.add_argument("--recordings", type=int, default=10_000, help="recordings in the file (10000)")
    parser.add_argument("--read", nargs=2, help=argparse.SUPPRESS)  # in a process of its own: function, file
    arguments = parser.parse_args()
    if arguments.read:
        print(json.dumps(measure(READERS[arguments.read[0]], Path(arguments.read[1]))))
        return
    if arguments.recordings < CLASSES:  # a file to train on needs one of each class
        raise InputError(f"--recordings {arguments.recordings}: there must be at least {CLASSES}")
    if arguments.rounds < 1:
        raise InputError(f"--rounds {arguments.rounds}: there must be at least 1")
    print(f"{processor()}; {arguments.recordings} recordings of {EVENTS:,} events, and gestures")
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        shd, gestures = Path(folder) / "shd_train.h5", Path(folder) / "DVS-Gesture-train10.hdf5"
        make_shd(shd, arguments.recordings)
        make_gestures(gestures, max(10, arguments.recordings // 100))
        for name in READERS:
            path = gestures if name.startswith("dvsgesture") else shd
            command = [sys.executable, "-m", "benchmarks.reading", "--read", name, str(path)]
            outputs = [
                subprocess.run(command, check=True, capture_output=True, text=True).stdout
                for _ in range(arguments.rounds)
            ]
            runs = [json.loads(output) for output in outputs]
            rows[name] = {key: float(np.median([run[key] for run in runs])) for key in runs[0]}
            row = rows[name]
            print(
                f"{name:<20}{row['seconds']:6.2f} s   memory {row['peak']:5.0f} MiB at most, "
                f"{row['before']:.0f} of them before"
            )
        ms = medians(batches() | batches_from_file(shd, gestures), arguments.rounds, "cpu")
    for name, value in ms.items():
        print(f"batch {name:<20}{value:6.1f} ms")
    if arguments.json:
        result = {"device": processor(), "reading": rows, "batch_milliseconds": ms}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    cli.run(main)
