"""The single digits of N-TIDIGITS from its original file (Anumula, Neil, Delbruck, Liu, Front. Neurosci. 12 (2018) 23).

An original label is "speaker's sex-speaker-take-digits". Those of one digit are kept, as in Liu et al. 2023: "z" (zero)
is class 0, "1" to "9" are themselves, "o" (oh) is class 10.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from datasets import hdf5
from datasets.prepare.writer import make_room, new_file
from snn.errors import InputError

CLASSES = {"z": 0, **{str(digit): digit for digit in range(1, 10)}, "o": 10}
N_CHANNELS = 64
SPLITS = ("train", "test")


def convert_ntidigits(original: Path, out_dir: Path) -> None:
    """Write out_dir/n-tidigits-single.hdf5. InputError if the original is damaged or of another layout.

    Layout: data/<key>/times uint32 µs, addrs uint8 (events, 1), labels uint8; the keys count from 0, training first.
    extra holds train_keys and test_keys and, as attributes, their numbers N, Ntrain, Ntest.
    """
    path = out_dir / "n-tidigits-single.hdf5"
    numbers = dict.fromkeys(SPLITS, 0)
    provenance = {"made_by": "ntidigits", "original": original.name}
    source = hdf5.File(original)
    with new_file(path, provenance) as file:
        for split in SPLITS:
            for times_us, channels, label in _single_digits(source, split, original):
                make_room(file, times_us.nbytes + channels.nbytes)
                recording = file.create_group(f"data/{sum(numbers.values())}")
                recording["times"] = times_us
                recording["addrs"] = channels[:, None]
                recording["labels"] = np.uint8(label)
                numbers[split] += 1
        keys = np.arange(sum(numbers.values()))
        file["extra/train_keys"], file["extra/test_keys"] = np.split(keys, [numbers["train"]])
        file["extra"].attrs.update(N=len(keys), Ntrain=numbers["train"], Ntest=numbers["test"])
    print(f"{numbers['train']} recordings to train on and {numbers['test']} to test in {path}")


def _single_digits(source: hdf5.File, split: str, original: Path) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Yield (times in µs, channels, class) of each recording of one digit."""
    if not source.is_dataset(f"{split}_labels"):
        raise InputError(f"{original}: it has no data set {split}_labels; give the original n-tidigits.hdf5")
    labels = source.names(f"{split}_labels")
    single = [label for label in labels if len(label.rpartition("-")[2]) == 1]
    digits = [label[-1] for label in single]
    for label, digit in zip(single, digits, strict=True):
        if digit not in CLASSES:
            raise InputError(
                f"{original}: the label {label!r:.80} does not end in a digit: one of {', '.join(CLASSES)}"
            )
    if missing := set(CLASSES) - set(digits):
        raise InputError(f"{original}: {split}_labels has no single '{min(missing)}'; is the file complete?")
    for label, digit in zip(tqdm(single, split, unit="recording", disable=None), digits, strict=True):
        times_s, channels = (
            _events(source, f"{split}_{name}/{label}", original) for name in ("timestamps", "addresses")
        )
        if len(times_s) != len(channels) or len(times_s) == 0:
            raise InputError(f"{original}: {label} has {len(times_s)} times and {len(channels)} addresses")
        # truncated, not rounded, to whole µs, as in the published file
        with np.errstate(all="ignore"):  # invalid times are found below
            times_us = np.floor(times_s.astype(np.float64) * 1e6)
        if not (times_us.min() >= 0 and times_us.max() < 2**32):  # false for NaN
            raise InputError(f"{original}: {label} has a time outside 0 to 4294 s; µs are counted in 32 bits")
        if not (channels.min() >= 0 and channels.max() < N_CHANNELS):
            raise InputError(f"{original}: {label} has an address outside 0..{N_CHANNELS - 1}")
        order = np.argsort(times_us, kind="stable")  # readers refuse a time that goes back as an overflow
        yield times_us[order].astype(np.uint32), channels[order].astype(np.uint8), CLASSES[digit]


def _events(source: hdf5.File, name: str, original: Path) -> np.ndarray:
    if not source.is_dataset(name):
        raise InputError(f"{original}: the recording {name!r:.80} has a label but is missing; fetch the file again")
    return source.numbers(name).reshape(-1)


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the subcommand `ntidigits`."""
    parser = subparsers.add_parser(
        "ntidigits",
        help="the single digits of N-TIDIGITS, from n-tidigits.hdf5",
        description="Make OUT/n-tidigits-single.hdf5 from the original n-tidigits.hdf5, which is linked at "
        "https://docs.google.com/document/d/1Uxe7GsKKXcy6SlDUX4hoJVAC0-UkH-8kr5UXp0Ndi1M",
    )
    parser.add_argument("original", type=Path, help="n-tidigits.hdf5")
    parser.add_argument("--out", type=Path, default=Path("data/ntidigits"), help="folder (default: data/ntidigits)")
    parser.set_defaults(run=lambda args: convert_ntidigits(args.original, args.out))
