"""Readers of AEDAT 2 and 3.1, by iniVation and jAER.

Definitions: https://docs.inivation.com/software/software-advanced-usage/file-formats; for the addresses of AEDAT 2 the
classes of jAER, which writes these files and reads bit 0 of a DVS128 in the opposite way to that page.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from datasets.prepare.cameras.pieces import LONGEST_HEADER, Clock, Piece, Said, Size, beginning, blocks
from snn.errors import InputError

CHIPS = (("dvs128", (128, 128)), ("davis128", (128, 128)), ("davis208", (192, 208)), ("davis240", (180, 240)))
CHIPS += (("davis346", (260, 346)), ("davis640", (480, 640)), ("dvxplorer", (480, 640)))


def _chip(text: str) -> tuple[str | None, Size | None]:
    """Find the camera that a header names, and the size of its sensor."""
    return next(((name, size) for name, size in CHIPS if name in text.lower()), (None, None))


def open_aedat2(path: Path, said: Said) -> tuple[Size | None, Iterator[Piece]]:
    """Open a file with the addresses of jAER's classes; the origin, at the lower right, becomes the upper left.

    DVS128: bit 15 marks other data than events, y in 14-8, x in 7-1, bit 0 is 0 for brighter. DAVIS: bits 31 and 10
    mark other data, y in 30-22, x in 21-12, bit 11 is 1 for brighter. Time: 32 bits, in µs.
    """
    with path.open("rb") as file:
        content = file.read(LONGEST_HEADER)
    header = re.match(rb"(#[\t\x20-\xff]*\r?\n)*?(#End Of ASCII Header\r?\n)|(#[\t\x20-\xff]*\r?\n)*", content)
    chip, found = _chip(header[0].decode("latin-1"))
    layout = {"aedat2-dvs128": "dvs", "aedat2-davis": "davis"}.get(said.format or "", (chip or "")[:3])
    if not layout:
        raise InputError(
            f"{path}: its header does not name the camera; choose how to read it with --format aedat2-dvs128 or "
            "aedat2-davis"
        )
    size = found or said.size
    if size is None:
        raise InputError(f"{path}: does not say the size of its sensor; give it with --sensor HEIGHTxWIDTH")
    height, width = size

    def pieces() -> Iterator[Piece]:
        clock = Clock()
        for words in blocks(path, header.end(), ">u8", "an event"):
            address, ticks = (words >> np.uint64(32)).astype(np.int64), (words & np.uint64(0xFFFFFFFF)).astype(np.int64)
            times = clock(ticks)
            if layout == "dvs":
                is_event = address & 0xFFFF8000 == 0
                y, x, p = address >> 8 & 0x7F, address >> 1 & 0x7F, 1 - (address & 1)
            else:
                is_event = address & 0x80000400 == 0
                y, x, p = address >> 22 & 0x1FF, address >> 12 & 0x3FF, address >> 11 & 1
            x, y = width - 1 - x, height - 1 - y  # a negative value, beyond the sensor, becomes large
            yield Piece(times[is_event], *(c[is_event].astype(np.uint16) for c in (x, y)), p[is_event].astype(np.uint8))

    return found, pieces()


# Of each AEDAT 3.1 packet, little endian: type, source, size of an event, offset of its time, overflows of the clock,
# capacity, number, valid. Polarity, type 1: x in bits 17-31, y in 2-16, polarity in 1, valid in 0; then time, 31 bits.
PACKET_HEADER = struct.Struct("<HHIIIIII")
POLARITY, POLARITY_SIZE, KINDS = 1, 8, 128
AEDAT3_HEADER = re.compile(rb"#!AER-DAT3\.1\r?\n(#.*\n)*?#!END-HEADER\r?\n")


def open_aedat3(path: Path, said: Said) -> tuple[Size | None, Iterator[Piece]]:
    header, packets = aedat3_packets(path)
    return _chip(header)[1], _Valid(packets)


class _Valid(Iterator[Piece]):
    """An iterator over the valid events of packets, which counts the others."""

    def __init__(self, packets: Iterator[tuple[Piece, int]]):
        self.packets, self.invalid = packets, 0

    def __next__(self) -> Piece:
        piece, others = next(self.packets)
        self.invalid += others
        return piece


def aedat3_packets(path: Path) -> tuple[str, Iterator[tuple[Piece, int]]]:
    """Return the header, and for each packet in its order the valid brightness changes and the number of others."""
    header = AEDAT3_HEADER.match(beginning(path, LONGEST_HEADER))
    if header is None:
        raise InputError(f"{path}: not an AEDAT 3.1 file: it has no header from #!AER-DAT3.1 to #!END-HEADER")
    return header[0].decode("latin-1"), _aedat3_packets(path, header.end())


def _aedat3_packets(path: Path, start: int) -> Iterator[tuple[Piece, int]]:
    size_of_file = path.stat().st_size
    with path.open("rb") as file:
        while start < size_of_file:
            file.seek(start)
            head = file.read(PACKET_HEADER.size)
            truncated = InputError(
                f"{path}: is truncated within the packet at byte {start}; fetch it again, or keep the complete part "
                f"with: truncate -s {start} {path}"
            )
            if len(head) < PACKET_HEADER.size:
                raise truncated
            kind, _, size, _, overflow, capacity, number, _ = PACKET_HEADER.unpack(head)
            if (
                number > capacity
                or kind >= KINDS
                or (kind == POLARITY and size != POLARITY_SIZE)
                or (number and not size)
            ):
                raise InputError(
                    f"{path}: damaged, the packet at byte {start} is of type {kind} and has {number} of {capacity} "
                    f"events of {size} bytes; fetch it again"
                )
            start += PACKET_HEADER.size + number * size
            if start > size_of_file:
                raise truncated
            if kind == POLARITY:
                words = np.frombuffer(file.read(number * size), "<u4").reshape(-1, 2)
                is_valid = words[:, 0] & 1 == 1
                address, ticks = words[is_valid].astype(np.int64).T
                x, y, p = address >> 17 & 0x7FFF, address >> 2 & 0x7FFF, address >> 1 & 1
                times = (ticks & 0x7FFFFFFF) + (overflow << 31)
                piece = Piece(times, x.astype(np.uint16), y.astype(np.uint16), p.astype(np.uint8))
                yield piece, int((~is_valid).sum())
