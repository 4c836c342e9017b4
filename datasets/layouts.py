"""The layouts of files of recordings: each opens its own file and finds its recordings.

To add a layout, write its function here, or in your own program, and enter it in LAYOUTS. Nothing in a file is trusted:
datasets/hdf5.py opens the files of this module, and datasets/readers.py checks every event.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import h5py
import numpy as np

from datasets import hdf5
from datasets.labels import check_type
from snn import config
from snn.classes import all_different, tidied
from snn.errors import InputError
from snn.ops.compiled import kernel

Split = Literal["train", "test"]

WINDOW = 2**16  # events of a long recording that are read at a time if its end is not needed


@dataclass(frozen=True)
class Contents:
    """The contents of a file by its layout, and functions that read the rest of it."""

    number: int  # of recordings, n
    lengths: Callable[[], np.ndarray]  # (n,) int64, events of each recording
    labels: Callable[[], np.ndarray]  # (n,) int64
    ticks_per_second: float
    types: tuple[np.dtype, np.dtype]  # of times and channels, as they are read
    stored_types: tuple[np.dtype, np.dtype]  # of channels and labels, as they lie in the file
    # (numbers of recordings, latest time needed, in ticks) -> the times and the channels of each
    read_events: Callable[[np.ndarray, float], tuple[Sequence[np.ndarray], Sequence[np.ndarray]]]
    speakers: Callable[[], np.ndarray] | None = None  # (n,) int64
    class_names: tuple[str, ...] | None = None
    provenance: Callable[[], str | None] = lambda: None  # as `datasets.prepare` writes it
    files: Callable[[], np.ndarray] | None = None  # (n,) int64, number of the file that each was cut from


class Layout(NamedTuple):
    """A function that opens a file for one split, or raises InputError, and the source of such files, for messages."""

    open: Callable[[Path, Split], Contents]
    origin: str


def _open_shd(path: Path, split: Split) -> Contents:
    """Open SHD (Cramer et al. 2022): /spikes/times in s, /spikes/units, /labels, and if there, /extra/speaker and keys.

    Files that we make from recordings of cameras count time in whole ticks, and /extra/file says which windows are from
    the same recording (datasets/prepare/store.py).
    """
    file = hdf5.File(path)
    file.check_lists("spikes/times", "iuf", "numbers")
    file.check_lists("spikes/units", "iu", "whole numbers")
    extras = [name for name in ("extra/speaker", "extra/file") if file.has(name)]
    names = all_different(tidied(file.names("extra/keys")), f"{path}: extra/keys") if file.has("extra/keys") else None
    shape = file.dataset("spikes/times").shape
    for name in ("spikes/units", "labels", *extras):
        if (other := file.dataset(name, None if name == "spikes/units" else "iuf").shape) != shape:
            remedy = "; write one number a recording" if len(other) > 1 else ""
            raise InputError(f"{path}: {name} has shape {other}, but spikes/times has {shape}{remedy}")
    times_type, units_type = (
        h5py.check_vlen_dtype(file.dataset(f"spikes/{name}").dtype) for name in ("times", "units")
    )

    def lengths() -> np.ndarray:
        file.lengths_of_lists("spikes/units")  # checks its claims; reading the events checks that both agree
        return file.lengths_of_lists("spikes/times")

    def read_events(numbers: np.ndarray, until: float) -> tuple[Sequence, Sequence]:
        # a list is always read whole, even beyond `until`; neighbours are read faster as a slice
        together = slice(numbers[0], numbers[-1] + 1) if numbers[-1] - numbers[0] == len(numbers) - 1 else numbers
        return file.part("spikes/times", together), file.part("spikes/units", together)

    return Contents(
        shape[0],
        lengths,
        partial(file.whole_numbers, "labels"),
        _ticks_per_second(file, path),
        (hdf5.plain(times_type), hdf5.plain(units_type)),
        (units_type, file.dataset("labels").dtype),
        read_events,
        partial(file.whole_numbers, "extra/speaker") if "extra/speaker" in extras else None,
        names,
        partial(file.attribute, hdf5.PROVENANCE),
        partial(file.whole_numbers, "extra/file") if "extra/file" in extras else None,
    )


def _ticks_per_second(file: hdf5.File, path: Path) -> float:
    said = file.attribute("ticks_per_second")
    if said is None:
        return 1.0
    if not said.isdecimal() or not 0 < int(said) <= 10**12:
        raise InputError(f"{path}: says {said!r:.40} for its ticks per second; it must be a whole number")
    return float(said)


def _open_ntidigits(path: Path, split: Split) -> Contents:
    """Open N-TIDIGITS, single digits: /data/<key>/times in µs, /addrs, /labels; /extra/train_keys and test_keys.

    Time starts at the first event of each recording and may not go back: that happens where a counter has overflowed,
    and most events of that recording would fall past the window unnoticed.
    """
    file = hdf5.File(path)
    keys = file.names(f"extra/{split}_keys")
    if not keys:
        raise InputError(f"{path}: wrong layout: extra/{split}_keys must be a list of names, not empty")
    for key in keys:
        if not file.is_group(f"data/{key}"):
            raise InputError(
                f"{path}: wrong layout: extra/{split}_keys names {key!r:.80} but there is no group of it in /data"
            )
    lengths, types = np.empty(len(keys), np.int64), {"times": set(), "addrs": set(), "labels": set()}
    for r, key in enumerate(keys):
        for name, found in types.items():
            found.add(file.dataset(f"data/{key}/{name}", "iuf").dtype)
        lengths[r] = file.dataset(f"data/{key}/times").size
    times_type = np.float64 if any(kind.kind == "f" for kind in types["times"]) else np.uint32

    def read_events(numbers: np.ndarray, until: float) -> tuple[Sequence, Sequence]:
        times, channels = [], []
        for r in numbers:
            group = f"data/{keys[r]}"
            times.append(_from_first(file.part(f"{group}/times").reshape(-1), r, path))
            channels.append(hdf5.whole(file.part(f"{group}/addrs").reshape(-1), f"/{group}/addrs", path))
        return times, channels

    return Contents(
        len(keys),
        lambda: lengths,
        lambda: np.array([_label(file, f"data/{key}", path) for key in keys], np.int64),
        1e6,
        (np.dtype(times_type), np.dtype(np.int64)),
        tuple(min(types[name], key=hdf5.largest) for name in ("addrs", "labels")),
        read_events,
        provenance=partial(file.attribute, hdf5.PROVENANCE),
    )


def _label(file: hdf5.File, group: str, path: Path) -> int:
    """Return the label of a recording that is a group of its own."""
    label = file.whole_numbers(f"{group}/labels").reshape(-1)
    if len(label) != 1:
        raise InputError(f"{path}: /{group}/labels must hold one label, not {len(label)}")
    return int(label[0])


def _open_dvsgesture(path: Path, split: Split) -> Contents:
    """Open DVSGesture (Amir et al. 2017) as published with Liu et al. 2023: the recordings lie in /train or /test."""
    file = hdf5.File(path)
    if not file.is_group(split):
        raise InputError(f"{path}: wrong layout: it has no group /{split}; is it the file of the other split?")
    return _of_camera(file, f"{split}/", path, *config.SENSORS["dvsgesture"])


def _open_dvsplane(path: Path, split: Split) -> Contents:
    """Open DVSPlane (Afshar et al. 2019) as published with Liu et al. 2023: the recordings lie at the root."""
    return _of_camera(hdf5.File(path), "", path, *config.SENSORS["dvsplane"])


def _of_camera(file: hdf5.File, where: str, path: Path, height: int, width: int) -> Contents:
    """Find an event camera's recordings 0, 1, ...: <i>/time in µs, <i>/data (events, 3) = x, y, polarity, <i>/labels.

    Channels are polarity · H · W + y · W + x; time starts at the first event of each recording.
    """
    n = file.number_of_members(f"/{where}")
    lengths, label_types = [], {np.dtype(np.int64)}
    for r in range(n):
        name = f"{where}{r}"
        if not file.is_group(name):
            raise InputError(
                f"{path}: wrong layout: /{where.rstrip('/')} must hold the recordings 0 to {n - 1} and nothing else, "
                f"but it has no group '{r}'"
            )
        label_types.add(file.dataset(f"{name}/labels", "iuf").dtype)
        time, data = file.dataset(f"{name}/time"), file.dataset(f"{name}/data")
        if time.dtype.kind not in "iu" or time.ndim != 1 or data.dtype.kind not in "iu" or data.shape[1:] != (3,):
            raise InputError(
                f"{path}: wrong layout: /{name} must have whole numbers time (events) and data (events, 3), "
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

    def read_events(numbers: np.ndarray, until: float) -> tuple[Sequence, Sequence]:
        times, channels = [], []
        for r in numbers:
            ticks = _from_first(_until(partial(file.part, f"{where}{r}/time"), lengths[r], until), r, path)
            data = hdf5.native(file.part(f"{where}{r}/data", slice(len(ticks))))
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

    return Contents(
        n,
        lambda: np.array(lengths, np.int64),
        lambda: np.array([_label(file, f"{where}{r}", path) for r in range(n)], np.int64),
        1e6,
        (np.dtype(np.uint32), channel_type),
        (channel_type, min(label_types, key=hdf5.largest)),
        read_events,
        provenance=partial(file.attribute, hdf5.PROVENANCE),
    )


def _until(part: Callable[[slice], np.ndarray], number: int, until: float) -> np.ndarray:
    """Read the ascending ticks of a recording, window by window, up to `until` after the first."""
    if until == np.inf or not number:
        return part(slice(None))
    windows = [part(slice(WINDOW))]
    while int(windows[-1][-1]) - int(windows[0][0]) < until and sum(map(len, windows)) < number:
        start = sum(map(len, windows))
        windows.append(part(slice(start, start + WINDOW)))
    return np.concatenate(windows)


def _from_first(ticks: np.ndarray, r: int, path: Path) -> np.ndarray:
    """Return times in µs from the first event on; InputError if they go back or exceed a counter of 32 bits."""
    if not len(ticks):
        return ticks.astype(np.float64 if ticks.dtype.kind == "f" else np.uint32)
    on = ticks[1:] >= ticks[:-1]
    if not on.all():  # NaN counts as going back, too
        e = int(on.argmin())
        bits = "16 bits: 65.5 ms" if ticks.dtype.itemsize == 2 else "32 bits: 71.6 min"
        raise InputError(
            f"{path}: recording {r} goes back in time, from {ticks[e]} to {ticks[e + 1]} µs at event {e + 1}; sort its "
            f"events, or if its counter has run over ({bits}), unwrap it"
        )
    if ticks.dtype.kind == "f":
        with np.errstate(invalid="ignore"):  # infinity gives NaN, which the check of all times finds
            return ticks.astype(np.float64) - ticks[0]
    if int(ticks[-1]) - int(ticks[0]) > np.iinfo(np.uint32).max:
        raise InputError(f"{path}: recording {r} is longer than a counter of 32 bits (71.6 min) holds; cut it")
    if ticks.dtype != np.uint32:  # a difference may need more bits than the type has, or have another byte order
        ticks = ticks.astype(np.uint64 if ticks.dtype.kind == "u" else np.int64)
    return (ticks - ticks[0]).astype(np.uint32, copy=False)


@kernel
def _lay_pixels(data, height, width, channels):
    """Write the channel of each event (x, y, polarity); return the first event outside the sensor, or -1."""
    for e in range(len(data)):
        x, y, polarity = np.int64(data[e, 0]), np.int64(data[e, 1]), np.int64(data[e, 2])
        if not (0 <= x < width and 0 <= y < height and 0 <= polarity <= 1):
            return e
        channels[e] = (polarity * height + y) * width + x
    return -1


LAYOUTS: dict[str, Layout] = {
    "shd": Layout(
        _open_shd,
        "Files of this layout: https://zenkelab.org/datasets, or make them by `python -m datasets.prepare wav`; "
        "name their folder by data.path (--path_to_dataset).",
    ),
    "ntidigits": Layout(
        _open_ntidigits,
        "The single digits of N-TIDIGITS in one file, as published with Liu et al. 2023, "
        "doi 10.3389/fnins.2023.1266003, or made by `python -m datasets.prepare ntidigits`; name its folder by "
        "data.path (--path_to_dataset).",
    ),
    "dvsgesture": Layout(
        _open_dvsgesture,
        "Make it from the recordings of https://research.ibm.com/interactive/dvsgesture by "
        "`python -m datasets.prepare dvsgesture`; name its folder by data.path (--path_to_dataset).",
    ),
    "dvsplane": Layout(
        _open_dvsplane,
        "Make it from the recordings of http://greg-cohen.com/datasets/dvs-planes by "
        "`python -m datasets.prepare dvsplane`, or take the made set `planes`; name its folder by data.path "
        "(--path_to_dataset).",
    ),
}
