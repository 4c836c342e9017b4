"""DVSGesture, from its original AEDAT 3.1 recordings (Amir et al., CVPR 2017) to the files of Liu et al. 2023.

Each recording holds the gestures of one person in one light; its table <name>_labels.csv gives their times.
"""

from __future__ import annotations

import argparse
import csv
import re
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datasets.prepare import visible
from datasets.prepare.cameras.aedat import aedat3_packets
from datasets.prepare.parallel import map_in_order
from datasets.prepare.writer import write_camera
from snn.errors import InputError

N_CLASSES = 11  # the originals number them from 1; the last, "other", is left out unless asked for
SIZE = 128
TRIALS = {"train": "trials_to_train.txt", "test": "trials_to_test.txt"}
LAST_TRAINING_USER, LAST_USER = 23, 29


class Gesture(NamedTuple):
    """A row of a table of labels."""

    label: int
    start_us: int
    end_us: int


class Events(NamedTuple):
    """The valid events of a recording, in the order of the file."""

    times_us: np.ndarray  # [events] int64
    data: np.ndarray  # [events, 3] uint16: x, y, polarity
    invalid: int  # number of events left out because the camera's software marked them invalid


def convert_dvsgesture(folder: Path, out_dir: Path, processes: int | None, classes: int = N_CLASSES - 1) -> None:
    """Write out_dir/DVS-Gesture-train10.hdf5 and out_dir/DVS-Gesture-test10.hdf5, or -train11 and so on for 11 classes.

    If `folder` holds trials_to_train.txt and trials_to_test.txt, they name the recordings; otherwise users 1 to 23 (by
    the file names) are for training, and users 24 to 29 for testing. A gesture's time counts from its first event.
    Raises InputError naming the file at fault and the remedy.
    """
    splits = {split: [(path, read_labels(path, classes)) for path in paths] for split, paths in _splits(folder).items()}
    for split, recordings in splits.items():
        labels = {gesture.label for _, gestures in recordings for gesture in gestures}
        if missing := set(range(classes)) - labels:
            raise InputError(
                f"{folder}: no {split} recording has the gesture {min(missing) + 1}; is the folder complete?"
            )
    converted = map_in_order(_cut, splits["train"] + splits["test"], processes, "dvsgesture")
    for split, recordings in splits.items():
        path = out_dir / f"DVS-Gesture-{split}{classes}.hdf5"
        invalid = []
        gestures = _gestures(islice(converted, len(recordings)), invalid)
        number = write_camera(path, split, gestures, np.uint8, {"made_by": "dvsgesture", "folder": folder.name})
        left_out = f"; {sum(invalid):,} events marked invalid are left out" if any(invalid) else ""
        print(f"{number} gestures of {len(recordings)} recordings in {path}{left_out}")


def read_aedat(path: Path) -> Events:
    """Read the valid brightness changes in an AEDAT 3.1 file. InputError if it is another format or truncated.

    SpikingJelly's load_aedat_v3 reads the same (a test compares them), but event by event, with invalid events, and
    without noticing that the end of a file is missing.
    """
    packets = list(aedat3_packets(path)[1])
    valid, invalid = sum(len(piece.t) for piece, _ in packets), sum(number for _, number in packets)
    if not valid and invalid:
        raise InputError(f"{path}: all of its {invalid:,} events are marked invalid (bit 0); leave the file out")
    if not valid:
        raise InputError(f"{path}: holds no brightness events")
    times_us, *columns = (np.concatenate(parts) for parts in zip(*(piece for piece, _ in packets), strict=True))
    data = np.stack([column.astype(np.uint16) for column in columns], axis=1)
    if data[:, :2].max() >= SIZE:
        x, y, _ = data[int((data[:, :2] >= SIZE).any(axis=1).argmax())].tolist()
        raise InputError(f"{path}: an event at x = {x}, y = {y} is outside the sensor of {SIZE} x {SIZE} pixels")
    return Events(times_us, data, invalid)


def read_labels(recording: Path, classes: int) -> list[Gesture]:
    """Read the gestures of a recording from its table of labels: those of the first `classes` classes."""
    path = _labels_of(recording)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [[int(value) for value in row] for row in islice(csv.reader(file), 1, None) if row]
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path}: no table of class,startTime_usec,endTime_usec ({error})") from error
    if not rows or any(len(row) != 3 for row in rows):
        raise InputError(f"{path}: needs the columns class,startTime_usec,endTime_usec and a row for each gesture")
    for line, (number, start_us, end_us) in enumerate(rows, start=2):
        if not (1 <= number <= N_CLASSES and 0 <= start_us < end_us):
            raise InputError(
                f"{path}, line {line}: {number},{start_us},{end_us} is not class 1 to 11, start, later end"
            )
    return [Gesture(number - 1, start_us, end_us) for number, start_us, end_us in rows if number <= classes]


def _labels_of(recording: Path) -> Path:
    return recording.with_name(f"{recording.stem}_labels.csv")


def _gestures(
    converted: Iterable[tuple[list[tuple[np.ndarray, np.ndarray, int]], int]], invalid: list[int]
) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Yield the gestures of these recordings in turn; the events that each left out are counted in `invalid`."""
    for parts, left_out in converted:
        invalid.append(left_out)
        yield from parts


def _cut(task: tuple[Path, list[Gesture]]) -> tuple[list[tuple[np.ndarray, np.ndarray, int]], int]:
    """Cut a recording into gestures: times from the first event, x y polarity, label; and count its invalid events."""
    path, gestures = task
    events = read_aedat(path)
    parts = []
    for label, start_us, end_us in gestures:
        # a mask, not a search: the clock may have been reset elsewhere in the recording
        inside = (events.times_us >= start_us) & (events.times_us < end_us)
        times_us, data = events.times_us[inside], events.data[inside]
        where = f"{_labels_of(path)}: gesture {label + 1}, {start_us} to {end_us} µs of {path.name},"
        if len(times_us) == 0:
            raise InputError(f"{where} has no event; fetch both files again")
        if (times_us[1:] < times_us[:-1]).any():
            raise InputError(f"{where} goes back in time; fetch both files again")
        if times_us[-1] - times_us[0] >= 2**32:
            raise InputError(f"{where} is longer than 71 min, the range of a 32-bit counter")
        parts.append(((times_us - times_us[0]).astype(np.uint32), data.astype(np.uint8), label))
    return parts, events.invalid


def _splits(folder: Path) -> dict[str, list[Path]]:
    """List the recordings for training and for testing."""
    recordings = visible(folder.glob("*.aedat"))
    if not recordings:
        raise InputError(f"{folder} holds no recordings: give the folder of user01_fluorescent.aedat and the rest")
    for table in visible(folder.glob("*_labels.csv")):
        if not (recording := table.with_name(f"{table.name.removesuffix('_labels.csv')}.aedat")).is_file():
            raise InputError(f"{table}: its recording {recording.name} is missing; fetch it, or remove the table")
    lists = {split: folder / name for split, name in TRIALS.items()}
    there = [path for path in lists.values() if path.is_file()]
    if len(there) == 1:
        raise InputError(
            f"{there[0]} exists, but {' and '.join(TRIALS.values())} belong together: give both or neither"
        )
    if there:
        splits = {split: _listed(path) for split, path in lists.items()}
        if twice := set(splits["train"]) & set(splits["test"]):
            raise InputError(f"{folder}: {min(twice).name} is listed for training and for testing")
        return splits
    splits = {"train": [], "test": []}
    for path in recordings:
        found = re.match(r"user(\d+)", path.name)
        if found is None or not 1 <= int(found[1]) <= LAST_USER:
            raise InputError(f"{path}: its name must begin with user01 to user{LAST_USER}, which tells its split")
        splits["train" if int(found[1]) <= LAST_TRAINING_USER else "test"].append(path)
    return splits


def _listed(trials: Path) -> list[Path]:
    """Return the recordings that a list of trials names, one on each line."""
    lines = trials.read_text(encoding="utf-8", errors="surrogateescape").splitlines()  # file names
    paths = [trials.with_name(line.strip()) for line in lines if line.strip()]
    for path in paths:
        if not path.is_file():
            raise InputError(f"{trials}: {path.name} is missing; fetch it, or remove it from the list")
    return paths


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the subcommand `dvsgesture`."""
    parser = subparsers.add_parser(
        "dvsgesture",
        help="DVSGesture, from its AEDAT recordings",
        description="Make OUT/DVS-Gesture-train10.hdf5 and OUT/DVS-Gesture-test10.hdf5 from the folder DvsGesture of "
        "AEDAT 3.1 recordings and their tables <name>_labels.csv. Get it (DvsGesture.tar.gz) at "
        "https://research.ibm.com/interactive/dvsgesture",
    )
    parser.add_argument(
        "folder", type=Path, help="folder of user01_fluorescent.aedat, user01_fluorescent_labels.csv, ..."
    )
    parser.add_argument("--out", type=Path, default=Path("data/dvsgesture"), help="folder (default: data/dvsgesture)")
    parser.add_argument("--processes", type=int, help="worker processes (default: one for each core)")
    parser.add_argument(
        "--classes", type=int, choices=(10, 11), default=10, help='11: with "other", to DVS-Gesture-train11.hdf5 (10)'
    )
    parser.set_defaults(run=lambda args: convert_dvsgesture(args.folder, args.out, args.processes, args.classes))
