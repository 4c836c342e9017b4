"""Readers of recordings from a file of any layout, checked event by event; a fault is one clear InputError.

Files are read piece by piece, so events are in memory once.
"""

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from datasets import prepare
from datasets.binning import Bins
from datasets.labels import as_named, check_labels, check_type
from datasets.layouts import LAYOUTS, Contents, Split
from datasets.recordings import AnyRecordings, Recordings, StoredRecordings, earliest
from datasets.window import WindowCheck
from snn.classes import Named, numbers_in
from snn.errors import InputError
from snn.memory import available_bytes

RECORDINGS_AT_ONCE, EVENTS_AT_ONCE = 512, 2**20  # read in one piece; larger pieces are not faster and take more memory


def read(
    layout: str,
    path: Path,
    split: Split,
    num_channels: int,
    num_classes: int,
    *,
    origin: str | None = None,
    in_memory: bool | None = None,
    classes: Named | None = None,
    bins: Bins | None = None,
    strict: bool = False,
    options: str | None = None,
) -> AnyRecordings:
    """Read the recordings of one split. Channels must lie in 0..num_channels-1 and labels in 0..num_classes-1.

    A training file must have a recording of every class. `origin` names the source of this set and replaces that of
    the layout. `in_memory` holds the events in memory or leaves them in the file once they are checked; None holds them
    if they take less than half of the free memory. `classes` gives the meaning of the labels; if the file names the
    same classes in another order, its labels are renumbered. A warning reports events outside `bins`; `strict` refuses
    a recording without any event in them. `options` are those of `datasets.prepare`; a warning reports if the file was
    made with others.
    """
    path = Path(path)
    found = look(layout, path, split, num_channels, num_classes, origin=origin, classes=classes)
    if options is not None:
        prepare.warn_if_made_otherwise(path, found.provenance, options)
    own = Named(found.class_names, str(path))
    lengths, labels = found.lengths(), as_named(found.labels(), own, classes)
    check_labels(labels, num_classes, str(path), split == "train", "recording")

    names = found.class_names if classes is None or classes.names is None else classes.names
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    read_events = partial(_read_events, path, found, num_channels)
    about = labels, None if found.speakers is None else found.speakers(), str(path), names
    files = None if found.files is None else found.files()
    if in_memory is None:
        in_memory = offsets[-1] * sum(kind.itemsize for kind in found.types) < available_bytes() / 2
    held = _room(offsets[-1], found.types, path) if in_memory else None
    first, ran_over = np.empty(found.number), []
    check = bins and WindowCheck(bins, found.ticks_per_second, offsets[-1])
    bar = tqdm(
        total=found.number, desc=f"checking {path.name}", unit="recording", leave=False, disable=in_memory or None
    )
    with bar:
        for part in _parts(offsets):
            _, times, channels = read_events(part, np.inf)
            within = offsets[part[0] : part[-1] + 2] - offsets[part[0]]
            first[part] = earliest(within, times)
            ran_over += [(part[r], *fall) for r, fall in _falls(within, times)]
            if check:
                check.add(within, times)
            if held:
                events = slice(offsets[part[0]], offsets[part[-1] + 1])
                held[0][events], held[1][events] = times, channels
            bar.update(len(part))
    if ran_over:
        r, before, after = ran_over[0]
        print(
            f"warning: {path}: in {len(ran_over)} of {found.number} recordings time falls like that of a counter which "
            f"has run over (recording {r}: from {before:g} to {after:g}); if so, unwrap it before the file is written. "
            "If the events are only in another order, this does not matter",
            file=sys.stderr,
        )
    if held:
        recordings = Recordings(offsets, held[0], found.ticks_per_second, held[1], *about, files)
    else:
        recordings = StoredRecordings(offsets, found.ticks_per_second, *about, read_events, first, files=files)
    if check:
        check.report(recordings, first, strict)
    return recordings


def look(
    layout: str,
    path: Path,
    split: Split,
    num_channels: int,
    num_classes: int,
    *,
    origin: str | None = None,
    classes: Named | None = None,
    strict: bool = False,
) -> Contents:
    """Return the contents of a file by its layout, or raise InputError as `read` does; read no label and no event.

    `strict` refuses empty recordings as well.
    """
    if layout not in LAYOUTS:
        raise InputError(f"layout '{layout}' is not known; choose from {', '.join(LAYOUTS)}")
    path = Path(path)  # a notebook writes a string
    if not path.exists():
        raise InputError(f"{path}: not found. {origin or LAYOUTS[layout].origin}")
    found = LAYOUTS[layout].open(path, split)
    if found.number == 0:
        raise InputError(f"{path}: holds no recordings")
    channel_type, label_type = found.stored_types
    check_type(channel_type, num_channels, str(path), "units", "data.channels, data.sensor or data.shape")
    check_type(label_type, num_classes, str(path), "labels", "data.num_classes")
    if found.class_names is not None and classes is not None and classes.names is not None:
        numbers_in(classes, Named(found.class_names, str(path)))
    if strict and not (lengths := found.lengths()).all():
        raise InputError(f"{path}: recording {lengths.argmin()} is empty, and data.strict is set")
    return found


def _falls(offsets: np.ndarray, times: np.ndarray) -> Iterator[tuple[int, tuple[float, float]]]:
    """Yield the recordings whose time behaves like a counter that overflows, each with its first fall (from, to).

    Such a time rises except for a few falls, each by more than half of the recording's span.
    """
    falls = np.flatnonzero(times[1:] < times[:-1]) + 1
    falls = falls[~np.isin(falls, offsets)]  # where the next recording begins
    recordings, begin = np.unique(np.searchsorted(offsets, falls, side="right") - 1, return_index=True)
    for r, own in zip(recordings, np.split(falls, begin[1:]), strict=False):  # one empty part without falls
        events = times[offsets[r] : offsets[r + 1]].astype(np.float64)
        drops = times[own - 1].astype(np.float64) - times[own]
        if len(own) <= len(events) / 4 and (drops > np.ptp(events) / 2).all():
            yield int(r), (float(times[own[0] - 1]), float(times[own[0]]))


def _parts(offsets: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the numbers of all recordings in turn, grouped so that each group is read in one piece."""
    start = 0
    while start < len(offsets) - 1:
        end = int(np.searchsorted(offsets, offsets[start] + EVENTS_AT_ONCE, side="right")) - 1
        end = min(max(end, start + 1), start + RECORDINGS_AT_ONCE)
        yield np.arange(start, end)
        start = end


def _room(events: int, types: tuple[np.dtype, np.dtype], path: Path) -> list[np.ndarray]:
    try:
        return [np.empty(events, kind) for kind in types]
    except MemoryError:
        raise InputError(
            f"{path}: its {events:,} events do not fit into memory; set data.in_memory=false to leave them in the file"
        ) from None


def _read_events(
    path: Path, found: Contents, num_channels: int, numbers: np.ndarray, until: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read and check the recordings with these ascending numbers; return their numbers of events, times and channels.

    Events after the time `until` may be left out.
    """
    times, channels = found.read_events(numbers, until)
    lengths, others = (np.array([len(values) for values in lists], np.int64) for lists in (times, channels))
    if (lengths != others).any():
        b = int((lengths != others).argmax())
        raise InputError(
            f"{path}: recording {numbers[b]} does not have as many times as channels ({lengths[b]} times, {others[b]} "
            "channels)"
        )
    flat = np.concatenate(times).astype(found.types[0], copy=False), np.concatenate(channels)

    def fault(values: np.ndarray, most: float, what: str, wrapped: str = "") -> None:
        # the extremes first: a mask for each event would take as much memory as the events
        if not len(values) or (values.min() >= 0 and values.max() <= most):  # false for NaN
            return
        e = int((~((values >= 0) & (values <= most))).argmax())
        r = numbers[int(np.searchsorted(np.cumsum(lengths), e, side="right"))]
        remedy = wrapped if wrapped and not 0 <= values[e] < 2**31 else what
        raise InputError(f"{path}: recording {r} has {remedy.format(values[e])}")

    outside = f"an event on channel {{}}, outside 0..{num_channels - 1}; "
    fault(
        flat[1],
        num_channels - 1,
        outside + "set data.channels, or data.sensor, to the set's",
        outside + "units below 0, or computed in a type that does not hold them, have wrapped: compute them in int64",
    )
    fault(flat[0], np.finfo(np.float32).max, "an event at the time {}; times must be finite and not negative")
    return lengths, flat[0], flat[1].astype(found.types[1], copy=False)
