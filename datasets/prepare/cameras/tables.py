"""Events as columns: .npy, .npz, CSV and HDF5; the user gives what a file does not say.

Nothing is guessed. The names of fields, or --columns, tell the columns apart; a name such as t_us, or --time-unit,
gives the unit of time. The polarity may be 0 and 1, or -1 and 1.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datasets import hdf5
from datasets.prepare.cameras import metavision
from datasets.prepare.cameras.pieces import Piece, Said, Size
from snn.errors import InputError

ROWS = 2**18  # read at once
COMMENT = ("#", "%")  # how a line of a table begins that is left out
TICKS = {"s": 1e6, "ms": 1e3, "us": 1.0, "ns": 1e-3}  # µs in a unit
NAMES = {"t": ("t", "ts", "time", "times", "timestamp", "timestamps"), "x": ("x",), "y": ("y",)}
NAMES["p"] = ("p", "pol", "polarity", "on")
COLUMNS = tuple(NAMES)


def open_npy(path: Path, said: Said) -> tuple[None, Iterator[Piece]]:
    """Open a structured array, or an array of columns."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy fails on damaged files in many ways
        raise _unreadable(path, ".npy", error) from None
    return None, _from_array(path, array, said)


def open_npz(path: Path, said: Said) -> tuple[None, Iterator[Piece]]:
    """Open arrays t, x, y and p, or a single array as in an .npy file."""
    try:
        with np.load(path, allow_pickle=False) as file:
            largest = sum(member.file_size for member in file.zip.infolist())
            if largest > hdf5.MOST_SHRUNK * path.stat().st_size:
                raise InputError(f"{path}: claims {largest:,} bytes, more than it can hold; fetch it again")
            names = file.files
            columns = None if len(names) == 1 else _by_names(path, names, said)
            arrays = [file[name] for name in (columns.names if columns else names)]
    except InputError:
        raise
    except Exception as error:
        raise _unreadable(path, ".npz", error) from None
    if columns is None:
        return None, _from_array(path, arrays[0], said)
    return None, _from_columns(path, arrays, columns.unit, said.brighter)


def open_hdf5(path: Path, said: Said) -> tuple[Size | None, Iterator[Piece]]:
    """Open Metavision's /CD/events, or a group /events of t, x, y and p, as in DSEC."""
    file = hdf5.File(path)
    if file.is_group("events"):
        if said.columns:
            raise InputError(f"{path}: names its columns; leave --columns out")
        if missing := [name for name in COLUMNS if not file.is_dataset(f"events/{name}")]:
            raise InputError(f"{path}: wrong layout: /events has no data set {missing[0]}")
        columns = [file.dataset(f"events/{name}", "iuf") for name in COLUMNS]
        return None, _guarded(path, _from_columns(path, columns, _unit(path, "t", said), said.brighter))
    if not file.is_dataset("CD/events"):
        raise InputError(f"{path}: has neither /CD/events (Metavision) nor /events/t, x, y and p; convert it to .npz")
    with hdf5.border(path):
        opened = file.open()
        events, is_compressed = opened["CD/events"], metavision.is_compressed(opened["CD/events"])
        width, height, geometry = (str(opened.attrs.get(name)) for name in ("width", "height", "geometry"))
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", geometry) or re.fullmatch(r"(\d{1,5})x(\d{1,5})", f"{width}x{height}")
    size = (int(match[2]), int(match[1])) if match else None
    if is_compressed:
        return size, _guarded(path, metavision.pieces(path, events))
    events = file.dataset("CD/events")
    if set(COLUMNS) - set(events.dtype.names or ()):
        raise InputError(f"{path}: wrong layout: /CD/events must have the fields x, y, p and t")
    return size, _guarded(path, _from_array(path, events, Said(time_unit="us")))


def states_all(path: Path) -> bool:
    """Return whether an HDF5 file is Metavision's, whose columns, unit and polarities are known."""
    return hdf5.File(path).is_dataset("CD/events")


def _guarded(path: Path, pieces: Iterator[Piece]) -> Iterator[Piece]:
    with hdf5.border(path):
        yield from pieces


def open_csv(path: Path, said: Said) -> tuple[None, Iterator[Piece]]:
    """Open lines of t, x, y and p, with a line of names or --columns; lines that begin with # or % are left out."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            lines = enumerate(file)
            skipped, first = next((k, line) for k, line in lines if line.strip() and not line.startswith(COMMENT))
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, "CSV", error) from None
    except StopIteration:
        raise InputError(f"{path}: holds no line of events; fetch it again, or leave it out") from None
    delimiter = next((mark for mark in (",", ";", "\t") if mark in first), None)
    words = [word.strip().strip('"') for word in first.split(delimiter)]
    has_names = not any(_is_number(word) for word in words)
    columns = _by_names(path, words, said) if has_names else _by_words(path, len(words), said)
    return None, _from_text(path, skipped + has_names, delimiter, columns.places, columns.unit, said.brighter)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _from_text(
    path: Path, line: int, delimiter: str | None, places: Sequence[int], unit: float, brighter: float | None
) -> Iterator[Piece]:
    polarity = Polarity(path, brighter)
    done = 0
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        for _ in range(line):
            file.readline()
        while True:
            lines = _some_lines(file)
            if not lines:
                return
            if not (rows := [text for text in lines if text.strip() and not text.startswith(COMMENT)]):
                continue
            try:
                values = np.loadtxt(rows, np.float64, "#", delimiter, usecols=places, ndmin=2)
            except (ValueError, IndexError) as error:
                reason = " ".join(str(error).split())
                raise InputError(
                    f"{path}: the rows of events {done} to {done + len(rows) - 1} are not all numbers "
                    f"({reason:.100}); repair them, or fetch the file again"
                ) from None
            yield as_piece(path, done, values.T, unit, polarity)
            done += len(values)


def _some_lines(file) -> list[str]:
    return file.readlines(ROWS * 16)


class Columns(NamedTuple):
    names: tuple[str, ...]  # of t, x, y, p, as the file has them
    places: tuple[int, ...]
    unit: float  # of its time, µs


def _column_of(name: str) -> tuple[str, str | None] | None:
    """Return t, x, y or p, and the unit of time, if the name gives it."""
    lower = name.lower()
    found = re.fullmatch(r"(.+?)(?:[_ (\[]*(us|µs|ms|ns|s)[)\]]?)", lower)
    if found and found[1] in NAMES["t"] and lower not in NAMES["t"]:
        return "t", found[2].replace("µ", "u")
    return next(((column, None) for column, names in NAMES.items() if lower in names), None)


def _by_names(path: Path, names: Sequence[str], said: Said) -> Columns:
    if said.columns:
        return _by_words(path, len(names), said)._replace(names=tuple(names[said.columns.index(c)] for c in COLUMNS))
    found = {}
    for place, name in enumerate(names):
        if column := _column_of(name):
            found.setdefault(column[0], (name, place, column[1]))
    if missing := [column for column in COLUMNS if column not in found]:
        raise InputError(
            f"{path}: of its columns {', '.join(names):.80} none is named {missing[0]} (or "
            f"{', '.join(NAMES[missing[0]][1:])}"
            "); name them with --columns, such as --columns t,x,y,p"
        )
    name, _, unit_of_name = found["t"]
    if unit_of_name and said.time_unit not in (None, unit_of_name):
        raise InputError(
            f"{path}: its column {name} has the unit {unit_of_name}, but --time-unit says {said.time_unit}; leave "
            "--time-unit out"
        )
    unit = TICKS[unit_of_name] if unit_of_name else _unit(path, name, said)
    return Columns(tuple(found[c][0] for c in COLUMNS), tuple(found[c][1] for c in COLUMNS), unit)


def _by_words(path: Path, number: int, said: Said) -> Columns:
    if said.columns is None:
        raise InputError(f"{path}: does not name its {number} columns; name them, such as --columns t,x,y,p")
    if len(said.columns) != number:
        raise InputError(f"{path}: has {number} columns, and --columns names {len(said.columns)}; correct it")
    places = tuple(said.columns.index(column) for column in COLUMNS)
    return Columns(COLUMNS, places, _unit(path, "its time", said))


def _unit(path: Path, name: str, said: Said) -> float:
    if said.time_unit is None:
        raise InputError(f"{path}: does not say the unit of {name}; give it with --time-unit s, ms, us or ns")
    return TICKS[said.time_unit]


def _from_array(path: Path, array: np.ndarray, said: Said) -> Iterator[Piece]:
    if array.dtype.names:
        columns = _by_names(path, array.dtype.names, said)
        return _rows(
            path,
            len(array) if array.ndim == 1 else -1,
            columns.unit,
            lambda rows: [rows[n] for n in columns.names],
            array,
            said.brighter,
        )
    if array.ndim != 2 or array.dtype.kind not in "iufb":
        raise InputError(
            f"{path}: holds {array.dtype} {array.shape}, not a list of events: neither structures of t, x, y, p nor "
            "numbers (events, columns)"
        )
    columns = _by_words(path, array.shape[1], said)
    return _rows(
        path, len(array), columns.unit, lambda rows: [rows[:, k] for k in columns.places], array, said.brighter
    )


def _rows(path: Path, number: int, unit: float, split, array: np.ndarray, brighter: float | None) -> Iterator[Piece]:
    if number < 0:
        raise InputError(f"{path}: holds structures of shape {array.shape}, not a list of events")
    polarity = Polarity(path, brighter)
    return (
        as_piece(path, start, split(array[start : start + ROWS]), unit, polarity) for start in range(0, number, ROWS)
    )


def _from_columns(path: Path, columns: Sequence[np.ndarray], unit: float, brighter: float | None) -> Iterator[Piece]:
    shapes = {column.shape for column in columns}
    if len(shapes) != 1 or len(next(iter(shapes))) != 1:
        raise InputError(
            f"{path}: its t, x, y and p have the shapes {', '.join(str(c.shape) for c in columns)}, not one"
        )
    if any(column.dtype.kind not in "iufb" for column in columns):
        raise InputError(f"{path}: its t, x, y and p hold {', '.join(str(c.dtype) for c in columns)}, not numbers")
    polarity = Polarity(path, brighter)
    number = len(columns[0])
    return (
        as_piece(path, start, [column[start : start + ROWS] for column in columns], unit, polarity)
        for start in range(0, number, ROWS)
    )


def as_piece(path: Path | str, start: int, columns: Sequence[np.ndarray], unit: float, polarity: Polarity) -> Piece:
    """Return events from number `start` on, from columns of any type. InputError for an invalid number or time."""
    t, x, y, p = (np.asarray(column) for column in columns)

    def fault(is_bad: np.ndarray, what: str, values: np.ndarray) -> None:
        if is_bad.any():
            e = int(is_bad.argmax())
            raise InputError(f"{path}: event {start + e} has {what} {values[e]}; correct it{polarity.or_option}")

    if t.dtype.kind in "iu" and unit >= 1:
        fault(~(np.abs(t.astype(np.float64) * unit) < 2.0**62), "the time", t)
        times = t.astype(np.int64) * int(unit)
    else:
        us = t.astype(np.float64) * unit
        fault(~(np.abs(us) < 2.0**62), "the time", t)
        times = np.rint(us).astype(np.int64)
    for values, name in ((x, "x ="), (y, "y =")):
        if values.dtype != np.uint16:
            fault(~((values >= 0) & (values < 65536) & (values == np.floor(values))), name, values)
    return Piece(times, x.astype(np.uint16), y.astype(np.uint16), polarity(p, start))


class Polarity:
    """A mapping of polarities 0 and 1, or -1 and 1, to 0 and 1; a polarity given as brighter becomes 1.

    A file with both 0 and -1 is refused.
    """

    def __init__(self, path: Path | str, brighter: float | None = None, is_file: bool = True):
        self.path, self.brighter, self.seen = path, brighter, set()
        self.or_option = ", or see --columns" if is_file else ""  # for messages
        self.remedy = f"say which is brighter by --brighter{self.or_option}" if is_file else "correct it"

    def __call__(self, values: np.ndarray, start: int) -> np.ndarray:
        if self.brighter is not None:
            return (values == self.brighter).astype(np.uint8)
        if values.dtype.kind == "b":
            return values.astype(np.uint8)
        is_known = (values == 0) | (values == 1) | (values == -1)
        if not is_known.all():
            e = int((~is_known).argmax())
            raise InputError(
                f"{self.path}: event {start + e} has the polarity {values[e]}; it must be 0 or 1, or -1 or 1; "
                f"{self.remedy}"
            )
        self.seen |= {value for value in (0, -1) if (values == value).any()}
        if len(self.seen) == 2:
            raise InputError(
                f"{self.path}: has the polarities 0 and -1 (by event {start + len(values) - 1}); use 0 and 1"
            )
        return (values == 1).astype(np.uint8)


def _unreadable(path: Path, what: str, error: Exception) -> InputError:
    reason = " ".join(str(error).split())
    return InputError(
        f"{path}: not a readable {what} file, perhaps truncated; fetch it again, or leave it out ({reason:.100})"
    )
