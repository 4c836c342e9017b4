"""Flat files of the recordings made so far, from which an interrupted conversion continues."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Sequence
from io import BufferedWriter
from pathlib import Path

import numpy as np

from datasets.prepare.recordings import Recording
from snn.errors import InputError

Events = tuple[np.ndarray, np.ndarray]  # times in µs and units, both uint32


class Unfinished:
    """Flat files of the recordings made so far: their events, and a line of JSON for each source that is done."""

    def __init__(self, folder: Path, settings: dict, sources: Sequence[Recording]):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = (folder / "lock").open("w", encoding="utf-8")  # closing it unlocks
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{folder}: another process is writing it; wait for it, or choose another --out") from None
        for path in folder.glob("*.h5*"):  # left by a run that was killed
            path.unlink()
        head = json.dumps(settings, sort_keys=True) + "\n"
        path = folder / "index.jsonl"
        first, *known = (path.read_text(encoding="utf-8") if path.is_file() else "").splitlines(keepends=True) or [""]
        kept = len(head) if first == head else 0  # bytes of the index, whose lines are ASCII
        self.lines: list[dict] = []
        for source, line in zip(sources, known if kept else (), strict=False):
            try:
                entry = json.loads(line)
            except ValueError:  # the run was killed while it wrote this line
                break
            if not line.endswith("\n") or entry.get("source") != self._identity(source) or "invalid" not in entry:
                break
            self.lines.append(entry)
            kept += len(line)
        self.index = self._opened("index.jsonl", kept)
        if not kept:
            self._note(head)
        events = sum(sum(entry["lengths"]) for entry in self.lines)
        self.times, self.units = (self._opened(name, 4 * events) for name in ("times", "units"))
        if self.times.tell() < 4 * events or self.units.tell() < 4 * events:
            raise InputError(f"{folder}: the files of the interrupted run are damaged; remove this folder")
        self.lengths: list[int] = []
        self.begin = self.end = events  # of the current recording, in the flat files
        self.latest: Events | None = None

    def _opened(self, name: str, size: int) -> BufferedWriter:
        """Open a file to append to, without what comes after its first `size` bytes."""
        file = (self.folder / name).open("ab")
        if file.tell() > size:
            file.truncate(size)
        return file

    def _note(self, line: str) -> None:
        self.index.write(line.encode())
        self.index.flush()

    @staticmethod
    def _identity(source: Recording) -> list:
        state = source.path.stat()
        return [str(source.path), state.st_size, state.st_mtime_ns]

    def append(self, times: np.ndarray, units: np.ndarray) -> None:
        """Add events to the current recording."""
        self.times.write(times)
        self.units.write(units)
        self.end += len(times)
        self.latest = times, units

    def whole(self) -> Events | None:
        """End the current recording; return its events, or None if it has none."""
        begin, self.begin = self.begin, self.end
        if begin == self.end:
            return None
        self.lengths.append(self.end - begin)
        if len(self.latest[0]) == self.end - begin:  # it came in one part
            return self.latest
        self.times.flush()
        self.units.flush()
        return self._stored(begin, self.end - begin)

    def commit(self, source: Recording, invalid: int) -> None:
        """Record that a source is complete, except for `invalid` events that are marked invalid."""
        self.times.flush()
        self.units.flush()
        self.lines.append({"source": self._identity(source), "lengths": self.lengths, "invalid": invalid})
        self._note(json.dumps(self.lines[-1]) + "\n")
        self.lengths = []

    def close(self) -> None:
        for file in (self.times, self.units, self.index, self._lock):
            file.close()

    def recordings(self) -> Iterator[tuple[int, Events]]:
        """Yield (number of the source, events) of each recording that was made before."""
        begin = 0
        for number, entry in enumerate(self.lines):
            for length in entry["lengths"]:
                yield number, self._stored(begin, length)
                begin += length

    def _stored(self, begin: int, length: int) -> Events:
        """Map events in the flat files, which are only read when they are used."""
        times, units = (np.memmap(self.folder / name, np.uint32, "r", 4 * begin, length) for name in ("times", "units"))
        return times, units
