"""Recordings as flat arrays of events, a share of them held out, and batches binned into counts.

Events stay events in memory; a dense frame exists for the batch at hand only.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numba
import numpy as np
import torch

from snn.errors import InputError


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

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Bins:
    """How time is cut: T bins of dt_ms, then T_empty empty steps."""

    dt_ms: float
    T: int
    T_empty: int
    channels: int


@numba.njit(cache=True, nogil=True)
def _add_counts(offsets, times, event_channels, index, ms_scale, dt_scale, T, counts_TBC):
    for b in range(len(index)):
        for e in range(offsets[index[b]], offsets[index[b] + 1]):
            n = np.floor(ms_scale * np.float64(times[e]) / dt_scale)
            if n < T:
                counts_TBC[int(n), b, event_channels[e]] += np.float32(1)


def counts(recordings: Recordings, index: np.ndarray, bins: Bins) -> torch.Tensor:
    """Events per bin and channel of the recordings in `index`: (T + T_empty, B, channels) float32.

    bin = floor(1000 t / dt) for t in seconds (Liu et al. 2023); events past T are dropped.
    """
    counts_TBC = torch.zeros(bins.T + bins.T_empty, len(index), bins.channels)
    # 1000 t / (dt · ticks) with both factors exact: an event on the edge of a bin falls to the bin it begins
    _add_counts(
        recordings.offsets,
        recordings.times,
        recordings.channels,
        index,
        1000.0,
        bins.dt_ms * recordings.ticks_per_second,
        bins.T,
        counts_TBC.numpy(),
    )
    return counts_TBC


def batches(
    recordings: Recordings,
    index: np.ndarray,
    bins: Bins,
    batch_size: int,
    share: Callable[[np.ndarray], np.ndarray] = lambda part: part,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(counts (T, B, channels) float32, labels (B,) int64) of the recordings in `index`, in its order.

    `share` picks what this process takes of each batch's recordings.
    """
    for start in range(0, len(index), batch_size):
        part = share(index[start : start + batch_size])
        yield counts(recordings, part, bins), torch.from_numpy(recordings.labels[part])


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
            held[of_class[: max(1, round(share * len(of_class)))]] = True
    if held.all():
        raise InputError(
            f"{recordings.where}: nothing is left to train on once data.validation_share = {share} is held out "
            f"by {by}; it needs more recordings, or more speakers"
        )
    return np.flatnonzero(~held), np.flatnonzero(held)
