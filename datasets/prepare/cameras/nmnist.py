"""The .bin files of N-MNIST and N-Caltech101 (Orchard et al. 2015, doi 10.3389/fnins.2015.00437)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from datasets.prepare.cameras.pieces import Piece, Said, Size, blocks

# In the authors' reader (github.com/gorchard/event-Python), y = 240 is not an event: the clock advances by 2^13 µs.
OVERFLOW, OVERFLOW_US = 240, 2**13


def open_bin(path: Path, said: Said) -> tuple[Size | None, Iterator[Piece]]:
    """Open events of five bytes: x, y, then polarity in 1 and time in 23 bits, the highest byte first."""

    def pieces() -> Iterator[Piece]:
        loops = 0
        for words in blocks(path, 0, "5u1", "an event"):
            x, y, high, middle, low = words.reshape(-1, 5).T.astype(np.int64)
            is_overflow = y == OVERFLOW
            passed = loops + np.cumsum(is_overflow)
            loops = passed[-1] if len(passed) else loops
            times = ((high & 0x7F) << 16 | middle << 8 | low) + OVERFLOW_US * passed
            columns = (x.astype(np.uint16), y.astype(np.uint16), (high >> 7).astype(np.uint8))
            yield Piece(times[~is_overflow], *(column[~is_overflow] for column in columns))

    return None, pieces()
