"""Events as they come, from UDP packets or a pipe, for `snn.streaming.Stream`.

    for times_us, units in live.from_udp(3333, "t64_x16_y16_on8", sensor=(34, 34)):
        if decision := stream.push(times_us, units):  # a Stream with ticks_per_second=1e6
            break

The layouts of packets are faery's: events one after another, little endian, t in µs, named after the bits of the parts.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from snn.errors import InputError

LAYOUTS = {
    "t64_x16_y16_on8": np.dtype([("t", "<u8"), ("x", "<u2"), ("y", "<u2"), ("on", "u1")]),
    "t32_x16_y15_on1": np.dtype([("t", "<u4"), ("x", "<u2"), ("y_on", "<u2")]),
}
LARGEST = 2**16  # bytes of a packet, and of what is read from a pipe at once
Chunk = tuple[np.ndarray, np.ndarray]  # times in µs from the first event, uint64, and units p·H·W + y·W + x, uint32


def from_udp(
    port: int, layout: str, sensor: tuple[int, int], host: str = "127.0.0.1", quiet_s: float | None = None
) -> Iterator[Chunk]:
    """The events of each packet that arrives at a port. A packet older than the one before it is left out.

    sensor: (height, width). quiet_s: end when nothing has come for so long; None: never. Raises InputError for a port
    that is taken, and for packets that are not of this layout or sensor.
    """
    place = f"UDP port {port}"
    reader = _Reader(layout, sensor, place)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        try:
            receiver.bind((host, port))
        except (OSError, OverflowError) as error:
            raise InputError(f"{place}: cannot be listened to on {host} ({error}); choose another") from None
        receiver.settimeout(quiet_s)
        while True:
            try:
                content = receiver.recv(LARGEST)
            except TimeoutError:
                return
            if len(content) % reader.kind.itemsize:
                raise InputError(
                    f"{place}: a packet of {len(content)} bytes is no whole number of events of {layout}, which has "
                    f"{reader.kind.itemsize} each; name its layout, one of {', '.join(LAYOUTS)}"
                )
            chunk = reader(content)
            if chunk is not None:
                yield chunk


def from_pipe(file: BinaryIO, layout: str, sensor: tuple[int, int]) -> Iterator[Chunk]:
    """The same events one after another from a pipe, such as `sys.stdin.buffer`, as they come, to its end."""
    reader, rest = _Reader(layout, sensor, "the pipe"), b""
    read = getattr(file, "read1", file.read)
    while content := read(LARGEST):
        content = rest + content
        whole = len(content) // reader.kind.itemsize * reader.kind.itemsize
        rest = content[whole:]
        chunk = reader(content[:whole])
        if chunk is not None:
            yield chunk
    if rest:
        raise InputError(f"the pipe: ends within an event of {layout}, after {len(rest)} bytes of it")


class _Reader:
    """Packets of one layout as times from the first event on and units."""

    def __init__(self, layout: str, sensor: tuple[int, int], place: str):
        if layout not in LAYOUTS:
            raise InputError(f"{place}: there is no layout {layout!r}; known are {', '.join(LAYOUTS)}")
        self.kind, (self.height, self.width), self.place = LAYOUTS[layout], sensor, place
        self.first = self.last = None
        self.loops = 0  # of a counter of 32 bits

    def __call__(self, content: bytes) -> Chunk | None:
        events = np.frombuffer(content, self.kind)
        if not len(events):
            return None
        t, x = events["t"].astype(np.int64), events["x"].astype(np.int64)
        y, p = (events["y"], events["on"]) if "y" in self.kind.names else (events["y_on"] >> 1, events["y_on"] & 1)
        if self.kind["t"].itemsize == 4:
            before = np.concatenate([t[:1] if self.last is None else [self.last & 0xFFFFFFFF], t[:-1]])
            loops = self.loops + np.cumsum(before - t > 2**31)
            t += loops << 32
            self.loops = loops[-1]
        if self.last is not None and t[0] < self.last:
            return None
        outside = (x >= self.width) | (y >= self.height) | (p > 1)
        if outside.any() or (t[1:] < t[:-1]).any() or t[0] < 0:
            raise InputError(
                f"{self.place}: events go back in time, or lie beyond the sensor of {self.height}x{self.width} pixels; "
                "name the packets' layout and sensor"
            )
        self.first, self.last = t[0] if self.first is None else self.first, t[-1]
        return (t - self.first).astype(np.uint64), ((p.astype(np.int64) * self.height + y) * self.width + x).astype(
            np.uint32
        )
