"""N-MNIST from its original files (Orchard et al. 2015, doi 10.3389/fnins.2015.00437).

A folder Train and a folder Test hold a folder for each digit, 0 to 9, and that a .bin file for each recording. An event
is five bytes: x, y, then a bit of polarity and 23 bits of time in µs, the highest byte first.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from tqdm import tqdm

from datasets.prepare import visible
from datasets.prepare.writer import write_events
from snn.errors import InputError

HEIGHT = WIDTH = 34  # pixels
BYTES_PER_EVENT = 5
# The authors' own reader (github.com/gorchard/event-Python) takes y = 240 for no event: the clock moves on by 2^13 µs.
OVERFLOW, OVERFLOW_US = 240, 2**13
SPLITS = {"train": "Train", "test": "Test"}


def convert_nmnist(folder: Path, out_dir: Path) -> None:
    """Convert Train and Test below `folder` to out_dir/nmnist_train.h5 and out_dir/nmnist_test.h5.

    A unit is polarity · 34² + y · 34 + x. Raises InputError naming the file at fault and the remedy.
    """
    listed = {split: _list_recordings(folder / name) for split, name in SPLITS.items()}
    for split, recordings in listed.items():
        paths = tqdm([path for path, _ in recordings], f"N-MNIST, {split}", unit="recording", disable=None)
        write_events(
            out_dir / f"nmnist_{split}.h5",
            map(read_bin, paths),
            labels=[label for _, label in recordings],
            keys=[str(digit) for digit in range(10)],
            provenance={"made_by": "nmnist"},
            speakers=None,
        )
    print(f"{' and '.join(f'{len(listed[split]):,} recordings to {split}' for split in SPLITS)} in {out_dir}")


def read_bin(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """A recording: (times in s, units), in the order of the file."""
    content = np.fromfile(path, np.uint8)
    if len(content) % BYTES_PER_EVENT:
        raise InputError(f"{path}: {len(content):,} bytes are no whole number of events of 5 bytes; fetch it again")
    x, y, high, middle, low = content.reshape(-1, BYTES_PER_EVENT).T.astype(np.int64)
    is_overflow = y == OVERFLOW
    times_us = ((high & 0x7F) << 16 | middle << 8 | low) + OVERFLOW_US * np.cumsum(is_overflow)
    beside = ~is_overflow & ((x >= WIDTH) | (y >= HEIGHT))
    if is_overflow.all() or beside.any():
        what = (
            f"an event at x = {x[beside][0]}, y = {y[beside][0]}, beside the 34x34 pixels" if beside.any() else "empty"
        )
        raise InputError(f"{path}: {what}; this is no recording of N-MNIST, or damaged: fetch it again")
    units = ((high >> 7) * HEIGHT + y) * WIDTH + x
    return times_us[~is_overflow] / 1e6, units[~is_overflow]


def _list_recordings(folder: Path) -> list[tuple[Path, int]]:
    """Every recording of a split with its label."""
    recordings = [(path, digit) for digit in range(10) for path in visible((folder / str(digit)).glob("*.bin"))]
    missing = sorted(set(range(10)) - {digit for _, digit in recordings})
    if missing:
        raise InputError(f"{folder / str(missing[0])} holds no .bin files: give the folder of N-MNIST's Train and Test")
    return recordings


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the subcommand `nmnist`."""
    parser = subparsers.add_parser(
        "nmnist",
        help="N-MNIST from its original .bin files",
        description="Convert the original files of N-MNIST, DIR/Train/<digit>/*.bin and DIR/Test/<digit>/*.bin, to "
        "nmnist_train.h5 and nmnist_test.h5.",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder that holds Train and Test")
    parser.add_argument("--out", type=Path, default=Path("data/nmnist"), help="folder for the two files (data/nmnist)")
    parser.set_defaults(run=lambda args: convert_nmnist(args.folder, args.out))
