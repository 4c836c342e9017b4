"""Recordings as flat arrays of events, a share of them held out, and batches of counts.

Events stay events, in memory and in batches: no dense frame is made here. Sets larger than memory stay in their file,
and each batch reads its own.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
import torch

from snn import config
from snn.errors import InputError
from snn.events import Events, step_of
from snn.ops.compiled import in_parts, kernel

LOOKED_AT = 64


@dataclass(frozen=True)
class Recordings:
    """n recordings; recording r has the events offsets[r] to offsets[r + 1] - 1.

    times are in units of 1 / ticks_per_second s, in the number type of the file, so that bins come out as published.
    """

    offsets: np.ndarray  # (n + 1,) int64
    times: np.ndarray  # (events,) float or unsigned
    ticks_per_second: float
    channels: np.ndarray  # (events,) unsigned
    labels: np.ndarray  # (n,) int64
    speakers: np.ndarray | None  # (n,) int64, where the file names them
    where: str  # the file, for messages
    class_names: tuple[str, ...] | None = None  # where the file has them

    def __len__(self) -> int:
        return len(self.labels)

    def load(self, index: np.ndarray, bins: "Bins | None" = None) -> tuple["Recordings", np.ndarray]:
        """Recordings with their events in memory, and the places in them of those in `index`. These are there."""
        return self, index


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
    channel_of_unit: np.ndarray | None = None  # as the network sees a camera's units

    def __len__(self) -> int:
        return len(self.labels)

    def load(self, index: np.ndarray, bins: "Bins | None" = None) -> tuple[Recordings, np.ndarray]:
        """The recordings in `index`, read from the file, and their places among what is returned.

        With `bins`, events past the last bin may be left out.
        """
        until = np.inf if bins is None else bins.end_ticks(self.ticks_per_second)
        numbers, places = np.unique(index, return_inverse=True)  # a file is read in its own order
        lengths, times, channels = self.events(numbers, until)
        loaded = Recordings(
            np.concatenate([[0], np.cumsum(lengths)]),
            times,
            self.ticks_per_second,
            channels if self.channel_of_unit is None else self.channel_of_unit[channels],
            self.labels[numbers],
            None if self.speakers is None else self.speakers[numbers],
            self.where,
            self.class_names,
        )
        return loaded, places


AnyRecordings = Recordings | StoredRecordings


@dataclass(frozen=True)
class Bins:
    """How time is cut: T bins of dt_ms, then T_empty empty steps."""

    dt_ms: float
    T: int
    T_empty: int
    channels: int

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
    return replace(recordings, channels=channel_of_unit[recordings.channels])


@kernel
def _count_entries(
    offsets, times, event_channels, index, ticks_per_second, dt_ms, T, num_channels, starts, bins, ranks, numbers_R,
    begin, end,
):  # fmt: skip
    """How many entries each row t·B + b gets; and of each event its bin, T past the window, and its entry's rank there.

    For samples begin ... end; the events of sample b have theirs at starts[b]...
    """
    B = len(index)
    seen = np.full(num_channels, -1, np.int64)  # the last row in which a channel stood
    rank = np.empty(num_channels, np.int64)  # of its entry there
    for b in range(begin, end):
        first = offsets[index[b]]
        size = offsets[index[b] + 1] - first
        sample_bins, sample_ranks = bins[starts[b] :], ranks[starts[b] :]
        sample_times, sample_channels = times[first:], event_channels[first:]
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

    The bin of an event is `snn.events.step_of`; events past T are dropped.
    """
    T, B, C = bins.T + bins.T_empty, len(index), bins.channels
    starts = np.concatenate([[0], np.cumsum(recordings.offsets[index + 1] - recordings.offsets[index])])
    bin_of_event, rank_of_event = np.empty((2, starts[-1]), np.int32)
    numbers_R = np.zeros(T * B, np.int64)
    events = recordings.offsets, recordings.times, recordings.channels, index, recordings.ticks_per_second
    first = *events, bins.dt_ms, bins.T, C, starts, bin_of_event, rank_of_event, numbers_R
    in_parts(lambda begin, end: _count_entries(*first, begin, end), B, torch.get_num_threads())
    offsets = np.concatenate([[0], np.cumsum(numbers_R)])
    entries = np.empty(offsets[-1], np.int32), np.zeros(offsets[-1], np.float32)
    events = recordings.offsets, recordings.channels, index
    second = *events, bins.T, starts, bin_of_event, rank_of_event, offsets, *entries
    in_parts(lambda begin, end: _lay_entries(*second, begin, end), B, torch.get_num_threads())
    return Events(torch.from_numpy(offsets), *map(torch.from_numpy, entries), (T, B, C))


def frames(recordings: Recordings, index: np.ndarray, bins: Bins, device: torch.device) -> torch.Tensor:
    """`counts`, dense and made on a GPU: the events travel there as they are."""
    T, B, C = bins.T + bins.T_empty, len(index), bins.channels
    events = [slice(*recordings.offsets[r : r + 2]) for r in index]
    times, channels = (np.concatenate([of[e] for e in events]) for of in (recordings.times, recordings.channels))
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


def check_window(recordings: AnyRecordings, bins: Bins) -> None:
    """Say so if most events come after the last bin; InputError if all do.

    Of a set that stays in its file, up to LOOKED_AT recordings are looked at, evenly spread.
    """
    looked_at = [recordings]
    if isinstance(recordings, StoredRecordings):
        spread = np.unique(np.linspace(0, len(recordings) - 1, LOOKED_AT).astype(np.int64))
        looked_at = (recordings.load(spread[k : k + 1])[0] for k in range(len(spread)))
    end, inside, events, last = bins.end_ticks(recordings.ticks_per_second), 0, 0, 0
    for part in looked_at:
        inside += np.count_nonzero(part.times < end)
        events += len(part.times)
        last = max(last, part.times.max())
    share = inside / events
    message = (
        f"{recordings.where}: {100 * share:.3g} % of the events fall into the {bins.T} bins of {bins.dt_ms:g} ms; its "
        f"times reach {last / recordings.ticks_per_second:g} s. Look at data.T, data.dt_ms and the unit of the times"
    )
    if share == 0:
        raise InputError(message)
    if share < 0.5:
        print(f"warning: {message}", file=sys.stderr)


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
    among = np.arange(len(recordings)) if among is None else among
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
    if len(missing) or not held.any():
        raise InputError(
            f"{recordings.where}: with data.{name}_share = {share} held out by {by}, "
            + (f"class {missing[0]} has nothing left to train on" if len(missing) else "nothing is held out")
            + "; it needs more recordings, or more speakers"
        )
    return among[~held], among[held]


def chosen(recordings: AnyRecordings, index: np.ndarray) -> AnyRecordings:
    """The recordings of these numbers, ascending, as a set of their own."""
    lengths = (recordings.offsets[1:] - recordings.offsets[:-1])[index]
    speakers = None if recordings.speakers is None else recordings.speakers[index]
    about = {"offsets": np.concatenate([[0], np.cumsum(lengths)]), "labels": recordings.labels[index]}
    about |= {"speakers": speakers}
    if isinstance(recordings, StoredRecordings):
        return replace(recordings, **about, events=partial(_events_of, recordings.events, index))
    events = [slice(*recordings.offsets[r : r + 2]) for r in index]
    times, channels = (np.concatenate([of[e] for e in events]) for of in (recordings.times, recordings.channels))
    return replace(recordings, **about, times=times, channels=channels)


def _events_of(events: Callable, index: np.ndarray, numbers: np.ndarray, until: float) -> tuple:
    return events(index[numbers], until)
