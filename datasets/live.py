"""Events as they come, from UDP packets or through a pipe, as recordings for `snn.streaming.Stream`.

    source = live.Source(live.listen(3333), "t64_x16_y16_on8", sensor=(34, 34))
    for recording in source.recordings(longest_us=1_000_000):
        stream.reset()  # a Stream with ticks_per_second=1e6
        for times_us, units, _ in recording:
            if decision := stream.push(times_us, units):
                break  # the rest of the recording is passed over
        print(decision or stream.finish(), source.counts)

No input is fatal once one packet has been understood: lost, late and damaged packets are counted.

Layouts: two layouts of packets are faery's: events one after another, little endian, t in µs, named after the bits of
their parts. `csv` has lines t,x,y,p, as faery takes them from a pipe; evt2, evt21 and evt3 are the words of Prophesee's
cameras. The prefix "n32_" means that a packet begins with its number, a counter of 32 bits; only this number shows how
many packets were lost on their way. Without it, only packets that this machine dropped are counted, if Linux reports
them.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import BinaryIO, NamedTuple

import numpy as np

from datasets.prepare.cameras.pieces import Clock, Piece
from datasets.prepare.cameras.prophesee import ENCODINGS, Words
from snn.errors import InputError

RECORDS = {
    "t64_x16_y16_on8": np.dtype([("t", "<u8"), ("x", "<u2"), ("y", "<u2"), ("on", "u1")]),
    "t32_x16_y15_on1": np.dtype([("t", "<u4"), ("x", "<u2"), ("y_on", "<u2")]),
}
NUMBERED = "n32_"
LAYOUTS = (*RECORDS, "csv", *ENCODINGS)
HOST = "127.0.0.1"  # where datasets/send.py sends to, and demo.py listens
UDP_LAYOUT, PIPE_LAYOUT = f"{NUMBERED}t64_x16_y16_on8", "csv"  # defaults of datasets/send.py
LARGEST = 2**16  # bytes of a packet, and of what is read from a pipe at once
REORDERED = 1000  # packets: if a number is farther behind, its sender has restarted
RESTARTED_US = 1_000_000  # events this much older than the last are not late: the sender's clock has restarted
SO_RXQ_OVFL = 40  # Linux, asm-generic/socket.h: report with each packet how many were dropped before it


class Chunk(NamedTuple):
    """Events of a recording that came together."""

    times_us: np.ndarray  # [events] int64, from the recording's first event, ascending
    units: np.ndarray  # [events] int64, p·H·W + y·W + x
    arrived_s: float  # time.perf_counter() when they came


@dataclass
class Counts:
    """Counts of what arrived and what did not."""

    packets: int = 0  # packets, or pieces from a pipe
    events: int = 0  # events taken
    lost: int = 0  # packets
    late: int = 0  # packets with events older than one already taken; these events are left out
    damaged: int = 0  # packets that do not fit the layout or the sensor; they are left out whole


def listen(port: int, host: str = HOST) -> socket.socket:
    """Open a UDP socket at a port. InputError if it cannot be opened."""
    receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**22)  # for bursts; the system may give less
        receiver.setsockopt(socket.SOL_SOCKET, SO_RXQ_OVFL, 1)
        receiver.bind((host, port))
    except (OSError, OverflowError, UnicodeError) as error:
        receiver.close()
        is_of_host = (
            isinstance(error, socket.gaierror | UnicodeError) or getattr(error, "errno", None) == errno.EADDRNOTAVAIL
        )
        raise InputError(
            f"UDP port {port}: cannot listen on {host} ({error}); choose another {'host' if is_of_host else 'port'}"
        ) from None
    return receiver


class Source:
    """Recordings from a UDP socket, see `listen`, or from a pipe, such as `sys.stdin.buffer`.

    sensor: (height, width). Raises InputError for a layout that is not known, and if the very first packet does not fit
    the layout and the sensor.
    """

    def __init__(self, source: socket.socket | BinaryIO, layout: str, sensor: tuple[int, int]):
        self.is_numbered = layout.startswith(NUMBERED)
        self.layout, (self.height, self.width) = layout.removeprefix(NUMBERED), sensor
        if self.layout not in LAYOUTS:
            raise InputError(f"there is no packet layout {layout!r}; choose from {', '.join(LAYOUTS)}")
        self.is_socket = isinstance(source, socket.socket)
        if self.is_numbered and not self.is_socket:
            raise InputError(f"through a pipe nothing is lost, so its layout is {self.layout}, without {NUMBERED}")
        self.source, self.counts = source, Counts()
        self._decode = _decoder(self.layout)
        self._rest = b""
        self._next_number: int | None = None
        self._missing: set[int] = set()  # numbers of the latest packets believed lost

    def recordings(self, longest_us: int, pause_us: int = 200_000) -> Iterator[Iterator[Chunk]]:
        """Yield each recording as an iterator of its chunks. Asking for the next one skips the rest of this one.

        A recording begins with an event. It ends `longest_us` later, or earlier if no event follows for `pause_us`, by
        the events' times or by this machine's clock. The last chunk of a recording may be empty.
        """
        for _, chunks in groupby(self._chunks(longest_us, pause_us), key=itemgetter(0)):
            yield map(itemgetter(1), chunks)

    def _chunks(self, longest_us: int, pause_us: int) -> Iterator[tuple[int, Chunk]]:
        """Yield (number of the recording, chunk)."""
        number, begin, last = 0, None, None
        for content in self._contents(pause_us / 1e6):
            arrived_s = time.perf_counter()
            if content is None:  # silence: the recording is over, and the next sender may start again
                self._next_number = None
                if begin is not None:
                    number, begin, last = number + 1, None, None
                    yield number, Chunk(np.empty(0, np.int64), np.empty(0, np.int64), arrived_s)
                continue
            t, units = self._understood(content)
            if last is not None and len(t) and t[-1] < last - RESTARTED_US:
                number, begin, last = number + 1, None, None
            if last is not None and len(t) and t[0] < last:
                self.counts.late += 1
                t, units = t[t >= last], units[t >= last]
            self.counts.events += len(t)
            while len(t):
                if begin is None:
                    begin = last = t[0]
                elif t[0] - last > pause_us or t[0] - begin >= longest_us:
                    number, begin, last = number + 1, t[0], t[0]
                gaps = np.flatnonzero(np.diff(t) > pause_us)
                end = min(int(np.searchsorted(t - begin, longest_us)), gaps[0] + 1 if len(gaps) else len(t))
                yield number, Chunk(t[:end] - begin, units[:end], arrived_s)
                last, t, units = t[end - 1], t[end:], units[end:]

    def _contents(self, quiet_s: float) -> Iterator[bytes | None]:
        """Yield packets, or pieces from the pipe until it ends; yield None if nothing comes for `quiet_s`."""
        dropped = 0
        while True:
            if not select.select([self.source], [], [], quiet_s)[0]:
                yield None
                continue
            if self.is_socket:
                content, about, *_ = self.source.recvmsg(LARGEST, socket.CMSG_SPACE(4))
                for level, kind, data in about:
                    if (level, kind) == (socket.SOL_SOCKET, SO_RXQ_OVFL) and not self.is_numbered:
                        self.counts.lost += (struct.unpack("<I", data)[0] - dropped) % 2**32
                        dropped = struct.unpack("<I", data)[0]
            elif not (content := os.read(self.source.fileno(), LARGEST)):
                if self._rest and self.layout == "csv":
                    yield b"\n"  # ends the last line
                self.counts.damaged += bool(self._rest)  # the pipe ends within an event
                return
            self.counts.packets += 1
            yield content

    def _understood(self, content: bytes) -> tuple[np.ndarray, np.ndarray]:
        """Return the times in µs, ascending, and the units of a packet's events; both are empty if it is damaged."""
        if self.is_numbered and len(content) >= 4:
            self._count_lost(int.from_bytes(content[:4], "little"))
        content = content[4:] if self.is_numbered else content
        content = self._rest + content
        whole = _whole(content, self.layout)
        self._rest = b"" if self.is_socket else content[whole:]
        try:
            if (self.is_socket and whole < len(content)) or len(self._rest) > LARGEST:
                self._rest = b""
                raise ValueError(f"{len(content)} bytes are not a whole number of events")
            t, x, y, p = self._decode(content[:whole])
            if ((x >= self.width) | (y >= self.height) | (p > 1)).any():
                raise ValueError(f"some pixels lie beyond {self.height}x{self.width} (height x width)")
        except ValueError as error:
            if not self.counts.events:
                raise InputError(
                    f"the events do not fit layout {self.layout} and this sensor ({error}); name their layout, one of "
                    f"{', '.join(LAYOUTS)}"
                ) from None
            self.counts.damaged += 1
            return np.empty(0, np.int64), np.empty(0, np.int64)
        order = np.argsort(t, kind="stable")
        return t[order], ((p.astype(np.int64) * self.height + y) * self.width + x)[order]

    def _count_lost(self, number: int) -> None:
        """Compare the number of a packet with the one that was expected."""
        ahead = 0 if self._next_number is None else (number - self._next_number + 2**31) % 2**32 - 2**31
        if -REORDERED <= ahead < 0:  # it is late, or came twice
            self.counts.lost -= number in self._missing
            self._missing.discard(number)
            return
        self.counts.lost += max(ahead, 0)
        self._missing = {n for n in self._missing if n >= number - REORDERED}
        self._missing.update(range(max(number - ahead, number - REORDERED), number))
        self._next_number = number + 1


def encoded(events: Piece, layout: str) -> bytes:
    """Encode events in a layout of `RECORDS` or as csv, for senders."""
    if layout == "csv":
        return "".join(f"{t},{x},{y},{p}\n" for t, x, y, p in zip(*events, strict=True)).encode()
    rows = np.zeros(len(events.t), RECORDS[layout])
    rows["t"], rows["x"] = events.t.astype(rows.dtype["t"]), events.x  # a short counter overflows
    if "y_on" in rows.dtype.names:
        rows["y_on"] = events.y << 1 | events.p
    else:
        rows["y"], rows["on"] = events.y, events.p
    return rows.tobytes()


def _whole(content: bytes, layout: str) -> int:
    """Count the bytes that make up whole events, words or lines."""
    if layout == "csv":
        return content.rfind(b"\n") + 1
    size = np.dtype(RECORDS[layout] if layout in RECORDS else ENCODINGS[layout][1]).itemsize
    return len(content) // size * size


def _decoder(layout: str) -> Callable[[bytes], Piece]:
    """Return a function of bytes to a `Piece`; it raises ValueError for bytes that do not fit the layout."""
    if layout in ENCODINGS:
        words = Words(layout)
        return lambda content: words(np.frombuffer(content, words.dtype))
    if layout == "csv":
        return _from_lines
    clock = Clock() if layout.startswith("t32") else None

    def decode(content: bytes) -> Piece:
        rows = np.frombuffer(content, RECORDS[layout])
        t = rows["t"].astype(np.int64)
        if (t < 0).any():
            raise ValueError("some times exceed 63 bits")
        if clock:
            return Piece(clock(t), rows["x"], rows["y_on"] >> 1, rows["y_on"] & 1)
        return Piece(t, rows["x"], rows["y"], rows["on"])

    return decode


def _from_lines(content: bytes) -> Piece:
    """Decode lines t,x,y,p; a line of names is skipped."""
    lines = [line for line in content.decode("ascii", "replace").splitlines() if line.strip() and line[:1] != "t"]
    if not lines:
        return Piece(*np.empty((4, 0), np.int64))
    try:
        columns = np.loadtxt(lines, np.int64, delimiter=",", ndmin=2).T
    except ValueError:  # with advice for those who call numpy
        columns = np.empty((0, 0), np.int64)
    if len(columns) != 4 or (columns < 0).any():
        raise ValueError("a line is not t,x,y,p")
    return Piece(*columns)
