"""A tree of event cameras' recordings, in any format of `datasets.prepare.cameras`, as a data set.

Files are decoded by as many threads as there are cores, each a few recordings ahead, and written in their order, to the
HDF5 files and to flat files beside them: these are the memory of an interrupted run, which goes on at the file where it
ended.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import re
import shlex
import shutil
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from threading import Event

import numpy as np
from tqdm import tqdm

from datasets.prepare import cameras
from datasets.prepare.cameras import Opened
from datasets.prepare.cameras.pieces import Piece, Said
from datasets.prepare.cameras.tables import COLUMNS, TICKS
from datasets.prepare.picture import Picture
from datasets.prepare.recordings import SPLITS, sorted_names
from datasets.prepare.sources import Source, draw_splits, list_sources
from datasets.prepare.store import LONGEST_US, Store
from datasets.prepare.writer import new_file
from snn.compiling import kernel
from snn.errors import InputError
from snn.memory import available_bytes

AHEAD = 4  # recordings that a thread holds ready
BYTES_PER_EVENT = 12  # of a recording in the making: a time in 64 bits and a unit in 32


@dataclass(frozen=True)
class Shape:
    """What is made of a recording."""

    window_ms: float | None = None
    stride_ms: float | None = None
    divide: int = 1
    hot_pixel_hz: float | None = None
    noise_us: int | None = None
    sort: bool = False


# ---- from a file to recordings of (times in µs, units)


def recordings_of(
    path: Path, said: Said, size: tuple[int, int], shape: Shape
) -> Generator[tuple[np.ndarray, np.ndarray], None, int]:
    """The file's windows, or the whole as one: times in µs from its beginning, uint32, and units, uint32.

    A unit is p·H·W + y·W + x of the sensor after `divide`. A window's times begin at its beginning, a whole file's at
    its first event. What does not fill a window at the end is left out, but for a file shorter than one. Windows
    without an event are left out. The generator returns how many events were left out because they are marked invalid.
    InputError names the file, the place and the remedy.
    """
    opened = cameras.open_recording(path, said)
    if (opened.height, opened.width) != size:
        raise InputError(
            f"{path}: its sensor has {opened.height}x{opened.width} pixels, the first file's {size[0]}x{size[1]}; "
            "convert them apart, each size by a --glob and an --out of its own"
        )
    pieces = _checked(opened, shape.sort)
    if shape.window_ms is None:
        parts = _whole(path, pieces)
    else:
        window, stride = (round(1000 * ms) for ms in (shape.window_ms, shape.stride_ms or shape.window_ms))
        parts = _windows(path, pieces, window, stride)
    is_empty = True
    for times, units in parts:
        is_empty = False
        if shape.hot_pixel_hz is not None:
            keep = _cool(times, units, *size, shape.hot_pixel_hz)
            times, units = times[keep], units[keep]
        if shape.noise_us is not None:
            keep = _supported(times, units, *size, shape.noise_us)
            times, units = times[keep], units[keep]
        if shape.divide > 1:
            units = _shrunk(units, *size, shape.divide)
        if len(times):
            yield times.astype(np.uint32, copy=False), units
    if is_empty and opened.invalid:
        raise InputError(f"{path}: all of its {opened.invalid:,} events are marked invalid; leave the file out")
    if is_empty:
        raise InputError(f"{path}: holds no event; fetch it again, or leave it out")
    return opened.invalid


def _checked(opened: Opened, sort: bool) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Times in µs from the first event, int64, ascending, and units."""
    pieces = opened.pieces
    if sort:
        columns = [np.concatenate(parts) for parts in zip(*pieces, strict=True)] or [np.empty(0, np.int64)] * 4
        order = np.argsort(columns[0], kind="stable")
        pieces = iter([Piece(*(column[order] for column in columns))])
    first = last = None
    done = 0
    for t, x, y, p in pieces:
        if not len(t):
            continue
        first = t[0] if first is None else first
        last = t[0] if last is None else last
        times, units = np.empty(len(t), np.int64), np.empty(len(t), np.uint32)
        e = _lay(t, x, y, p, opened.height, opened.width, first, last, times, units)
        if e >= 0:
            before = t[e - 1] if e else last
            if t[e] < before:
                raise InputError(
                    f"{opened.path}: goes back in time at event {done + e}, from {before} to {t[e]} µs; put its events "
                    "in order by --sort, or fetch it again"
                )
            raise InputError(
                f"{opened.path}: event {done + e} is at x = {x[e]}, y = {y[e]} with polarity {p[e]}; the sensor has x "
                f"in 0..{opened.width - 1}, y in 0..{opened.height - 1} and polarities 0 and 1: correct --sensor, or "
                "fetch the file again"
            )
        last = t[-1]
        done += len(t)
        yield times, units


@kernel
def _lay(t, x, y, p, height, width, first, last, times, units):
    """Write time and unit of each event; the first that is out of order or beyond the sensor, or -1."""
    for e in range(len(t)):
        if t[e] < last or x[e] >= width or y[e] >= height or p[e] > 1:
            return e
        last = t[e]
        times[e] = last - first
        units[e] = (np.int64(p[e]) * height + y[e]) * width + x[e]
    return -1


def _whole(path: Path, pieces: Iterator[tuple[np.ndarray, np.ndarray]]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    parts, events, most = [], 0, available_bytes() / 2 / BYTES_PER_EVENT
    for times, units in pieces:
        parts.append((times.astype(np.uint32), units))
        events += len(times)
        if times[-1] > LONGEST_US:
            raise InputError(f"{path}: lasts longer than 71.6 min, what 32 bits of µs hold; cut it by --window-ms")
        if events > most:
            raise InputError(f"{path}: does not fit into memory in one piece; cut it by --window-ms")
    if parts:
        yield tuple(np.concatenate(columns) for columns in zip(*parts, strict=True))


def _windows(
    path: Path, pieces: Iterator[tuple[np.ndarray, np.ndarray]], window: int, stride: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Windows of so many µs, one every `stride`."""
    parts, events, start, made = [], 0, 0, False
    most = available_bytes() / 2 / BYTES_PER_EVENT
    for piece in pieces:
        parts.append(piece)
        events += len(piece[0])
        if events > most:
            raise InputError(f"{path}: a window of {window} µs does not fit into memory; choose a shorter --window-ms")
        if piece[0][-1] < start + window:
            continue
        times, units = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        while len(times) and times[-1] >= start + window:
            begin, end = np.searchsorted(times, (start, start + window))
            if end > begin:
                yield times[begin:end] - start, units[begin:end]
                made = True
                start += stride
            else:  # on to the first window that ends after the next event
                start += ((int(times[begin]) - window - start) // stride + 1) * stride
            drop = np.searchsorted(times, start)
            times, units = times[drop:], units[drop:]
        parts, events = [(times, units)], len(times)
    if not made and events:
        yield tuple(np.concatenate(columns) for columns in zip(*parts, strict=True))


def _cool(times: np.ndarray, units: np.ndarray, height: int, width: int, most_hz: float) -> np.ndarray:
    """Return which events come from pixels that fire at no more than `most_hz` over the recording."""
    pixels = units % (height * width)
    counts = np.bincount(pixels, minlength=height * width)
    seconds = max(times[-1] - times[0], 1) / 1e6
    return (counts <= np.maximum(most_hz * seconds, 1))[pixels]


def _supported(times: np.ndarray, units: np.ndarray, height: int, width: int, within_us: int) -> np.ndarray:
    """Which events have another, at one of the 8 pixels around, at most so many µs before them (Delbruck 2008)."""
    keep = np.empty(len(times), np.bool_)
    _find_supported(times, units, height, width, within_us, keep)
    return keep


@kernel
def _find_supported(times, units, height, width, within_us, keep):
    latest = np.full((height + 2, width + 2), -(2**62), np.int64)
    for e in range(len(times)):
        pixel = units[e] % (height * width)
        y, x = pixel // width + 1, pixel % width + 1
        since = times[e] - within_us
        found = False
        for row in range(y - 1, y + 2):
            for column in range(x - 1, x + 2):
                found |= (row != y or column != x) and latest[row, column] >= since
        keep[e] = found
        latest[y, x] = times[e]


@kernel
def _shrunk(units, height, width, divide):
    small_height, small_width = -(-height // divide), -(-width // divide)
    shrunk = np.empty(len(units), np.uint32)
    for e in range(len(units)):
        unit = np.int64(units[e])
        row, x = unit // width, unit % width
        p, y = row // height, row % height
        shrunk[e] = (p * small_height + y // divide) * small_width + x // divide
    return shrunk


# ---- many files at once, in order


def in_order(
    make: Callable[[Source], Iterator], sources: Sequence[Source], threads: int
) -> Iterator[tuple[int, object]]:
    """(number of the source, what `make` yields of it) in order, then (number, None).

    Each source is a few recordings ahead in a thread, threads + 1 of them at once.
    """
    stop = Event()
    end = object()

    def work(source: Source, ready: queue.Queue) -> None:
        def put(value) -> bool:
            while not stop.is_set():
                with suppress(queue.Full):
                    ready.put(value, timeout=0.2)
                    return True
            return False

        try:
            for part in make(source):
                if not put(part):
                    return
        except MemoryError:
            put(InputError(f"{source.path}: does not fit into memory; cut it by --window-ms, and do without --sort"))
        except OSError as error:
            put(InputError(f"{source.path} cannot be read ({error.strerror}); fetch it again"))
        except BaseException as error:
            put(error)
        else:
            put(end)

    with ThreadPoolExecutor(threads) as pool:
        waiting = iter(enumerate(sources))
        active: deque[tuple[int, queue.Queue]] = deque()

        def fill() -> None:
            while len(active) <= threads and (following := next(waiting, None)):
                active.append((following[0], queue.Queue(AHEAD)))
                pool.submit(work, following[1], active[-1][1])

        try:
            fill()
            while active:
                number, ready = active[0]
                while (part := ready.get()) is not end:
                    if isinstance(part, BaseException):
                        raise part
                    yield number, part
                yield number, None
                active.popleft()
                fill()
        finally:
            stop.set()


class Unfinished:
    """Flat files of the recordings made so far: their events, and a line of JSON for each source that is done."""

    def __init__(self, folder: Path, settings: dict, sources: Sequence[Source]):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.glob("*.h5*"):  # of a run that was killed
            path.unlink()
        self.lines: list[dict] = []
        head = json.dumps(settings, sort_keys=True)
        index = folder / "index.jsonl"
        known = index.read_text(encoding="utf-8").splitlines() if index.is_file() else []
        if known[:1] == [head]:
            for source, line in zip(sources, known[1:], strict=False):
                try:
                    entry = json.loads(line)
                except ValueError:  # the run was killed while it wrote this line
                    break
                if entry.get("source") != self._identity(source) or "invalid" not in entry:
                    break
                self.lines.append(entry)
        events = sum(sum(entry["lengths"]) for entry in self.lines)
        self.index = index.open("w", encoding="utf-8")
        for line in (head, *map(json.dumps, self.lines)):
            self.index.write(line + "\n")
        self.index.flush()
        self.times, self.units = (self._opened(name, 4 * events) for name in ("times", "units"))
        if (self.folder / "times").stat().st_size < 4 * events or (self.folder / "units").stat().st_size < 4 * events:
            raise InputError(f"{folder}: what is left of the interrupted run is damaged; remove this folder")
        self.lengths: list[int] = []

    def _opened(self, name: str, size: int):
        file = (self.folder / name).open("ab")
        if file.tell() > size:
            file.truncate(size)
        return file

    @staticmethod
    def _identity(source: Source) -> list:
        state = source.path.stat()
        return [str(source.path), state.st_size, state.st_mtime_ns]

    def append(self, times: np.ndarray, units: np.ndarray) -> None:
        self.times.write(times)
        self.units.write(units)
        self.lengths.append(len(times))

    def commit(self, source: Source, invalid: int) -> None:
        """All of a source is there, but for so many events that are marked invalid."""
        for file in (self.times, self.units):
            file.flush()
        self.lines.append({"source": self._identity(source), "lengths": self.lengths, "invalid": invalid})
        self.index.write(json.dumps(self.lines[-1]) + "\n")
        self.index.flush()
        self.lengths = []

    def close(self) -> None:
        for file in (self.times, self.units, self.index):
            file.close()

    def recordings(self) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """(number of the source, times, units) of each recording."""
        with (self.folder / "times").open("rb") as times, (self.folder / "units").open("rb") as units:
            for number, entry in enumerate(self.lines):
                for length in entry["lengths"]:
                    yield number, np.fromfile(times, np.uint32, length), np.fromfile(units, np.uint32, length)


class Made:
    """The files of the splits and the picture while they are filled."""

    def __init__(
        self, stack: ExitStack, sources: Sequence[Source], folder: Path, sensor: tuple[int, int], provenance: dict
    ):
        self.sources, self.labels = sources, sorted_names(source.label for source in sources)
        self.picture = Picture(self.labels, sensor)
        self.stores = {
            split: Store(stack.enter_context(new_file(folder / f"{split}.h5", provenance)), 2 * sensor[0] * sensor[1])
            for split in SPLITS
            if any(source.split == split for source in sources)
        }
        self.members: dict[str, list[Source]] = {split: [] for split in self.stores}

    def append(self, number: int, times: np.ndarray, units: np.ndarray) -> None:
        """One more recording, of the source of this number."""
        source = self.sources[number]
        self.stores[source.split].append(times, units)
        self.members[source.split].append(source)
        self.picture.see(self.labels.index(source.label), times, units)

    def finish(self, where: Path) -> None:
        """Labels and subjects. InputError if a class has nothing to train on."""
        if without := sorted_names(set(self.labels) - {source.label for source in self.members["train"]}):
            raise InputError(
                f"{where}: class {without[0]!r} has no recording to train on; change the split, or leave it out"
            )
        names = sorted_names(source.subject for source in self.sources if source.subject is not None)
        subjects = {name: k for k, name in enumerate(names)}
        for split, store in self.stores.items():
            if not store.number:
                raise InputError(
                    f"{where}: nothing is left for the {split} file; look at --noise-us and --hot-pixel-hz"
                )
            members = self.members[split]
            store.finish([s.label for s in members], self.labels, [subjects.get(s.subject) for s in members], where)


def convert_events(
    folder: Path,
    out_dir: Path,
    sources: Sequence[Source],
    said: Said,
    shape: Shape,
    threads: int | None,
) -> None:
    """Convert files to out_dir/NAME_train.h5, NAME_validation.h5 and NAME_test.h5, NAME being out_dir's name.

    Raises InputError naming the file at fault and the remedy; the same command goes on from there.
    """
    if not any(source.split == "train" for source in sources):
        raise InputError(f"{folder}: no recording is to train on; change the split")
    for split in set(SPLITS) - {source.split for source in sources}:
        if (left := out_dir / f"{out_dir.resolve().name}_{split}.h5").exists():
            raise InputError(f"{left}: is there from before, and would be taken for a part of this set; remove it")
    first = cameras.open_recording(sources[0].path, said)
    size = first.height, first.width
    name = out_dir.resolve().name
    sensor = tuple(-(-side // shape.divide) for side in size)
    settings = {"said": asdict(said), "shape": asdict(shape), "size": size}
    provenance = {"made_by": "events", "folder": str(folder), **settings}
    try:
        unfinished = Unfinished(out_dir / f".{name}.unfinished", settings, sources)
        with ExitStack() as stack:
            made = Made(stack, sources, unfinished.folder, sensor, provenance)
            _fill(made, unfinished, sources, lambda path: recordings_of(path, said, size, shape), threads, name)
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
        f"{'class' if len(made.labels) == 1 else 'classes'} ({', '.join(made.labels):.200}) in {out_dir}, and what "
        f"they look like in {out_dir / name}.png; to train on them: python train.py {words} --set data.channels=null "
        f"--set data.sensor.height={sensor[0]} --set data.sensor.width={sensor[1]}"
        + ("" if "test" in made.stores else " --set data.test_by=recording")
    )
    if invalid := sum(entry["invalid"] for entry in unfinished.lines):
        print(f"{invalid:,} events marked invalid are left out")


def _fill(
    made: Made, unfinished: Unfinished, sources: Sequence[Source], make: Callable, threads: int | None, name: str
) -> None:
    """Return what an earlier run has left, then the rest."""
    done, events = len(unfinished.lines), 0
    invalid: dict[Path, int] = {}  # a file's is there before its end comes through the queue

    def work(source: Source) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        invalid[source.path] = yield from make(source.path)

    sizes = [source.path.stat().st_size for source in sources]
    with tqdm(total=sum(sizes), desc=name, unit="B", unit_scale=True, disable=None) as bar:
        if done:
            tqdm.write(f"going on after {done} of {len(sources)} files")
        for number, *recording in unfinished.recordings():
            made.append(number, *recording)
        bar.update(sum(sizes[:done]))
        for number, recording in in_order(work, sources[done:], threads or os.cpu_count() or 1):
            if recording is None:
                source = sources[done + number]
                unfinished.commit(source, invalid.pop(source.path))
                bar.update(sizes[done + number])
            else:
                unfinished.append(*recording)
                made.append(done + number, *recording)
                events += len(recording[0])
                bar.set_postfix_str(f"{events / 1e6:.1f} M events", refresh=False)
    unfinished.close()


# ---- the command


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None or not (0 < int(match[1]) <= 2**14 and 0 < int(match[2]) <= 2**14):
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 128x128: rows x columns")
    return int(match[1]), int(match[2])


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
    sources = draw_splits(sources, args.test_share, args.validation_share, args.split_by, args.seed)
    said = Said(args.format, args.sensor, args.time_unit, args.columns, args.brighter)
    if args.stride_ms and not args.window_ms:
        raise InputError("--stride-ms needs --window-ms")
    shape = Shape(args.window_ms, args.stride_ms, args.divide, args.hot_pixel_hz, args.noise_us, args.sort)
    convert_events(args.folder, args.out, sources, said, shape, args.processes)


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the subcommand `events`."""
    parser = subparsers.add_parser(
        "events",
        help="any folder of event cameras' recordings: RAW, DAT, AEDAT, HDF5, .bin, .es, .npy, .npz, CSV",
        description="Convert a tree of recordings to OUT/NAME_train.h5, NAME_validation.h5 and NAME_test.h5, NAME "
        "being OUT's name, with a picture of what came in. A file's class is the name of its folder, and folders "
        "Train, Test and Validation are its split, unless --label-pattern or --labels say otherwise. Times begin at a "
        "file's first event.",
        epilog="Examples: python -m datasets.prepare events recordings --out data/mine --window-ms 500; "
        "python -m datasets.prepare events N-MNIST --out data/nmnist --sensor 34x34",
    )
    parser.add_argument("folder", type=Path, help="folder of the recordings; folders inside it are searched too")
    parser.add_argument("--out", type=Path, required=True, help="folder for the files")
    about = parser.add_argument_group("what the files do not say")
    about.add_argument(
        "--format", choices=list(cameras.FORMATS), help="of all files (default: by name and first bytes)"
    )
    about.add_argument("--sensor", type=_size, metavar="ROWSxCOLUMNS", help="size of the sensor, such as 128x128")
    about.add_argument("--time-unit", choices=list(TICKS), help="of .npy, .npz, CSV and plain HDF5")
    about.add_argument("--columns", type=_columns, help="of tables without names, such as t,x,y,p")
    about.add_argument("--brighter", type=float, metavar="P", help="a table's polarity that means so (default: 1)")
    about.add_argument("--glob", help="which files, such as '**/*.txt' (default: those with a known ending)")
    classes = parser.add_argument_group("classes and splits")
    source = classes.add_mutually_exclusive_group()
    source.add_argument(
        "--label-pattern",
        metavar="REGEX",
        help="matched against each path below FOLDER; the group 'label' names the class, the optional groups 'subject' "
        "and 'split' (train, validation or test) the rest",
    )
    source.add_argument(
        "--labels", type=Path, metavar="CSV", help="table with the columns file,label[,subject][,split]"
    )
    classes.add_argument("--test-list", type=Path, metavar="FILE", help="files to test on, one a line; others train")
    classes.add_argument("--validation-list", type=Path, metavar="FILE", help="files to choose the best model by")
    classes.add_argument(
        "--split-by", choices=("file", "subject"), default="file", help="what is drawn (default: file)"
    )
    classes.add_argument("--test-share", type=float, default=0.2, help="drawn to test on; 0: none (default: 0.2)")
    classes.add_argument("--validation-share", type=float, default=0.0, help="drawn to validate on (default: 0)")
    classes.add_argument("--seed", type=int, default=0, help="draws the shares (default: 0)")
    made = parser.add_argument_group("what is made of a recording")
    made.add_argument(
        "--window-ms", type=partial(_positive, float), help="cut it into windows; a rest is left out (ms)"
    )
    made.add_argument(
        "--stride-ms", type=partial(_positive, float), help="from window to window (default: --window-ms)"
    )
    made.add_argument("--divide", type=partial(_positive, int), default=1, help="x, y become x // DIVIDE, y // DIVIDE")
    made.add_argument(
        "--hot-pixel-hz", type=partial(_positive, float), help="leave out pixels that fire more often (Hz)"
    )
    made.add_argument(
        "--noise-us",
        type=partial(_positive, int),
        help="leave out events with none at the 8 pixels around so shortly before",
    )
    made.add_argument("--sort", action="store_true", help="put events in the order of their times")
    parser.add_argument("--processes", type=partial(_positive, int), help="threads (default: one for each core)")
    parser.set_defaults(run=_run)
