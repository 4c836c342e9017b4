"""Events as Metavision compresses them in HDF5 (its filter 0x8ECF), chunk by chunk.

They are decoded here, because the vendor's plugin must be built by hand and evlib 0.13.2 refuses, or misreads, complete
files that follow the format (November 2026). The only description is the vendor's codec,
github.com/prophesee-ai/hdf5_ecf, under the Apache License 2.0; `_decode` was written from the layout found there, not
from its text.

A chunk has a word with flags and the number of events, the first time in 64 bits, then times, rows, columns and
polarities, each encoded as the flags say.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np

from datasets.prepare.cameras.pieces import Piece
from snn.compiling import inlined, kernel
from snn.errors import InputError

FILTER = 0x8ECF
HEAD = 12  # bytes
MOST = 65535  # events of a chunk


def is_compressed(dataset: h5py.Dataset) -> bool:
    """Return whether the data set uses the filter."""
    plist = dataset.id.get_create_plist()
    return FILTER in [plist.get_filter(k)[0] for k in range(plist.get_nfilters())]


def pieces(path: Path, dataset: h5py.Dataset) -> Iterator[Piece]:
    """Yield the events in order, one piece for each chunk."""
    plist, total = dataset.id.get_create_plist(), len(dataset)
    if plist.get_nfilters() != 1 or not dataset.chunks:
        raise InputError(
            f"{path}: /CD/events has other filters besides Metavision's; write it again with only that one"
        )
    chunks = [dataset.id.get_chunk_info(k) for k in range(dataset.id.get_num_chunks())]
    starts = {chunk.chunk_offset[0]: chunk for chunk in chunks if not chunk.filter_mask}
    with path.open("rb") as file:
        for start in range(0, total, dataset.chunks[0]):
            wanted = min(dataset.chunks[0], total - start)
            damaged = InputError(f"{path}: damaged, or truncated, at the chunk of event {start}; fetch it again")
            if start not in starts:
                raise damaged
            content = os.pread(file.fileno(), min(starts[start].size, 16 * MOST), starts[start].byte_offset)
            if len(content) < HEAD:
                raise damaged
            number = int.from_bytes(content[:4], "little")
            if not wanted <= number >> 2 <= MOST:
                raise damaged
            n = number >> 2
            piece = Piece(np.empty(n, np.int64), *np.empty((2, n), np.uint16), np.empty(n, np.uint8))
            if not _decode(np.frombuffer(content, np.uint8), number & 3, *piece):
                raise damaged
            yield Piece(*(column[:wanted] for column in piece))  # the last chunk is filled up with zeros


# Twelve digits hold four numbers of three, the lowest first: the places of the high, middle and low digit of each.
PACKED = np.array(((3, 2, 1), (7, 6, 0), (11, 5, 4), (10, 9, 8)))


@inlined
def _word(content, place):
    return np.int64(content[place]) | np.int64(content[place + 1]) << 8


@inlined
def _packed_bytes(content, place, k):
    """Return the k-th number of 24 bits, whose digits are bytes."""
    high, middle, low = PACKED[k % 4]
    start = place + 12 * (k // 4)
    return np.int64(content[start + high]) << 16 | np.int64(content[start + middle]) << 8 | content[start + low]


@inlined
def _packed_halves(content, place, k):
    """Return the k-th number of 12 bits, whose digits are half bytes."""
    value, start = np.int64(0), place + 6 * (k // 4)
    for digit in PACKED[k % 4]:
        value = value << 4 | content[start + digit // 2] >> 4 * (digit % 2) & 15
    return value


@kernel
def _decode(content, flags, t, x, y, p):
    """Write the events of a chunk; return whether it is whole.

    Times: a byte of step and count; a step of 15 puts four bits of a longer step before it, a count of 15 puts 16 bits
    after it. Flag 2: y, x and p in 11, 11 and 1 of 24 bits each. Without flag 2, rows: y in 11 bits and its count in 5,
    where 31 puts 16 bits after it. Then, with flag 1, x and p in 12 bits each. Without flag 1, columns: x in 11 bits,
    and one of 5 bits for each event that follows at the next pixels; then polarities: one bit and its count in 7, where
    127 puts 16 bits after it.
    """
    n, end, place = len(t), len(content), HEAD
    time = np.int64(0)
    for k in range(8):
        time |= np.int64(content[4 + k]) << (8 * k)
    done, step, shift = 0, np.int64(0), 0
    while done < n:
        if place + 3 > end:
            return False
        high, count = np.int64(content[place] >> 4), np.int64(content[place] & 15)
        place += 1
        if high == 15:
            if shift > 56:
                return False
            step |= count << shift
            shift += 4
            continue
        if count == 15:
            count = _word(content, place)
            place += 2
        if done + count > n:
            return False
        time += step + high
        step, shift = np.int64(0), 0
        t[done : done + count] = time
        done += count
    groups = (n + 3) // 4
    if flags & 2:
        if place + 12 * groups > end:
            return False
        for k in range(n):
            bits = _packed_bytes(content, place, k)
            y[k], x[k], p[k] = bits >> 12 & 0x7FF, bits >> 1 & 0x7FF, bits & 1
        return True
    done = 0
    while done < n:
        if place + 4 > end:
            return False
        row, count = _word(content, place) >> 5, _word(content, place) & 31
        place += 2
        if count == 31:
            count = _word(content, place)
            place += 2
        if done + count > n or count == 0:
            return False
        y[done : done + count] = row
        done += count
    if flags & 1:
        if place + 6 * groups > end:
            return False
        for k in range(n):
            bits = _packed_halves(content, place, k)
            x[k], p[k] = bits >> 1, bits & 1
        return True
    done = 0
    while done < n:
        if place + 2 > end:
            return False
        column, mask = _word(content, place) >> 5, _word(content, place) & 31
        place += 2
        x[done] = column
        done += 1
        for k in range(1, 6):
            if mask >> (5 - k) & 1:
                if done == n:
                    return False
                x[done] = column + k
                done += 1
    done = 0
    while done < n:
        if place >= end:
            return False
        polarity, count = content[place] >> 7, np.int64(content[place] & 127)
        place += 1
        if count == 127:
            if place + 2 > end:
                return False
            count = _word(content, place)
            place += 2
        if done + count > n or count == 0:
            return False
        p[done : done + count] = polarity
        done += count
    return True
