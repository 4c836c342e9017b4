"""Sets larger than memory: events left in their file give the same batches, networks and tests."""

import json
import os
import subprocess
import sys
import tracemalloc
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import tasks
from datasets import hdf5, images, layouts, readers
from datasets.augment import Change
from datasets.binning import Bins, batches
from datasets.recordings import Recordings, StoredRecordings, downsampled
from snn import config
from snn.config import SENSORS, Augment, Sensor
from snn.errors import InputError
from tests.cameras import CHANNELS
from tests.conftest import REPOSITORY, TINY
from tests.hostile import CLASSES, LAYOUTS

FEW = {"shd": 40, "shd, in pieces": 40, "ntidigits": 64} | {
    layout: CHANNELS[layout.split(",")[0]] for layout in ("dvsgesture", "dvsgesture, compressed", "dvsplane")
}
ALL_ON = Augment(
    stretch=0.1, time_jitter_ms=5, drop=0.1, shift=2, zoom=0.1, unit_jitter=1, blend=0.5, mask=1, mask_ms=5
)


def both(path: Path, layout: str, channels: int, classes: int = CLASSES) -> tuple[Recordings, StoredRecordings]:
    read = partial(readers.read, layout.split(",")[0], path, "train", channels, classes)
    return read(in_memory=True), read(in_memory=False)


def equal(one: tuple, other: tuple) -> bool:
    (x, target), (y, other_target) = one, other
    same = [torch.equal(getattr(x, name), getattr(y, name)) for name in ("offsets", "channels", "counts")]
    return all(same) and x.shape == y.shape and torch.equal(target, other_target)


@pytest.mark.parametrize("change", [None, Change(ALL_ON, (8, 1), 7, np.arange(3))], ids=["as it is", "augmented"])
@pytest.mark.parametrize("layout", FEW)
def test_batches_are_the_same_bit_for_bit(tmp_path, monkeypatch, layout, change):
    monkeypatch.setattr(layouts, "WINDOW", 7)  # the recordings have some 50 events
    LAYOUTS[layout][1](tmp_path / "x.h5")
    held, stored = both(tmp_path / "x.h5", layout, FEW[layout])
    assert isinstance(held, Recordings)
    assert isinstance(stored, StoredRecordings)
    assert np.array_equal(held.offsets, stored.offsets)
    if "dvs" in layout:
        height, width = SENSORS[layout.split(",")[0]]
        held, stored = (downsampled(r, Sensor(height=height, width=width, divide=4)) for r in (held, stored))
    bins = Bins(10.0, 6, 2, FEW[layout])  # shorter than the recordings
    index = np.random.default_rng(0).permutation(np.arange(len(held)).repeat(2))
    each = [list(batches(r, index, bins, 3, change=change)) for r in (held, stored)]
    assert len(each[0]) > 1
    assert sum(x.counts.sum() for x, _ in each[0]) > 0
    assert all(equal(*pair) for pair in zip(*each, strict=True))


def test_only_the_window_of_a_long_recording_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(layouts, "WINDOW", 100)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["0/time"], file["0/labels"] = np.arange(100_000, dtype=np.uint32), np.uint8(0)
        file["0/data"] = np.zeros((100_000, 3), np.uint16)
    _, stored = both(tmp_path / "x.h5", "dvsplane", CHANNELS["dvsplane"], 1)
    loaded, _ = stored.load(np.array([0]), 2000.0)
    assert 2000 <= len(loaded.times) <= 2200
    assert len(stored.load(np.array([0]))[0].times) == 100_000


def test_each_process_opens_the_file_for_itself(shd_folder, monkeypatch):
    """A shared handle would move under a forked process."""
    held, stored = both(shd_folder / "shd_train.h5", "shd", 40)
    handles = []
    monkeypatch.setattr(hdf5.h5py, "File", lambda *args, opened=h5py.File: handles.append(args) or opened(*args))
    stored.load(np.arange(60))
    assert not handles  # this process has one
    child = os.fork()
    if child == 0:
        code = 1
        try:
            loaded, _ = stored.load(np.arange(60))
            if np.array_equal(loaded.times, held.times) and len(handles) == 1:
                code = 0
        finally:
            os._exit(code)
    loaded, _ = stored.load(np.arange(60))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert np.array_equal(loaded.channels, held.channels)


def test_by_default_memory_decides(shd_folder, monkeypatch):
    path = shd_folder / "shd_train.h5"
    events = 60 * 60 * (4 + 2)  # bytes
    for available, kind in ((2 * events + 1, Recordings), (2 * events, StoredRecordings)):
        monkeypatch.setattr(readers, "available_bytes", lambda available=available: available)
        assert type(readers.read("shd", path, "train", 40, 3)) is kind


def test_events_are_checked_before_training(shd_folder):
    path = shd_folder / "shd_train.h5"
    with h5py.File(path, "a") as file:
        file["spikes/units"][57] = np.full(60, 40, np.uint16)
    with pytest.raises(InputError, match="recording 57 has an event on channel 40"):
        readers.read("shd", path, "train", 40, 3, in_memory=False)


def test_window_and_first_events(shd_folder, capsys):
    held, stored = both(shd_folder / "shd_train.h5", "shd", 40)
    for in_memory in (True, False):
        readers.read("shd", shd_folder / "shd_train.h5", "train", 40, 3, in_memory=in_memory, bins=Bins(10.0, 5, 0, 40))
        assert "% of the events fall into the 5 bins of 10 ms" in capsys.readouterr().err
    first = [images.first_events(recordings, (1, 5, 8), 200.0).pixels for recordings in (held, stored)]
    assert np.array_equal(*first)


def make_gestures(path: Path, recordings: int, events: int) -> None:
    random = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for r in range(recordings):
            file[f"train/{r}/time"] = np.sort(random.integers(0, 6_000_000, events)).astype(np.uint32)
            file[f"train/{r}/data"] = random.integers(0, (128, 128, 2), (events, 3), np.uint8)
            file[f"train/{r}/labels"] = np.uint8(r % 2)


def test_memory_does_not_grow_with_the_set(tmp_path):
    """NumPy holds as much while a set is read, checked and batched as for a set of four times the size."""
    peaks = []
    for recordings in (20, 80):
        path = tmp_path / f"{recordings}.h5"
        make_gestures(path, recordings, 100_000)
        tracemalloc.start()
        bins = Bins(10.0, 120, 40, CHANNELS["dvsgesture"])
        stored = readers.read("dvsgesture", path, "train", bins.channels, 2, in_memory=False, bins=bins)
        for _ in batches(stored, np.arange(recordings), bins, 4):
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0]
    assert peaks[1] < 80 * 100_000 * 6 / 2  # half of what the events take


@pytest.mark.slow
def test_200_megabytes_within_60(tmp_path):
    """Measure, as the system counts it, the memory that reading, checking and batching a set adds to a process.

    A small set comes first, so that what is imported and compiled does not count. Writing 5 to clear_refs lowers the
    high water mark to what is in use then. ru_maxrss has no such reset, and would begin at the peak of this process.
    """
    make_gestures(tmp_path / "x.h5", 300, 100_000)
    assert (tmp_path / "x.h5").stat().st_size > 200e6
    program = f"""
from pathlib import Path
import numpy as np
from benchmarks.kernels import high_water_megabytes
from datasets import readers
from datasets.binning import Bins, batches
from tests.test_stored import make_gestures
def run(name, recordings):
    bins = Bins(10.0, 120, 40, 32768)
    stored = readers.read("dvsgesture", Path(name), "train", 32768, 2, in_memory=False, bins=bins)
    for _ in batches(stored, np.arange(recordings), bins, 4):
        pass
folder = {str(tmp_path)!r}
make_gestures(Path(folder, "small.h5"), 2, 1000)
run(folder + "/small.h5", 2)
Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
before = high_water_megabytes()
run(folder + "/x.h5", 300)
print(high_water_megabytes() - before)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 60


@pytest.mark.parametrize("in_memory", [True, False])
def test_the_configuration_decides(shd_folder, in_memory):
    about = {"dataset_name": "shd", "channels": 40, "num_classes": 3, "dt_ms": 10.0, "T": 20}
    data = config.Data(**about, path=str(shd_folder), in_memory=in_memory)
    recordings = tasks.events.read_recordings(data, "train", Bins(10.0, 20, 0, 40))
    assert isinstance(recordings, Recordings if in_memory else StoredRecordings)


@pytest.mark.slow
def test_training_and_test_are_the_same(shd_folder, program):
    results = []
    for name, where in (("held", "true"), ("stored", "false")):
        words = f"--set data.in_memory={where} --path_to_dataset {shd_folder} --dataset_name shd {TINY}"
        done = program(f"train.py {words} --epochs 2 --save_name {name} --set data.augment.drop=0.1")
        assert done.returncode == 0, done.stderr
        done = program(f"test.py --load_pt_file runs/{name}/best.pt --streaming")
        assert done.returncode == 0, done.stderr
        rows = [json.loads(line) for line in Path(f"runs/{name}/metrics.jsonl").read_text().splitlines()]
        metrics = json.loads(Path(f"runs/{name}/test/metrics.json").read_text())
        for timed in (*rows, metrics["streaming"]["to_decision"], metrics["streaming"]["whole_window"]):
            timed.pop("seconds", None)
            timed.pop("time (ms)", None)
        for own in ("checkpoint", "command", "tested"):
            metrics.pop(own)
        weights = torch.load(f"runs/{name}/best.pt", weights_only=True)["network"]
        results.append((rows, metrics, weights))
    (rows, metrics, weights), (other_rows, other_metrics, other_weights) = results
    assert rows == other_rows
    assert metrics == other_metrics
    assert all(torch.equal(values, other_weights[name]) for name, values in weights.items())
