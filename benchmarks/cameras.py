"""Speed of reading EVT3: `python -m benchmarks.cameras RECORDING.raw [--repeats 60]`.

Prints the median over alternating runs, in millions of events a second, of our decoder and of the installed libraries
among evt3, faery and expelliarmus. The recording's words are repeated as one recording with a continuing clock. Only
the decoding is compared, without our checks, because the libraries make none.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from benchmarks.figures import Figure, Other, add_option, store
from datasets.prepare import cameras
from datasets.prepare.cameras.pieces import Said, header_lines
from datasets.prepare.cut import Shape, parts_of
from snn import cli
from snn.errors import InputError

RUNS = 7


def write_long(recording: Path, path: Path, repeats: int) -> None:
    """Write the same words `repeats` times, with a TIME_HIGH that keeps counting. InputError if there is none."""
    _, start = header_lines(recording, b"% ")
    content = recording.read_bytes()
    words = np.frombuffer(content, "<u2", (len(content) - start) // 2, start)
    is_high = words >> 12 == 8
    if not is_high.any():
        raise InputError(f"{recording}: has no time (no word TIME_HIGH); give a recording in EVT3")
    high = (words[is_high] & 0xFFF).astype(np.int64)
    with path.open("wb") as file:
        file.write(content[:start])
        for k in range(repeats):
            later = words.copy()
            later[is_high] = 0x8000 | (high + k * (high.max() - high.min() + 1)) % 4096
            file.write(later)


def readers(path: Path) -> dict[str, Callable[[], int]]:
    """Return functions that read the file, piece by piece where they can, and return the number of events."""
    said = Said()
    found: dict[str, Callable[[], int]] = {
        "here": lambda: sum(len(piece.t) for piece in cameras.open_recording(path, said).pieces),
    }
    opened = cameras.open_recording(path, said)
    size = opened.height, opened.width
    shape = Shape(window_ms=50)
    found["here, checked and cut into windows"] = lambda: sum(
        len(part.times) for part in parts_of(path, said, size, shape)
    )
    if find_spec("evt3"):
        import evt3

        found["evt3"] = lambda: sum(len(events) for events in evt3.decode_file_batches(str(path)))
    if find_spec("faery"):
        import faery

        found["faery"] = lambda: sum(len(events) for events in faery.events_stream_from_file(str(path)))
    if find_spec("expelliarmus"):
        import expelliarmus

        found["expelliarmus"] = lambda: len(expelliarmus.Wizard(encoding="evt3").read(str(path)))
    return found


NAMES = {  # of the libraries on the page
    "faery": "faery",
    "evt3": "evt3, the only one of the three whose times are right for this recording",
    "expelliarmus": "expelliarmus",
}


def figure(rates: dict[str, float]) -> Figure:
    """Return the row of docs/speed.md, from millions of events a second."""
    here = f"{rates['here']:.0f} million events/s; checked and cut into windows "
    here += f"{rates['here, checked and cut into windows']:.0f}"
    libraries = [Other(who, f"{rates[name]:.0f} million events/s") for name, who in NAMES.items() if name in rates]
    return Figure("decoding an EVT3 recording, one core", here, libraries)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recording", type=Path)
    parser.add_argument("--repeats", type=int, default=60)
    add_option(parser)
    args = parser.parse_args()
    if args.repeats < 1:
        raise InputError(f"--repeats {args.repeats}: there must be at least 1")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "long.raw"
        write_long(args.recording, path, args.repeats)
        ways = readers(path)
        rates = {name: [] for name in ways}
        for run in range(RUNS + 1):  # the first compiles and warms up
            for name, read in ways.items():
                started = time.perf_counter()
                number = read()
                if run:
                    rates[name].append(number / (time.perf_counter() - started) / 1e6)
    for name, values in rates.items():
        print(f"{name}: {statistics.median(values):.0f} million events/s ({min(values):.0f} to {max(values):.0f})")
    if args.store:
        store([figure({name: statistics.median(values) for name, values in rates.items()})])


if __name__ == "__main__":
    cli.run(main)
