"""Any folder of WAV files, heard by the artificial cochlea, as a data set of events."""

from __future__ import annotations

import argparse
import csv
import re
import warnings
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.io import wavfile

from datasets.prepare.cochlea import cochlea
from datasets.prepare.parallel import map_in_order
from datasets.prepare.writer import write_events
from snn.errors import InputError

FILE_NAME_UP_TO_UNDERSCORE = r"(.*/)?(?P<label>[^_/]+)_"
SPLITS = ("train", "test")
MAX_RATE_HZ = 1_000_000


class Recording(NamedTuple):
    """A WAV file and what is known about it."""

    path: Path
    label: str
    speaker: str | None
    split: str | None


def convert_wavs(
    folder: Path,
    out_dir: Path,
    label_pattern: str,
    label_csv: Path | None,
    test_share: float,
    seed: int,
    processes: int | None,
) -> None:
    """Convert WAV files to out_dir/NAME_train.h5 and out_dir/NAME_test.h5, where NAME is the name of out_dir.

    label_csv: a table with the columns file (relative to `folder`), label and, if wanted, speaker and split (train or
    test); only its files are converted. Without it all WAV files below `folder` are, and label_pattern, a regular
    expression with the group `label` and, if wanted, `speaker` and `split`, is matched against the start of each
    relative path. Where no split is given, the share test_share of the recordings, drawn by `seed`, is for testing.
    Labels become 0, 1, ... in sorted order, numbers numerically; speakers likewise.
    Raises InputError naming the file at fault and the remedy.
    """
    recordings = _from_names(folder, label_pattern) if label_csv is None else _from_csv(folder, label_csv)
    if seed < 0:
        raise InputError(f"seed is {seed}: choose 0 or more")
    if recordings[0].split is None:
        if not 0 < test_share < 1:
            raise InputError(f"the test share is {test_share}: choose a number between 0 and 1")
        order = np.random.default_rng(seed).permutation(len(recordings))
        testing = set(order[: round(test_share * len(recordings))].tolist())
        recordings = [recording._replace(split=SPLITS[i in testing]) for i, recording in enumerate(recordings)]

    keys = _sorted_names(recording.label for recording in recordings)
    speaker_keys = _sorted_names(recording.speaker or "" for recording in recordings)
    splits = {name: [recording for recording in recordings if recording.split == name] for name in SPLITS}
    for name, members in splits.items():
        if not members:
            raise InputError(f"no recording of {folder} is for the {name} file: change the split or the test share")
    tasks = [(recording.path, (seed, i)) for i, recording in enumerate(splits["train"] + splits["test"])]
    heard = map_in_order(_hear, tasks, processes, out_dir.name)
    for name, members in splits.items():
        write_events(
            out_dir / f"{out_dir.resolve().name}_{name}.h5",
            islice(heard, len(members)),
            labels=[keys.index(recording.label) for recording in members],
            keys=keys,
            provenance={"made_by": "wav", "folder": str(folder), "seed": seed},
            speakers=None if members[0].speaker is None else [speaker_keys.index(r.speaker) for r in members],
        )
    name = out_dir.resolve().name
    print(
        f"{len(recordings)} recordings of {len(keys)} classes ({', '.join(keys)}) in {out_dir}; to train on them: "
        f"--dataset_name {name} --path_to_dataset {out_dir} --num_classes {len(keys)}"
    )


def read_wav(path: Path) -> tuple[np.ndarray, int]:
    """Read a WAV file: audio, float32 [samples], its channels averaged, in the file's own scale; sample rate in Hz."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", wavfile.WavFileWarning)  # the file breaks off
            warnings.filterwarnings("ignore", "Chunk .non-data. not understood")  # a title, say
            sample_rate_hz, samples = wavfile.read(path)
    except Exception as error:  # the ways in which SciPy fails on a damaged file are many
        reason = " ".join(str(error).split())
        raise InputError(
            f"{path} cannot be read as WAV ({reason:.120}): convert it to PCM WAV or leave it out"
        ) from None
    if not 0 < sample_rate_hz <= MAX_RATE_HZ:
        raise InputError(
            f"{path} cannot be read as WAV (it says {sample_rate_hz} Hz): convert it to PCM WAV, or leave it out"
        )
    audio = samples.astype(np.float32)
    if samples.dtype == np.uint8:  # the one unsigned WAV format
        audio -= 128
    return audio.reshape(len(audio), -1).mean(axis=1), sample_rate_hz


def _hear(task: tuple[Path, tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    path, seed = task
    audio, sample_rate_hz = read_wav(path)
    try:
        return cochlea(audio, sample_rate_hz, seed)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _from_names(folder: Path, label_pattern: str) -> list[Recording]:
    try:
        pattern = re.compile(label_pattern)
    except re.error as error:
        raise InputError(f"the label pattern {label_pattern!r} is no regular expression: {error}") from error
    if "label" not in pattern.groupindex:
        raise InputError(f"the label pattern {label_pattern!r} has no group (?P<label>...): add one")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() == ".wav")
    if not paths:
        raise InputError(f"{folder} holds no WAV files: give a folder of *.wav")
    recordings = []
    for path in paths:
        match = pattern.match(path.relative_to(folder).as_posix())
        if match is None:
            raise InputError(f"{path} does not match the label pattern {label_pattern!r}: change either")
        recordings.append(_recording(path, match.groupdict(), str(path)))
    return recordings


def _from_csv(folder: Path, label_csv: Path) -> list[Recording]:
    try:
        with label_csv.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{label_csv} cannot be read as CSV: {error}") from error
    if not rows or not {"file", "label"} <= set(rows[0]):
        raise InputError(f"{label_csv} needs the header file,label[,speaker][,split] and a row for each recording")
    recordings = []
    for line, row in enumerate(rows, start=2):
        path = folder / (row["file"] or "")
        if not path.is_file():
            raise InputError(f"{label_csv}, line {line}: {path} does not exist: correct the name or drop the line")
        recordings.append(_recording(path, row, f"{label_csv}, line {line}"))
    return recordings


def _recording(path: Path, fields: dict[str, str | None], where: str) -> Recording:
    for name in ("label", "speaker", "split"):
        if name in fields and not fields[name]:
            raise InputError(f"{where}: the {name} is empty: fill it in or leave {name} out everywhere")
    split = fields.get("split")
    if split not in (None, *SPLITS):
        raise InputError(f"{where}: the split is {split!r}: write train or test")
    return Recording(path, fields["label"], fields.get("speaker"), split)


def _sorted_names(names: Iterable[str]) -> list[str]:
    """The distinct names, numbers first and in numerical order."""
    return sorted(set(names), key=lambda name: (0, int(name), name) if name.isdecimal() else (1, 0, name))


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the subcommand `wav`."""
    parser = subparsers.add_parser(
        "wav",
        help="any folder of WAV files",
        description="Convert a folder of WAV files to OUT/NAME_train.h5 and OUT/NAME_test.h5, NAME being OUT's name.",
        epilog="Example (Free Spoken Digit Dataset): python -m datasets.prepare wav recordings --out data/fsdd "
        r"--label-pattern '(?P<label>\d)_(?P<speaker>[a-z]+)_'",
    )
    parser.add_argument("folder", type=Path, help="folder of WAV files; folders inside it are searched too")
    parser.add_argument("--out", type=Path, required=True, help="folder for the two files")
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--label-pattern",
        metavar="REGEX",
        default=FILE_NAME_UP_TO_UNDERSCORE,
        help="matched against each path below FOLDER; the group 'label' names the class, the optional groups 'speaker' "
        "and 'split' (train or test) the rest (default: the file name up to its first underscore)",
    )
    source.add_argument(
        "--labels", type=Path, metavar="CSV", help="table with the columns file,label[,speaker][,split] instead"
    )
    parser.add_argument(
        "--test-share",
        type=float,
        default=0.2,
        help="share of the recordings for testing where no split is given (default: 0.2)",
    )
    parser.add_argument("--seed", type=int, default=0, help="draws the test share and the nerve's noise (default: 0)")
    parser.add_argument("--processes", type=int, help="worker processes (default: one for each core)")
    parser.set_defaults(
        run=lambda args: convert_wavs(
            args.folder, args.out, args.label_pattern, args.labels, args.test_share, args.seed, args.processes
        )
    )
