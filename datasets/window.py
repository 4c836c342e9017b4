"""A check, before training or test, of how many events and recordings the window of bins misses."""

import sys

import numpy as np

from datasets.binning import Bins
from datasets.recordings import AnyRecordings, by_recording
from datasets.splits import name_of, some
from snn.errors import InputError

SAMPLE = 2**18  # events
MOVED = 0.05  # share of events in another bin from which on this is reported
HALVES = np.arange(np.float16(np.inf).view(np.uint16), dtype=np.uint16).view(np.float16).astype(np.float64)


class WindowCheck:
    """A check of what the bins see of recordings that come piece by piece, `events` in all.

    Once all have come, `report` says whether the bins miss whole recordings, most events, or differences in time.
    """

    def __init__(self, bins: Bins, ticks_per_second: float, events: int):
        self.bins, self.ticks_per_second = bins, ticks_per_second
        self.end = bins.end_ticks(ticks_per_second)
        self.inside: list[np.ndarray] = []  # for each recording, the number of events in the bins
        self.apart = max(events // SAMPLE, 1)
        self.sample: list[np.ndarray] = []
        self.last = 0.0

    def add(self, offsets: np.ndarray, times: np.ndarray) -> None:
        """Take the next recordings: r has the times offsets[r] to offsets[r + 1] - 1."""
        self.inside.append(by_recording(np.add, offsets, times < self.end))
        self.sample.append(times[:: self.apart].copy())  # a view would keep all of them in memory
        self.last = max(self.last, times.max(initial=0))

    def report(self, recordings: AnyRecordings, first_times: np.ndarray, strict: bool = False) -> None:
        """Report what the bins miss of these recordings, all of which have come.

        InputError if the bins see no event at all, or if `strict` and they see none of some recording.
        """
        bins, window = self.bins, f"the {self.bins.T} bins of {self.bins.dt_ms:g} ms"
        check_first_times(recordings, first_times, self.end, window, "data.T, data.dt_ms", strict)
        inside = np.concatenate(self.inside)
        lengths = np.diff(recordings.offsets) * (inside > 0)
        inside, events = (np.bincount(recordings.labels, numbers) for numbers in (inside, lengths))  # of each class
        share = inside.sum() / events.sum()
        behind = [] if share < 0.5 else np.flatnonzero(inside < events / 2)
        if share < 0.5 or len(behind):
            classes = [f", {100 * inside[k] / events[k]:.3g} % of those of {name_of(recordings, k)}" for k in behind]
            print(
                f"warning: {recordings.where}: {100 * share:.3g} % of the events fall into {window}{''.join(classes)}; "
                f"its times reach {self.last / self.ticks_per_second:g} s. Check data.T, data.dt_ms and the unit of "
                "the times",
                file=sys.stderr,
            )
        _say_coarse(np.concatenate(self.sample), recordings, bins)


def _say_coarse(times: np.ndarray, recordings: AnyRecordings, bins: Bins) -> None:
    """Report if times, judged by this sample of them, are so coarse that many events lie in a wrong bin."""
    per_s, is_whole = recordings.ticks_per_second, times.dtype.kind != "f"
    end = bins.end_ticks(per_s)
    off = 1000 / per_s * grain(times)[times < end] / (2 * bins.dt_ms)
    # A time is off by up to half the grain, evenly distributed, and crosses an edge that is closer than its error.
    moved = np.where(off < 1, off / 2, 1 - 0.5 / np.maximum(off, 1)).sum() / max(len(off), 1)
    if moved <= MOVED:
        return
    numbers = np.arange(end) if is_whole else HALVES
    used = len(np.unique(np.floor(1000 * numbers[numbers < end] / (per_s * bins.dt_ms))))
    kind = f"whole numbers of {1 / per_s:g} s" if is_whole else "rounded to float16"
    none = f", and {bins.T - used} of {bins.T} bins can hold none" if used < bins.T else ""
    print(
        f"warning: {recordings.where}: its times are {kind}, too coarse for bins of {bins.dt_ms:g} ms: about "
        f"{100 * moved:.0f} % of the events fall into the wrong bin{none}; use a larger "
        "data.dt_ms, or times in float32",
        file=sys.stderr,
    )


def check_first_times(
    recordings: AnyRecordings, first: np.ndarray, end_ticks: float, window: str, fields: str, strict: bool
) -> None:
    """Report how many recordings of each class have no event before `end_ticks`, by the `first` time of each.

    InputError if this holds for all, or if `strict` and it holds for any. `window` describes the window in words, and
    `fields` names the fields that set it.
    """
    is_lost, is_empty = first >= end_ticks, np.isinf(first)
    if not is_lost.any():
        return
    remedy = f"check {fields} and the unit of the times"
    if is_lost.all():
        begin = "" if is_empty.all() else f"; its times begin at {first.min() / recordings.ticks_per_second:g} s"
        raise InputError(f"{recordings.where}: 0 % of the events fall into {window}{begin}; {remedy}")
    lost, of = (np.bincount(labels) for labels in (recordings.labels[is_lost], recordings.labels))
    classes = [
        f"{'all ' if lost[k] == of[k] else f'{lost[k]} of '}{of[k]} of {name_of(recordings, k)}"
        for k in np.flatnonzero(lost)
    ]
    classes.sort(key=lambda words: not words.startswith("all"))
    numbers = np.flatnonzero(is_lost)
    message = (
        f"{recordings.where}: recordings without an event in {window}: {len(numbers)} of {len(first)} "
        f"({np.count_nonzero(is_empty)} empty, {np.count_nonzero(is_lost & ~is_empty)} that begin later), "
        f"{some(classes)}; by number {some(numbers)}; {remedy}, or leave them out"
    )
    if strict:
        raise InputError(f"{message}; data.strict=false decides them by potentials alone")
    print(f"warning: {message}. They are decided by potentials alone; data.strict=true refuses them", file=sys.stderr)


def grain(times: np.ndarray) -> np.ndarray:
    """Return the distance between the times that the file could hold, (events,) float64; 0 if too small to matter.

    It is 1 for whole numbers, and for float16 it depends on the time. float16 is recognised by its values: a file may
    hold times as float32 that were rounded to float16 before.
    """
    if times.dtype.kind != "f":
        return np.ones(len(times))
    with np.errstate(over="ignore"):
        halves = times.astype(np.float16)
    is_half = len(times) > 0 and (halves == times).all()
    return np.spacing(halves).astype(np.float64) if is_half else np.zeros(len(times))
