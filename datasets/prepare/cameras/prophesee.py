"""Prophesee's RAW (EVT2, EVT2.1 and EVT3) and DAT.

Definitions: docs.prophesee.ai/stable/data/encoding_formats and .../file_formats. OpenEB's decoders show what the text
leaves out: the bits of EVT2.1, and which words have their halves swapped.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from datasets.prepare.cameras.pieces import Clock, Piece, Said, Size, blocks, header_lines
from snn.compiling import kernel
from snn.errors import InputError

# The size of the sensor by the camera's generation, for headers without a geometry.
GENERATIONS = (
    (r"genx320", (320, 320)),
    (r"imx636|imx646|gen\s?4|^4\.", (720, 1280)),
    (r"gen\s?3|^3\.", (480, 640)),
)
EVT = {"2.0": "evt2", "2": "evt2", "2.1": "evt21", "3.0": "evt3", "3": "evt3", "EVT2": "evt2", "EVT21": "evt21"}
EVT |= {"EVT3": "evt3"}


def open_raw(path: Path, said: Said) -> tuple[Size | None, Iterator[Piece]]:
    """Open words of the encoding that the header names; in IMX636's EVT2.1 ("legacy") their halves are swapped."""
    fields, start = header_lines(path, b"% ")
    described = fields.get("format", "").split(";")
    version = described[0] or fields.get("evt", "")
    options = dict(part.split("=", 1) for part in described[1:] if "=" in part)
    name = EVT.get(version)
    if said.format in ENCODINGS:
        if name is not None and name != said.format:
            raise InputError(f"{path}: says that it is {name}, but --format says {said.format}; leave --format out")
        name = said.format
    if name is None:
        raise InputError(
            f"{path}: its header names the encoding {version!r:.40}, which is not supported; record EVT3, EVT2.1 or "
            "EVT2"
            if version
            else f"{path}: has no header that names its encoding; give it with --format evt2, evt21 or evt3"
        )
    if "big" in (fields.get("endianness"), options.get("endianness")):
        raise InputError(f"{path}: is big-endian, which is not supported; record little-endian")
    is_swapped = name == "evt21" and "legacy" in (fields.get("endianness"), options.get("endianness"))
    decode = Words(name, is_swapped)
    return _raw_size(fields, options, path), map(decode, blocks(path, start, decode.dtype, "a word"))


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


class Words:
    """A decoder of the words of one encoding, which keeps its state from call to call."""

    def __init__(self, encoding: str, is_swapped: bool = False):
        self._decode, self.dtype = ENCODINGS[encoding]
        self._is_swapped, self._state = is_swapped, np.zeros(7, np.int64)

    def __call__(self, words: np.ndarray) -> Piece:
        """Decode the next words."""
        if self._is_swapped:  # the two halves of each word are in reverse order
            words = words >> np.uint64(32) | words << np.uint64(32)
        most = len(words) if self.dtype == "<u4" else _most_events(words, self.dtype == "<u8")
        piece = Piece(*(np.empty(most, kind) for kind in (np.int64, np.uint16, np.uint16, np.uint8)))
        n = self._decode(words, self._state, *piece)
        return Piece(*(column[:n] for column in piece))


def _most_events(words: np.ndarray, is_evt21: bool) -> int:
    """Return how many events words of EVT 2.1 or EVT 3 may hold: a bit set in a vector is an event."""
    if is_evt21:
        return int(np.bitwise_count(words[words >> 60 < 2] & np.uint64(0xFFFFFFFF)).sum())
    kind = words >> 12
    vectors = ((4, 0xFFF), (5, 0xFF))
    ones = (np.bitwise_count(words[kind == vector] & np.uint16(bits)).sum() for vector, bits in vectors)
    return int((kind == 2).sum() + sum(ones))


@kernel
def _decode_evt3(words, state, t, x, y, p):
    """Write the events of 16-bit words; return how many. `state` is kept from block to block.

    A TIME_LOW replaces the low 12 bits of the time, whether it rises or falls. A TIME_HIGH that changes the high bits
    sets the low ones to 0 (as OpenEB's decoder does; a TIME_LOW follows), one that repeats them changes nothing, and
    one that falls by half its range or more has overflowed. Words before the first TIME_HIGH have no time and are left
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
    """Do as `_decode_evt3`, for 32-bit words: an event has the low 6 bits of its time, a TIME_HIGH the 28 above."""
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
    """Do as `_decode_evt2`, for 64-bit words: the low half has a bit for each of 32 pixels from x on."""
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


# name -> kernel, type of its words
ENCODINGS = {"evt2": (_decode_evt2, "<u4"), "evt21": (_decode_evt21, "<u8"), "evt3": (_decode_evt3, "<u2")}


def open_dat(path: Path, said: Said) -> tuple[Size | None, Iterator[Piece]]:
    """Open events of type 0, the ATIS's `2d`, or 12, `cd`: a time in 32 bits, then x, y and polarity.

    These take 14, 14 and 4 bits in version 2, and 9, 8 and 1 in version 1.
    """
    fields, start = header_lines(path, b"%")
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
        clock = Clock()
        mask_x, shift_y, mask_y, shift_p, mask_p = layout
        for words in blocks(path, start + 2, "<u8", "an event"):
            ticks, address = (words & np.uint64(0xFFFFFFFF)).astype(np.int64), (words >> np.uint64(32)).astype(np.int64)
            x, y = (address & mask_x).astype(np.uint16), (address >> shift_y & mask_y).astype(np.uint16)
            yield Piece(clock(ticks), x, y, (address >> shift_p & mask_p).astype(np.uint8))

    return _raw_size(fields, {}, path), pieces()
