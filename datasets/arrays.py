"""Recordings from your own arrays or another library's: written to a file for training, or kept in memory.

    arrays.write("data/mine/mine_train.h5", recordings, time_unit="us", sensor=(128, 128))
    arrays.in_memory(recordings, time_unit="s", channels=700)

A recording is (events, label) or (events, label, subject). Its events are a structured array with fields t, x, y and p,
as in Tonic, or arrays (t, x, y, p), or (t, channel) for a cochlea. Labels and subjects are numbers from 0, or names.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from datasets.prepare.cameras.tables import COLUMNS, NAMES, TICKS, Polarity, as_piece
from datasets.prepare.store import LONGEST_US, Store, numbered
from datasets.prepare.writer import new_file
from datasets.recordings import Recordings
from snn import checks
from snn.errors import InputError

Label = int | str
Sample = tuple[object, Label] | tuple[object, Label, Label]
Checked = tuple[np.ndarray, np.ndarray, Label, Label | None]  # times in µs, units, label, subject


def write(
    path: str | Path,
    recordings: Iterable[Sample],
    *,
    time_unit: str,
    sensor: tuple[int, int] | None = None,
    channels: int | None = None,
    class_names: Sequence[str] | None = None,
) -> int:
    """Write recordings as they come to an HDF5 file in the layout of SHD; return their number.

    time_unit: s, ms, us or ns. Give `sensor`, the (height, width) of a camera, whose units are p·H·W + y·W + x, or
    `channels`, the number of channels of a cochlea. Times are kept in whole µs; a recording may last up to 71.6 min.
    class_names: if labels are names, their order (default: sorted); otherwise the names of classes 0, 1, ...
    Raises InputError naming the recording and the remedy; no file is left behind.
    """
    path = Path(path)
    num_units = _num_units(str(path), sensor, channels)
    labels, subjects = [], []
    with new_file(path, {"made_by": "arrays"}) as file:
        store = Store(file, num_units)
        for times_us, units, label, subject in _checked(str(path), recordings, time_unit, sensor, channels):
            store.append(times_us, units)
            labels.append(label)
            subjects.append(subject)
        store.finish(labels, class_names, subjects, path)
    return store.number


def in_memory(
    recordings: Iterable[Sample],
    *,
    time_unit: str,
    sensor: tuple[int, int] | None = None,
    channels: int | None = None,
    class_names: Sequence[str] | None = None,
) -> Recordings:
    """Return the recordings in memory, without a file; arguments as in `write`."""
    where = "the arrays"
    num_units = _num_units(where, sensor, channels)
    made = list(_checked(where, recordings, time_unit, sensor, channels))
    if not made:
        raise InputError(f"{where}: there are no recordings")
    times, units, labels, subjects = zip(*made, strict=True)
    numbers, names = numbered(labels, class_names, f"{where}: the label")
    speakers = None
    if any(subject is not None for subject in subjects):
        speakers = numbered(subjects, None, f"{where}: the subject")[0].astype(np.int64)
    return Recordings(
        np.concatenate([[0], np.cumsum([len(part) for part in times])]),
        np.concatenate(times),
        1e6,
        np.concatenate(units).astype(np.min_scalar_type(num_units - 1)),
        numbers.astype(np.int64),
        speakers,
        where,
        None if names is None else tuple(names),
    )


def _num_units(where: str, sensor: tuple[int, int] | None, channels: int | None) -> int:
    if (sensor is None) == (channels is None):
        raise InputError(f"{where}: give either sensor=(height, width) of a camera, or channels of a cochlea")
    if sensor is None:
        checks.whole(f"{where}: channels", channels, 1)
        return channels
    checks.sizes(f"{where}: sensor", sensor)
    if len(sensor) != 2:
        raise InputError(f"{where}: sensor must be (height, width), but is {sensor!r}")
    units = 2 * sensor[0] * sensor[1]
    checks.whole(f"{where}: 2 · height · width of the sensor", units, 1)
    return units


def _checked(
    where: str,
    recordings: Iterable[Sample],
    time_unit: str,
    sensor: tuple[int, int] | None,
    channels: int | None,
) -> Iterator[Checked]:
    if time_unit not in tuple(TICKS):  # a list is no key
        raise InputError(f"{where}: time_unit is {time_unit!r}; it must be one of {', '.join(TICKS)}")
    try:
        samples = enumerate(recordings)
    except TypeError:
        raise InputError(f"{where}: the recordings must be a list of (events, label), not {recordings!r:.40}") from None
    for r, sample in samples:
        at = f"{where}: recording {r}"
        if not isinstance(sample, tuple | list) or len(sample) not in (2, 3):
            raise InputError(f"{at} is not (events, label) or (events, label, subject)")
        events, label, *subject = sample
        times, units = _units(at, events, TICKS[time_unit], sensor, channels)
        yield times, units, _plain(label), _plain(subject[0]) if subject else None


def _plain(value: object) -> object:
    """Take a label out of an array or a tensor of one number."""
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", 1) == 0 else value


def _units(
    at: str, events: object, unit_us: float, sensor: tuple[int, int] | None, channels: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return times in whole µs, uint32, and units, uint32, of one recording."""
    if sensor and (names := getattr(getattr(events, "dtype", None), "names", None)):
        places = [next((name for name in names if name.lower() in NAMES[column]), None) for column in COLUMNS]
        if None in places:
            raise InputError(f"{at} has the fields {', '.join(names):.80}; {COLUMNS[places.index(None)]} is missing")
        columns = [events[name] for name in places]
    else:
        try:
            columns = [np.asarray(column) for column in events] if isinstance(events, tuple | list) else []
        except (RuntimeError, TypeError, ValueError) as error:  # ragged lists, tensors on a GPU
            raise InputError(f"{at} must be arrays of numbers: {' '.join(str(error).split())}") from None
    wanted, also = (COLUMNS, ", or an array of such structures") if sensor else (("t", "channel"), "")
    if len(columns) != len(wanted) or len({column.shape for column in columns}) != 1 or columns[0].ndim != 1:
        raise InputError(f"{at} must be arrays ({', '.join(wanted)}) of equal length{also}")
    if not len(columns[0]):
        raise InputError(f"{at} has no events; leave it out")
    if any(column.dtype.kind not in "iufb" for column in columns):
        raise InputError(f"{at} holds {', '.join(str(column.dtype) for column in columns)}, not numbers")
    if channels:
        units, nothing = columns[1], np.zeros(len(columns[0]), np.uint8)
        t, *_ = as_piece(at, 0, [columns[0], nothing, nothing, nothing], unit_us, Polarity(at, is_file=False))
        is_there = (units >= 0) & (units < channels) & (units == np.floor(units))
        there = f"channels 0..{channels - 1}"
    else:
        t, x, y, p = as_piece(at, 0, columns, unit_us, Polarity(at, is_file=False))
        height, width = sensor
        is_there, units = (x < width) & (y < height), (p.astype(np.uint32) * height + y) * width + x
        there = f"x in 0..{width - 1} and y in 0..{height - 1}"
    if not is_there.all():
        e = int(is_there.argmin())
        place = f"channel {units[e]}" if channels else f"x = {x[e]}, y = {y[e]}"
        raise InputError(f"{at}: event {e} is at {place}, and there are {there}; correct it")
    if len(falls := np.flatnonzero(t[1:] < t[:-1])):
        e = falls[0]
        raise InputError(f"{at}: goes back in time at event {e + 1}, from {t[e]} to {t[e + 1]} µs; sort its events")
    if t[0] < 0 or t[-1] > LONGEST_US:
        raise InputError(
            f"{at}: has the times {t[0]} to {t[-1]} µs, not within 0 and 71.6 min; subtract the first, or cut it"
        )
    return t.astype(np.uint32), units.astype(np.uint32)
