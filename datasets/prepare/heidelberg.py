"""The Spiking Heidelberg Digits and Spiking Speech Commands from their official files, packed or not, under any name.

Source: Cramer, Stradmann, Schemmel, Zenke, IEEE TNNLS 33 (2022), doi 10.1109/TNNLS.2020.3044364.

https://zenkelab.org/datasets has shd_train.h5.gz, shd_test.h5.gz, ssc_train.h5.gz, ssc_valid.h5.gz and ssc_test.h5.gz.
"""

from __future__ import annotations

import argparse
import gzip
import os
import re
import shlex
import zlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
from tqdm import tqdm

from datasets import hdf5
from datasets.prepare.writer import remove_leftovers
from snn.errors import InputError

CHANNELS = 700
CLASSES = {"shd": 20, "ssc": 35}
# recordings of each official file
NUMBERS = {"shd": {"train": 8156, "test": 2264}, "ssc": {"train": 75466, "valid": 9981, "test": 20382}}
GZIP, HDF5 = b"\x1f\x8b", b"\x89HDF\r\n\x1a\n"
PIECE = 2**22  # bytes


def convert_official(name: str, sources: Sequence[Path], out_dir: Path, partial_files: bool) -> None:
    """Unpack, check and write out_dir/NAME_train.h5 and the other splits; the name is shd or ssc.

    sources: the files, or their folder. The number of recordings tells the split of a file. If `partial_files` allows a
    part of a file, its name tells the split. Raises InputError naming the file at fault and the remedy.
    """
    made: dict[str, Path] = {}
    candidates = list(_candidates(sources))
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        remove_leftovers(out_dir / f"{name}.h5")
        for path in candidates:
            unpacked = out_dir / f".{name}.h5.{os.getpid()}"
            try:
                _unpack(path, unpacked)
                split = _split(name, path, unpacked, path not in sources, partial_files)
                if split is None:
                    continue
                if split in made:
                    raise InputError(
                        f"{path} and {made[split]} are both the {split} file of {name}; give only one of them"
                    )
                made[split] = path
                os.replace(unpacked, out_dir / f"{name}_{split}.h5")
            finally:
                unpacked.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{out_dir} cannot be written ({error}): choose another --out") from error
    if missing := [split for split in NUMBERS[name] if split not in made]:
        raise InputError(
            f"{sources[0]}: the {missing[0]} file of {name} is missing; fetch {name}_{missing[0]}.h5.gz from "
            "https://zenkelab.org/datasets"
        )
    print(
        f"{', '.join(f'{name}_{split}.h5' for split in made)} in {out_dir}; to train on them: bash run.sh "
        f"configs/adlif_{name}.yaml --path_to_dataset {shlex.quote(str(out_dir))}"
    )


def _candidates(sources: Sequence[Path]) -> Iterator[Path]:
    """Yield the files that are named and, in folders, those that are HDF5, packed or not."""
    for source in sources:
        if source.is_dir():
            found = [path for path in sorted(source.iterdir()) if path.is_file() and not path.name.startswith(".")]
            found = [path for path in found if _start(path) == HDF5]
            if not found:
                raise InputError(
                    f"{source} holds no HDF5 file, compressed or not; give the folder of the official files"
                )
            yield from found
        elif not source.is_file():
            raise InputError(f"{source} does not exist: give the official files, or their folder")
        elif _start(source) != HDF5:
            raise InputError(f"{source}: not an HDF5 file, compressed by gzip or not; fetch it again")
        else:
            yield source


def _opened(path: Path) -> BinaryIO:
    with path.open("rb") as file:
        is_packed = file.read(2) == GZIP
    return gzip.open(path) if is_packed else path.open("rb")


def _start(path: Path) -> bytes:
    try:
        with _opened(path) as file:
            return file.read(len(HDF5))
    except (OSError, EOFError, zlib.error):
        return b""


def _unpack(path: Path, to: Path) -> None:
    try:
        bar = tqdm(desc=path.name, unit="B", unit_scale=True, disable=None)
        with _opened(path) as file, to.open("wb") as out, bar:
            while piece := file.read(PIECE):
                out.write(piece)
                bar.update(len(piece))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path}: is truncated or damaged ({error}); fetch it again") from error


def _split(name: str, path: Path, unpacked: Path, is_of_folder: bool, partial_files: bool) -> str | None:
    """Return the split of a file; None if it comes from a folder and is not of the set. InputError if it is damaged."""
    try:
        file = hdf5.File(unpacked)
        names = file.names("extra/keys") if file.has("extra/keys") else []
        if len(names) != CLASSES[name]:
            if is_of_folder:
                return None
            raise InputError(f"{path}: names {len(names)} classes in extra/keys, and {name} has {CLASSES[name]}")
        number = _check(file, name, unpacked)
    except InputError as error:
        raise InputError(str(error).replace(str(unpacked), str(path))) from None
    official = {count: split for split, count in NUMBERS[name].items()}
    if number in official:
        return official[number]
    if partial_files:
        for split in NUMBERS[name]:
            if re.search(split, path.name, re.IGNORECASE):
                return split
        raise InputError(f"{path}: its name must say which split it is: {', '.join(NUMBERS[name])}")
    counts = ", ".join(f"{count:,} ({split})" for split, count in NUMBERS[name].items())
    raise InputError(
        f"{path}: has {number:,} recordings, the official files of {name} {counts}; fetch it again, or give --partial "
        "for a part of one"
    )


def _check(file: hdf5.File, name: str, path: Path) -> int:
    """Return the number of recordings if lists, labels and speakers agree; otherwise raise InputError."""
    labels = file.whole_numbers("labels")
    file.check_lists("spikes/times", "f", "times")
    file.check_lists("spikes/units", "iu", "whole numbers")
    times, units = file.lengths_of_lists("spikes/times"), file.lengths_of_lists("spikes/units")
    if not len(times) == len(units) == len(labels) or (times != units).any():
        raise InputError(f"{path}: spikes/times, spikes/units and labels differ in length; fetch it again")
    if file.has("extra/speaker") and len(file.whole_numbers("extra/speaker")) != len(labels):
        raise InputError(f"{path}: extra/speaker and labels differ in length; fetch it again")
    if len(labels) and not 0 <= labels.min() <= labels.max() < CLASSES[name]:
        raise InputError(f"{path}: has the labels {labels.min()} to {labels.max()}, not 0 to {CLASSES[name] - 1}")
    stored = file.dataset("spikes/units")
    with hdf5.border(path):
        for r in {0, len(labels) // 2, len(labels) - 1} if len(labels) else ():
            values = np.asarray(stored[r])
            if len(values) and values.max() >= CHANNELS:
                raise InputError(f"{path}: recording {r} has the unit {values.max()}, beyond 0..{CHANNELS - 1}")
    return len(labels)


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the subcommands `shd` and `ssc`."""
    for name, splits in NUMBERS.items():
        files = ", ".join(f"{name}_{split}.h5.gz" for split in splits)
        parser = subparsers.add_parser(
            name,
            help=f"{name.upper()}, from its official files, compressed or not",
            description=f"Unpack and check {files}, under any names, and write OUT/{name}_train.h5 and the "
            "other splits. Get them at https://zenkelab.org/datasets",
        )
        parser.add_argument("files", type=Path, nargs="+", help="the files, or their folder")
        parser.add_argument("--out", type=Path, default=Path(f"data/{name}"), help=f"folder (default: data/{name})")
        parser.add_argument(
            "--partial", action="store_true", help="accept files with fewer recordings, identified by their names"
        )
        parser.set_defaults(run=partial(_run, name))


def _run(name: str, args: argparse.Namespace) -> None:
    convert_official(name, args.files, args.out, args.partial)
