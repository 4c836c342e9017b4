"""Recordings piece by piece: the types that all readers share, and the reading of files of words."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from snn.errors import InputError

BLOCK = 2**18  # bytes that are read at once
LONGEST_HEADER = 2**18  # bytes
Size = tuple[int, int]  # height, width


class Piece(NamedTuple):
    """Some events in the order of the file."""

    t: np.ndarray  # [events] int64, µs
    x: np.ndarray  # [events] uint16
    y: np.ndarray  # [events] uint16
    p: np.ndarray  # [events] uint8


@dataclass(frozen=True)
class Said:
    """The properties of the files that the user has given; None for those not given."""

    format: str | None = None
    size: tuple[int, int] | None = None  # height, width
    time_unit: str | None = None
    columns: tuple[str, ...] | None = None
    brighter: float | None = None  # the polarity of an increase in brightness


def rows_x_columns(text: str) -> Size:
    """Parse the size of a sensor from the command line."""
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    if match is None or not (0 < int(match[1]) <= 2**14 and 0 < int(match[2]) <= 2**14):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 128x128: rows x columns")
    return int(match[1]), int(match[2])


def beginning(path: Path, size: int) -> bytes:
    """Return the first bytes. InputError if there are none."""
    try:
        with path.open("rb") as file:
            start = file.read(size)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from error
    if not start:
        raise InputError(f"{path}: is empty (0 bytes); fetch it again, or leave it out")
    return start


def blocks(path: Path, start: int, dtype: str, what: str) -> Iterator[np.ndarray]:
    """Yield the file's words after its header. InputError at its end if it is truncated within a word."""
    size = np.dtype(dtype).itemsize
    with path.open("rb") as file:
        file.seek(start)
        place = start
        while content := file.read(max(BLOCK // size, 1) * size):
            whole = len(content) // size * size
            yield np.frombuffer(content[:whole], dtype)
            place += whole
            if whole < len(content):
                raise InputError(
                    f"{path}: is truncated at byte {place}, within {what} of {size} bytes; fetch it again, or keep the "
                    f"complete part with: truncate -s {place} {path}"
                )


def header_lines(path: Path, mark: bytes) -> tuple[dict[str, str], int]:
    """Return the lines "% keyword value" at the head of a file, and where they end."""
    with path.open("rb") as file:
        content = file.read(LONGEST_HEADER)
    fields, place = {}, 0
    while content.startswith(mark, place):
        end = content.find(b"\n", place)
        line = content[place : end if end >= 0 else len(content)]
        if end < 0 or len(line) > 4096:
            break
        words = line[len(mark) :].decode("latin-1").split(None, 1)
        place = end + 1
        if words:
            fields[words[0].rstrip(":").lower()] = words[1].strip() if len(words) > 1 else ""
        if words[:1] == ["end"]:
            break
    return fields, place


class Clock:
    """A 32-bit counter turned into ascending times: if it falls by half its range or more, it has overflowed."""

    def __init__(self):
        self.last, self.loops = None, 0

    def __call__(self, ticks: np.ndarray) -> np.ndarray:
        if not len(ticks):
            return ticks
        before = np.concatenate([ticks[:1] if self.last is None else [self.last], ticks[:-1]])
        self.last = ticks[-1]
        loops = self.loops + np.cumsum(before - ticks >= 2**31)
        self.loops = loops[-1]
        return ticks + (loops << 32)
