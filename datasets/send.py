"""Send recordings as live events, in real time: `python -m datasets.send data/digits/digits_test.h5 --recordings 0 7`.

They go to a UDP port, in small packets, for `python demo.py --udp PORT`; or with --stdout through a pipe, for
`python demo.py --stdin`.
"""

from __future__ import annotations

from snn.cli import OneLineParser, end_at_ctrl_c, run

if __name__ == "__main__":
    end_at_ctrl_c()

# isort: split
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import h5py
import numpy as np

from datasets import hdf5, live, readers
from datasets.prepare import cameras
from datasets.prepare.cameras.pieces import Piece, Said, rows_x_columns
from datasets.prepare.cameras.tables import TICKS
from snn.errors import InputError

MOST_EVENTS = 100  # in a packet, which then fits into one Ethernet frame
LONGEST_US = 1000  # from the first event of a packet to its last
PAUSE_US = 500_000  # between recordings, so that a receiver tells them apart


def recordings_of(
    path: Path, numbers: list[int] | None, sensor: tuple[int, int] | None, time_unit: str | None = None
) -> Iterator[tuple[str, Piece]]:
    """Yield (description, events) of recordings of a set in the layout of SHD, or of a file that a camera wrote.

    numbers: those of the recordings to send; None sends all. sensor: (height, width) of the camera that recorded the
    set; without it a unit is a channel, and is sent as x. time_unit: that of a recording that does not state it.
    """
    if not (path.suffix.lower() in (".h5", ".hdf5") and hdf5.File(path).is_group("spikes")):
        opened = cameras.open_recording(path, Said(size=sensor, time_unit=time_unit))
        if numbers is not None:
            raise InputError(f"{path}: is a single recording; leave --recordings out")
        if time_unit and cameras.states_all(path, None):
            raise InputError(f"{path}: states the unit of its times; leave --time-unit out")
        pieces = list(opened.pieces)
        if not pieces:
            raise InputError(f"{path}: holds no events")
        events = Piece(*map(np.concatenate, zip(*pieces, strict=True)))
        if len(falls := np.flatnonzero(events.t[1:] < events.t[:-1])):
            e = falls[0]
            raise InputError(
                f"{path}: goes back in time at event {e + 1}, from {events.t[e]} to {events.t[e + 1]} µs; make a set "
                "of it with python -m datasets.prepare events --sort, and send that"
            )
        yield path.name, events
        return
    if time_unit:
        raise InputError(f"{path}: a set in the layout of SHD has its times in s; leave --time-unit out")
    file = hdf5.File(path)
    units_type = h5py.check_vlen_dtype(file.dataset("spikes/units").dtype)
    if units_type is None or units_type.kind not in "iu":
        raise InputError(f"{path}: spikes/units holds {units_type}, not lists of whole numbers")
    labels = file.whole_numbers("labels")
    found = readers.read(
        "shd", path, "test", min(np.iinfo(units_type).max, 2**31) + 1, int(labels.max(initial=0)) + 1, in_memory=False
    )
    for r in range(len(found)) if numbers is None else numbers:
        if not 0 <= r < len(found):
            raise InputError(f"{path}: there is no recording {r}; choose 0 to {len(found) - 1}")
        loaded, _ = found.load(np.array([r]))
        t = np.rint(loaded.times * (1e6 / loaded.ticks_per_second)).astype(np.int64)
        order = np.argsort(t, kind="stable")
        units = loaded.channels.astype(np.int64)[order]
        height, width = sensor or (1, 2**16)
        if len(units) and units.max() >= (2 * height * width if sensor else width):
            raise InputError(f"{path}: recording {r} has the unit {units.max()}; give the camera's size with --sensor")
        y, x = np.divmod(units % (height * width), width)
        is_named = found.class_names and labels[r] < len(found.class_names)
        name = f" ({found.class_names[labels[r]]})" if is_named else f" (class {labels[r]})"
        yield f"recording {r}{name}", Piece(t[order], x, y, units // (height * width))


def packets(events: Piece) -> Iterator[Piece]:
    """Cut events into packets of at most MOST_EVENTS and LONGEST_US."""
    start = 0
    while start < len(events.t):
        end = int(np.searchsorted(events.t, events.t[start] + LONGEST_US))
        end = min(max(end, start + 1), start + MOST_EVENTS)
        yield Piece(*(column[start:end] for column in events))
        start = end


def send(recordings: Iterator[tuple[str, Piece]], layout: str, put: Callable[[bytes], object], speed: float) -> None:
    """Pass each packet to `put` when its time has come, one recording after the other."""
    started, offset_us, number = time.perf_counter(), 0, 0
    name = layout.removeprefix(live.NUMBERED)
    for title, events in recordings:
        if not len(events.t):
            continue
        print(f"sending {title}", file=sys.stderr, flush=True)
        for packet in packets(events._replace(t=events.t - events.t[0] + offset_us)):
            time.sleep(max(0.0, started + packet.t[-1] / 1e6 / speed - time.perf_counter()))
            head = number.to_bytes(4, "little") if name != layout else b""
            put(head + live.encoded(packet, name))
            number = (number + 1) % 2**32
        offset_us = int(packet.t[-1]) + PAUSE_US


def main() -> None:
    """Parse the command line and send."""
    parser = OneLineParser(prog="python -m datasets.send", description=__doc__)
    parser.add_argument("file", type=Path, help="a set in the layout of SHD (.h5), or a camera's recording")
    parser.add_argument("--recordings", type=int, nargs="+", metavar="N", help="of the set (default: all)")
    parser.add_argument("--sensor", type=rows_x_columns, metavar="ROWSxCOLUMNS", help="of a camera's set")
    parser.add_argument("--time-unit", choices=list(TICKS), help="of a recording that does not state it")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--udp", type=int, default=3333, metavar="PORT", help="send to this port (3333)")
    where.add_argument("--stdout", action="store_true", help="write to the standard output")
    parser.add_argument("--host", help=f"of the port ({live.HOST})")
    known = [*live.RECORDS, "csv"]
    parser.add_argument(
        "--layout",
        choices=[*(live.NUMBERED + name for name in known), *known],
        help=f"of the events ({live.UDP_LAYOUT}; with --stdout {live.PIPE_LAYOUT})",
    )
    parser.add_argument(
        "--speed", type=float, default=1.0, help="times real time (1); below 1, gaps may end a recording"
    )
    args = parser.parse_args()
    if not 0 < args.speed < float("inf"):
        raise InputError(f"--speed {args.speed} is not above 0")
    layout = args.layout or (live.PIPE_LAYOUT if args.stdout else live.UDP_LAYOUT)
    recordings = recordings_of(args.file, args.recordings, args.sensor, args.time_unit)
    if args.stdout:
        if args.host:
            raise InputError("--host is for --udp; leave it out beside --stdout")
        if layout.startswith(live.NUMBERED):
            raise InputError(f"nothing is lost in a pipe: leave {live.NUMBERED} out of --layout")
        with open(1, "wb", buffering=0, closefd=False) as out, suppress(BrokenPipeError):  # the reader has enough
            send(recordings, layout, out.write, args.speed)
        return
    host = args.host or live.HOST
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.connect((host, args.udp))
            send(recordings, layout, partial(_put, sender), args.speed)
    except (OSError, OverflowError) as error:
        raise InputError(f"cannot send to {host}, UDP port {args.udp} ({error})") from None


def _put(sender: socket.socket, content: bytes) -> None:
    with suppress(ConnectionRefusedError):  # nobody listens yet; a UDP sender may see this error and can ignore it
        sender.send(content)


if __name__ == "__main__":
    run(main)
