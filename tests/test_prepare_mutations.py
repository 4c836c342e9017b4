"""Damaged recordings, thousands in the long tests, are each read or refused in one line, in bounded memory and time."""

import math
import resource
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from datasets.prepare import cameras, cut
from datasets.prepare.cameras.pieces import Said
from snn.errors import InputError
from tests.cameras import OURS, RECORDINGS, recordings_of, write_any

LONGEST_S, MOST_MB = 5.0, 600


def mutated(content: bytes, random: np.random.Generator) -> bytes:
    """Flip bits, or cut out, double, overwrite or cut off a piece; the head is hit as often as the rest."""
    data = bytearray(content)
    for _ in range(random.integers(1, 5)):
        if not data:
            break
        end = len(data) if random.random() < 0.5 else min(len(data), 400)
        start, size = int(random.integers(end)), int(random.integers(1, 64))
        kind = random.integers(6)
        if kind == 0:
            data[start] ^= 1 << random.integers(8)
        elif kind == 1:
            data[start : start + size] = random.bytes(size)
        elif kind == 2:
            del data[start : start + size]
        elif kind == 3:
            data[start:start] = data[start : start + size]
        elif kind == 4:
            data[start : start + size] = bytes([random.choice([0, 255])]) * size
        else:
            del data[start:]
    return bytes(data)


def outcome(path: Path, said: Said, shape: cut.Shape = cut.Shape(), longest_s: float = math.inf) -> bool:  # noqa: B008
    """Return whether it is read. The test fails on anything but an InputError of one line."""
    started, refusal = time.process_time(), None
    try:
        opened = cameras.open_recording(path, said)
        for times, units in recordings_of(path, said, (opened.height, opened.width), shape):
            assert len(times) == len(units)
            assert (np.diff(times.astype(np.int64)) >= 0).all()
            assert units.max() < 2 * opened.height * opened.width
    except InputError as error:
        refusal = str(error)
    assert refusal is None or (refusal.startswith(str(path)) and "\n" not in refusal)
    assert time.process_time() - started < longest_s
    return refusal is None


def hammer(path: Path, said: Said, times: int, seed: int) -> int:
    """Count the mutations that are read."""
    random = np.random.default_rng(seed)
    content = path.read_bytes()
    shapes = cut.Shape(), cut.Shape(sort=True), cut.Shape(window_ms=1.0)
    assert all(outcome(path, said, shape) for shape in shapes)  # compiles what they need, in any time
    count = 0
    for k in range(times):
        path.write_bytes(mutated(content, random))
        count += outcome(path, said, shapes[k % 3], LONGEST_S)
    path.write_bytes(content)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 < MOST_MB + MEMORY_BEFORE
    return count


MEMORY_BEFORE = 0


@pytest.fixture(autouse=True)
def _memory():
    global MEMORY_BEFORE
    MEMORY_BEFORE = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@pytest.mark.parametrize("name", OURS)
def test_damaged_files_of_every_format(tmp_path, name):
    path, said, _ = write_any(tmp_path, name)
    assert hammer(path, Said(**said), 30, 0) < 30


@pytest.mark.parametrize(
    "times", [pytest.param(100, marks=pytest.mark.slow), pytest.param(1000, marks=pytest.mark.long)]
)
@pytest.mark.parametrize("name", OURS)
def test_more_damaged_files_of_every_format(tmp_path, name, times):
    path, said, _ = write_any(tmp_path, name)
    print(name, hammer(path, Said(**said), times, 1), f"of {times} read")


@pytest.mark.parametrize(
    "times", [pytest.param(200, marks=pytest.mark.slow), pytest.param(2000, marks=pytest.mark.long)]
)
@pytest.mark.parametrize("name", ["evt2.raw", "evt3.raw", "ncars_loris.dat", "ncars_tonic.dat"])
def test_damaged_recordings(tmp_path, name, times):
    if not RECORDINGS.is_dir():
        pytest.skip("the recordings lie outside the repository")
    path = tmp_path / name
    path.write_bytes((RECORDINGS / name).read_bytes())
    said = Said(size=(100, 120)) if name.startswith("ncars") else Said()
    print(name, hammer(path, said, times, 2), f"of {times} read")


@pytest.mark.parametrize("times", [pytest.param(10, marks=pytest.mark.slow), pytest.param(300, marks=pytest.mark.long)])
def test_damaged_recordings_of_a_library_in_a_process_of_its_own(tmp_path, monkeypatch, times):
    pytest.importorskip("faery")
    if not RECORDINGS.is_dir():
        pytest.skip("the recordings lie outside the repository")
    monkeypatch.setattr(sys.modules[__name__], "LONGEST_S", 30.0)  # a process each
    path = tmp_path / "davis.aedat4"
    path.write_bytes((RECORDINGS / "davis.aedat4").read_bytes())
    print(path.name, hammer(path, Said(), times, 3), f"of {times} read")
