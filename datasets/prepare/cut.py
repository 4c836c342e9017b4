"""One recording of a camera: checked, cut into windows, filtered and shrunk, some events at a time."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datasets.prepare import cameras
from datasets.prepare.cameras import Opened
from datasets.prepare.cameras.pieces import Piece, Said
from datasets.prepare.store import LONGEST_US
from snn.compiling import kernel
from snn.errors import InputError
from snn.memory import available_bytes

AT_ONCE = 2**18  # events of a whole recording that are passed on together
BYTES_PER_EVENT = 12  # a time in 64 bits and a unit in 32
BYTES_TO_SORT = 26  # per event: four columns, their order, and the memory of the sort
Chunk = tuple[np.ndarray, np.ndarray]  # times in µs, int64, and units, uint32


@dataclass(frozen=True)
class Shape:
    """The way in which a recording is cut, filtered and shrunk."""

    window_ms: float | None = None
    stride_ms: float | None = None
    divide: int = 1
    hot_pixel_hz: float | None = None
    noise_us: int | None = None
    sort: bool = False


class Part(NamedTuple):
    """Some events of a recording, in their order."""

    times: np.ndarray  # [events] uint32, µs from the recording's beginning
    units: np.ndarray  # [events] uint32, p·H·W + y·W + x of the sensor after `divide`
    is_last: bool  # of the recording's parts


def parts_of(path: Path, said: Said, size: tuple[int, int], shape: Shape) -> Generator[Part, None, int]:
    """Yield the file's windows, a part each, or the whole file part by part; return how many events are marked invalid.

    Times count from the beginning of a window, and in a whole file from its first event. A last part that does not fill
    a window is left out, unless the file is shorter than one. A recording may have no event left. InputError names the
    file, the place and the remedy.
    """
    opened = cameras.open_recording(path, said)
    if (opened.height, opened.width) != size:
        raise InputError(
            f"{path}: its sensor has {opened.height}x{opened.width} pixels, the first file's {size[0]}x{size[1]}; "
            "convert each size separately, with its own --glob and --out"
        )
    is_hot = None
    if shape.window_ms is None:
        if shape.hot_pixel_hz is not None:  # rates of pixels are only known at the end: the file is read twice
            again = cameras.open_recording(path, said)
            is_hot = _hot_pixels(_checked(again, shape.sort), size, shape.hot_pixel_hz)
        parts = _whole(path, _checked(opened, shape.sort))
    else:
        window, stride = (round(1000 * ms) for ms in (shape.window_ms, shape.stride_ms or shape.window_ms))
        parts = _windows(path, _checked(opened, shape.sort), window, stride)
    is_empty = True
    for part in _filtered(parts, size, shape, is_hot):
        is_empty = False
        yield part
    if is_empty and opened.invalid:
        raise InputError(f"{path}: all of its {opened.invalid:,} events are marked invalid; leave the file out")
    if is_empty:
        raise InputError(f"{path}: holds no event; fetch it again, or leave it out")
    return opened.invalid


def _filtered(
    parts: Iterator[tuple[np.ndarray, np.ndarray, bool]],
    size: tuple[int, int],
    shape: Shape,
    is_hot: np.ndarray | None,
) -> Iterator[Part]:
    """Yield the parts without hot pixels and noise, shrunk. `is_hot`: [pixels]; None finds them in each window."""
    latest = None
    for times, units, is_last in parts:
        if shape.hot_pixel_hz is not None:
            of_part = _hot_pixels([(times, units)], size, shape.hot_pixel_hz) if is_hot is None else is_hot
            keep = ~of_part[units % len(of_part)]
            times, units = times[keep], units[keep]
        if shape.noise_us is not None:
            keep = np.empty(len(times), np.bool_)
            latest = np.full((size[0] + 2, size[1] + 2), -(2**62), np.int64) if latest is None else latest
            _find_supported(times, units, *size, shape.noise_us, latest, keep)
            times, units, latest = times[keep], units[keep], None if is_last else latest
        if shape.divide > 1:
            units = _shrunk(units, *size, shape.divide)
        yield Part(times.astype(np.uint32, copy=False), units, is_last)


def _checked(opened: Opened, sort: bool) -> Iterator[Chunk]:
    """Yield times in µs from the first event, int64, ascending, and units."""
    first = last = None
    done = 0
    for t, x, y, p in _sorted(opened) if sort else opened.pieces:
        if not len(t):
            continue
        first = t[0] if first is None else first
        last = t[0] if last is None else last
        times, units = np.empty(len(t), np.int64), np.empty(len(t), np.uint32)
        e = _lay(t, x, y, p, opened.height, opened.width, first, last, times, units)
        if e >= 0:
            before = t[e - 1] if e else last
            if t[e] < before:
                raise InputError(
                    f"{opened.path}: goes back in time at event {done + e}, from {before} to {t[e]} µs; sort its "
                    "events with --sort, or fetch it again"
                )
            raise InputError(
                f"{opened.path}: event {done + e} is at x = {x[e]}, y = {y[e]} with polarity {p[e]}; the sensor has x "
                f"in 0..{opened.width - 1}, y in 0..{opened.height - 1} and polarities 0 and 1: correct --sensor, or "
                "fetch the file again"
            )
        last = t[-1]
        done += len(t)
        yield times, units


def _sorted(opened: Opened) -> Iterator[Piece]:
    """Yield all events in the order of their times; events of the same time keep their order."""
    pieces, events, most = [], 0, available_bytes() / 2 / BYTES_TO_SORT
    for piece in opened.pieces:
        pieces.append(piece)
        events += len(piece.t)
        if events > most:
            raise InputError(
                f"{opened.path}: {events:,} or more events are too many to sort in memory; sort the file beforehand"
            )
    columns = Piece(*map(np.concatenate, zip(*pieces, strict=True))) if pieces else None
    del pieces
    order = np.argsort(columns.t, kind="stable") if events else ()
    for start in range(0, events, AT_ONCE):
        yield Piece(*(column[order[start : start + AT_ONCE]] for column in columns))


@kernel
def _lay(t, x, y, p, height, width, first, last, times, units):
    """Write time and unit of each event; return the first that is out of order or beyond the sensor, or -1."""
    for e in range(len(t)):
        if t[e] < last or x[e] >= width or y[e] >= height or p[e] > 1:
            return e
        last = t[e]
        times[e] = last - first
        units[e] = (np.int64(p[e]) * height + y[e]) * width + x[e]
    return -1


def _whole(path: Path, pieces: Iterator[Chunk]) -> Iterator[tuple[np.ndarray, np.ndarray, bool]]:
    """Yield the recording without cutting windows, many events at a time."""
    parts, waiting, events, most = [], 0, 0, available_bytes() / 2 / BYTES_PER_EVENT
    for times, units in pieces:
        if waiting >= AT_ONCE:  # yielded only when more follows, so that there is a last part
            yield *_joined(parts), False
            parts, waiting = [], 0
        parts.append((times, units))
        waiting += len(times)
        events += len(times)
        if times[-1] > LONGEST_US:
            raise InputError(f"{path}: lasts longer than 71.6 min, the range of 32 bits in µs; cut it with --window-ms")
        if events > most:
            raise InputError(f"{path}: does not fit into memory in one piece; cut it with --window-ms")
    if parts:
        yield *_joined(parts), True


def _joined(parts: list[Chunk]) -> Chunk:
    times, units = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return times, units


def _windows(
    path: Path, pieces: Iterator[Chunk], window: int, stride: int
) -> Iterator[tuple[np.ndarray, np.ndarray, bool]]:
    """Yield windows of this many µs, one every `stride`."""
    parts, events, start, made = [], 0, 0, False
    most = available_bytes() / 2 / BYTES_PER_EVENT
    for piece in pieces:
        parts.append(piece)
        events += len(piece[0])
        if events > most:
            raise InputError(f"{path}: a window of {window} µs does not fit into memory; choose a shorter --window-ms")
        if piece[0][-1] < start + window:
            continue
        times, units = _joined(parts)
        while len(times) and times[-1] >= start + window:
            begin, end = np.searchsorted(times, (start, start + window))
            if end > begin:
                yield times[begin:end] - start, units[begin:end], True
                made = True
                start += stride
            else:  # skip to the first window that ends after the next event
                start += ((int(times[begin]) - window - start) // stride + 1) * stride
            drop = np.searchsorted(times, start)
            times, units = times[drop:], units[drop:]
        parts, events = [(times, units)], len(times)
    if not made and events:
        yield *_joined(parts), True


def _hot_pixels(parts: Iterable[Chunk], size: tuple[int, int], most_hz: float) -> np.ndarray:
    """Find the pixels that fire more often than `most_hz` over a recording: [pixels] bool."""
    counts, first, last = np.zeros(size[0] * size[1], np.int64), None, 0
    for times, units in parts:
        counts += np.bincount(units % len(counts), minlength=len(counts))
        first, last = times[0] if first is None else first, times[-1]
    seconds = max(last - (first or 0), 1) / 1e6
    return counts > max(most_hz * seconds, 1)


@kernel
def _find_supported(times, units, height, width, within_us, latest, keep):
    """Find events with another event at one of the 8 pixels around, at most `within_us` before (Delbruck 2008).

    `latest` holds when each pixel, with a margin of one, fired last; it is kept from part to part of a recording.
    """
    for e in range(len(times)):
        pixel = units[e] % (height * width)
        y, x = pixel // width + 1, pixel % width + 1
        since = times[e] - within_us
        found = False
        for row in range(y - 1, y + 2):
            for column in range(x - 1, x + 2):
                found |= (row != y or column != x) and latest[row, column] >= since
        keep[e] = found
        latest[y, x] = times[e]


@kernel
def _shrunk(units, height, width, divide):
    small_height, small_width = -(-height // divide), -(-width // divide)
    shrunk = np.empty(len(units), np.uint32)
    for e in range(len(units)):
        unit = np.int64(units[e])
        row, x = unit // width, unit % width
        p, y = row // height, row % height
        shrunk[e] = (p * small_height + y // divide) * small_width + x // divide
    return shrunk
