"""Recordings as flat arrays of events, a share of them held out, and batches of counts.

Events stay events, in memory and in batches: no dense frame is made here.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from snn import config
from snn.errors import InputError
from snn.events import Events, step_of
from snn.ops.compiled import kernel


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


@dataclass(frozen=True)
class Bins:
    """How time is cut: T bins of dt_ms, then T_empty empty steps."""

    dt_ms: float
    T: int
    T_empty: int
    channels: int


def as_seen(recordings: Recordings, sensor: config.Sensor) -> Recordings:
    """Events of a camera, at units p·H·W + y·W + x of its full resolution, at the channels of the network's image.

    The one place that knows about down-sampling (x // divide, as in Liu et al. 2023) and polarities. Channels are
    p·h·w + y·w + x of the smaller image; as on the sensor, but for its size.
    """
    p, y, x = np.indices((2, sensor.height, sensor.width), dtype=np.uint32)
    _, height, width = sensor.shape
    p = p if sensor.polarities == 2 else np.zeros_like(p)
    channel_of_unit = (p * height + y // sensor.divide) * width + x // sensor.divide
    smallest = np.min_scalar_type(channel_of_unit.max())  # a gesture data set has 400 million events
    return replace(recordings, channels=channel_of_unit.ravel().astype(smallest)[recordings.channels])


@kernel
def _count_entries(offsets, times, event_channels, index, ticks_per_second, dt_ms, T, num_channels, numbers_R):
    """How many entries each row t·B + b gets, and the bin of each event in turn; T for one past the window."""
    B = len(index)
    seen = np.full(num_channels, -1, np.int64)  # the last row in which a channel stood
    events = 0
    for b in range(B):
        events += offsets[index[b] + 1] - offsets[index[b]]
    bins = np.empty(events, np.int32)
    k = 0
    for b in range(B):
        for e in range(offsets[index[b]], offsets[index[b] + 1]):
            bins[k] = step_of(times[e], ticks_per_second, dt_ms, T)
            if bins[k] < T:
                r, c = bins[k] * B + b, event_channels[e]
                if seen[c] != r:
                    seen[c] = r
                    numbers_R[r] += 1
            k += 1
    return bins


@kernel
def _lay_entries(offsets, event_channels, index, bins, T, num_channels, next_R, channels, counts):
    """Write channel and count of each entry; next_R begins as the first entry of each row. As `_count_entries`."""
    B = len(index)
    seen = np.full(num_channels, -1, np.int64)
    entry = np.empty(num_channels, np.int64)  # where that was
    k = 0
    for b in range(B):
        for e in range(offsets[index[b]], offsets[index[b] + 1]):
            if bins[k] < T:
                r, c = bins[k] * B + b, event_channels[e]
                if seen[c] != r:
                    seen[c] = r
                    entry[c] = next_R[r]
                    next_R[r] += 1
                    channels[entry[c]] = c
                    counts[entry[c]] = 0
                counts[entry[c]] += np.float32(1)
            k += 1


def counts(recordings: Recordings, index: np.ndarray, bins: Bins) -> Events:
    """Events per bin and channel of the recordings in `index`: (T + T_empty, B, channels) float32, zeros left out.

    The bin of an event is `snn.events.step_of`; events past T are dropped.
    """
    T, B, C = bins.T + bins.T_empty, len(index), bins.channels
    numbers_R = np.zeros(T * B, np.int64)
    flat = (recordings.offsets, recordings.times, recordings.channels, index)
    bin_of_event = _count_entries(*flat, recordings.ticks_per_second, bins.dt_ms, bins.T, C, numbers_R)
    offsets = np.concatenate([[0], np.cumsum(numbers_R)])
    entries = np.empty(offsets[-1], np.int32), np.empty(offsets[-1], np.float32)
    _lay_entries(recordings.offsets, recordings.channels, index, bin_of_event, bins.T, C, offsets[:-1].copy(), *entries)
    return Events(torch.from_numpy(offsets), *map(torch.from_numpy, entries), (T, B, C))


def share_in_window(recordings: Recordings, bins: Bins) -> float:
    """The share of all events that fall into the T bins, 0 to 1."""
    end = bins.T * bins.dt_ms * recordings.ticks_per_second / 1000
    return float(np.mean(recordings.times < end))


def check_window(recordings: Recordings, bins: Bins) -> None:
    """Say so if most events come after the last bin; InputError if all do."""
    share = share_in_window(recordings, bins)
    message = (
        f"{recordings.where}: {100 * share:.3g} % of the events fall into the {bins.T} bins of {bins.dt_ms:g} ms; its "
        f"times reach {recordings.times.max() / recordings.ticks_per_second:g} s. Look at data.T, data.dt_ms and the "
        "unit of the times"
    )
    if share == 0:
        raise InputError(message)
    if share < 0.5:
        print(f"warning: {message}", file=sys.stderr)


def batches(
    recordings: Recordings,
    index: np.ndarray,
    bins: Bins,
    batch_size: int,
    share: Callable[[np.ndarray], np.ndarray] = lambda part: part,
    change: Callable[[Recordings, np.ndarray], Recordings] | None = None,
) -> Iterator[tuple[Events, torch.Tensor]]:
    """(counts (T, B, channels), labels (B,) int64) of the recordings in `index`, in its order.

    `share` picks what this process takes of each batch's recordings, and `change` gives them changed, in that order.
    """
    for start in range(0, len(index), batch_size):
        part = share(index[start : start + batch_size])
        chosen = (recordings, part) if change is None else (change(recordings, part), np.arange(len(part)))
        yield counts(*chosen, bins), torch.from_numpy(recordings.labels[part])


def hold_out(
    recordings: Recordings, share: float, by: Literal["recording", "speaker"], seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Indices (kept, held out): the share of the recordings of every class, or of the speakers."""
    random = np.random.default_rng(seed)
    if by == "speaker":
        if recordings.speakers is None:
            raise InputError(f"{recordings.where}: names no speakers (extra/speaker); set data.validation_by=recording")
        speakers = random.permutation(np.unique(recordings.speakers))
        held = np.isin(recordings.speakers, speakers[: max(1, round(share * len(speakers)))])
    else:
        held = np.zeros(len(recordings), bool)
        for label in np.unique(recordings.labels):
            of_class = random.permutation(np.flatnonzero(recordings.labels == label))
            held[of_class[: min(len(of_class) - 1, max(1, round(share * len(of_class))))]] = True
    missing = np.setdiff1d(recordings.labels, recordings.labels[~held])
    if len(missing) or not held.any():
        raise InputError(
            f"{recordings.where}: with data.validation_share = {share} held out by {by}, "
            + (f"class {missing[0]} has nothing left to train on" if len(missing) else "nothing is held out")
            + "; it needs more recordings, or more speakers"
        )
    return np.flatnonzero(~held), np.flatnonzero(held)
