"""Any folder of recorded sounds, turned by the artificial cochlea into a data set of events."""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shlex
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

from datasets.prepare import recordings as files
from datasets.prepare.cochlea import check_audio, cochlea
from datasets.prepare.journal import Journal
from datasets.prepare.parallel import map_in_order
from datasets.prepare.recordings import Recording
from datasets.prepare.writer import is_made, write_events
from snn.errors import InputError

RECIPE = 2  # part of the provenance: raise it with any change that makes other files from the same recordings
MAX_RATE_HZ = 1_000_000
MAX_S = 600
BLOCK_SAMPLES = 2**20  # read at once: the length that a header claims is never allocated
PAD_BYTES = 8  # writers forget the one or two that make a chunk even
UNKNOWN_BYTES = 2**31 - 2**16  # sizes from here on are written by programs that do not know the size yet


class Chosen(NamedTuple):
    """The recordings to convert."""

    splits: dict[str, list[Recording]]  # those of each split that has any
    sounds: dict[Path, str]  # a hash of the sound of each
    bad: list[str]  # why others were left out, one line each


def convert_wavs(
    folder: Path,
    out_dir: Path,
    label_pattern: str | None,
    label_csv: Path | None,
    test_share: float,
    seed: int,
    processes: int | None,
    test_by: str = "recording",
    skip_bad: bool = False,
    of_a_draw: Sequence[str] = (),
) -> None:
    """Convert recordings to out_dir/NAME_train.h5, _test.h5 and, if there is such a split, _validation.h5.

    NAME is the name of out_dir. label_csv: a table as `recordings.from_csv` reads it; only its files are converted.
    Without it all recordings below `folder` are, by label_pattern (`recordings.from_names`). If no split is given, a
    share test_share of the recordings, or of the speakers (`test_by`), drawn by `seed`, is for testing. If splits are
    given, none of the options `of_a_draw` may be.
    Labels become 0, 1, ... in sorted order, numbers numerically; speakers likewise. All recordings are read before the
    first is converted; those that cannot be used are refused together, or left out (`skip_bad`). Another call
    continues an interrupted conversion.
    Raises InputError naming the file at fault and the remedy.
    """
    if seed < 0:
        raise InputError(f"seed is {seed}: choose 0 or more")
    survey = files.from_names(folder, label_pattern) if label_csv is None else files.from_csv(folder, label_csv)
    if of_a_draw and survey.recordings[0].split is not None:
        raise InputError(
            f"{of_a_draw[0]} is for a split that is drawn, but the recordings have one already: leave it out"
        )
    name = out_dir.resolve().name
    splits, sounds, _ = chosen = _choose(survey, folder, test_share, test_by, seed, skip_bad, processes, name)
    _say_what_was_taken(survey, chosen)

    recordings = [recording for members in splits.values() for recording in members]
    labels = {name: number for number, name in enumerate(files.sorted_names(r.label for r in recordings))}
    speakers = {name: number for number, name in enumerate(files.sorted_names(r.speaker or "" for r in recordings))}
    content = hashlib.sha256(repr([(*recording[1:], sounds[recording.path]) for recording in recordings]).encode())
    provenance = {"made_by": "wav", "recipe": RECIPE, "folder": str(folder), "seed": seed}
    provenance["content"] = content.hexdigest()
    paths = {split: out_dir / f"{name}_{split}.h5" for split in files.SPLITS}
    if not all(is_made(paths[split], provenance) for split in splits):
        options = {"label_pattern": label_pattern, "labels": label_csv and str(label_csv), "test_share": test_share}
        journal = Journal(out_dir / f"{name}.unfinished", options | {"test_by": test_by} | provenance)
        heard = _hear_all(recordings, seed, processes, name, journal)
        for split, members in splits.items():
            write_events(
                paths[split],
                islice(heard, len(members)),
                labels=[labels[recording.label] for recording in members],
                keys=list(labels),
                provenance=provenance,
                speakers=None if members[0].speaker is None else [speakers[recording.speaker] for recording in members],
            )
        journal.remove()
    for split in paths.keys() - splits.keys():
        if paths[split].exists():
            print(f"warning: {paths[split]} is from another conversion, which had such a split", file=sys.stderr)
    words = shlex.join(["--dataset_name", name, "--path_to_dataset", str(out_dir), "--num_classes", str(len(labels))])
    print(
        f"{len(recordings)} recordings of {len(labels)} classes ({', '.join(labels)}) in {out_dir}: "
        f"{files.counted({split: len(members) for split, members in splits.items()})}; "
        f"to train on them: python train.py {words}"
        + files.words_to_hold_out((recording.label for recording in splits["train"]), splits)
    )


def read_audio(path: Path) -> tuple[np.ndarray, int]:
    """Read a sound in one of libsndfile's formats: WAV, FLAC, OGG, MP3 and others.

    Returns audio, float32 [samples] in -1 to 1, its channels averaged, and its sample rate in Hz.
    Raises InputError if it cannot be read to its end, or if the cochlea cannot hear it, for instance if it is silent.
    """
    unreadable, remedy = f"{path} cannot be read as WAV, FLAC, OGG or MP3", "convert it to 16-bit WAV, or leave it out"
    if not (path.is_file() and os.access(path, os.R_OK)):
        raise InputError(f"{unreadable}: the file does not exist or is not readable")
    blocks, n_samples = [], 0
    try:
        with _quiet_stderr(), soundfile.SoundFile(os.fsencode(path)) as file:
            rate_hz, promised, log = file.samplerate, file.frames, file.extra_info
            if not 0 < rate_hz <= MAX_RATE_HZ:
                raise InputError(f"{unreadable} (it says {rate_hz} Hz): {remedy}")
            while len(block := file.read(max(1, BLOCK_SAMPLES // file.channels), dtype="float32", always_2d=True)):
                blocks.append(block.mean(axis=1))
                n_samples += len(block)
                if n_samples > MAX_S * rate_hz:
                    raise InputError(f"{path} lasts more than {MAX_S} s: cut it into recordings, or leave it out")
    except soundfile.LibsndfileError:  # its reasons mislead: an empty FLAC file is "in an unimplemented format"
        raise InputError(f"{unreadable}: damaged, or of another format; {remedy}") from None
    if n_samples < promised or _breaks_off(log):
        raise InputError(f"{unreadable} (it is truncated): fetch it again, or leave it out")
    audio = np.concatenate(blocks) if blocks else np.zeros(0, np.float32)
    try:
        check_audio(audio, rate_hz)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return audio, rate_hz


def _breaks_off(log: str) -> bool:
    """Return whether the file is shorter than its header says, which libsndfile notes only in its log."""
    sizes = [map(int, pair) for pair in re.findall(r": (\d+) \(should be (\d+)\)", log)]
    return any(there + PAD_BYTES < promised < UNKNOWN_BYTES for promised, there in sizes)


@contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Hide warnings that the MP3 library writes to standard error; those that matter are raised here."""
    before, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)
        os.close(nowhere)


def _choose(
    survey: files.Survey,
    folder: Path,
    test_share: float,
    test_by: str,
    seed: int,
    skip_bad: bool,
    processes: int | None,
    name: str,
) -> Chosen:
    """Read all recordings, sift them, and draw a split where none is given."""
    recordings, bad, first = survey.recordings, [], survey.recordings[0]
    if first.split is None and not 0 < test_share < 1:
        raise InputError(f"the test share is {test_share}: choose a number between 0 and 1")
    if first.split is None and test_by == "speaker" and first.speaker is None:
        raise InputError("--test-by speaker: no speakers are known; name them in the label pattern or the table")
    read = list(map_in_order(_read, [recording.path for recording in recordings], processes, f"{name}: reading"))
    sounds = {recording.path: sound for recording, (sound, _) in zip(recordings, read, strict=True)}
    recordings = files.sift(recordings, {i: reason for i, (_, reason) in enumerate(read) if reason}, skip_bad, bad)
    recordings = files.sift(recordings, files.ambiguous(recordings, sounds), skip_bad, bad)
    if first.split is None:
        groups = [recording.speaker if test_by == "speaker" else sounds[recording.path] for recording in recordings]
        recordings = files.draw_split(recordings, groups, test_share, seed)
    recordings = files.sift(recordings, files.crossing(recordings, sounds), skip_bad, bad)
    splits = files.by_split(recordings, folder)
    if first.split is None and (shared := files.shared_speakers(splits)):
        survey.notes.append(f"{len(shared)} speakers are in both files; --test-by speaker keeps them apart")
    return Chosen(splits, sounds, bad)


def _read(path: Path) -> tuple[str, str]:
    """Return (a hash of the sound, the reason why it cannot be used); one of them is empty."""
    try:
        audio, rate_hz = read_audio(path)
    except InputError as error:
        return "", str(error)
    return hashlib.sha256(audio.tobytes() + str(rate_hz).encode()).hexdigest(), ""


def _hear(task: tuple[Path, tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    path, seed = task
    return cochlea(*read_audio(path), seed)


def _hear_all(
    recordings: list[Recording], seed: int, processes: int | None, name: str, journal: Journal
) -> Iterator[tuple[np.ndarray, ...]]:
    """Yield the events of each recording; recordings in the journal are not heard again."""
    tasks = [(recording.path, (seed, i)) for i, recording in enumerate(recordings)]
    if len(journal):
        print(f"{len(journal)} of {len(tasks)} recordings were converted before: continuing", flush=True)
    try:
        for events in map_in_order(_hear, tasks[len(journal) :], processes, f"{name}: hearing"):
            journal.append(*events)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"interrupted: {len(journal)} of {len(tasks)} recordings are kept; the same command continues"
        ) from None
    return iter(journal)


def _say_what_was_taken(survey: files.Survey, chosen: Chosen) -> None:
    recordings = [recording for members in chosen.splits.values() for recording in members]
    left_out = survey.left_out + Counter(bad=len(chosen.bad))
    lines = [
        f"took {files.counted(files.kinds_of(recordings))}",
        f"left out {left_out.total()}: {files.counted(left_out)}" if left_out else "left out nothing",
        *survey.notes,
        *files.remarks(chosen.splits),
        *files.twice(recordings, chosen.sounds),
        *(f"left out: {reason}" for reason in chosen.bad),
    ]
    print("; ".join(lines[:2]), *lines[2:], sep="\n", flush=True)


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the subcommand `wav`."""
    parser = subparsers.add_parser(
        "wav",
        help="any folder of recorded sounds: WAV, FLAC, OGG, MP3",
        description="Convert a folder of recordings (WAV, FLAC, OGG, MP3 and others that libsndfile reads) to "
        "OUT/NAME_train.h5 and OUT/NAME_test.h5, NAME being OUT's name. Google's Speech Commands are recognised by "
        "their names, and their lists give the split; validation_list.txt goes to OUT/NAME_validation.h5, as does a "
        "split 'validation' of a table. The same command continues an interrupted conversion.",
        epilog="Example (Free Spoken Digit Dataset): python -m datasets.prepare wav recordings --out data/fsdd "
        r"--label-pattern '(?P<label>\d)_(?P<speaker>[a-z]+)_'",
    )
    parser.add_argument(
        "folder", type=Path, help="folder of recordings; folders inside it, linked ones too, are searched"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the files")
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--label-pattern",
        metavar="REGEX",
        help="matched against each path below FOLDER; the group 'label' names the class, the optional groups 'speaker' "
        "and 'split' (train, validation, test) the rest (default: the file name up to its first underscore)",
    )
    source.add_argument(
        "--labels", type=Path, metavar="CSV", help="table with the columns file,label[,speaker][,split] instead"
    )
    parser.add_argument(
        "--test-share",
        type=float,
        help="share of the recordings for testing where no split is given (default: 0.2)",
    )
    parser.add_argument(
        "--test-by",
        choices=("recording", "speaker"),
        help="draw that share of single recordings, or of whole speakers (default: recording)",
    )
    parser.add_argument(
        "--skip-bad", action="store_true", help="leave out recordings that cannot be used, and name them"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the test share and the nerve's noise (default: 0)")
    parser.add_argument("--processes", type=int, help="worker processes (default: one for each core)")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    given = {"--test-share": args.test_share, "--test-by": args.test_by}
    convert_wavs(
        args.folder,
        args.out,
        args.label_pattern,
        args.labels,
        0.2 if args.test_share is None else args.test_share,
        args.seed,
        args.processes,
        args.test_by or "recording",
        args.skip_bad,
        [word for word, value in given.items() if value is not None],
    )
