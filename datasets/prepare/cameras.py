"""Recordings as event cameras and other tools write them, read piece by piece: `open_recording`.

Most formats are decoded here, because no library had all of them right when they were compared (November 2026): of a
repeated EVT3 TIME_HIGH evt3 0.4.1 forgets the low bits; faery 0.7.1 takes the largest time so far for the time, misses
the counter's overflow, and gives what is whole of a truncated file without a word; expelliarmus 1.1.12 takes a low part
that steps back for an overflow; faery refuses N-CARS' DAT, evlib 0.13.2 reads it as text. AEDAT 4, and .es of an ATIS,
are faery's, in a process of its own (datasets/prepare/foreign.py). ROS bags are left out: their readers build an object
for every event; convert them to .npz.

Definitions: https://docs.prophesee.ai/stable/data/encoding_formats (and, where the text is silent, OpenEB's decoders),
https://docs.inivation.com/software/software-advanced-usage/file-formats, for the addresses of AEDAT 2 jAER's classes.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datasets.prepare import foreign, tables
from datasets.prepare.tables import Piece, Said
from snn.compiling import inlined, kernel
from snn.errors import InputError

BLOCK = 2**18  # bytes that are read at once
LONGEST_HEADER = 2**18  # bytes
Size = tuple[int, int]  # height, width


@dataclass(frozen=True)
class Opened:
    """A recording whose events have not been read yet."""

    path: Path
    height: int
    width: int
    pieces: Iterator[Piece]  # with the times of the file in µs; not checked yet

    @property
    def invalid(self) -> int:
        """Events among those read so far that the camera's software marked invalid (AEDAT 3.1), left out."""
        return getattr(self.pieces, "invalid", 0)


class Format(NamedTuple):
    """Tell a format, and say how it is read."""

    suffixes: tuple[str, ...]
    begins: re.Pattern[bytes] | None  # its first bytes, where it has a header
    open: Callable[[Path, Said], tuple[Size | None, Iterator[Piece]]]
    title: str


def open_recording(path: Path, said: Said) -> Opened:
    """Find the format and the size of the sensor. InputError, with a remedy, if either is neither found nor said.

    A format is told by the name, and the first bytes must agree; a .raw by its header.
    """
    start = _beginning(path, 64)
    name = said.format or _by_name(path, start)
    kind = FORMATS[name]
    if kind.begins is not None and not kind.begins.match(start):
        others = (other for other in FORMATS.values() if other.suffixes and other.begins)
        looks = next((other.title for other in others if other.begins.match(start)), None)
        raise InputError(
            f"{path}: no {kind.title} file by its first bytes {start[:8]!r}"
            + (f"; it looks like {looks}: rename it, or say --format" if looks else "; fetch it again, or leave it out")
        )
    found, pieces = kind.open(path, said)
    if found and said.size and found != said.size:
        raise InputError(
            f"{path}: says that its sensor has {found[0]}x{found[1]} pixels (height x width), and --sensor "
            f"{said.size[0]}x{said.size[1]}; leave --sensor out"
        )
    size = found or said.size
    if size is None:
        raise InputError(f"{path}: does not say the size of its sensor; say it by --sensor HEIGHTxWIDTH")
    return Opened(path, *size, pieces)


def _beginning(path: Path, size: int) -> bytes:
    """The first bytes. InputError if there are none."""
    try:
        with path.open("rb") as file:
            start = file.read(size)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from error
    if not start:
        raise InputError(f"{path}: is empty (0 bytes); fetch it again, or leave it out")
    return start


def _by_name(path: Path, start: bytes) -> str:
    suffix = path.suffix.lower()
    names = [name for name, kind in FORMATS.items() if suffix in kind.suffixes]
    if not names:
        known = ", ".join(sorted({s for kind in FORMATS.values() for s in kind.suffixes}))
        raise InputError(f"{path}: no recording by its name; known are {known}, others by --format")
    fitting = [name for name in names if FORMATS[name].begins is not None and FORMATS[name].begins.match(start)]
    return (fitting or names)[0]


def is_recording(path: Path) -> bool:
    """Return whether a file's name is that of a recording."""
    return any(path.suffix.lower() in kind.suffixes for kind in FORMATS.values())


# ---- words of a fixed size, block by block


def _blocks(path: Path, start: int, dtype: str, what: str) -> Iterator[np.ndarray]:
    """The file's words after its header. InputError at its end if it breaks off within one."""
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
                    f"{path}: breaks off at byte {place}, within {what} of {size} bytes; fetch it again, or keep what "
                    f"is whole by: truncate -s {place} {path}"
                )


def _header(path: Path, mark: bytes) -> tuple[dict[str, str], int]:
    """The lines "% keyword value" at the head of a file, and where they end."""
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


# ---- Prophesee RAW

# What a header without its geometry says by the name of the camera's generation.
GENERATIONS = (
    (r"genx320", (320, 320)),
    (r"imx636|imx646|gen\s?4|^4\.", (720, 1280)),
    (r"gen\s?3|^3\.", (480, 640)),
)
EVT = {"2.0": "evt2", "2": "evt2", "2.1": "evt21", "3.0": "evt3", "3": "evt3", "EVT2": "evt2", "EVT21": "evt21"}
EVT |= {"EVT3": "evt3"}


def _open_raw(path: Path, said: Said) -> tuple[Size | None, Iterator[Piece]]:
    fields, start = _header(path, b"% ")
    described = fields.get("format", "").split(";")
    version = described[0] or fields.get("evt", "")
    options = dict(part.split("=", 1) for part in described[1:] if "=" in part)
    name = EVT.get(version)
    if said.format in DECODERS:
        if name is not None and name != said.format:
            raise InputError(f"{path}: says that it is {name}, and --format {said.format}; leave --format out")
        name = said.format
    if name is None:
        raise InputError(
            f"{path}: its header names the encoding {version!r:.40}, which is not read; record EVT3, EVT2.1 or EVT2"
            if version
            else f"{path}: has no header that names its encoding; say it by --format evt2, evt21 or evt3"
        )
    if "big" in (fields.get("endianness"), options.get("endianness")):
        raise InputError(f"{path}: is written with the highest byte first, which is not read; record little-endian")
    decode, dtype, swap = DECODERS[name]
    is_swapped = swap and (options.get("endianness") == "legacy" or fields.get("endianness") == "legacy")
    return _raw_size(fields, options, path), _decoded(path, start, decode, dtype, is_swapped)


def _raw_size(fields: dict[str, str], options: dict[str, str], path: Path) -> Size | None:
    sizes = (options.get("height"), options.get("width")), tuple(fields.get("geometry", "").split("x")[::-1])
    sizes += ((fields.get("height"), fields.get("width")),)
    for size in sizes:
        if len(size) == 2 and all(size):
            if not all(number.isdecimal() and 0 < int(number) <= 2**14 for number in size):
                raise InputError(
                    f"{path}: its header says that its sensor has {size[0]!r:.20} x {size[1]!r:.20} pixels"
                )
            return int(size[0]), int(size[1])
    for key in ("sensor_generation", "generation", "sensor_name", "plugin_name"):
        for pattern, size in GENERATIONS:
            if re.search(pattern, fields.get(key, ""), re.IGNORECASE):
                return size
    return None


def _decoded(path: Path, start: int, decode: Callable, dtype: str, is_swapped: bool) -> Iterator[Piece]:
    state = np.zeros(7, np.int64)
    for words in _blocks(path, start, dtype, "a word"):
        if is_swapped:  # the two halves of each word come the other way round
            words = words >> np.uint64(32) | words << np.uint64(32)
        piece = Piece(*(np.empty(_count(words, dtype), kind) for kind in (np.int64, np.uint16, np.uint16, np.uint8)))
        n = decode(words, state, *piece)
        yield Piece(*(column[:n] for column in piece))


def _count(words: np.ndarray, dtype: str) -> int:
    """At most so many events are in these words."""
    return len(words) if dtype == "<u4" else int(_bits_of_vectors(words, dtype == "<u8"))


@inlined
def _ones(bits):
    """Return how many of 32 bits are 1."""
    bits = bits - (bits >> 1 & 0x55555555)
    bits = (bits & 0x33333333) + (bits >> 2 & 0x33333333)
    return ((bits + (bits >> 4) & 0x0F0F0F0F) * 0x01010101 & 0xFFFFFFFF) >> 24


@kernel
def _bits_of_vectors(words, is_evt21):
    total = 0
    for k in range(len(words)):
        word = np.uint64(words[k])
        if is_evt21:
            total += _ones(np.int64(word & np.uint64(0xFFFFFFFF))) if word >> np.uint64(60) < 2 else 0
        else:
            kind = word >> np.uint64(12)
            if kind == 2:
                total += 1
            elif kind == 4:
                total += _ones(np.int64(word & np.uint64(0xFFF)))
            elif kind == 5:
                total += _ones(np.int64(word & np.uint64(0xFF)))
    return total


@kernel
def _decode_evt3(words, state, t, x, y, p):
    """Write the events of 16-bit words; how many. `state` goes on from block to block.

    A TIME_LOW replaces the low 12 bits of the time, whichever way it goes. A TIME_HIGH that changes the high bits sets
    the low ones to 0 (as OpenEB's decoder does; a TIME_LOW follows), one that repeats them changes nothing, and one
    that falls by half its range or more has overflowed. What comes before the first TIME_HIGH has no time and is left
    out.
    """
    has_time, high, loops, low, row, base, polarity = (
        state[0], state[1], state[2], state[3], state[4], state[5], state[6],
    )  # fmt: skip
    n = 0
    for k in range(len(words)):
        word = np.int64(words[k])
        kind, value = word >> 12, word & 0xFFF
        if kind == 8:
            loops += 1 if has_time and high >= value + 2048 else 0
            low = low if has_time and high == value else 0
            has_time, high = 1, value
        elif not has_time:
            continue
        elif kind == 6:
            low = value
        elif kind == 0:
            row = value & 0x7FF
        elif kind == 3:
            base, polarity = value & 0x7FF, value >> 11
        elif kind == 2:
            t[n], x[n], y[n], p[n] = (loops << 12 | high) << 12 | low, value & 0x7FF, row, value >> 11
            n += 1
        elif kind == 4 or kind == 5:
            bits = value if kind == 4 else value & 0xFF
            time, column = (loops << 12 | high) << 12 | low, base
            while bits:
                if bits & 1:
                    t[n], x[n], y[n], p[n] = time, min(column, 65535), row, polarity
                    n += 1
                bits >>= 1
                column += 1
            base += 12 if kind == 4 else 8
    state[0], state[1], state[2], state[3], state[4], state[5], state[6] = (
        has_time,
        high,
        loops,
        low,
        row,
        base,
        polarity,
    )
    return n


@kernel
def _decode_evt2(words, state, t, x, y, p):
    """As `_decode_evt3`, of 32-bit words: an event carries the low 6 bits of its time, a TIME_HIGH the 28 above."""
    has_time, high, loops = state[0], state[1], state[2]
    n = 0
    for k in range(len(words)):
        word = np.int64(words[k])
        kind = word >> 28
        if kind == 8:
            value = word & 0xFFFFFFF
            loops += 1 if has_time and high >= value + 2**27 else 0
            has_time, high = 1, value
        elif kind < 2 and has_time:
            t[n], x[n], y[n] = (loops << 28 | high) << 6 | (word >> 22 & 0x3F), word >> 11 & 0x7FF, word & 0x7FF
            p[n] = kind
            n += 1
    state[0], state[1], state[2] = has_time, high, loops
    return n


@kernel
def _decode_evt21(words, state, t, x, y, p):
    """As `_decode_evt2`, of 64-bit words: the low half has a bit for each of 32 pixels from x on."""
    has_time, high, loops = state[0], state[1], state[2]
    n = 0
    for k in range(len(words)):
        upper, bits = np.int64(words[k] >> np.uint64(32)), np.int64(words[k] & np.uint64(0xFFFFFFFF))
        kind = upper >> 28
        if kind == 8:
            value = upper & 0xFFFFFFF
            loops += 1 if has_time and high >= value + 2**27 else 0
            has_time, high = 1, value
        elif kind < 2 and has_time:
            time, column, row = (loops << 28 | high) << 6 | (upper >> 22 & 0x3F), upper >> 11 & 0x7FF, upper & 0x7FF
            while bits:
                if bits & 1:
                    t[n], x[n], y[n], p[n] = time, column, row, kind
                    n += 1
                bits >>= 1
                column += 1
    state[0], state[1], state[2] = has_time, high, loops
    return n


# name -> kernel, type of its words, whether their halves may be swapped
DECODERS = {
    "evt2": (_decode_evt2, "<u4", False),
    "evt21": (_decode_evt21, "<u8", True),
    "evt3": (_decode_evt3, "<u2", False),
}


# ---- DAT


def _open_dat(path: Path, said: Said) -> tuple[Size | None, Iterator[Piece]]:
    """Type 0 is the ATIS's `2d`, 12 `cd`: a time in 32 bits, then x and y in 14 each and polarity in 4 (version 2).

    In version 1 they take 9, 8 and 1.
    """
    fields, start = _header(path, b"%")
    with path.open("rb") as file:
        file.seek(start)
        kind = file.read(2)
    if len(kind) < 2 or kind[0] not in (0, 12) or kind[1] != 8:
        raise InputError(
            f"{path}: no events of type 2d or cd, of 8 bytes, follow its header (at byte {start} are {kind.hex()!r}); "
            "fetch it again, or leave it out"
        )
    version = fields.get("version", "1")
    if version not in ("1", "2"):
        raise InputError(f"{path}: is DAT of version {version!r:.20}; versions 1 and 2 are read")
    layout = (0x3FFF, 14, 0x3FFF, 28, 0xF) if version == "2" else (0x1FF, 9, 0xFF, 17, 1)

    def pieces() -> Iterator[Piece]:
        clock = _Clock()
        mask_x, shift_y, mask_y, shift_p, mask_p = layout
        for words in _blocks(path, start + 2, "<u8", "an event"):
            ticks, address = (words & np.uint64(0xFFFFFFFF)).astype(np.int64), (words >> np.uint64(32)).astype(np.int64)
            x, y = (address & mask_x).astype(np.uint16), (address >> shift_y & mask_y).astype(np.uint16)
            yield Piece(clock(ticks), x, y, (address >> shift_p & mask_p).astype(np.uint8))

    return _raw_size(fields, {}, path), pieces()


class _Clock:
    """A counter of 32 bits as times that go on: where it falls by half its range or more, it has overflowed."""

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


# ---- iniVation's and jAER's AEDAT

CHIPS = (("dvs128", (128, 128)), ("davis128", (128, 128)), ("davis208", (192, 208)), ("davis240", (180, 240)))
CHIPS += (("davis346", (260, 346)), ("davis640", (480, 640)), ("dvxplorer", (480, 640)))


def _chip(text: str) -> tuple[str | None, Size | None]:
    """The camera that a header names, and the size of its sensor."""
    return next(((name, size) for name, size in CHIPS if name in text.lower()), (None, None))


def _open_aedat2(path: Path, said: Said) -> tuple[Size | None, Iterator[Piece]]:
    """Addresses as jAER's classes have them; its origin, at the lower right, becomes the upper left.

    DVS128: bit 15 something else than an event, y in 14-8, x in 7-1, bit 0 is 0 for brighter. DAVIS: bits 31 and 10
    something else, y in 30-22, x in 21-12, bit 11 is 1 for brighter. Time: 32 bits, in µs.
    """
    with path.open("rb") as file:
        content = file.read(LONGEST_HEADER)
    header = re.match(rb"(#[\t\x20-\xff]*\r?\n)*?(#End Of ASCII Header\r?\n)|(#[\t\x20-\xff]*\r?\n)*", content)
    chip, found = _chip(header[0].decode("latin-1"))
    layout = {"aedat2-dvs128": "dvs", "aedat2-davis": "davis"}.get(said.format or "", (chip or "")[:3])
    if not layout:
        raise InputError(
            f"{path}: its header does not name the camera; say how to read it by --format aedat2-dvs128 or aedat2-davis"
        )
    size = found or said.size
    if size is None:
        raise InputError(f"{path}: does not say the size of its sensor; say it by --sensor HEIGHTxWIDTH")
    height, width = size

    def pieces() -> Iterator[Piece]:
        clock = _Clock()
        for words in _blocks(path, header.end(), ">u8", "an event"):
            address, ticks = (words >> np.uint64(32)).astype(np.int64), (words & np.uint64(0xFFFFFFFF)).astype(np.int64)
            times = clock(ticks)
            if layout == "dvs":
                is_event = address & 0xFFFF8000 == 0
                y, x, p = address >> 8 & 0x7F, address >> 1 & 0x7F, 1 - (address & 1)
            else:
                is_event = address & 0x80000400 == 0
                y, x, p = address >> 22 & 0x1FF, address >> 12 & 0x3FF, address >> 11 & 1
            x, y = width - 1 - x, height - 1 - y  # below 0, beyond the sensor, it becomes large
            yield Piece(times[is_event], *(c[is_event].astype(np.uint16) for c in (x, y)), p[is_event].astype(np.uint8))

    return found, pieces()


# Of each AEDAT 3.1 packet, little endian: type, source, size of an event, offset of its time, overflows of the clock,
# capacity, number, valid. Polarity, type 1: x in bits 17-31, y in 2-16, polarity in 1, valid in 0; then time, 31 bits.
PACKET_HEADER = struct.Struct("<HHIIIIII")
POLARITY, POLARITY_SIZE, KINDS = 1, 8, 128
AEDAT3_HEADER = re.compile(rb"#!AER-DAT3\.1\r?\n(#.*\n)*?#!END-HEADER\r?\n")


def _open_aedat3(path: Path, said: Said) -> tuple[Size | None, Iterator[Piece]]:
    header, packets = aedat3_packets(path)
    return _chip(header)[1], _Valid(packets)


class _Valid(Iterator[Piece]):
    """The valid events of packets; counts the others."""

    def __init__(self, packets: Iterator[tuple[Piece, int]]):
        self.packets, self.invalid = packets, 0

    def __next__(self) -> Piece:
        piece, others = next(self.packets)
        self.invalid += others
        return piece


def aedat3_packets(path: Path) -> tuple[str, Iterator[tuple[Piece, int]]]:
    """The header; of each packet, in the order of the file, the valid brightness changes and the number of others."""
    header = AEDAT3_HEADER.match(_beginning(path, LONGEST_HEADER))
    if header is None:
        raise InputError(f"{path}: no AEDAT 3.1 file: it has no header from #!AER-DAT3.1 to #!END-HEADER")
    return header[0].decode("latin-1"), _aedat3_packets(path, header.end())


def _aedat3_packets(path: Path, start: int) -> Iterator[tuple[Piece, int]]:
    size_of_file = path.stat().st_size
    with path.open("rb") as file:
        while start < size_of_file:
            file.seek(start)
            head = file.read(PACKET_HEADER.size)
            truncated = InputError(
                f"{path}: breaks off within the packet at byte {start}; fetch it again, or keep what is whole by: "
                f"truncate -s {start} {path}"
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


# ---- N-MNIST and N-Caltech101


NMNIST_OVERFLOW, NMNIST_OVERFLOW_US = 240, 2**13  # y of no event: the clock moves on (gorchard/event-Python)


def _open_bin(path: Path, said: Said) -> tuple[Size | None, Iterator[Piece]]:
    """Five bytes an event: x, y, then polarity in 1 and time in 23 bits, the highest byte first."""

    def pieces() -> Iterator[Piece]:
        loops = 0
        for words in _blocks(path, 0, "5u1", "an event"):
            x, y, high, middle, low = words.reshape(-1, 5).T.astype(np.int64)
            is_overflow = y == NMNIST_OVERFLOW
            passed = loops + np.cumsum(is_overflow)
            loops = passed[-1] if len(passed) else loops
            times = ((high & 0x7F) << 16 | middle << 8 | low) + NMNIST_OVERFLOW_US * passed
            columns = (x.astype(np.uint16), y.astype(np.uint16), (high >> 7).astype(np.uint8))
            yield Piece(times[~is_overflow], *(column[~is_overflow] for column in columns))

    return None, pieces()


# ---- Event Stream


ES_HEAD = struct.Struct("<12s4BHH")  # "Event Stream", version, type of events, width, height
ES_DVS, ES_AT_ONCE = 1, 2**16


def _open_es(path: Path, said: Said) -> tuple[Size | None, Iterator[Piece]]:
    """A byte of time since the last event (7 bits) and of polarity; 255 is no event, but 127 µs. Then x and y.

    The origin, at the lower left, becomes the upper left.
    """
    with path.open("rb") as file:
        head = file.read(ES_HEAD.size)
    if len(head) < ES_HEAD.size:
        raise InputError(f"{path}: breaks off at byte {len(head)}, within its header; fetch it again")
    _, major, _, _, kind, width, height = ES_HEAD.unpack(head)
    if major == 2 and kind != ES_DVS:
        return foreign.open_by_faery(path)
    if major != 2 or not height or not width:
        raise InputError(f"{path}: says version {major} and {height}x{width} pixels; Event Stream of version 2 is read")

    def pieces() -> Iterator[Piece]:
        content = np.asarray(np.memmap(path, np.uint8, "r"))
        state = np.array([ES_HEAD.size, 0], np.int64)  # place, time
        while state[0] < len(content):
            piece = Piece(*(np.empty(ES_AT_ONCE, kind) for kind in (np.int64, np.uint16, np.uint16, np.uint8)))
            n = _decode_es(content, state, height, *piece)
            if n < 0:
                raise InputError(
                    f"{path}: breaks off, or is damaged, at byte {state[0]}; fetch it again, or keep what is whole by: "
                    f"truncate -s {state[0]} {path}"
                )
            yield Piece(*(column[:n] for column in piece))

    return (height, width), pieces()


@kernel
def _decode_es(content, state, height, t, x, y, p):
    """Write up to len(t) events from state[0] on; how many, or -1 where one is not whole."""
    place, time, n = state[0], state[1], 0
    while place < len(content) and n < len(t):
        byte = np.int64(content[place])
        if byte == 255:
            time += 127
            place += 1
            continue
        if byte == 254 or place + 5 > len(content):
            state[0] = place
            return -1
        time += byte >> 1
        row = np.int64(content[place + 3]) | np.int64(content[place + 4]) << 8
        t[n], p[n] = time, byte & 1
        x[n] = np.int64(content[place + 1]) | np.int64(content[place + 2]) << 8
        y[n] = height - 1 - row if row < height else 65535
        n += 1
        place += 5
    state[0], state[1] = place, time
    return n


RAW = re.compile(rb"% ")
HDF5 = re.compile(rb"\x89HDF\r\n\x1a\n")
TEXT = re.compile(rb"(\xef\xbb\xbf)?[\t\r\n\x20-\x7e\x80-\xff]*\Z")
FORMATS = {
    "raw": Format((".raw",), RAW, _open_raw, "Prophesee RAW"),
    "evt2": Format((), None, _open_raw, "EVT2"),
    "evt21": Format((), None, _open_raw, "EVT2.1"),
    "evt3": Format((), None, _open_raw, "EVT3"),
    "dat": Format((".dat",), re.compile(rb"%"), _open_dat, "DAT"),
    "aedat2": Format((".aedat", ".aedat2"), re.compile(rb"#!AER-DAT2\.0"), _open_aedat2, "AEDAT 2"),
    "aedat3": Format((".aedat", ".aedat3"), re.compile(rb"#!AER-DAT3\.1"), _open_aedat3, "AEDAT 3.1"),
    "aedat2-dvs128": Format((), re.compile(rb"#"), _open_aedat2, "AEDAT 2"),
    "aedat2-davis": Format((), re.compile(rb"#"), _open_aedat2, "AEDAT 2"),
    "aedat4": Format((".aedat4",), re.compile(rb"#!AER-DAT4\.0"), foreign.open_by_faery, "AEDAT 4"),
    "es": Format((".es",), re.compile(rb"Event Stream"), _open_es, "Event Stream"),
    "metavision": Format((".hdf5", ".h5"), HDF5, tables.open_hdf5, "HDF5"),
    "nmnist": Format((".bin",), None, _open_bin, "N-MNIST"),
    "npy": Format((".npy",), re.compile(rb"\x93NUMPY"), tables.open_npy, "numpy .npy"),
    "npz": Format((".npz",), re.compile(rb"PK\x03\x04"), tables.open_npz, "numpy .npz"),
    "csv": Format((".csv", ".tsv"), TEXT, tables.open_csv, "CSV"),
}
