"""DVSPlane, from its original MATLAB files (Afshar et al., Front. Neurosci. 13 (2019)) to those of Liu et al. 2023.

A file holds one drop of a model aircraft in front of the camera: the structure TD with x, y (from 1), ts (µs) and p.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import numpy as np
from scipy.io import loadmat

from datasets.prepare import visible
from datasets.prepare.parallel import map_in_order
from datasets.prepare.writer import write_camera
from snn.errors import InputError

CLASSES = ("F117", "Mig31", "Su24", "Su35")
HEIGHT, WIDTH = 240, 304
NUMBERS = {"train": range(1, 161), "test": range(161, 201)}  # of the recordings of a class

SPAN = 1000  # events
BUSY, BUSIER = 10, 5  # times the shortest span
LONG_US = 300_000
GAP_AFTER = 2000  # spans


def convert_dvsplane(folder: Path, out_dir: Path, processes: int | None) -> None:
    """Write out_dir/DVSPlane-train.hdf5 and out_dir/DVSPlane-test.hdf5, each recording cut to its busy part.

    Recordings 1 to 160 of a class are for training and 161 to 200 for testing.
    Raises InputError naming the file at fault and the remedy.
    """
    splits = _splits(folder)
    converted = map_in_order(_convert, [task for tasks in splits.values() for task in tasks], processes, "dvsplane")
    for split, tasks in splits.items():
        path = out_dir / f"DVSPlane-{split}.hdf5"
        recordings = (next(converted) for _ in tasks)
        write_camera(path, "", recordings, np.uint16, {"made_by": "dvsplane", "folder": folder.name})
        print(f"{len(tasks)} recordings in {path}")


def busy_part(times_us: np.ndarray) -> slice:
    """Find the events while the aircraft is in view (Liu et al. 2023): 242 ± 21 ms of a recording.

    The part reaches from the first to the last event at which a busy span of 1000 events begins. A span is busy if it
    is shorter than 10 times the shortest. If the part takes more than 300 ms, spans must be shorter than 5 times the
    shortest, and the part ends at the first gap after 2000 of them. Raises InputError if there is no such part.
    """
    spans_us = times_us[SPAN:] - times_us[:-SPAN]
    if len(spans_us) == 0 or spans_us.min() == 0:
        raise InputError(f"finding its busy part takes more than {SPAN} events, not all at one time")
    busy = np.flatnonzero(spans_us < BUSY * spans_us.min())
    if times_us[max(busy[-1] - 1, 0)] - times_us[busy[0]] > LONG_US:
        busy = np.flatnonzero(spans_us < BUSIER * spans_us.min())
        gaps = np.flatnonzero(np.diff(busy) > 2)
        if (gaps > GAP_AFTER).any():
            busy = busy[: gaps[gaps > GAP_AFTER][0]]
    if busy[0] == busy[-1]:
        raise InputError("it has no busy part: only one span of events is")
    return slice(int(busy[0]), int(busy[-1]))


def read_mat(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read (times in µs [events], x y polarity [events, 3]) of a recording. InputError if the file is not one."""
    try:
        td = loadmat(path, squeeze_me=True, variable_names=["TD"])["TD"]
        x, y, polarity, times = (np.atleast_1d(td[name].item()) for name in ("x", "y", "p", "ts"))
        events = np.stack([x, y, polarity, times], axis=1).astype(np.float64)
    except NotImplementedError:
        raise InputError(f"{path}: a MATLAB file of version 7.3; save it again in MATLAB with '-v7'") from None
    except Exception as error:  # SciPy fails on damaged or strange files in many ways
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"{path}: not a MATLAB file with a structure TD of x, y, p, ts ({reason:.100})") from None
    if events.ndim != 2 or len(events) == 0 or not (np.isfinite(events) & (events == np.floor(events))).all():
        raise InputError(f"{path}: x, y, p and ts of TD must be lists of whole numbers, not empty")
    times_us, (x, y, polarity) = events[:, 3].astype(np.int64), events[:, :3].astype(np.int64).T
    back = times_us[1:] < times_us[:-1]
    if back.any():
        e = int(back.argmax())
        raise InputError(f"{path}: goes back in time, from {times_us[e]} to {times_us[e + 1]} µs; sort its events")
    # an address of 0 counts as 1, as in the published preparation
    x, y = np.maximum(x - 1, 0), np.maximum(y - 1, 0)
    if not np.isin(polarity, (-1, 0, 1)).all() or x.max() >= WIDTH or y.max() >= HEIGHT or events[:, :2].min() < 0:
        raise InputError(f"{path}: events outside x 1..{WIDTH}, y 1..{HEIGHT} or polarity -1, 0, 1")
    return times_us, np.stack([x, y, np.maximum(polarity, 0)], axis=1)


def _convert(task: tuple[Path, int]) -> tuple[np.ndarray, np.ndarray, int]:
    path, label = task
    times_us, data = read_mat(path)
    try:
        part = busy_part(times_us)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    times_us = times_us[part] - times_us[part.start]
    if times_us[-1] >= 2**32:
        raise InputError(f"{path}: its busy part is longer than 71 min; are its times in µs?")
    return times_us.astype(np.uint32), data[part].astype(np.uint16), label


def _splits(folder: Path) -> dict[str, list[tuple[Path, int]]]:
    """List (file, label) of each recording for training and for testing, by number."""
    numbered = {}
    for path in visible(folder.rglob("*.mat")):
        found = re.fullmatch(rf"({'|'.join(CLASSES)})\D.*?(\d+)\D*", path.stem, re.IGNORECASE)
        if found is None:
            raise InputError(f"{path}: its name is not like F117_1.mat: one of {', '.join(CLASSES)}, and a number")
        label = [name.lower() for name in CLASSES].index(found[1].lower())
        key = int(found[2]), label
        if key in numbered:
            raise InputError(f"{path} and {numbered[key]} are both number {key[0]} of {CLASSES[label]}")
        numbered[key] = path
    if not numbered:
        raise InputError(f"{folder} holds no *.mat: give the folder of F117_1.mat and the rest")
    splits = {
        split: [(path, label) for (number, label), path in sorted(numbered.items()) if number in numbers]
        for split, numbers in NUMBERS.items()
    }
    if strange := [path for (number, _), path in numbered.items() if not any(number in n for n in NUMBERS.values())]:
        raise InputError(f"{strange[0]}: its number is not 1 to 200")
    for split, tasks in splits.items():
        if missing := set(range(len(CLASSES))) - {label for _, label in tasks}:
            numbers = f"{NUMBERS[split][0]} to {NUMBERS[split][-1]}"
            raise InputError(
                f"{folder}: {CLASSES[min(missing)]} has no recording of {numbers}, those of the {split} file"
            )
    return splits


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the subcommand `dvsplane`."""
    parser = subparsers.add_parser(
        "dvsplane",
        help="DVSPlane, from its MATLAB files",
        description="Make OUT/DVSPlane-train.hdf5 and OUT/DVSPlane-test.hdf5 from a folder of MATLAB files F117_1.mat, "
        "..., Su35_200.mat, each with a structure TD. Get them at http://greg-cohen.com/datasets/dvs-planes",
    )
    parser.add_argument("folder", type=Path, help="folder of the *.mat; folders inside it are searched too")
    parser.add_argument("--out", type=Path, default=Path("data/dvsplane"), help="folder (default: data/dvsplane)")
    parser.add_argument("--processes", type=int, help="worker processes (default: one for each core)")
    parser.set_defaults(run=lambda args: convert_dvsplane(args.folder, args.out, args.processes))
