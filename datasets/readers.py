"""One reader a file layout. Each returns `Recordings`, checked event by event, or raises one clear InputError.

To add a layout, write its reader and enter it in LAYOUTS.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import h5py
import numpy as np

from datasets.events import Recordings
from snn.errors import InputError

Split = Literal["train", "test"]


def read(
    layout: str, path: Path, split: Split, num_channels: int, num_classes: int, origin: str | None = None
) -> Recordings:
    """Read the recordings of one split. Channels must lie in 0..num_channels-1 and labels in 0..num_classes-1.

    `origin` says where this very set comes from, if the layout's own word does not do.
    """
    reader, origin_of_layout = LAYOUTS[layout]
    if not path.is_file():
        raise InputError(f"{path}: not found. {origin or origin_of_layout}")
    with _hdf5(path) as file:
        recordings = reader(file, path, split)
    _check(recordings, num_channels, num_classes)
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


def _lists(dataset: h5py.Dataset, path: Path, kinds: str, what: str) -> np.ndarray:
    """A data set of variable-length lists, as an array of arrays. `kinds` are numpy's, `what` says them in words."""
    item = h5py.check_vlen_dtype(dataset.dtype)
    if dataset.shape is None or dataset.ndim != 1 or item is None or item.kind not in kinds:
        raise InputError(
            f"{path}: wrong layout, {dataset.name} must hold a variable-length list of {what} for each recording"
        )
    return dataset[()]


def _read_shd(file: h5py.File, path: Path, split: Split) -> Recordings:
    """SHD (Cramer et al. 2022): /spikes/times in s, /spikes/units, /labels; /extra/speaker and /extra/keys if there."""
    times = _lists(_get(file, "spikes/times", path), path, "iuf", "numbers")
    units = _lists(_get(file, "spikes/units", path), path, "iu", "whole numbers")
    labels = _whole_numbers(_get(file, "labels", path), path)
    speakers = _whole_numbers(_get(file, "extra/speaker", path), path) if "extra/speaker" in file else None
    for name, values in (("spikes/units", units), ("labels", labels), ("extra/speaker", speakers)):
        if values is not None and values.shape != times.shape:
            raise InputError(f"{path}: {name} has shape {values.shape}, but spikes/times has {times.shape}")
    names = tuple(_names(_get(file, "extra/keys", path), path)) if "extra/keys" in file else None
    return _gather(path, times, 1.0, units, labels, speakers, names)


def _read_ntidigits(file: h5py.File, path: Path, split: Split) -> Recordings:
    """N-TIDIGITS, single digits: /data/<key>/times in µs, /addrs, /labels; /extra/train_keys and test_keys.

    Time starts at the first event of each recording.
    """
    keys = _names(_get(file, f"extra/{split}_keys", path), path)
    times, units, labels = [], [], []
    for key in keys:
        group = file.get(f"data/{key}")
        if not isinstance(group, h5py.Group):
            raise InputError(f"{path}: wrong layout, extra/{split}_keys names '{key}' but there is no /data/{key}")
        ticks = _numbers(_get(group, "times", path), path).reshape(-1)
        times.append(ticks - ticks.min() if len(ticks) else ticks)
        units.append(_whole_numbers(_get(group, "addrs", path), path).reshape(-1))
        label = _whole_numbers(_get(group, "labels", path), path).reshape(-1)
        if len(label) != 1:
            raise InputError(f"{path}: {group.name}/labels must hold one label, not {len(label)}")
        labels.append(label[0])
    return _gather(path, times, 1e6, units, np.array(labels), None)


def _gather(path: Path, times, ticks_per_second: float, units, labels, speakers, class_names=None) -> Recordings:
    """Lists of events to flat arrays."""
    if len(times) == 0:
        raise InputError(f"{path}: holds no recording")
    lengths = np.fromiter(map(len, times), np.int64, len(times))
    others = np.fromiter(map(len, units), np.int64, len(units))
    for broken, what in ((lengths != others, "as many times as channels"), (lengths == 0, "events; it is empty")):
        if broken.any():
            r = int(broken.argmax())
            raise InputError(f"{path}: recording {r} does not have {what} ({lengths[r]} times, {others[r]} channels)")
    times = np.concatenate(times)
    return Recordings(
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        times=times.astype(np.float32) if times.dtype == np.float16 else times,
        ticks_per_second=ticks_per_second,
        channels=np.concatenate(units),
        labels=labels,
        speakers=speakers,
        where=str(path),
        class_names=class_names,
    )


def _check(recordings: Recordings, num_channels: int, num_classes: int) -> None:
    """Every label, channel and time within its range, or an error that names the first recording at fault."""

    def fault(bad: np.ndarray, values: np.ndarray, what: str) -> None:
        if bad.any():
            e = int(bad.argmax())
            r = e if values is recordings.labels else int(np.searchsorted(recordings.offsets, e, side="right")) - 1
            raise InputError(f"{recordings.where}: recording {r} has {what.format(values[e])}")

    labels, channels, times = recordings.labels, recordings.channels, recordings.times
    fault(
        (labels < 0) | (labels >= num_classes),
        labels,
        f"the label {{}}, outside 0..{num_classes - 1}; set data.num_classes (--num_classes) to the set's number",
    )
    fault(
        (channels < 0) | (channels >= num_channels),
        channels,
        f"an event on channel {{}}, outside 0..{num_channels - 1}; set data.channels, or data.sensor, to the set's",
    )
    fault(~(np.isfinite(times) & (times >= 0)), times, "an event at the time {}; times must be finite and not negative")


LAYOUTS = {
    "shd": (
        _read_shd,
        "Files of this layout: https://zenkelab.org/datasets, or make them by `python -m datasets.prepare wav`; "
        "name their folder by data.path (--path_to_dataset).",
    ),
    "ntidigits": (
        _read_ntidigits,
        "The single digits of N-TIDIGITS in one file, as published with Liu et al. 2023, "
        "doi 10.3389/fnins.2023.1266003; name its folder by data.path (--path_to_dataset).",
    ),
}
