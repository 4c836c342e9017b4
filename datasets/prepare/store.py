"""A file of recordings that grows one by one, in the layout of the Spiking Heidelberg Digits.

Times are whole µs, so that an event at the edge of a bin falls into the right one. The attribute ticks_per_second says
so; without it, as in the published files, times are seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np

from datasets.prepare.recordings import sorted_names, spelled
from datasets.prepare.writer import ROW, make_room
from snn.classes import all_different
from snn.errors import InputError

TICKS_PER_SECOND = "ticks_per_second"  # HDF5 attribute: a number as text
MICROSECONDS = "1000000"
RECORDINGS_AT_ONCE, EVENTS_AT_ONCE = 1024, 2**16  # written together; the former also in a chunk of HDF5
LONGEST_US = 2**32 - 1


class Store:
    """The recordings of one file: `append` each, then `finish`."""

    def __init__(self, file: h5py.File, num_units: int):
        self.file, self.number = file, 0
        self.waiting: list[tuple[np.ndarray, np.ndarray]] = []  # times and units of recordings that are not written yet
        self.events = 0  # of these
        self.types = np.uint32, np.uint16 if num_units <= 2**16 else np.uint32
        self.lists = [
            file.create_dataset(
                f"spikes/{name}", (0,), h5py.vlen_dtype(kind), maxshape=(None,), chunks=(RECORDINGS_AT_ONCE,)
            )
            for name, kind in zip(("times", "units"), self.types, strict=True)
        ]
        file.attrs[TICKS_PER_SECOND] = MICROSECONDS

    def append(self, times_us: np.ndarray, units: np.ndarray) -> None:
        """Add a recording: times [events], whole µs, ascending from 0 or later, and units [events]."""
        self.waiting.append((times_us, units))
        self.number += 1
        self.events += len(times_us)
        if self.events >= EVENTS_AT_ONCE or len(self.waiting) == RECORDINGS_AT_ONCE:
            self._write()
        else:  # copied, because a map of a file holds it open, and a part of an array the whole array
            self.waiting[-1] = times_us.copy(), units.copy()

    def _write(self) -> None:
        """Write the recordings that wait: a call of HDF5 takes longer than a hundred short lists within it."""
        number, columns = len(self.waiting), zip(*self.waiting, strict=True)
        self.waiting, self.events = [], 0
        for dataset, column, kind in zip(self.lists, columns, self.types, strict=True):
            make_room(self.file, sum(values.nbytes for values in column))
            rows = np.empty(number, h5py.vlen_dtype(kind))
            for k, values in enumerate(column):
                rows[k] = np.ascontiguousarray(values, kind)
            dataset.resize((self.number,))
            place = dataset.id.get_space()
            place.select_hyperslab((self.number - number,), (number,))
            # h5py's own indexing takes lists of the same length for a matrix
            dataset.id.write(h5py.h5s.create_simple((number,)), place, rows, h5py.h5t.py_create(rows.dtype))

    def finish(
        self,
        labels: Sequence[int | str],
        class_names: Sequence[str] | None,
        subjects: Sequence[int | str | None],
        where: Path,
        files: Sequence[int] | None = None,
    ) -> None:
        """Write labels and subjects, names numbered in sorted order or numbers from 0; all subjects may be None.

        With `class_names`, the number of a name is its place there. `where` is the file, for messages. `files` is the
        number of the file that each recording was cut from, if one gave several: they are held out together.
        """
        if not self.number:
            raise InputError(f"{where}: there are no recordings to write")
        if self.waiting:
            self._write()
        make_room(self.file, ROW * self.number)
        numbers, names = numbered(labels, class_names, f"{where}: the label")
        self.file["labels"] = numbers
        if names is not None:
            self.file.create_dataset("extra/keys", data=list(names), dtype=h5py.string_dtype())
        if any(subject is not None for subject in subjects):
            if None in subjects:
                raise InputError(f"{where}: recording {subjects.index(None)} names no subject, but others do")
            self.file["extra/speaker"] = numbered(subjects, None, f"{where}: the subject")[0]
        if files is not None:
            self.file["extra/file"] = np.array(files, np.uint32)


def numbered(
    values: Sequence[int | str], names: Sequence[str] | None, what: str
) -> tuple[np.ndarray, Sequence[str] | None]:
    """Return names as numbers, and all names in order, in one spelling each; numbers stay, and need no names.

    InputError, which calls the values `what`, if they do not fit each other or the names.
    """
    if names is not None:
        if not all(isinstance(name, str) for name in names):
            raise InputError(f"{what}: the names of the classes must be texts, not {names!r:.80}")
        names = all_different(tuple(spelled(name, f"{what}: the class") for name in names), what)
    if all(isinstance(value, str) for value in values):
        spelling = {value: spelled(value, what) for value in set(values)}
        values = [spelling[value] for value in values]
        names = sorted_names(values) if names is None else names
        places = {name: k for k, name in enumerate(names)}
        if unknown := [value for value in values if value not in places]:
            raise InputError(f"{what} {unknown[0]!r:.40} is not one of the classes {', '.join(names):.80}")
        return np.array([places[value] for value in values], np.uint16), names
    if names_among := [value for value in values if isinstance(value, str)]:
        number = next(value for value in values if not isinstance(value, str))
        raise InputError(f"{what}s mix names and numbers, such as {names_among[0]!r:.40} and {number!r:.40}; use one")
    whole = [isinstance(value, int | np.integer) and 0 <= value < 2**16 for value in values]
    if not all(whole):
        raise InputError(f"{what} {values[whole.index(False)]!r:.40} is neither a name nor a number from 0 to 65535")
    if names is not None and max(values) >= len(names):
        raise InputError(f"{what} {max(values)} has no name: there are {len(names)} names")
    return np.array(values, np.uint16), names
