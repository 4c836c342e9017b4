"""One reader a file layout. Each returns `Recordings`, checked event by event, or raises one clear InputError.

To add a layout, write its reader and enter it in LAYOUTS. Files are read piece by piece into flat arrays, so that they
are in memory once.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import h5py
import numpy as np

from datasets.events import Recordings
from snn import config
from snn.errors import InputError
from snn.ops.compiled import kernel

Split = Literal["train", "test"]

LISTS_AT_ONCE = 512  # of a data set of lists; more are no faster and take more memory


def read(
    layout: str, path: Path, split: Split, num_channels: int, num_classes: int, origin: str | None = None
) -> Recordings:
    """Read the recordings of one split. Channels must lie in 0..num_channels-1 and labels in 0..num_classes-1.

    A training file must have a recording of every class. `origin` says where this very set comes from, if the layout's
    own word does not do.
    """
    reader, origin_of_layout = LAYOUTS[layout]
    if not path.is_file():
        raise InputError(f"{path}: not found. {origin or origin_of_layout}")
    with _hdf5(path) as file:
        recordings = reader(file, path, split)
    _check(recordings, num_channels, num_classes)
    missing = np.setdiff1d(np.arange(num_classes), recordings.labels)
    if split == "train" and len(missing):
        raise InputError(
            f"{path}: class {missing[0]} has no recording; set data.num_classes (--num_classes) to the set's number"
        )
    return recordings


@contextmanager
def _hdf5(path: Path) -> Iterator[h5py.File]:
    try:
        with h5py.File(path, "r") as file:
            yield file
    except InputError:
        raise
    except (OSError, RuntimeError) as error:  # what h5py raises for damage, when opening and when reading
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: no readable HDF5 file, perhaps truncated; fetch it again ({reason:.120})") from None


def _get(group: h5py.Group, name: str, path: Path) -> h5py.Dataset:
    if not isinstance(group.get(name), h5py.Dataset):
        raise InputError(f"{path}: wrong layout, it has no data set {group.name.rstrip('/')}/{name}")
    return group[name]


def _numbers(dataset: h5py.Dataset, path: Path) -> np.ndarray:
    if dataset.shape is None or dataset.dtype.kind not in "iuf":
        raise InputError(f"{path}: wrong layout, {dataset.name} holds {dataset.dtype}, not numbers")
    return np.asarray(dataset[()])


def _whole_numbers(dataset: h5py.Dataset, path: Path) -> np.ndarray:
    """As int64; a file may store them as floats."""
    values = _numbers(dataset, path)
    if not (np.isfinite(values) & (values == np.floor(values))).all():
        raise InputError(f"{path}: {dataset.name} must hold whole numbers")
    return values.astype(np.int64)


def _names(dataset: h5py.Dataset, path: Path) -> list[str]:
    if dataset.shape is None or dataset.ndim != 1:
        raise InputError(f"{path}: wrong layout, {dataset.name} must be a list of names")
    return [name.decode(errors="replace") if isinstance(name, bytes) else str(name) for name in dataset[()]]


def _lists(dataset: h5py.Dataset, path: Path, kinds: str, what: str) -> tuple[np.ndarray, np.ndarray]:
    """The lists of a data set of variable-length lists: (length of each, their values one after the other).

    `kinds` are numpy's kinds of values, `what` says them in words.
    """
    item = h5py.check_vlen_dtype(dataset.dtype)
    if dataset.shape is None or dataset.ndim != 1 or item is None or item.kind not in kinds:
        raise InputError(
            f"{path}: wrong layout, {dataset.name} must hold a variable-length list of {what} for each recording"
        )
    parts = [slice(start, start + LISTS_AT_ONCE) for start in range(0, len(dataset), LISTS_AT_ONCE)]
    # read twice, to count and to keep: so the values are in memory once, and no second time in pieces
    lengths = np.array([len(values) for part in parts for values in dataset[part]], np.int64)
    flat = np.empty(lengths.sum(), np.float32 if item == np.float16 else item)  # numba knows no halves
    end = 0
    for part in parts:
        piece = np.concatenate(dataset[part])
        flat[end : end + len(piece)] = piece
        end += len(piece)
    return lengths, flat


def _read_shd(file: h5py.File, path: Path, split: Split) -> Recordings:
    """SHD (Cramer et al. 2022): /spikes/times in s, /spikes/units, /labels; /extra/speaker and /extra/keys if there."""
    stored = _get(file, "spikes/times", path), _get(file, "spikes/units", path)
    labels = _whole_numbers(_get(file, "labels", path), path)
    speakers = _whole_numbers(_get(file, "extra/speaker", path), path) if "extra/speaker" in file else None
    times = _lists(stored[0], path, "iuf", "numbers")
    units = _lists(stored[1], path, "iu", "whole numbers")
    for name, values in (("spikes/units", stored[1]), ("labels", labels), ("extra/speaker", speakers)):
        if values is not None and values.shape != stored[0].shape:
            raise InputError(f"{path}: {name} has shape {values.shape}, but spikes/times has {stored[0].shape}")
    names = tuple(_names(_get(file, "extra/keys", path), path)) if "extra/keys" in file else None
    return _gather(path, times, 1.0, units, labels, speakers, names)


def _read_ntidigits(file: h5py.File, path: Path, split: Split) -> Recordings:
    """N-TIDIGITS, single digits: /data/<key>/times in µs, /addrs, /labels; /extra/train_keys and test_keys.

    Time starts at the first event of each recording.
    """
    keys = _names(_get(file, f"extra/{split}_keys", path), path)
    if not keys:
        raise InputError(f"{path}: wrong layout, extra/{split}_keys must be a list of names, not empty")
    times, units, labels = [], [], []
    for key in keys:
        group = file.get(f"data/{key}")
        if not isinstance(group, h5py.Group):
            raise InputError(f"{path}: wrong layout, extra/{split}_keys names '{key}' but there is no /data/{key}")
        ticks = _numbers(_get(group, "times", path), path).reshape(-1)
        times.append(ticks - ticks.min() if len(ticks) else ticks)
        units.append(_whole_numbers(_get(group, "addrs", path), path).reshape(-1))
        labels.append(_label(group, path))
    flat_times, flat_units = (
        (np.array([len(values) for values in lists], np.int64), np.concatenate(lists)) for lists in (times, units)
    )
    return _gather(path, flat_times, 1e6, flat_units, np.array(labels), None)


def _label(group: h5py.Group, path: Path) -> int:
    """The one label of a recording that is a group of its own."""
    label = _whole_numbers(_get(group, "labels", path), path).reshape(-1)
    if len(label) != 1:
        raise InputError(f"{path}: {group.name}/labels must hold one label, not {len(label)}")
    return int(label[0])


def _read_dvsgesture(file: h5py.File, path: Path, split: Split) -> Recordings:
    """DVSGesture (Amir et al. 2017) as published with Liu et al. 2023: the recordings lie in /train or /test."""
    if not isinstance(file.get(split), h5py.Group):
        raise InputError(f"{path}: wrong layout, it has no group /{split}; is it the file of the other split?")
    return _read_camera(file[split], path, *config.SENSORS["dvsgesture"])


def _read_dvsplane(file: h5py.File, path: Path, split: Split) -> Recordings:
    """DVSPlane (Afshar et al. 2019) as published with Liu et al. 2023: the recordings lie at the root."""
    return _read_camera(file, path, *config.SENSORS["dvsplane"])


def _read_camera(group: h5py.Group, path: Path, height: int, width: int) -> Recordings:
    """An event camera's recordings 0, 1, ...: <i>/time in µs, <i>/data (events, 3) = x, y, polarity, <i>/labels.

    Channels are polarity · H · W + y · W + x; time starts at the first event of each recording.
    """
    recordings = [group.get(str(r)) for r in range(len(group))]
    for r, recording in enumerate(recordings):
        if not isinstance(recording, h5py.Group):
            raise InputError(
                f"{path}: wrong layout, {group.name} must hold the recordings 0 to {len(group) - 1} and nothing else, "
                f"but it has no group '{r}'"
            )
    labels = np.array([_label(recording, path) for recording in recordings], np.int64)
    shapes = []
    for recording in recordings:
        time, data = _get(recording, "time", path), _get(recording, "data", path)
        if time.dtype.kind not in "iu" or time.ndim != 1 or data.dtype.kind not in "iu" or data.shape[1:] != (3,):
            raise InputError(
                f"{path}: wrong layout, {recording.name} must have whole numbers time (events) and data (events, 3), "
                f"not {time.dtype} {time.shape} and {data.dtype} {data.shape}"
            )
        shapes.append((len(time), len(data)))
    lengths, others = np.array(shapes, np.int64).reshape(-1, 2).T
    times = np.empty(lengths.sum(), np.uint32)
    channels = np.empty(others.sum(), np.min_scalar_type(2 * height * width - 1))
    end, other_end = np.cumsum(lengths), np.cumsum(others)
    for r, recording in enumerate(recordings):
        ticks, data = recording["time"][()], recording["data"][()]
        if len(ticks):
            times[end[r] - len(ticks) : end[r]] = _from_first(ticks, r, path)
        e = _lay_pixels(data, height, width, channels[other_end[r] - len(data) : other_end[r]])
        if e >= 0:
            x, y, polarity = data[e].tolist()
            raise InputError(
                f"{path}: recording {r} has an event at x = {x}, y = {y} with polarity {polarity}; the sensor has x in "
                f"0..{width - 1}, y in 0..{height - 1} and polarities 0 and 1 (store -1 as 0)"
            )
    return _gather(path, (lengths, times), 1e6, (others, channels), labels, None)


def _from_first(ticks: np.ndarray, r: int, path: Path) -> np.ndarray:
    """Times in µs from the first event on; InputError if they go back or take more than a counter of 32 bits."""
    back = ticks[1:] < ticks[:-1]
    if back.any():
        e = int(back.argmax())
        raise InputError(
            f"{path}: recording {r} goes back in time, from {ticks[e]} to {ticks[e + 1]} µs at event {e + 1}; sort its "
            "events, or if its counter has run over (32 bits: 71.6 min), unwrap it"
        )
    if int(ticks[-1]) - int(ticks[0]) > np.iinfo(np.uint32).max:
        raise InputError(f"{path}: recording {r} is longer than a counter of 32 bits (71.6 min) holds; cut it")
    return ticks - ticks[0]


@kernel
def _lay_pixels(data, height, width, channels):
    """Write the channel of each event (x, y, polarity); the first event outside the sensor, or -1."""
    for e in range(len(data)):
        x, y, polarity = np.int64(data[e, 0]), np.int64(data[e, 1]), np.int64(data[e, 2])
        if not (0 <= x < width and 0 <= y < height and 0 <= polarity <= 1):
            return e
        channels[e] = (polarity * height + y) * width + x
    return -1


def _gather(path: Path, times, ticks_per_second: float, units, labels, speakers, class_names=None) -> Recordings:
    """Recordings from (lengths, values) of their times and of their channels."""
    (lengths, times), (others, channels) = times, units
    if len(lengths) == 0:
        raise InputError(f"{path}: holds no recording")
    for broken, what in ((lengths != others, "as many times as channels"), (lengths == 0, "events; it is empty")):
        if broken.any():
            r = int(broken.argmax())
            raise InputError(f"{path}: recording {r} does not have {what} ({lengths[r]} times, {others[r]} channels)")
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return Recordings(offsets, times, ticks_per_second, channels, labels, speakers, str(path), class_names)


def _check(recordings: Recordings, num_channels: int, num_classes: int) -> None:
    """Every label, channel and time within its range, or an error that names the first recording at fault."""

    def fault(values: np.ndarray, most: float, what: str) -> None:
        # the extremes first: a mask for each event would take as much memory as the events
        if values.min() >= 0 and values.max() <= most:  # false for NaN
            return
        e = int((~((values >= 0) & (values <= most))).argmax())
        r = e if values is recordings.labels else int(np.searchsorted(recordings.offsets, e, side="right")) - 1
        raise InputError(f"{recordings.where}: recording {r} has {what.format(values[e])}")

    fault(
        recordings.labels,
        num_classes - 1,
        f"the label {{}}, outside 0..{num_classes - 1}; set data.num_classes (--num_classes) to the set's number",
    )
    fault(
        recordings.channels,
        num_channels - 1,
        f"an event on channel {{}}, outside 0..{num_channels - 1}; set data.channels, or data.sensor, to the set's",
    )
    fault(
        recordings.times,
        np.finfo(np.float32).max,
        "an event at the time {}; times must be finite and not negative",
    )


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
