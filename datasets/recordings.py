"""Recordings as flat arrays of events, in memory or left in their file."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import numpy as np

from snn import checks, config
from snn.errors import InputError

WHOLE = tuple(np.dtype(f"{kind}{size}") for kind in "iu" for size in (1, 2, 4, 8))  # in native byte order
# (numbers of recordings, latest time needed) -> number of events of each, their times, their channels
ReadEvents = Callable[[np.ndarray, float], tuple[np.ndarray, np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Recordings:
    """A set of n recordings; recording r has the events offsets[r] to offsets[r + 1] - 1.

    times are in units of 1 / ticks_per_second s, in the number type of the file, so that bins equal the published ones.
    InputError if the arrays do not fit each other. Times and channels are checked when they are binned.
    """

    offsets: np.ndarray  # (n + 1,) int64
    times: np.ndarray  # (events,) float or unsigned
    ticks_per_second: float
    channels: np.ndarray  # (events,) unsigned
    labels: np.ndarray  # (n,) int64
    speakers: np.ndarray | None  # (n,) int64, if the file names them
    where: str  # the file, for messages
    class_names: tuple[str, ...] | None = None  # where the file has them
    files: np.ndarray | None = None  # (n,) int64, number of the file each was cut from, if several share one

    def __post_init__(self) -> None:
        checks.number("ticks_per_second", self.ticks_per_second, above=0)
        check_array("labels", self.labels, WHOLE)
        check_array("offsets", self.offsets, (np.dtype(np.int64),))
        check_array("times", self.times, (*WHOLE, np.dtype(np.float32), np.dtype(np.float64)))
        check_array("channels", self.channels, WHOLE)
        events, n = len(self.times), len(self.labels)
        if len(self.channels) != events:
            raise InputError(f"{self.where}: there are {events} times but {len(self.channels)} channels")
        if self.speakers is not None and np.shape(self.speakers) != (n,):
            raise InputError(f"{self.where}: there are {n} labels but {np.shape(self.speakers)} speakers")
        first, last = self.offsets[[0, -1]] if len(self.offsets) else (0, 0)
        if len(self.offsets) != n + 1 or first < 0 or last > events or (self.offsets[1:] < self.offsets[:-1]).any():
            raise InputError(
                f"{self.where}: the offsets of {n} recordings must be {n + 1} numbers that rise from 0 to no more than "
                f"the {events} events; they are {len(self.offsets)}, from {first} to {last}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def first_times(self) -> np.ndarray:
        """Return the earliest time of each, (n,) float64; infinity if it has no event."""
        return earliest(self.offsets, self.times)

    def load(self, index: np.ndarray, until: float = np.inf) -> tuple["Recordings", np.ndarray]:
        """Return recordings whose events are in memory, and the places of those in `index` among them."""
        return self, check_index(index, self)


@dataclass(frozen=True)
class StoredRecordings:
    """A set of n recordings whose events stay in their file; recording r has offsets[r + 1] - offsets[r] events.

    `load` gives the same events as `Recordings` holds, so batches are the same for both classes.
    """

    offsets: np.ndarray  # (n + 1,) int64
    ticks_per_second: float
    labels: np.ndarray  # (n,) int64
    speakers: np.ndarray | None
    where: str
    class_names: tuple[str, ...] | None
    read_events: ReadEvents
    first_times: np.ndarray  # (n,) float64, of the earliest event of each; infinity without one
    channel_of_unit: np.ndarray | None = None  # as the network sees the units of the file
    files: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def load(self, index: np.ndarray, until: float = np.inf) -> tuple[Recordings, np.ndarray]:
        """Read the recordings in `index` from the file; return them and the place of each in the result.

        Events after the time `until` (ticks) may be left out.
        """
        numbers, places = np.unique(check_index(index, self), return_inverse=True)  # a file is read in its own order
        lengths, times, channels = self.read_events(numbers, until)
        loaded = Recordings(
            np.concatenate([[0], np.cumsum(lengths)]),
            times,
            self.ticks_per_second,
            channels if self.channel_of_unit is None else _look_up(self.channel_of_unit, channels, self.where),
            self.labels[numbers],
            None if self.speakers is None else self.speakers[numbers],
            self.where,
            self.class_names,
        )
        return loaded, places


def check_array(name: str, values: np.ndarray, dtypes: Sequence[np.dtype]) -> None:
    """Raise InputError unless values is a 1-D array of one of these types."""
    if not isinstance(values, np.ndarray) or values.ndim != 1:
        kind = f"array of shape {values.shape}" if isinstance(values, np.ndarray) else type(values).__name__
        raise InputError(f"{name} must be a numpy array with one axis, but is a {kind}")
    if values.dtype not in dtypes:
        names = ", ".join(map(str, dtypes))
        raise InputError(f"{name} must hold {names}, but holds {values.dtype.str}; convert it with .astype()")


class Samples(Protocol):
    """A set of recordings or images."""

    labels: np.ndarray  # (n,) int64
    where: str  # the file, for messages
    class_names: tuple[str, ...] | None

    def __len__(self) -> int: ...


def check_index(index: np.ndarray, samples: Samples) -> np.ndarray:
    """Return the index; InputError unless it holds numbers of samples."""
    check_array("the index", index, WHOLE)
    if len(index) and (index.min() < 0 or index.max() >= len(samples)):
        raise InputError(
            f"{samples.where}: the index goes from {index.min()} to {index.max()}, but the recordings are 0 to "
            f"{len(samples) - 1}"
        )
    return index


def _look_up(channel_of_unit: np.ndarray, units: np.ndarray, where: str) -> np.ndarray:
    """Look up the channel of each unit."""
    if len(units) and (units.min() < 0 or units.max() >= len(channel_of_unit)):
        raise InputError(
            f"{where}: units go from {units.min()} to {units.max()}, but those of the sensor are 0 to "
            f"{len(channel_of_unit) - 1}; check data.sensor or data.channels"
        )
    return channel_of_unit[units]


AnyRecordings = Recordings | StoredRecordings


def earliest(offsets: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Return the earliest time of each recording r, which has times offsets[r] to offsets[r + 1] - 1, or infinity."""
    return by_recording(np.minimum, offsets, times, np.inf)


def by_recording(reduce: np.ufunc, offsets: np.ndarray, values: np.ndarray, of_none: float = 0) -> np.ndarray:
    """Reduce values offsets[r] to offsets[r + 1] - 1 of each recording r to one, such as their sum: (n,) float64."""
    result, has_events = np.full(len(offsets) - 1, of_none, np.float64), np.diff(offsets) > 0
    if has_events.any():
        kind = np.int64 if values.dtype == bool else None
        result[has_events] = reduce.reduceat(values, offsets[:-1][has_events], dtype=kind)
    return result


def sorted_by_time(recordings: AnyRecordings) -> AnyRecordings:
    """Sort the events of each recording by their times; events of the same time keep their order."""
    if isinstance(recordings, StoredRecordings):
        return replace(recordings, read_events=partial(_read_sorted, recordings.read_events))
    lengths = np.diff(recordings.offsets)
    return replace(recordings, **_sorted(lengths, recordings.times, recordings.channels))


def _read_sorted(
    read_events: ReadEvents, numbers: np.ndarray, until: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    lengths, times, channels = read_events(numbers, until)
    return lengths, *_sorted(lengths, times, channels).values()


def _sorted(lengths: np.ndarray, times: np.ndarray, channels: np.ndarray) -> dict[str, np.ndarray]:
    order = np.lexsort((times, np.repeat(np.arange(len(lengths)), lengths)))
    return {"times": times[order], "channels": channels[order]}


def subset(recordings: AnyRecordings, index: np.ndarray) -> AnyRecordings:
    """Return the recordings of these ascending numbers as a set of their own."""
    lengths = (recordings.offsets[1:] - recordings.offsets[:-1])[index]
    about = {"offsets": np.concatenate([[0], np.cumsum(lengths)]), "labels": recordings.labels[index]}
    for name in ("speakers", "files"):
        numbers = getattr(recordings, name)
        about[name] = None if numbers is None else numbers[index]
    if isinstance(recordings, StoredRecordings):
        about |= {"first_times": recordings.first_times[index]}
        return replace(recordings, **about, read_events=partial(_read_subset, recordings.read_events, index))
    events = [slice(*recordings.offsets[r : r + 2]) for r in index]
    times, channels = (np.concatenate([of[e] for e in events]) for of in (recordings.times, recordings.channels))
    return replace(recordings, **about, times=times, channels=channels)


def _read_subset(read_events: ReadEvents, index: np.ndarray, numbers: np.ndarray, until: float) -> tuple:
    return read_events(index[numbers], until)


def as_inputs(recordings: AnyRecordings, data: config.Data) -> AnyRecordings:
    """Map the units of the files to the inputs of the network, as data.sensor or data.pool says."""
    if data.sensor:
        return downsampled(recordings, data.sensor)
    return recordings if data.pool == 1 else _mapped(recordings, np.arange(data.channels) // data.pool)


def downsampled(recordings: AnyRecordings, sensor: config.Sensor) -> AnyRecordings:
    """Map a camera's units p·H·W + y·W + x to channels p·h·w + y·w + x of a smaller image.

    Down-sampling (x // divide, as in Liu et al. 2023) and the merging of polarities are done only here.
    """
    p, y, x = np.indices((2, sensor.height, sensor.width), dtype=np.uint32)
    _, height, width = sensor.shape
    p = p if sensor.polarities == 2 else np.zeros_like(p)
    return _mapped(recordings, ((p * height + y // sensor.divide) * width + x // sensor.divide).ravel())


def _mapped(recordings: AnyRecordings, channel_of_unit: np.ndarray) -> AnyRecordings:
    smallest = np.min_scalar_type(channel_of_unit.max())  # a gesture data set has 400 million events
    channel_of_unit = channel_of_unit.astype(smallest)
    if isinstance(recordings, StoredRecordings):
        return replace(recordings, channel_of_unit=channel_of_unit)
    return replace(recordings, channels=_look_up(channel_of_unit, recordings.channels, recordings.where))
