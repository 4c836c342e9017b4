"""Recordings as flat arrays of events, a share of them held out, and batches of counts.

Events stay events, in memory and in batches: no dense frame is made here. Sets larger than memory stay in their file,
and each batch reads its own.
"""

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, NoReturn

import numpy as np
import torch

from snn import checks, config
from snn.errors import InputError
from snn.events import Events, step_of
from snn.ops.compiled import in_parts, kernel

LOOKED_AT = 64  # recordings
SAMPLE = 2**18  # events
MOST_SAID = 8  # classes or recordings in a message
MOVED = 0.05  # share of the events in another bin from which on it is said
HALVES = np.arange(np.float16(np.inf).view(np.uint16), dtype=np.uint16).view(np.float16).astype(np.float64)
WHOLE = tuple(np.dtype(f"{kind}{size}") for kind in "iu" for size in (1, 2, 4, 8))  # in this machine's order of bytes


@dataclass(frozen=True)
class Recordings:
    """n recordings; recording r has the events offsets[r] to offsets[r + 1] - 1.

    times are in units of 1 / ticks_per_second s, in the number type of the file, so that bins come out as published.
    InputError if these do not fit each other. Times and channels are looked at where they are binned.
    """

    offsets: np.ndarray  # (n + 1,) int64
    times: np.ndarray  # (events,) float or unsigned
    ticks_per_second: float
    channels: np.ndarray  # (events,) unsigned
    labels: np.ndarray  # (n,) int64
    speakers: np.ndarray | None  # (n,) int64, where the file names them
    where: str  # the file, for messages
    class_names: tuple[str, ...] | None = None  # where the file has them

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
        """(n,) float64: the earliest time of each; infinity where there is no event."""
        return earliest(self.offsets, self.times)

    def load(self, index: np.ndarray, bins: "Bins | None" = None) -> tuple["Recordings", np.ndarray]:
        """Recordings with their events in memory, and the places in them of those in `index`. These are there."""
        return self, check_index(index, self)


@dataclass(frozen=True)
class StoredRecordings:
    """n recordings whose events stay in their file, where recording r has offsets[r + 1] - offsets[r] of them.

    `load` gives the same events as `Recordings` holds, so batches do not depend on which of the two a set is.
    """

    offsets: np.ndarray  # (n + 1,) int64
    ticks_per_second: float
    labels: np.ndarray  # (n,) int64
    speakers: np.ndarray | None
    where: str
    class_names: tuple[str, ...] | None
    # (recordings, latest time that is needed) -> how many events of each, their times, their channels
    events: Callable[[np.ndarray, float], tuple[np.ndarray, np.ndarray, np.ndarray]]
    first_times: np.ndarray  # (n,) float64, of the earliest event of each; infinity where there is none
    channel_of_unit: np.ndarray | None = None  # as the network sees a camera's units

    def __len__(self) -> int:
        return len(self.labels)

    def load(self, index: np.ndarray, bins: "Bins | None" = None) -> tuple[Recordings, np.ndarray]:
        """The recordings in `index`, read from the file, and their places among what is returned.

        With `bins`, events past the last bin may be left out.
        """
        until = np.inf if bins is None else bins.end_ticks(self.ticks_per_second)
        numbers, places = np.unique(check_index(index, self), return_inverse=True)  # a file is read in its own order
        lengths, times, channels = self.events(numbers, until)
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
    """InputError unless values is a row of numbers of one of these types."""
    if not isinstance(values, np.ndarray) or values.ndim != 1:
        kind = f"array of shape {values.shape}" if isinstance(values, np.ndarray) else type(values).__name__
        raise InputError(f"{name} must be a numpy array with one axis, but is a {kind}")
    if values.dtype not in dtypes:
        names = ", ".join(map(str, dtypes))
        raise InputError(f"{name} must hold {names}, but holds {values.dtype.str}; convert it with .astype()")


def check_index(index: np.ndarray, recordings: "AnyRecordings") -> np.ndarray:
    """The index; InputError unless it holds numbers of recordings."""
    check_array("the index", index, WHOLE)
    if len(index) and (index.min() < 0 or index.max() >= len(recordings)):
        raise InputError(
            f"{recordings.where}: the index goes from {index.min()} to {index.max()}, but the recordings are 0 to "
            f"{len(recordings) - 1}"
        )
    return index


def _look_up(channel_of_unit: np.ndarray, units: np.ndarray, where: str) -> np.ndarray:
    """The channel of each unit of a camera."""
    if len(units) and (units.min() < 0 or units.max() >= len(channel_of_unit)):
        raise InputError(
            f"{where}: units go from {units.min()} to {units.max()}, but those of the sensor are 0 to "
            f"{len(channel_of_unit) - 1}; look at data.sensor"
        )
    return channel_of_unit[units]


AnyRecordings = Recordings | StoredRecordings


def earliest(offsets: np.ndarray, times: np.ndarray) -> np.ndarray:
    """(n,) float64: the earliest of the times offsets[r] to offsets[r + 1] - 1 of each recording; infinity of none."""
    return of_each(np.minimum, offsets, times, np.inf)


def of_each(what: np.ufunc, offsets: np.ndarray, values: np.ndarray, of_none: float = 0) -> np.ndarray:
    """(n,) float64: the sum, say, of the values offsets[r] to offsets[r + 1] - 1 of each recording."""
    found, has_events = np.full(len(offsets) - 1, of_none, np.float64), np.diff(offsets) > 0
    if has_events.any():
        kind = np.int64 if values.dtype == bool else None
        found[has_events] = what.reduceat(values, offsets[:-1][has_events], dtype=kind)
    return found


def in_order(recordings: AnyRecordings) -> AnyRecordings:
    """The same recordings, the events of each in the order of their times; those of one time stay as they are."""
    if isinstance(recordings, StoredRecordings):
        return replace(recordings, events=partial(_events_in_order, recordings.events))
    lengths = np.diff(recordings.offsets)
    return replace(recordings, **_sorted(lengths, recordings.times, recordings.channels))


def _events_in_order(
    events: Callable[[np.ndarray, float], tuple[np.ndarray, np.ndarray, np.ndarray]], numbers: np.ndarray, until: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    lengths, times, channels = events(numbers, until)
    return lengths, *_sorted(lengths, times, channels).values()


def _sorted(lengths: np.ndarray, times: np.ndarray, channels: np.ndarray) -> dict[str, np.ndarray]:
    order = np.lexsort((times, np.repeat(np.arange(len(lengths)), lengths)))
    return {"times": times[order], "channels": channels[order]}


@dataclass(frozen=True)
class Bins:
    """Cut time into T bins of dt_ms, then T_empty empty steps."""

    dt_ms: float
    T: int
    T_empty: int
    channels: int

    def __post_init__(self) -> None:
        checks.number("dt_ms", self.dt_ms, above=0)
        for name, value, least in (("T", self.T, 1), ("T_empty", self.T_empty, 0), ("channels", self.channels, 1)):
            checks.whole(name, value, least)

    @classmethod
    def of(cls, data: config.Data, split: Literal["train", "test"]) -> "Bins":
        """The bins of a split."""
        T, T_empty = data.T, data.T_empty
        if split == "test":
            T, T_empty = data.test_T or T, T_empty if data.test_T_empty is None else data.test_T_empty
        return cls(data.dt_ms, T, T_empty, math.prod(data.shape))

    def end_ticks(self, ticks_per_second: float) -> float:
        """When the last of the T bins ends."""
        return self.T * self.dt_ms * ticks_per_second / 1000


def as_seen(recordings: AnyRecordings, sensor: config.Sensor) -> AnyRecordings:
    """Events of a camera, at units p·H·W + y·W + x of its full resolution, at the channels of the network's image.

    The one place that knows about down-sampling (x // divide, as in Liu et al. 2023) and polarities. Channels are
    p·h·w + y·w + x of the smaller image; as on the sensor, but for its size.
    """
    p, y, x = np.indices((2, sensor.height, sensor.width), dtype=np.uint32)
    _, height, width = sensor.shape
    p = p if sensor.polarities == 2 else np.zeros_like(p)
    channel_of_unit = (p * height + y // sensor.divide) * width + x // sensor.divide
    smallest = np.min_scalar_type(channel_of_unit.max())  # a gesture data set has 400 million events
    channel_of_unit = channel_of_unit.ravel().astype(smallest)
    if isinstance(recordings, StoredRecordings):
        return replace(recordings, channel_of_unit=channel_of_unit)
    return replace(recordings, channels=_look_up(channel_of_unit, recordings.channels, recordings.where))


@kernel
def _count_entries(
    offsets, times, event_channels, index, ticks_per_second, dt_ms, T, num_channels, starts, bins, ranks, numbers_R,
    are_wrong, begin, end,
):  # fmt: skip
    """How many entries each row t·B + b gets; and of each event its bin, T past the window, and its entry's rank there.

    For samples begin ... end; the events of sample b have theirs at starts[b]... A sample in which a time is negative
    or not finite, or a channel not there, goes no further than to are_wrong[b] = True.
    """
    B = len(index)
    seen = np.full(num_channels, -1, np.int64)  # the last row in which a channel stood
    rank = np.empty(num_channels, np.int64)  # of its entry there
    for b in range(begin, end):
        first = offsets[index[b]]
        size = offsets[index[b] + 1] - first
        sample_bins, sample_ranks = bins[starts[b] :], ranks[starts[b] :]
        sample_times, sample_channels = times[first:], event_channels[first:]
        is_wrong = False
        for k in range(size):
            time, c = sample_times[k], sample_channels[k]
            is_wrong |= not ((time >= 0) & (time < np.inf) & (c >= 0) & (c < num_channels))
        are_wrong[b] = is_wrong
        if is_wrong:
            continue
        for k in range(size):
            sample_bins[k] = step_of(sample_times[k], ticks_per_second, dt_ms, T)
        r, number = b, 0  # of the row at hand, as events mostly stay in it
        for k in range(size):
            step = sample_bins[k]
            if step == T:
                continue
            if step * B + b != r:
                numbers_R[r] = number
                r = step * B + b
                number = numbers_R[r]
            c = sample_channels[k]
            is_new = seen[c] != r
            rank[c] = number if is_new else rank[c]
            seen[c] = r
            number += is_new
            sample_ranks[k] = rank[c]
        numbers_R[r] = number


@kernel
def _lay_entries(offsets, event_channels, index, T, starts, bins, ranks, offsets_R, channels, counts, begin, end):
    """Write channel and count of each entry; counts begin as zeros. As `_count_entries`."""
    B = len(index)
    for b in range(begin, end):
        first = offsets[index[b]]
        sample_channels, sample_bins, sample_ranks = event_channels[first:], bins[starts[b] :], ranks[starts[b] :]
        last_step, row, row_counts = -1, channels, counts
        for k in range(offsets[index[b] + 1] - first):
            step = sample_bins[k]
            if step == T:
                continue
            if step != last_step:
                last_step = step
                row, row_counts = channels[offsets_R[step * B + b] :], counts[offsets_R[step * B + b] :]
            rank = np.uint32(sample_ranks[k])  # numba asks of any other index whether it is negative
            row[rank] = sample_channels[k]
            row_counts[rank] += np.float32(1)


def counts(recordings: Recordings, index: np.ndarray, bins: Bins) -> Events:
    """Events per bin and channel of the recordings in `index`: (T + T_empty, B, channels) float32, zeros left out.

    The bin of an event is `snn.events.step_of`; events past T are dropped. InputError if an event of these recordings
    has a time that is negative or not finite, or a channel that is not among those of `bins`.
    """
    _check_binning(recordings, index, bins)
    T, B, C = bins.T + bins.T_empty, len(index), bins.channels
    starts = np.concatenate([[0], np.cumsum(recordings.offsets[index + 1] - recordings.offsets[index])])
    bin_of_event, rank_of_event = np.empty((2, starts[-1]), np.int32)
    numbers_R = np.zeros(T * B, np.int64)
    events = recordings.offsets, recordings.times, recordings.channels, index, recordings.ticks_per_second
    are_wrong = np.zeros(B, bool)
    first = *events, bins.dt_ms, bins.T, C, starts, bin_of_event, rank_of_event, numbers_R, are_wrong
    in_parts(lambda begin, end: _count_entries(*first, begin, end), B, torch.get_num_threads())
    if are_wrong.any():
        _refuse(recordings, index[are_wrong], C)
    offsets = np.concatenate([[0], np.cumsum(numbers_R)])
    entries = np.empty(offsets[-1], np.int32), np.zeros(offsets[-1], np.float32)
    events = recordings.offsets, recordings.channels, index
    second = *events, bins.T, starts, bin_of_event, rank_of_event, offsets, *entries
    in_parts(lambda begin, end: _lay_entries(*second, begin, end), B, torch.get_num_threads())
    return Events(torch.from_numpy(offsets), *map(torch.from_numpy, entries), (T, B, C))


def _check_binning(recordings: Recordings, index: np.ndarray, bins: Bins) -> None:
    """InputError unless there are such recordings, and steps whose length in ticks is a number."""
    check_index(index, recordings)
    checks.whole("the number of recordings in a batch", len(index), 1)
    checks.number("a step in thousandths of a tick", bins.dt_ms * recordings.ticks_per_second, above=0)


def _have_places(times: np.ndarray, channels: np.ndarray, num_channels: int) -> bool:
    """Return whether each of some events can be binned."""
    least = 0 if channels.dtype.kind == "u" else channels.min()
    return bool(times.min() >= 0 and times.max() < np.inf and least >= 0 and channels.max() < num_channels)


def _refuse(recordings: Recordings, index: np.ndarray, num_channels: int) -> NoReturn:
    """Say which of these recordings has an event without a place."""
    for r in index:
        for e in range(*recordings.offsets[r : r + 2]):
            time, channel = recordings.times[e], recordings.channels[e]
            if not (0 <= time < np.inf and 0 <= channel < num_channels):
                raise InputError(
                    f"{recordings.where}: event {e} (of recording {r}) has the time {time} and the channel {channel}; "
                    f"times must be finite and not negative, channels 0 to {num_channels - 1}"
                )
    raise AssertionError


def frames(recordings: Recordings, index: np.ndarray, bins: Bins, device: torch.device) -> torch.Tensor:
    """`counts`, dense and made on a GPU: the events travel there as they are."""
    _check_binning(recordings, index, bins)
    T, B, C = bins.T + bins.T_empty, len(index), bins.channels
    events = [slice(*recordings.offsets[r : r + 2]) for r in index]
    times, channels = (np.concatenate([of[e] for e in events]) for of in (recordings.times, recordings.channels))
    if len(times) and not _have_places(times, channels, C):
        _refuse(recordings, index, C)
    times = times.astype(np.int64) if times.dtype.kind == "u" else times  # torch computes with few unsigned numbers
    ticks, channels = (torch.from_numpy(array).to(device) for array in (times, channels.astype(np.int32)))
    lengths = torch.tensor([e.stop - e.start for e in events]).to(device)
    samples = torch.repeat_interleave(torch.arange(B, device=device), lengths, output_size=len(times))
    # as `snn.events.step_of`; past the window into a step that is then left out
    steps = (1000.0 * ticks.double() / (bins.dt_ms * recordings.ticks_per_second)).floor()
    steps = torch.where(steps < bins.T, steps, T).long()
    out_TBC = torch.zeros(T + 1, B, C, device=device)
    out_TBC.view(-1).index_add_(0, (steps * B + samples) * C + channels, out_TBC.new_ones(1).expand(len(times)))
    return out_TBC[:T]


def check_window(recordings: AnyRecordings, bins: Bins, strict: bool = False) -> None:
    """Say what the bins do not see: recordings without an event in them, most events, or differences of time.

    InputError if the bins see no event at all, or if `strict` and there is a recording without. Of the events of a set
    that stays in its file, those of up to LOOKED_AT recordings are looked at, evenly spread.
    """
    end, per_s = bins.end_ticks(recordings.ticks_per_second), recordings.ticks_per_second
    window = f"the {bins.T} bins of {bins.dt_ms:g} ms"
    is_lost = check_first_times(recordings, end, window, "data.T, data.dt_ms", strict)
    looked_at = [recordings]
    if isinstance(recordings, StoredRecordings):
        spread = np.linspace(0, np.count_nonzero(~is_lost) - 1, LOOKED_AT).astype(np.int64)
        spread = np.unique(np.flatnonzero(~is_lost)[spread])
        looked_at = (recordings.load(spread[k : k + 1])[0] for k in range(len(spread)))
    inside, events = np.zeros((2, recordings.labels.max() + 1))  # of each class
    last, few = 0.0, []
    for part in looked_at:
        seen = of_each(np.add, part.offsets, part.times < end)
        for sums, numbers in ((inside, seen), (events, np.diff(part.offsets) * (seen > 0))):
            sums += np.bincount(part.labels, numbers, len(sums))
        last = max(last, part.times.max(initial=0))
        few.append(part.times[:: max(len(part.times) // SAMPLE, 1)])
    share = inside.sum() / events.sum()
    behind = [] if share < 0.5 else np.flatnonzero(inside < events / 2)
    if share < 0.5 or len(behind):
        classes = [f", {100 * inside[k] / events[k]:.3g} % of those of {_name_of(recordings, k)}" for k in behind]
        print(
            f"warning: {recordings.where}: {100 * share:.3g} % of the events fall into {window}{''.join(classes)}; its "
            f"times reach {last / per_s:g} s. Look at data.T, data.dt_ms and the unit of the times",
            file=sys.stderr,
        )
    _say_coarse(np.concatenate(few), recordings, bins)


def _say_coarse(times: np.ndarray, recordings: AnyRecordings, bins: Bins) -> None:
    """Say so if times, of which these are some, are so coarse that many events lie in another bin than their own."""
    per_s, is_whole = recordings.ticks_per_second, times.dtype.kind != "f"
    end = bins.end_ticks(per_s)
    off = 1000 / per_s * grain(times)[times < end] / (2 * bins.dt_ms)
    # a time that is off by up to half the grain, evenly, crosses an edge if it is not farther away than that
    moved = np.where(off < 1, off / 2, 1 - 0.5 / np.maximum(off, 1)).sum() / max(len(off), 1)
    if moved <= MOVED:
        return
    numbers = np.arange(end) if is_whole else HALVES
    used = len(np.unique(np.floor(1000 * numbers[numbers < end] / (per_s * bins.dt_ms))))
    kind = f"whole numbers of {1 / per_s:g} s" if is_whole else "rounded to float16"
    none = f", and {bins.T - used} of {bins.T} bins can hold none" if used < bins.T else ""
    print(
        f"warning: {recordings.where}: its times are {kind}, too coarse for bins of {bins.dt_ms:g} ms: about "
        f"{100 * moved:.0f} % of the events lie in another bin than that of their time{none}; take a larger "
        "data.dt_ms, or times in float32",
        file=sys.stderr,
    )


def check_first_times(
    recordings: AnyRecordings, end_ticks: float, window: str, fields: str, strict: bool
) -> np.ndarray:
    """(n,) bool: which recordings have no event before `end_ticks`. Say how many of which class.

    InputError if all have none, or if `strict` and one has none. `window` is in words, set by `fields`.
    """
    first = recordings.first_times
    is_lost, is_empty = first >= end_ticks, np.isinf(first)
    if not is_lost.any():
        return is_lost
    remedy = f"look at {fields} and the unit of the times"
    if is_lost.all():
        begin = "" if is_empty.all() else f"; its times begin at {first.min() / recordings.ticks_per_second:g} s"
        raise InputError(f"{recordings.where}: 0 % of the events fall into {window}{begin}; {remedy}")
    lost, of = (np.bincount(labels) for labels in (recordings.labels[is_lost], recordings.labels))
    classes = [
        f"{'all ' if lost[k] == of[k] else f'{lost[k]} of '}{of[k]} of {_name_of(recordings, k)}"
        for k in np.flatnonzero(lost)
    ]
    classes.sort(key=lambda words: not words.startswith("all"))
    numbers = np.flatnonzero(is_lost)
    message = (
        f"{recordings.where}: recordings without an event in {window}: {len(numbers)} of {len(first)} "
        f"({np.count_nonzero(is_empty)} empty, {np.count_nonzero(is_lost & ~is_empty)} that begin later), "
        f"{_some(classes)}; by number {_some(numbers)}; {remedy}, or leave them out"
    )
    if strict:
        raise InputError(f"{message}; data.strict=false lets potentials alone decide on them")
    print(f"warning: {message}. Potentials alone decide on them; data.strict=true refuses them", file=sys.stderr)
    return is_lost


def _name_of(recordings: AnyRecordings, label: int) -> str:
    """A class by its number and, where it has one, its name."""
    names = recordings.class_names or ()
    return f"class {label}" + (f" ({names[label]})" if 0 <= label < len(names) else "")


def _some(values: Sequence) -> str:
    """The first of these, in words."""
    return ", ".join(map(str, values[:MOST_SAID])) + (", ..." if len(values) > MOST_SAID else "")


def grain(times: np.ndarray) -> np.ndarray:
    """(events,) float64: how far the times that the file could hold lie apart; 0 where too little to matter.

    That of whole numbers is 1, and that of halves depends on the time. Halves are known by their values: a file may
    hold in float32 what was rounded before.
    """
    if times.dtype.kind != "f":
        return np.ones(len(times))
    with np.errstate(over="ignore"):
        halves = times.astype(np.float16)
    is_half = len(times) > 0 and (halves == times).all()
    return np.spacing(halves).astype(np.float64) if is_half else np.zeros(len(times))


def batches(
    recordings: AnyRecordings,
    index: np.ndarray,
    bins: Bins,
    batch_size: int,
    share: Callable[[np.ndarray], np.ndarray] = lambda part: part,
    change: Callable[[Recordings, np.ndarray, np.ndarray], Recordings] | None = None,
    device: torch.device | None = None,
) -> Iterator[tuple[Events | torch.Tensor, torch.Tensor]]:
    """(counts (T, B, channels), labels (B,) int64) of the recordings in `index`, in its order.

    The counts are `Events`; for a GPU as `device` they are dense, and there. `share` picks what this process takes of
    each batch's recordings. `change` gives those at the places in some recordings changed, in that order; it is told
    their numbers in the whole set.
    """
    check_index(index, recordings)
    checks.whole("batch_size", batch_size, 1)
    for start in range(0, len(index), batch_size):
        part = share(index[start : start + batch_size])
        # a changed event may come into the window from behind it
        loaded, places = recordings.load(part, bins if change is None else None)
        if change is not None:
            loaded, places = change(loaded, places, part), np.arange(len(part))
        is_gpu = device is not None and device.type != "cpu"
        x_TBC = frames(loaded, places, bins, device) if is_gpu else counts(loaded, places, bins)
        yield x_TBC, torch.from_numpy(recordings.labels[part])


def hold_out(
    recordings: AnyRecordings,
    share: float,
    by: Literal["recording", "speaker"],
    seed: int,
    among: np.ndarray | None = None,
    name: str = "validation",
) -> tuple[np.ndarray, np.ndarray]:
    """Indices (kept, held out): the share of the recordings of every class, or of the speakers; 0 holds out none.

    `among`: only of these recordings. `name` says for messages which of the configuration's shares it is.
    """
    checks.number("the share held out", share, least=0)
    among = np.arange(len(recordings)) if among is None else check_index(among, recordings)
    if share == 0:
        return among, among[:0]
    random = np.random.default_rng(seed)
    labels = recordings.labels[among]
    if by == "speaker":
        if recordings.speakers is None:
            raise InputError(f"{recordings.where}: names no speakers (extra/speaker); set data.{name}_by=recording")
        speakers = random.permutation(np.unique(recordings.speakers[among]))
        held = np.isin(recordings.speakers[among], speakers[: max(1, round(share * len(speakers)))])
    else:
        held = np.zeros(len(among), bool)
        for label in np.unique(labels):
            of_class = random.permutation(np.flatnonzero(labels == label))
            held[of_class[: min(len(of_class) - 1, max(1, round(share * len(of_class))))]] = True
    missing = np.setdiff1d(labels, labels[~held])
    if held.any():
        say_unseen(recordings, labels, labels[held], name)
    if len(missing) or not held.any():
        raise InputError(
            f"{recordings.where}: with data.{name}_share = {share} held out by {by}, "
            + (f"class {missing[0]} has nothing left to train on" if len(missing) else "nothing is held out")
            + "; it needs more recordings, or more speakers"
        )
    return among[~held], among[held]


def say_unseen(recordings: AnyRecordings, labels: np.ndarray, seen: np.ndarray, name: str) -> None:
    """Say so if classes among `labels` are not among those `seen` in the recordings held out for `name`."""
    if len(unseen := np.setdiff1d(labels, seen)):
        print(
            f"warning: {recordings.where}: nothing of {_some([_name_of(recordings, k) for k in unseen])} is held out, "
            f"so that {name} does not see it",
            file=sys.stderr,
        )


def chosen(recordings: AnyRecordings, index: np.ndarray) -> AnyRecordings:
    """The recordings of these numbers, ascending, as a set of their own."""
    lengths = (recordings.offsets[1:] - recordings.offsets[:-1])[index]
    speakers = None if recordings.speakers is None else recordings.speakers[index]
    about = {"offsets": np.concatenate([[0], np.cumsum(lengths)]), "labels": recordings.labels[index]}
    about |= {"speakers": speakers}
    if isinstance(recordings, StoredRecordings):
        about |= {"first_times": recordings.first_times[index]}
        return replace(recordings, **about, events=partial(_events_of, recordings.events, index))
    events = [slice(*recordings.offsets[r : r + 2]) for r in index]
    times, channels = (np.concatenate([of[e] for e in events]) for of in (recordings.times, recordings.channels))
    return replace(recordings, **about, times=times, channels=channels)


def _events_of(events: Callable, index: np.ndarray, numbers: np.ndarray, until: float) -> tuple:
    return events(index[numbers], until)
