"""Recordings that faery reads in a process of its own: a library may crash, or need more memory than there is.

Run as a script, this file is that process: `python foreign.py PATH` writes the events to its standard output.
"""

from __future__ import annotations

import os
import resource
import select
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np

MOST_MEMORY = 8 * 2**30  # bytes of address space, generous because a library maps much more than it uses
LONGEST_S = 60  # without a piece
HEAD = struct.Struct("<cq")  # kind and length of what follows: (S)ize, (E)vents, (F)ailure, the end (Z)
COLUMNS = (("<i8", 8), ("<u2", 2), ("<u2", 2), ("u1", 1))
BYTES = sum(size for _, size in COLUMNS)  # of an event


def open_by_faery(path: Path, said: object = None) -> tuple[tuple[int, int], Iterator]:
    """Return the sensor's size and the events of a file. InputError for anything that goes wrong in the process."""
    from snn.errors import InputError  # the process itself does not need it

    if find_spec("faery") is None:
        raise InputError(f"{path}: such files are read by faery; install it with: pip install faery")
    pieces = _pieces(path)
    _, content = next(pieces)
    return struct.unpack("<qq", content), (_piece(content) for _, content in pieces)


def _piece(content: bytes):
    from datasets.prepare.cameras.pieces import Piece

    number, start, columns = len(content) // BYTES, 0, []
    for dtype, size in COLUMNS:
        columns.append(np.frombuffer(content, dtype, number, start))
        start += number * size
    return Piece(*columns)


def _pieces(path: Path) -> Iterator[tuple[bytes, bytes]]:
    """Yield the pieces that the other process sends, the size first, until its end."""
    from snn.errors import InputError

    def failed(reason: str) -> InputError:
        return InputError(
            f"{path}: faery cannot read it ({' '.join(reason.split()):.160}); perhaps it is truncated or damaged: "
            "fetch it again, or leave it out"
        )

    with tempfile.TemporaryFile() as said:
        command = [sys.executable, __file__, str(path)]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said)

        def read(size: int) -> bytes:
            parts = []
            while size:
                if not select.select([process.stdout], [], [], LONGEST_S)[0]:
                    raise failed(f"nothing for {LONGEST_S} s")
                part = os.read(process.stdout.fileno(), min(size, 2**20))
                if not part:
                    said.seek(max(0, said.seek(0, os.SEEK_END) - 400))
                    raise failed(f"its process ended with {process.wait()}: {said.read().decode(errors='replace')}")
                parts.append(part)
                size -= len(part)
            return b"".join(parts)

        try:
            while True:
                kind, size = HEAD.unpack(read(HEAD.size))
                content = read(size)
                if kind == b"F":
                    raise failed(content.decode(errors="replace"))
                if kind == b"Z":
                    return
                yield kind, content
        finally:
            process.stdout.close()
            process.kill()
            process.wait()


def main(path: str) -> None:
    """Send the size, the events and the end, or what went wrong."""
    # nothing that a library prints may come between the events
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    def send(kind: bytes, content: bytes) -> None:
        out.write(HEAD.pack(kind, len(content)) + content)

    try:
        import faery

        stream = faery.events_stream_from_file(path)
        send(b"S", struct.pack("<qq", *stream.dimensions()[::-1]))
        for events in stream:
            columns = zip(("t", "x", "y", "on"), COLUMNS, strict=True)
            send(b"E", b"".join(events[name].astype(dtype).tobytes() for name, (dtype, _) in columns))
        send(b"Z", b"")
    except BaseException as error:  # a panic of Rust is not an Exception
        send(b"F", f"{type(error).__name__}: {error}".encode(errors="replace"))
    out.flush()
    os._exit(0)


if __name__ == "__main__":
    sys.path.pop(0)  # this folder, whose modules the library must not find
    main(*sys.argv[1:])
