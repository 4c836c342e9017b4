"""Recordings as event cameras and other tools write them, read piece by piece: `open_recording`.

Each module reads one family of formats and names its definition. Most are decoded here, because no library had all of
them right when they were compared (November 2026). At a repeated EVT3 TIME_HIGH, evt3 0.4.1 forgets the low bits. faery
0.7.1 uses the largest time so far as the time, misses the counter's overflow, and returns the whole part of a truncated
file without a warning. expelliarmus 1.1.12 mistakes a low part that steps back for an overflow. faery refuses the DAT
files of N-CARS, and evlib 0.13.2 reads them as text. faery reads AEDAT 4, and .es of an ATIS, in a process of its own
(foreign.py). ROS bags are left out, because their readers build an object for every event; convert them to .npz.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from datasets.prepare.cameras import aedat, event_stream, foreign, nmnist, prophesee, tables
from datasets.prepare.cameras.pieces import Piece, Said, Size, beginning
from snn.errors import InputError


@dataclass(frozen=True)
class Opened:
    """A recording whose events have not been read yet."""

    path: Path
    height: int
    width: int
    pieces: Iterator[Piece]  # with the file's own times, in µs; not checked yet

    @property
    def invalid(self) -> int:
        """Return how many events so far were left out because the camera's software marked them invalid (AEDAT 3.1)."""
        return getattr(self.pieces, "invalid", 0)


class Format(NamedTuple):
    """A format: its name, its first bytes, and its reader."""

    suffixes: tuple[str, ...]
    begins: re.Pattern[bytes] | None  # its first bytes, if it has a header
    open: Callable[[Path, Said], tuple[Size | None, Iterator[Piece]]]
    title: str


def open_recording(path: Path, said: Said) -> Opened:
    """Find the format and the size of the sensor. InputError, with a remedy, if either is neither found nor given.

    The name gives the format, and the first bytes must agree; for a .raw, the header gives the format.
    """
    start = beginning(path, 64)
    name = said.format or _by_name(path, start)
    kind = FORMATS[name]
    if kind.begins is not None and not kind.begins.match(start):
        others = (other for other in FORMATS.values() if other.suffixes and other.begins)
        looks = next((other.title for other in others if other.begins.match(start)), None)
        raise InputError(
            f"{path}: not a {kind.title} file by its first bytes {start[:8]!r}"
            + (
                f"; it looks like {looks}: rename it, or give --format"
                if looks
                else "; fetch it again, or leave it out"
            )
        )
    found, pieces = kind.open(path, said)
    if found and said.size and found != said.size:
        raise InputError(
            f"{path}: says that its sensor has {found[0]}x{found[1]} pixels (height x width), but --sensor says "
            f"{said.size[0]}x{said.size[1]}; leave --sensor out"
        )
    size = found or said.size
    if size is None:
        raise InputError(f"{path}: does not say the size of its sensor; give it with --sensor HEIGHTxWIDTH")
    return Opened(path, *size, pieces)


def _by_name(path: Path, start: bytes) -> str:
    names = _named_so(path)
    if not names:
        known = ", ".join(sorted({s for kind in FORMATS.values() for s in kind.suffixes}))
        raise InputError(f"{path}: not named like a recording ({known}); rename it, or give --format")
    fitting = [name for name in names if FORMATS[name].begins is not None and FORMATS[name].begins.match(start)]
    return (fitting or names)[0]


def _named_so(path: Path) -> list[str]:
    """Return the formats whose files may have this name."""
    return [name for name, kind in FORMATS.items() if path.suffix.lower() in kind.suffixes]


def is_recording(path: Path) -> bool:
    """Return whether a file has the name of a recording."""
    return bool(_named_so(path))


def states_all(path: Path, format: str | None) -> bool:
    """Return whether a file is known to be no table, whose columns, unit and polarities the user may have to give."""
    names = [format] if format else _named_so(path)
    if names == ["metavision"]:
        return tables.states_all(path)
    return bool(names) and not TABLES.intersection(names)


TABLES = {"npy", "npz", "csv"}
RAW = re.compile(rb"% ")
HDF5 = re.compile(rb"\x89HDF\r\n\x1a\n")
TEXT = re.compile(rb"(\xef\xbb\xbf)?[\t\r\n\x20-\x7e\x80-\xff]*\Z")
FORMATS = {
    "raw": Format((".raw",), RAW, prophesee.open_raw, "Prophesee RAW"),
    "evt2": Format((), None, prophesee.open_raw, "EVT2"),
    "evt21": Format((), None, prophesee.open_raw, "EVT2.1"),
    "evt3": Format((), None, prophesee.open_raw, "EVT3"),
    "dat": Format((".dat",), re.compile(rb"%"), prophesee.open_dat, "DAT"),
    "aedat2": Format((".aedat", ".aedat2"), re.compile(rb"#!AER-DAT2\.0"), aedat.open_aedat2, "AEDAT 2"),
    "aedat3": Format((".aedat", ".aedat3"), re.compile(rb"#!AER-DAT3\.1"), aedat.open_aedat3, "AEDAT 3.1"),
    "aedat2-dvs128": Format((), re.compile(rb"#"), aedat.open_aedat2, "AEDAT 2"),
    "aedat2-davis": Format((), re.compile(rb"#"), aedat.open_aedat2, "AEDAT 2"),
    "aedat4": Format((".aedat4",), re.compile(rb"#!AER-DAT4\.0"), foreign.open_by_faery, "AEDAT 4"),
    "es": Format((".es",), re.compile(rb"Event Stream"), event_stream.open_es, "Event Stream"),
    "metavision": Format((".hdf5", ".h5"), HDF5, tables.open_hdf5, "HDF5"),
    "nmnist": Format((".bin",), None, nmnist.open_bin, "N-MNIST"),
    "npy": Format((".npy",), re.compile(rb"\x93NUMPY"), tables.open_npy, "numpy .npy"),
    "npz": Format((".npz",), re.compile(rb"PK\x03\x04"), tables.open_npz, "numpy .npz"),
    "csv": Format((".csv", ".tsv"), TEXT, tables.open_csv, "CSV"),
}
