"""A tree of event cameras' recordings, in any format of `datasets.prepare.cameras`, made into a data set.

Files are decoded by as many threads as there are cores, each a few parts ahead. They are written in order to flat
files, from which an interrupted run continues, and to the HDF5 files. A recording that is not cut is in memory only
while it is written, one at a time.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from datasets.prepare import cameras
from datasets.prepare.cameras.pieces import Said, rows_x_columns
from datasets.prepare.cameras.tables import COLUMNS, TICKS
from datasets.prepare.cut import Part, Shape, parts_of
from datasets.prepare.parallel import Done, parts_in_order
from datasets.prepare.picture import Picture
from datasets.prepare.recordings import SPLITS, Recording, sorted_names, words_to_hold_out
from datasets.prepare.sources import draw_splits, list_sources
from datasets.prepare.store import LONGEST_US, Store
from datasets.prepare.unfinished import Unfinished
from datasets.prepare.writer import new_file
from snn.errors import InputError


class Made:
    """The files of the splits and the picture while they are filled."""

    def __init__(
        self, stack: ExitStack, sources: Sequence[Recording], folder: Path, sensor: tuple[int, int], provenance: dict
    ):
        self.sources, self.labels = sources, sorted_names(source.label for source in sources)
        self.picture = Picture(self.labels, sensor)
        self.stores = {
            split: Store(stack.enter_context(new_file(folder / f"{split}.h5", provenance)), 2 * sensor[0] * sensor[1])
            for split in SPLITS
            if any(source.split == split for source in sources)
        }
        self.members: dict[str, list[int]] = {split: [] for split in self.stores}  # numbers of sources

    def append(self, number: int, times: np.ndarray, units: np.ndarray) -> None:
        """Add a recording of the source with this number."""
        source = self.sources[number]
        self.stores[source.split].append(times, units)
        self.members[source.split].append(number)
        self.picture.see(self.labels.index(source.label), times, units)

    def finish(self, where: Path) -> None:
        """Write labels and subjects. InputError if a class has nothing to train on."""
        if without := sorted_names(set(self.labels) - {self.sources[k].label for k in self.members["train"]}):
            raise InputError(
                f"{where}: class {without[0]!r} has no recording to train on; change the split, or leave the class out"
            )
        names = sorted_names(source.speaker for source in self.sources if source.speaker is not None)
        subjects = {name: k for k, name in enumerate(names)}
        for split, store in self.stores.items():
            if not store.number:
                raise InputError(f"{where}: nothing is left for the {split} file; check --noise-us and --hot-pixel-hz")
            members = [self.sources[number] for number in self.members[split]]
            is_cut = len(set(self.members[split])) < len(members)
            store.finish(
                [source.label for source in members],
                self.labels,
                [subjects.get(source.speaker) for source in members],
                where,
                self.members[split] if is_cut else None,
            )


def convert_events(
    folder: Path,
    out_dir: Path,
    sources: Sequence[Recording],
    said: Said,
    shape: Shape,
    threads: int | None,
) -> None:
    """Convert files to out_dir/NAME_train.h5, NAME_validation.h5 and NAME_test.h5, NAME being out_dir's name.

    Raises InputError naming the file at fault and the remedy; the same command then continues.
    """
    if not any(source.split == "train" for source in sources):
        raise InputError(f"{folder}: there is no recording to train on; change the split")
    for split in set(SPLITS) - {source.split for source in sources}:
        if (left := out_dir / f"{out_dir.resolve().name}_{split}.h5").exists():
            raise InputError(f"{left}: exists already and would be taken as part of this set; remove it")
    first = cameras.open_recording(sources[0].path, said)
    size = first.height, first.width
    name = out_dir.resolve().name
    sensor = tuple(-(-side // shape.divide) for side in size)
    settings = {"said": asdict(said), "shape": asdict(shape), "size": size}
    provenance = {"made_by": "events", "folder": str(folder), **settings}
    try:
        with ExitStack() as stack:
            unfinished = stack.enter_context(closing(Unfinished(out_dir / f".{name}.unfinished", settings, sources)))
            made = Made(stack, sources, unfinished.folder, sensor, provenance)
            # a file is sorted as a whole, so only one at a time
            threads = 1 if shape.sort else threads or os.cpu_count() or 1
            _fill(made, unfinished, sources, partial(_parts, said, size, shape), threads, name)
            made.finish(out_dir)
        made.picture.save(out_dir / f"{name}.png")
        for split in made.stores:
            os.replace(unfinished.folder / f"{split}.h5", out_dir / f"{name}_{split}.h5")
        shutil.rmtree(unfinished.folder)
    except OSError as error:
        raise InputError(f"{out_dir} cannot be written ({error}): choose another --out") from error
    kinds = {"train": "to train on", "validation": "to validate", "test": "to test"}
    words = shlex.join(
        ["--dataset_name", name, "--path_to_dataset", str(out_dir), "--num_classes", str(len(made.labels))]
    )
    print(
        f"{', '.join(f'{store.number:,} {kinds[split]}' for split, store in made.stores.items())}; {len(made.labels)} "
        f"{'class' if len(made.labels) == 1 else 'classes'} ({', '.join(made.labels):.200}) in {out_dir}, with a "
        f"picture of them in {out_dir / name}.png; to train on them: python train.py {words} --set data.channels=null "
        f"--set data.sensor.height={sensor[0]} --set data.sensor.width={sensor[1]}"
        + words_to_hold_out((sources[number].label for number in set(made.members["train"])), made.stores)
    )
    if lost := len(sources) - len({number for numbers in made.members.values() for number in numbers}):
        print(f"{lost:,} recordings have no event left after --noise-us and --hot-pixel-hz; they were left out")
    if invalid := sum(entry["invalid"] for entry in unfinished.lines):
        print(f"{invalid:,} events marked invalid were left out")


def _parts(said: Said, size: tuple[int, int], shape: Shape, source: Recording) -> Generator[Part, None, int]:
    try:
        return (yield from parts_of(source.path, said, size, shape))
    except MemoryError:
        raise InputError(f"{source.path}: does not fit into memory; cut it with --window-ms, and omit --sort") from None
    except OSError as error:
        raise InputError(f"{source.path} cannot be read ({error.strerror}); fetch it again") from error


def _fill(
    made: Made, unfinished: Unfinished, sources: Sequence[Recording], make: Callable, threads: int, name: str
) -> None:
    """Write the recordings that an earlier run left, then the rest."""
    done, events = len(unfinished.lines), 0
    sizes = [source.path.stat().st_size for source in sources]
    with tqdm(total=sum(sizes), desc=name, unit="B", unit_scale=True, disable=None) as bar:
        if done:
            tqdm.write(f"continuing after {done} of {len(sources)} files")
        for number, recording in unfinished.recordings():
            made.append(number, *recording)
        bar.update(sum(sizes[:done]))
        for number, part in parts_in_order(make, sources[done:], threads):
            if isinstance(part, Done):
                unfinished.commit(sources[done + number], part.result)
                bar.update(sizes[done + number])
                continue
            unfinished.append(part.times, part.units)
            events += len(part.times)
            bar.set_postfix_str(f"{events / 1e6:.1f} M events", refresh=False)
            if part.is_last and (recording := unfinished.whole()):
                made.append(done + number, *recording)


# ---- the command

DRAWN = {"test_share": 0.2, "validation_share": 0.0, "split_by": "file", "seed": 0}  # options of a draw, and defaults


def _columns(text: str) -> tuple[str, ...]:
    words = tuple(word.strip() for word in text.split(","))
    if not set(COLUMNS) <= set(words) or any(words.count(column) > 1 for column in COLUMNS):
        raise argparse.ArgumentTypeError(f"{text!r} must name t, x, y and p once each, such as t,x,y,p or x,y,p,t,-")
    return words


def _positive(kind: type, text: str):
    value = kind(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def _run(args: argparse.Namespace) -> None:
    lists = {"test": args.test_list, "validation": args.validation_list}
    lists = {split: path for split, path in lists.items() if path}
    sources = list_sources(args.folder, args.glob, args.label_pattern, args.labels, lists)
    drawn = {word: value for word in DRAWN if (value := getattr(args, word)) is not None}
    if drawn and all(source.split is not None for source in sources):
        word = next(iter(drawn)).replace("_", "-")
        raise InputError(
            f"--{word} is for a split that is drawn, but every recording has a split already: leave it out"
        )
    sources = draw_splits(sources, *(DRAWN | drawn).values())
    said = Said(args.format, args.sensor, args.time_unit, args.columns, args.brighter)
    for word in ("time-unit", "columns", "brighter"):
        is_given = getattr(said, word.replace("-", "_")) is not None
        if is_given and all(cameras.states_all(source.path, said.format) for source in sources):
            raise InputError(
                f"--{word} is for tables (.npy, .npz, CSV, HDF5 without Metavision's layout), and {args.folder} has "
                "none: leave it out"
            )
    if args.stride_ms and not args.window_ms:
        raise InputError("--stride-ms needs --window-ms")
    for word, ms in (("--window-ms", args.window_ms), ("--stride-ms", args.stride_ms)):
        if ms is not None and round(1000 * ms) == 0:
            raise InputError(f"{word} {ms:g}: times are whole µs; choose at least 0.001")
    if args.window_ms and 1000 * args.window_ms > LONGEST_US:
        raise InputError(f"--window-ms {args.window_ms:g}: a recording lasts at most {LONGEST_US / 6e7:.1f} min")
    shape = Shape(args.window_ms, args.stride_ms, args.divide, args.hot_pixel_hz, args.noise_us, args.sort)
    convert_events(args.folder, args.out, sources, said, shape, args.processes)


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the subcommand `events`."""
    parser = subparsers.add_parser(
        "events",
        help="any folder of event cameras' recordings: RAW, DAT, AEDAT, HDF5, .bin, .es, .npy, .npz, CSV",
        description="Convert a tree of recordings to OUT/NAME_train.h5, NAME_validation.h5 and NAME_test.h5, NAME "
        "being OUT's name, with a picture of the recordings. A file's class is the name of its folder, and outer "
        "folders Train, Test and Validation are its split, unless --label-pattern or --labels say otherwise. Times "
        "begin at a file's first event.",
        epilog="Examples: python -m datasets.prepare events recordings --out data/mine --window-ms 500; "
        "python -m datasets.prepare events N-MNIST --out data/nmnist --sensor 34x34",
    )
    parser.add_argument("folder", type=Path, help="folder of the recordings; folders inside it are searched too")
    parser.add_argument("--out", type=Path, required=True, help="folder for the files")
    about = parser.add_argument_group("properties that the files do not state")
    about.add_argument(
        "--format", choices=list(cameras.FORMATS), help="format of all files (default: told by name and first bytes)"
    )
    about.add_argument(
        "--sensor", type=rows_x_columns, metavar="ROWSxCOLUMNS", help="size of the sensor, such as 128x128"
    )
    about.add_argument("--time-unit", choices=list(TICKS), help="unit of the times in .npy, .npz, CSV and plain HDF5")
    about.add_argument("--columns", type=_columns, help="columns of tables without names, such as t,x,y,p")
    about.add_argument(
        "--brighter", type=float, metavar="P", help="polarity in a table that means brighter (default: 1)"
    )
    about.add_argument("--glob", help="pattern of the files, such as '**/*.txt' (default: those with a known ending)")
    classes = parser.add_argument_group("classes and splits")
    source = classes.add_mutually_exclusive_group()
    source.add_argument(
        "--label-pattern",
        metavar="REGEX",
        help="matched against each path below FOLDER; the group 'label' names the class, the optional groups 'subject' "
        "and 'split' (train, validation or test) the rest",
    )
    source.add_argument(
        "--labels", type=Path, metavar="CSV", help="table with the columns file,label[,subject][,speaker][,split]"
    )
    classes.add_argument(
        "--test-list", type=Path, metavar="FILE", help="list of files to test on, one per line; the others train"
    )
    classes.add_argument(
        "--validation-list", type=Path, metavar="FILE", help="list of files to choose the best model by"
    )
    classes.add_argument(
        "--split-by",
        choices=("file", "subject"),
        help="draw files or whole subjects for a split (default: file)",
    )
    classes.add_argument("--test-share", type=float, help="share drawn to test on; 0: none (default: 0.2)")
    classes.add_argument("--validation-share", type=float, help="share drawn to validate on (default: 0)")
    classes.add_argument("--seed", type=int, help="seed of the draw (default: 0)")
    made = parser.add_argument_group("processing of a recording")
    made.add_argument(
        "--window-ms", type=partial(_positive, float), help="cut it into windows; a remainder is left out (ms)"
    )
    made.add_argument(
        "--stride-ms", type=partial(_positive, float), help="time from window to window (ms; default: --window-ms)"
    )
    made.add_argument("--divide", type=partial(_positive, int), default=1, help="x, y become x // DIVIDE, y // DIVIDE")
    made.add_argument(
        "--hot-pixel-hz", type=partial(_positive, float), help="leave out pixels that fire more often (Hz)"
    )
    made.add_argument(
        "--noise-us",
        type=partial(_positive, int),
        help="leave out an event if the 8 pixels around it had none within this time before it (µs)",
    )
    made.add_argument("--sort", action="store_true", help="sort events by their times")
    parser.add_argument("--processes", type=partial(_positive, int), help="threads (default: one for each core)")
    parser.set_defaults(run=_run)
