"""A journal of a long conversion in one file, from which an interrupted conversion continues."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np

from snn.errors import InputError


class Journal:
    """Results in their order, each a few arrays, appended to a file as they come.

    The first line of the file is the plan: what is converted, and how. When it is opened again with the same plan, the
    journal holds the results that were complete when the process ended, however it ended. Opening it with another plan,
    or while another process has it open, is an InputError.
    """

    def __init__(self, path: Path, plan: dict[str, object]):
        self.path, self._length = path, 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b", buffering=0)  # unbuffered: nothing is left to write when a disk is full
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{path}: another process is writing it; wait for it, or choose another --out") from None
        except OSError as error:
            raise InputError(f"{path} cannot be written ({error.strerror}): choose another --out") from None
        self._file.seek(0)
        line = json.dumps(plan).encode() + b"\n"
        first = self._file.readline(10_000)
        if first != line and line.startswith(first):  # new, or cut off within its first line
            self._file.truncate(0)
            self._write(line)
        elif first != line:
            raise InputError(self._refusal(plan, first))
        self._begin = self._end = self._file.tell()
        for _ in self:
            self._length += 1
            self._end = self._file.tell()
        self._file.truncate(self._end)  # removes a result that was being written

    def __len__(self) -> int:
        return self._length

    def append(self, *arrays: np.ndarray) -> None:
        """Add a result, which from then on outlives this process."""
        result = BytesIO()
        for array in (*arrays, np.uint8(len(arrays))):
            np.save(result, array, allow_pickle=False)
        self._write(result.getvalue())
        self._length += 1

    def __iter__(self) -> Iterator[tuple[np.ndarray, ...]]:
        """Yield the results up to the first that is not complete. Nothing may be appended meanwhile."""
        self._file.seek(self._begin)
        arrays: list[np.ndarray] = []
        while True:
            try:
                array = np.load(self._file, allow_pickle=False)
            except (EOFError, ValueError, OSError):  # NumPy raises these if the file ends, also within an array
                return
            if array.ndim:
                arrays.append(array)
            else:  # the number that closes a result
                yield tuple(arrays)
                arrays = []

    def remove(self) -> None:
        """Remove the file: the conversion is done."""
        os.unlink(self.path)
        self._file.close()

    def _write(self, content: bytes) -> None:
        try:
            while content:
                content = content[self._file.write(content) :]
        except OSError as error:
            raise InputError(
                f"{self.path} cannot be written ({error.strerror}): finished work is kept, and the same command "
                "continues"
            ) from None

    def _refusal(self, plan: dict[str, object], first: bytes) -> str:
        """Explain why a file that begins with this line is not that of this conversion."""
        try:
            before = dict(json.loads(first))
        except (TypeError, ValueError):
            return f"{self.path} is not an unfinished conversion: remove it, or choose another --out"
        differ = next((name for name in before | plan if before.get(name) != plan.get(name)), "order")
        return (
            f"{self.path} holds the work of an interrupted conversion with other options or recordings ({differ} "
            f"{before.get(differ)}, now {plan.get(differ)}): repeat that command to continue, or remove the file"
        )
