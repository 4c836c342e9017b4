"""One reader a file layout. Each finds what a file holds; `read` then gives `Recordings`, or `StoredRecordings` for a
set larger than memory, checked event by event, or raises one clear InputError.

To add a layout, write its reader and enter it in LAYOUTS. Files are read piece by piece, so events are in memory once.
Nothing in a file is trusted: datasets/hdf5.py opens it.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import h5py
import numpy as np
from tqdm import tqdm

from datasets import hdf5
from datasets.events import AnyRecordings, Recordings, StoredRecordings, earliest
from datasets.labels import as_named, check_labels, check_type
from snn import config
from snn.classes import Named, numbers_in, tidied
from snn.errors import InputError
from snn.memory import available_bytes
from snn.ops.compiled import kernel

Split = Literal["train", "test"]
# events (file, numbers of recordings, latest time that is needed) -> lists of times and of channels
EventReader = Callable[[h5py.File, np.ndarray, float], tuple[Sequence[np.ndarray], Sequence[np.ndarray]]]

RECORDINGS_AT_ONCE, EVENTS_AT_ONCE = 512, 2**20  # read in one piece; more are no faster and take more memory
WINDOW = 2**16  # events of a long recording that are read at a time where its end is not needed


@dataclass(frozen=True)
class Found:
    """Hold what a reader finds in a file's layout, and how to read the rest."""

    number: int  # of recordings, n
    lengths: Callable[[], np.ndarray]  # (n,) int64, events of each recording
    labels: Callable[[], np.ndarray]  # (n,) int64
    ticks_per_second: float
    types: tuple[np.dtype, np.dtype]  # of times and channels, as they are read
    stored_types: tuple[np.dtype, np.dtype]  # of channels and labels, as they lie in the file
    events: EventReader
    speakers: Callable[[], np.ndarray] | None = None
    class_names: tuple[str, ...] | None = None


def read(
    layout: str,
    path: Path,
    split: Split,
    num_channels: int,
    num_classes: int,
    origin: str | None = None,
    in_memory: bool | None = None,
    classes: Named | None = None,
) -> AnyRecordings:
    """Read the recordings of one split. Channels must lie in 0..num_channels-1 and labels in 0..num_classes-1.

    A training file must have a recording of every class. `origin` says where this very set comes from, if the layout's
    own word does not do. `in_memory`: hold the events, or leave them in the file once they are checked; None: hold them
    if they take less than half of the memory there is. `classes`: what the labels shall mean; where the file names the
    same classes in another order, its labels are renumbered.
    """
    path = Path(path)
    file, found = look(layout, path, split, num_channels, num_classes, origin, classes)
    own = Named(found.class_names, str(path))
    lengths, labels = found.lengths(), as_named(found.labels(), own, classes)
    check_labels(labels, num_classes, str(path), split == "train", "recording")

    names = found.class_names if classes is None or classes.names is None else classes.names
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    pieces = partial(_events, file, path, found, num_channels)
    about = labels, None if found.speakers is None else found.speakers(), str(path), names
    if in_memory is None:
        in_memory = offsets[-1] * sum(kind.itemsize for kind in found.types) < available_bytes() / 2
    held = _room(offsets[-1], found.types, path) if in_memory else None
    first, ran_over = np.empty(found.number), []
    bar = tqdm(
        total=found.number, desc=f"checking {path.name}", unit="recording", leave=False, disable=in_memory or None
    )
    with bar:
        for part in _parts(offsets):
            _, times, channels = pieces(part, np.inf)
            within = offsets[part[0] : part[-1] + 2] - offsets[part[0]]
            first[part] = earliest(within, times)
            ran_over += [(part[r], *fall) for r, fall in _falls(within, times)]
            if held:
                events = slice(offsets[part[0]], offsets[part[-1] + 1])
                held[0][events], held[1][events] = times, channels
            bar.update(len(part))
    if ran_over:
        r, before, after = ran_over[0]
        print(
            f"warning: {path}: in {len(ran_over)} of {found.number} recordings time falls as that of a counter which "
            f"has run over (recording {r}: from {before:g} to {after:g}); if so, unwrap it before the file is written. "
            "The order of the events alone does not matter",
            file=sys.stderr,
        )
    if held:
        return Recordings(offsets, held[0], found.ticks_per_second, held[1], *about)
    return StoredRecordings(offsets, found.ticks_per_second, *about, pieces, first)


def look(
    layout: str,
    path: Path,
    split: Split,
    num_channels: int,
    num_classes: int,
    origin: str | None = None,
    classes: Named | None = None,
    strict: bool = False,
) -> tuple[hdf5.File, Found]:
    """A file and what its layout says, which is checked: InputError as `read`. No label and no event is read.

    `strict` refuses empty recordings as well.
    """
    if layout not in LAYOUTS:
        raise InputError(f"layout '{layout}' is not known; known are {', '.join(LAYOUTS)}")
    reader, origin_of_layout = LAYOUTS[layout]
    path = Path(path)  # a notebook writes a string
    if not path.is_file():
        raise InputError(f"{path}: not found. {origin or origin_of_layout}")
    file = hdf5.File(path)
    found = reader(file, path, split)
    if found.number == 0:
        raise InputError(f"{path}: holds no recording")
    channel_type, label_type = found.stored_types
    check_type(channel_type, num_channels, str(path), "units", "data.channels, data.sensor or data.shape")
    check_type(label_type, num_classes, str(path), "labels", "data.num_classes")
    if found.class_names is not None and classes is not None and classes.names is not None:
        numbers_in(classes, Named(found.class_names, str(path)))
    if strict and not (lengths := found.lengths()).all():
        raise InputError(f"{path}: recording {lengths.argmin()} is empty, and data.strict is on")
    return file, found


def _falls(offsets: np.ndarray, times: np.ndarray) -> Iterator[tuple[int, tuple[float, float]]]:
    """Recordings whose time runs like a counter that runs over, each with its first fall (from, to).

    Such a time rises but for few falls, each over more than half of what the recording spans.
    """
    falls = np.flatnonzero(times[1:] < times[:-1]) + 1
    falls = falls[~np.isin(falls, offsets)]  # where the next recording begins
    recordings, begin = np.unique(np.searchsorted(offsets, falls, side="right") - 1, return_index=True)
    for r, own in zip(recordings, np.split(falls, begin[1:]), strict=False):  # one empty part where there are none
        events = times[offsets[r] : offsets[r + 1]].astype(np.float64)
        drops = times[own - 1].astype(np.float64) - times[own]
        if len(own) <= len(events) / 4 and (drops > np.ptp(events) / 2).all():
            yield int(r), (float(times[own[0] - 1]), float(times[own[0]]))


def _parts(offsets: np.ndarray) -> Iterator[np.ndarray]:
    """All recordings in turn, as many at once as are read in one piece."""
    start = 0
    while start < len(offsets) - 1:
        end = int(np.searchsorted(offsets, offsets[start] + EVENTS_AT_ONCE, side="right")) - 1
        end = min(max(end, start + 1), start + RECORDINGS_AT_ONCE)
        yield np.arange(start, end)
        start = end


def _room(events: int, types: tuple[np.dtype, np.dtype], path: Path) -> list[np.ndarray]:
    try:
        return [np.empty(events, kind) for kind in types]
    except MemoryError:
        raise InputError(
            f"{path}: its {events:,} events do not fit into memory; leave them in the file by data.in_memory=false"
        ) from None


def _events(
    file: hdf5.File, path: Path, found: Found, num_channels: int, numbers: np.ndarray, until: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the recordings of these numbers, ascending: how many events each has, their times, their channels; checked.

    Events after the time `until` may be left out.
    """
    with hdf5.border(path):
        times, channels = found.events(file.open(), numbers, until)
    lengths, others = (np.array([len(values) for values in lists], np.int64) for lists in (times, channels))
    if (lengths != others).any():
        b = int((lengths != others).argmax())
        raise InputError(
            f"{path}: recording {numbers[b]} does not have as many times as channels ({lengths[b]} times, {others[b]} "
            "channels)"
        )
    flat = np.concatenate(times).astype(found.types[0], copy=False), np.concatenate(channels)

    def fault(values: np.ndarray, most: float, what: str, wrapped: str = "") -> None:
        # the extremes first: a mask for each event would take as much memory as the events
        if not len(values) or (values.min() >= 0 and values.max() <= most):  # false for NaN
            return
        e = int((~((values >= 0) & (values <= most))).argmax())
        r = numbers[int(np.searchsorted(np.cumsum(lengths), e, side="right"))]
        remedy = wrapped if wrapped and not 0 <= values[e] < 2**31 else what
        raise InputError(f"{path}: recording {r} has {remedy.format(values[e])}")

    outside = f"an event on channel {{}}, outside 0..{num_channels - 1}; "
    fault(
        flat[1],
        num_channels - 1,
        outside + "set data.channels, or data.sensor, to the set's",
        outside + "units below 0, or computed in a type that does not hold them, have wrapped: compute them in int64",
    )
    fault(flat[0], np.finfo(np.float32).max, "an event at the time {}; times must be finite and not negative")
    return lengths, flat[0], flat[1].astype(found.types[1], copy=False)


def _read_shd(file: hdf5.File, path: Path, split: Split) -> Found:
    """SHD (Cramer et al. 2022): /spikes/times in s, /spikes/units, /labels; /extra/speaker and /extra/keys if there.

    Files that we make of cameras' recordings count time in whole ticks (datasets/prepare/store.py).
    """
    file.check_lists("spikes/times", "iuf", "numbers")
    file.check_lists("spikes/units", "iu", "whole numbers")
    has_speakers = file.has("extra/speaker")
    names = tidied(file.names("extra/keys")) if file.has("extra/keys") else None
    shape = file.dataset("spikes/times").shape
    for name in ("spikes/units", "labels", *(["extra/speaker"] if has_speakers else [])):
        if (other := file.dataset(name, None if name == "spikes/units" else "iuf").shape) != shape:
            remedy = "; write one number a recording" if len(other) > 1 else ""
            raise InputError(f"{path}: {name} has shape {other}, but spikes/times has {shape}{remedy}")
    times_type, units_type = (
        h5py.check_vlen_dtype(file.dataset(f"spikes/{name}").dtype) for name in ("times", "units")
    )

    def lengths() -> np.ndarray:
        file.lengths_of_lists("spikes/units")  # its claims are checked; that the two agree, when the events are read
        return file.lengths_of_lists("spikes/times")

    def events(opened: h5py.File, numbers: np.ndarray, until: float) -> tuple[Sequence, Sequence]:
        # a list is read whole, whatever `until` says; neighbours are read faster as a slice
        together = slice(numbers[0], numbers[-1] + 1) if numbers[-1] - numbers[0] == len(numbers) - 1 else numbers
        return opened["spikes/times"][together], opened["spikes/units"][together]

    return Found(
        shape[0],
        lengths,
        partial(file.whole_numbers, "labels"),
        _ticks_per_second(file, path),
        (hdf5.plain(times_type), hdf5.plain(units_type)),
        (units_type, file.dataset("labels").dtype),
        events,
        partial(file.whole_numbers, "extra/speaker") if has_speakers else None,
        names,
    )


def _ticks_per_second(file: hdf5.File, path: Path) -> float:
    said = file.attribute("ticks_per_second")
    if said is None:
        return 1.0
    if not said.isdecimal() or not 0 < int(said) <= 10**12:
        raise InputError(f"{path}: says {said!r:.40} for its ticks a second; it must be a whole number")
    return float(said)


def _read_ntidigits(file: hdf5.File, path: Path, split: Split) -> Found:
    """N-TIDIGITS, single digits: /data/<key>/times in µs, /addrs, /labels; /extra/train_keys and test_keys.

    Time starts at the first event of each recording and may not go back, though bins would not mind: it would be a
    counter that has run over, and most of that recording's events would fall behind the window unseen.
    """
    keys = file.names(f"extra/{split}_keys")
    if not keys:
        raise InputError(f"{path}: wrong layout, extra/{split}_keys must be a list of names, not empty")
    for key in keys:
        if not file.is_group(f"data/{key}"):
            raise InputError(
                f"{path}: wrong layout, extra/{split}_keys names {key!r:.80} but there is no group of it in /data"
            )
    lengths, types = np.empty(len(keys), np.int64), {"times": set(), "addrs": set(), "labels": set()}
    for r, key in enumerate(keys):
        for name, found in types.items():
            found.add(file.dataset(f"data/{key}/{name}", "iuf").dtype)
        lengths[r] = file.dataset(f"data/{key}/times").size
    times_type = np.float64 if any(kind.kind == "f" for kind in types["times"]) else np.uint32

    def events(opened: h5py.File, numbers: np.ndarray, until: float) -> tuple[Sequence, Sequence]:
        times, channels = [], []
        for r in numbers:
            ticks = _from_first(opened[f"data/{keys[r]}/times"][()].reshape(-1), r, path)
            times.append(ticks)
            channels.append(hdf5.whole(opened[f"data/{keys[r]}/addrs"][()].reshape(-1), f"/data/{keys[r]}/addrs", path))
        return times, channels

    return Found(
        len(keys),
        lambda: lengths,
        lambda: np.array([_label(file, f"data/{key}", path) for key in keys], np.int64),
        1e6,
        (np.dtype(times_type), np.dtype(np.int64)),
        tuple(min(types[name], key=hdf5.largest) for name in ("addrs", "labels")),
        events,
    )


def _label(file: hdf5.File, group: str, path: Path) -> int:
    """The one label of a recording that is a group of its own."""
    label = file.whole_numbers(f"{group}/labels").reshape(-1)
    if len(label) != 1:
        raise InputError(f"{path}: /{group}/labels must hold one label, not {len(label)}")
    return int(label[0])


def _read_dvsgesture(file: hdf5.File, path: Path, split: Split) -> Found:
    """DVSGesture (Amir et al. 2017) as published with Liu et al. 2023: the recordings lie in /train or /test."""
    if not file.is_group(split):
        raise InputError(f"{path}: wrong layout, it has no group /{split}; is it the file of the other split?")
    return _read_camera(file, f"{split}/", path, *config.SENSORS["dvsgesture"])


def _read_dvsplane(file: hdf5.File, path: Path, split: Split) -> Found:
    """DVSPlane (Afshar et al. 2019) as published with Liu et al. 2023: the recordings lie at the root."""
    return _read_camera(file, "", path, *config.SENSORS["dvsplane"])


def _read_camera(file: hdf5.File, where: str, path: Path, height: int, width: int) -> Found:
    """An event camera's recordings 0, 1, ...: <i>/time in µs, <i>/data (events, 3) = x, y, polarity, <i>/labels.

    Channels are polarity · H · W + y · W + x; time starts at the first event of each recording.
    """
    n = file.number_of_members(f"/{where}")
    lengths, label_types = [], {np.dtype(np.int64)}
    for r in range(n):
        name = f"{where}{r}"
        if not file.is_group(name):
            raise InputError(
                f"{path}: wrong layout, /{where.rstrip('/')} must hold the recordings 0 to {n - 1} and nothing else, "
                f"but it has no group '{r}'"
            )
        label_types.add(file.dataset(f"{name}/labels", "iuf").dtype)
        time, data = file.dataset(f"{name}/time"), file.dataset(f"{name}/data")
        if time.dtype.kind not in "iu" or time.ndim != 1 or data.dtype.kind not in "iu" or data.shape[1:] != (3,):
            raise InputError(
                f"{path}: wrong layout, /{name} must have whole numbers time (events) and data (events, 3), "
                f"not {time.dtype} {time.shape} and {data.dtype} {data.shape}"
            )
        if len(time) != len(data):
            raise InputError(
                f"{path}: recording {r} does not have as many times as channels ({len(time)} times, {len(data)} "
                "channels)"
            )
        check_type(data.dtype, max(height, width), str(path), f"pixels /{name}/data", "its sensor")
        lengths.append(len(time))
    channel_type = np.min_scalar_type(2 * height * width - 1)

    def events(opened: h5py.File, numbers: np.ndarray, until: float) -> tuple[Sequence, Sequence]:
        times, channels = [], []
        for r in numbers:
            ticks = _from_first(_until(opened[f"{where}{r}/time"], until), r, path)
            data = hdf5.native(opened[f"{where}{r}/data"][: len(ticks)])
            times.append(ticks)
            channels.append(np.empty(len(data), channel_type))
            e = _lay_pixels(data, height, width, channels[-1])
            if e >= 0:
                x, y, polarity = data[e].tolist()
                raise InputError(
                    f"{path}: recording {r} has an event at x = {x}, y = {y} with polarity {polarity}; the sensor has "
                    f"x in 0..{width - 1}, y in 0..{height - 1} and polarities 0 and 1 (store -1 as 0)"
                )
        return times, channels

    return Found(
        n,
        lambda: np.array(lengths, np.int64),
        lambda: np.array([_label(file, f"{where}{r}", path) for r in range(n)], np.int64),
        1e6,
        (np.dtype(np.uint32), channel_type),
        (channel_type, min(label_types, key=hdf5.largest)),
        events,
    )


def _until(time: h5py.Dataset, until: float) -> np.ndarray:
    """The ascending ticks of a recording, window by window up to `until` after the first."""
    if until == np.inf or not len(time):
        return time[()]
    windows = [time[:WINDOW]]
    while int(windows[-1][-1]) - int(windows[0][0]) < until and sum(map(len, windows)) < len(time):
        start = sum(map(len, windows))
        windows.append(time[start : start + WINDOW])
    return np.concatenate(windows)


def _from_first(ticks: np.ndarray, r: int, path: Path) -> np.ndarray:
    """Times in µs from the first event on; InputError if they go back or take more than a counter of 32 bits."""
    if not len(ticks):
        return ticks.astype(np.float64 if ticks.dtype.kind == "f" else np.uint32)
    on = ticks[1:] >= ticks[:-1]
    if not on.all():  # NaN is no step on either
        e = int(on.argmin())
        bits = "16 bits: 65.5 ms" if ticks.dtype.itemsize == 2 else "32 bits: 71.6 min"
        raise InputError(
            f"{path}: recording {r} goes back in time, from {ticks[e]} to {ticks[e + 1]} µs at event {e + 1}; sort its "
            f"events, or if its counter has run over ({bits}), unwrap it"
        )
    if ticks.dtype.kind == "f":
        with np.errstate(invalid="ignore"):  # infinity gives NaN, which is found where all times are checked
            return ticks.astype(np.float64) - ticks[0]
    if int(ticks[-1]) - int(ticks[0]) > np.iinfo(np.uint32).max:
        raise InputError(f"{path}: recording {r} is longer than a counter of 32 bits (71.6 min) holds; cut it")
    if ticks.dtype != np.uint32:  # a difference may need more bits than the type has, or have another byte order
        ticks = ticks.astype(np.uint64 if ticks.dtype.kind == "u" else np.int64)
    return (ticks - ticks[0]).astype(np.uint32, copy=False)


@kernel
def _lay_pixels(data, height, width, channels):
    """Write the channel of each event (x, y, polarity); the first event outside the sensor, or -1."""
    for e in range(len(data)):
        x, y, polarity = np.int64(data[e, 0]), np.int64(data[e, 1]), np.int64(data[e, 2])
        if not (0 <= x < width and 0 <= y < height and 0 <= polarity <= 1):
            return e
        channels[e] = (polarity * height + y) * width + x
    return -1


LAYOUTS = {
    "shd": (
        _read_shd,
        "Files of this layout: https://zenkelab.org/datasets, or make them by `python -m datasets.prepare wav`; "
        "name their folder by data.path (--path_to_dataset).",
    ),
    "ntidigits": (
        _read_ntidigits,
        "The single digits of N-TIDIGITS in one file, as published with Liu et al. 2023, "
        "doi 10.3389/fnins.2023.1266003, or made by `python -m datasets.prepare ntidigits`; name its folder by "
        "data.path (--path_to_dataset).",
    ),
    "dvsgesture": (
        _read_dvsgesture,
        "Make it from the recordings of https://research.ibm.com/interactive/dvsgesture by "
        "`python -m datasets.prepare dvsgesture`; name its folder by data.path (--path_to_dataset).",
    ),
    "dvsplane": (
        _read_dvsplane,
        "Make it from the recordings of http://greg-cohen.com/datasets/dvs-planes by "
        "`python -m datasets.prepare dvsplane`, or take the made set `planes`; name its folder by data.path "
        "(--path_to_dataset).",
    ),
}
