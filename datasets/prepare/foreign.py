"""Recordings that a library of others reads, in a process of its own: it may crash, or want more memory than there is.

As a script this file is that process: `python foreign.py LIBRARY PATH` writes the events to its standard output.
"""

from __future__ import annotations

import os
import resource
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

LIBRARIES = {"faery": "faery"}  # module -> what pip calls it
MOST_MEMORY = 8 * 2**30  # bytes of address space, of which a library maps much more than it uses
LONGEST_S = 60  # without a piece
HEAD = struct.Struct("<cq")  # what follows, and its length: (S)ize, (E)vents, (F)ailure, the end (Z)
COLUMNS = (("<i8", 8), ("<u2", 2), ("<u2", 2), ("u1", 1))
BYTES = sum(size for _, size in COLUMNS)  # of an event


def open_with(library: str, path: Path) -> tuple[tuple[int, int] | None, Iterator]:
    """The sensor's size, if the library knows it, and the events of a file. InputError in place of whatever happens."""
    from importlib.util import find_spec

    from snn.errors import InputError

    if find_spec(library) is None:
        raise InputError(f"{path}: such files are read by {library}; install it by: pip install {LIBRARIES[library]}")
    pieces = _pieces(library, path)
    kind, content = next(pieces)
    height, width = struct.unpack("<qq", content) if kind == b"S" else (0, 0)
    return (height, width) if height else None, (_piece(content) for kind, content in pieces if kind == b"E")


def _piece(content: bytes):
    from datasets.prepare.tables import Piece

    number, start, columns = len(content) // BYTES, 0, []
    for dtype, size in COLUMNS:
        columns.append(np.frombuffer(content, dtype, number, start))
        start += number * size
    return Piece(*columns)


def _pieces(library: str, path: Path) -> Iterator[tuple[bytes, bytes]]:
    """What the other process sends, till its end."""
    import select
    import tempfile

    from snn.errors import InputError

    def failed(reason: str) -> InputError:
        return InputError(
            f"{path}: {library} cannot read it ({' '.join(reason.split()):.160}); perhaps it is truncated or damaged: "
            "fetch it again, or leave it out"
        )

    with tempfile.TemporaryFile() as said:
        command = [sys.executable, __file__, library, str(path)]
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


def _read_faery(path: str) -> Iterator:
    import faery

    stream = faery.events_stream_from_file(path)
    width, height = stream.dimensions()
    yield height, width
    for events in stream:
        yield events["t"], events["x"], events["y"], events["on"]


def main(library: str, path: str) -> None:
    """Send the size, the events and the end, or what went wrong."""
    # what a library prints must not come between the events
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    def send(kind: bytes, content: bytes) -> None:
        out.write(HEAD.pack(kind, len(content)) + content)

    try:
        read = {"faery": _read_faery}[library](path)
        send(b"S", struct.pack("<qq", *next(read)))
        for columns in read:
            for start in range(0, len(columns[0]), 2**18):
                part = [np.asarray(column[start : start + 2**18]) for column in columns]
                send(b"E", b"".join(c.astype(dtype).tobytes() for c, (dtype, _) in zip(part, COLUMNS, strict=True)))
        send(b"Z", b"")
    except BaseException as error:  # a panic of Rust is none of Python's exceptions
        send(b"F", f"{type(error).__name__}: {error}".encode(errors="replace"))
    out.flush()
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
