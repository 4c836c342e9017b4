"""Recordings binned into counts of events per step and channel, batch by batch.

On the CPU the counts stay sparse, without dense frames. Sets larger than memory stay in their file, and each batch
reads its own recordings.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, NoReturn

import numpy as np
import torch

from datasets.recordings import AnyRecordings, Recordings, check_index
from snn import checks, config
from snn.errors import InputError
from snn.inputs import SparseCounts
from snn.ops.binning import step_of
from snn.ops.compiled import in_parts, inlined, kernel


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
        """Return the bins of a split."""
        T, T_empty = data.T, data.T_empty
        if split == "test":
            T, T_empty = data.test_T or T, T_empty if data.test_T_empty is None else data.test_T_empty
        return cls(data.dt_ms, T, T_empty, math.prod(data.shape))

    def end_ticks(self, ticks_per_second: float) -> float:
        """Return the time, in ticks, at which the last of the T bins ends."""
        return self.T * self.dt_ms * ticks_per_second / 1000


@inlined
def _find_steps(times, channels, ticks_per_second, dt_ms, T, num_channels, steps):
    """Set steps[k] to the step of event k, T if it is past the window; return whether all events are valid.

    An event is not valid if its time is negative or not finite, or if its channel does not exist. Then no step is set.
    """
    is_wrong = False
    for k in range(len(steps)):
        time, c = times[k], channels[k]
        is_wrong |= not ((time >= 0) & (time < np.inf) & (c >= 0) & (c < num_channels))
    if is_wrong:
        return False
    for k in range(len(steps)):
        steps[k] = step_of(times[k], ticks_per_second, dt_ms, T)
    return True


@kernel
def _count_entries(
    offsets, times, event_channels, index, ticks_per_second, dt_ms, T, num_channels, starts, bins, ranks, numbers_R,
    are_wrong, begin, end,
):  # fmt: skip
    """Count the entries of each row t·B + b; find each event's bin, T past the window, and its entry's rank in the row.

    This is done for samples begin ... end; the results for the events of sample b begin at starts[b]. For a sample with
    an event that is not valid, only are_wrong[b] is set to True.
    """
    B = len(index)
    seen = np.full(num_channels, -1, np.int64)  # the last row with an entry of each channel
    rank = np.empty(num_channels, np.int64)  # of its entry there
    for b in range(begin, end):
        first = offsets[index[b]]
        size = offsets[index[b] + 1] - first
        sample_bins, sample_ranks = bins[starts[b] :], ranks[starts[b] :]
        sample_times, sample_channels = times[first:], event_channels[first:]
        rule = ticks_per_second, dt_ms, T, num_channels
        if not _find_steps(sample_times, sample_channels, *rule, sample_bins[:size]):
            are_wrong[b] = True
            continue
        r, number = b, 0  # the current row is kept at hand, because the next event is mostly in it, too
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
    """Write the channel and count of each entry from the results of `_count_entries`; counts must begin as zeros."""
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
            rank = np.uint32(sample_ranks[k])  # numba tests whether any other index is negative
            row[rank] = sample_channels[k]
            row_counts[rank] += np.float32(1)


def bin_events(recordings: Recordings, index: np.ndarray, bins: Bins) -> SparseCounts:
    """Count the events per bin and channel of the recordings in `index`: (T + T_empty, B, channels) float32, sparse.

    The bin of an event is `snn.ops.binning.step_of`; events past T are dropped. InputError if an event of these
    recordings has a time that is negative or not finite, or a channel that `bins` does not have.
    """
    starts = _starts(recordings, index, bins)
    T, B, C = bins.T + bins.T_empty, len(index), bins.channels
    bin_of_event, rank_of_event = np.empty((2, starts[-1]), np.int32)
    numbers_R, are_wrong = np.zeros(T * B, np.int64), np.zeros(B, bool)
    events = recordings.offsets, recordings.times, recordings.channels, index, recordings.ticks_per_second
    first = *events, bins.dt_ms, bins.T, C, starts, bin_of_event, rank_of_event, numbers_R, are_wrong
    in_parts(_count_entries, first, B)
    if are_wrong.any():
        _refuse(recordings, index[are_wrong], C)
    offsets = np.concatenate([[0], np.cumsum(numbers_R)])
    entries = np.empty(offsets[-1], np.int32), np.zeros(offsets[-1], np.float32)
    events = recordings.offsets, recordings.channels, index
    second = *events, bins.T, starts, bin_of_event, rank_of_event, offsets, *entries
    in_parts(_lay_entries, second, B)
    return SparseCounts(torch.from_numpy(offsets), *map(torch.from_numpy, entries), (T, B, C))


@kernel
def _find_cells(
    offsets, times, channels, index, ticks_per_second, dt_ms, T, row_past, num_channels, starts, cells, are_wrong,
    begin, end,
):  # fmt: skip
    """Set cells[starts[b] + k] = (step · B + b) · channels + channel of event k of sample b, step `row_past` past T.

    This is done for samples begin ... end; are_wrong as in `_count_entries`.
    """
    B = len(index)
    for b in range(begin, end):
        first, size = offsets[index[b]], offsets[index[b] + 1] - offsets[index[b]]
        sample_times, sample_channels, sample_cells = times[first:], channels[first:], cells[starts[b] :]
        rule = ticks_per_second, dt_ms, T, num_channels
        if not _find_steps(sample_times, sample_channels, *rule, sample_cells[:size]):
            are_wrong[b] = True
            continue
        for k in range(size):
            step = row_past if sample_cells[k] == T else sample_cells[k]
            sample_cells[k] = (step * B + b) * num_channels + np.int64(sample_channels[k])


def bin_dense(recordings: Recordings, index: np.ndarray, bins: Bins, device: torch.device) -> torch.Tensor:
    """Bin as `bin_events` does, but into a dense tensor on a device; only the cell of each event is sent to it."""
    starts = _starts(recordings, index, bins)
    T, B, C = bins.T + bins.T_empty, len(index), bins.channels
    cells = np.empty(starts[-1], np.int32 if (T + 1) * B * C < 2**31 else np.int64)
    are_wrong = np.zeros(B, bool)
    events = recordings.offsets, recordings.times, recordings.channels, index, recordings.ticks_per_second
    arguments = *events, bins.dt_ms, bins.T, T, C, starts, cells, are_wrong
    in_parts(_find_cells, arguments, B)
    if are_wrong.any():
        _refuse(recordings, index[are_wrong], C)
    out_TBC = torch.zeros(T + 1, B, C, device=device)  # the last step takes the events past the window
    ones = out_TBC.new_ones(1).expand(len(cells))
    out_TBC.view(-1).index_add_(0, torch.from_numpy(cells).to(device), ones)
    return out_TBC[:T]


def _starts(recordings: Recordings, index: np.ndarray, bins: Bins) -> np.ndarray:
    """Return the offsets, (B + 1,), of the recordings in `index` if their events are laid one after another.

    Raises InputError unless these recordings exist and the length of a step in ticks is a number.
    """
    check_index(index, recordings)
    checks.whole("the number of recordings in a batch", len(index), 1)
    checks.number("a step in thousandths of a tick", bins.dt_ms * recordings.ticks_per_second, above=0)
    return np.concatenate([[0], np.cumsum(recordings.offsets[index + 1] - recordings.offsets[index])])


def _refuse(recordings: Recordings, index: np.ndarray, num_channels: int) -> NoReturn:
    """Raise InputError that names the first event of these recordings that is not valid."""
    for r in index:
        for e in range(*recordings.offsets[r : r + 2]):
            time, channel = recordings.times[e], recordings.channels[e]
            if not (0 <= time < np.inf and 0 <= channel < num_channels):
                raise InputError(
                    f"{recordings.where}: event {e} (of recording {r}) has the time {time} and the channel {channel}; "
                    f"times must be finite and not negative, channels 0 to {num_channels - 1}"
                )
    raise AssertionError


def batches(
    recordings: AnyRecordings,
    index: np.ndarray,
    bins: Bins,
    batch_size: int,
    share: Callable[[np.ndarray], np.ndarray] = lambda part: part,
    change: Callable[[AnyRecordings, np.ndarray], Recordings] | None = None,
    device: torch.device | None = None,
) -> Iterator[tuple[SparseCounts | torch.Tensor, torch.Tensor]]:
    """Yield (counts (T, B, channels), labels (B,) int64) of the recordings in `index`, in its order.

    The counts are `SparseCounts`; if `device` is a GPU they are dense and lie on it. `share` picks the recordings of
    each batch that this process takes. `change` is given all recordings and the numbers of those to take; it returns
    these changed, in that order.
    """
    check_index(index, recordings)
    checks.whole("batch_size", batch_size, 1)
    for start in range(0, len(index), batch_size):
        part = share(index[start : start + batch_size])
        if change is None:
            loaded, places = recordings.load(part, bins.end_ticks(recordings.ticks_per_second))
        else:
            loaded, places = change(recordings, part), np.arange(len(part))
        is_gpu = device is not None and device.type != "cpu"
        x_TBC = bin_dense(loaded, places, bins, device) if is_gpu else bin_events(loaded, places, bins)
        yield x_TBC, torch.from_numpy(recordings.labels[part])
