"""Event Stream (.es), version 2: https://github.com/neuromorphic-paris/event_stream"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from datasets.prepare.cameras import foreign
from datasets.prepare.cameras.pieces import Piece, Said, Size
from snn.compiling import kernel
from snn.errors import InputError

ES_HEAD = struct.Struct("<12s4BHH")  # "Event Stream", version, type of events, width, height
ES_DVS, ES_AT_ONCE = 1, 2**16


def open_es(path: Path, said: Said) -> tuple[Size | None, Iterator[Piece]]:
    """Open events that begin with a byte of the time since the last event (7 bits) and the polarity; x and y follow.

    The byte 255 is not an event: it adds 127 µs. The origin, at the lower left, becomes the upper left.
    """
    with path.open("rb") as file:
        head = file.read(ES_HEAD.size)
    if len(head) < ES_HEAD.size:
        raise InputError(f"{path}: is truncated at byte {len(head)}, within its header; fetch it again")
    _, major, _, _, kind, width, height = ES_HEAD.unpack(head)
    if major == 2 and kind != ES_DVS:
        return foreign.open_by_faery(path)
    if major != 2 or not height or not width:
        raise InputError(
            f"{path}: says version {major} and {height}x{width} pixels; only version 2 of Event Stream is read"
        )

    def pieces() -> Iterator[Piece]:
        content = np.asarray(np.memmap(path, np.uint8, "r"))
        state = np.array([ES_HEAD.size, 0], np.int64)  # place, time
        while state[0] < len(content):
            piece = Piece(*(np.empty(ES_AT_ONCE, kind) for kind in (np.int64, np.uint16, np.uint16, np.uint8)))
            n = _decode_es(content, state, height, *piece)
            if n < 0:
                raise InputError(
                    f"{path}: is truncated or damaged at byte {state[0]}; fetch it again, or keep the complete part "
                    f"with: truncate -s {state[0]} {path}"
                )
            yield Piece(*(column[:n] for column in piece))

    return (height, width), pieces()


@kernel
def _decode_es(content, state, height, t, x, y, p):
    """Write up to len(t) events from state[0] on; return how many, or -1 if one is cut off."""
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
