"""Readers of the event cameras' files."""

import h5py
import numpy as np
import pytest

from datasets import readers
from snn.errors import InputError
from tests.cameras import CHANNELS, SIZE, make_pixels, write_camera


@pytest.mark.parametrize("layout", SIZE)
def test_events_become_units_of_the_whole_sensor(tmp_path, layout):
    events = make_pixels(12, 3, layout, 0)  # more than ten: their order is that of numbers, not of names
    events["times"][1] = events["times"][1] - 4_000_000_000
    path = write_camera(tmp_path / "x.h5", layout, "train", **events)
    recordings = readers.read(layout, path, "train", CHANNELS[layout], 3)
    height, width = SIZE[layout]
    assert recordings.labels.tolist() == events["labels"]
    assert recordings.offsets.tolist() == list(range(0, 601, 50))
    assert recordings.ticks_per_second == 1e6
    assert recordings.times.dtype == np.uint32
    assert recordings.channels.dtype == (np.uint16 if layout == "dvsgesture" else np.uint32)
    for r in range(12):
        part = slice(50 * r, 50 * r + 50)
        x, y, polarity = events["data"][r].T
        assert np.array_equal(recordings.times[part], events["times"][r] - events["times"][r][0])
        assert np.array_equal(recordings.channels[part], polarity * height * width + y * width + x)


BAD = {
    "x": "recording 2 has an event at x = 128, y = 5 with polarity 1; the sensor has x in 0..127",
    "y": "recording 2 has an event at x = 5, y = 128 with polarity 0",
    "polarity": "with polarity -1; the sensor has x in 0..127, y in 0..127 and polarities 0 and 1",
    "unsigned polarity": "with polarity 255",
    "back": "recording 3 goes back in time, from 4294967295 to 4 µs at event 2",
    "lengths": "recording 1 does not have as many times as channels (49 times, 50 channels)",
    "no events": "it has no data set /train/4/time",
    "no label": "it has no data set /train/4/labels",
    "two labels": "/train/4/labels must hold one label, not 2",
    "gap": "must hold the recordings 0 to 4 and nothing else, but it has no group '1'",
    "other split": "it has no group /train",
    "floats": "/train/4 must have whole numbers time (events) and data (events, 3)",
    "columns": "/train/4 must have whole numbers time (events) and data (events, 3)",
    "label": "recording 4 has the label 7, outside 0..2",
    "class": "class 2 has no recording",
    "none": "holds no recording",
    "damaged": "not a readable HDF5 file",
}


@pytest.mark.parametrize("kind", BAD)
def test_camera_files_that_are_refused(tmp_path, kind):
    events = make_pixels(6, 3, "dvsgesture", 0)
    data, dtype = events["data"], np.int16 if kind == "polarity" else None
    if kind in ("x", "y", "polarity", "unsigned polarity"):
        row = {"x": (128, 5, 1), "y": (5, 128, 0), "polarity": (5, 5, -1), "unsigned polarity": (5, 5, 255)}[kind]
        data[2][30] = row
    elif kind == "back":
        events["times"][3] = np.array([2**32 - 9, 2**32 - 1, *range(4, 52)])
    elif kind == "lengths":
        events["times"][1] = events["times"][1][:-1]
    elif kind == "label":
        events["labels"][4] = 7
    elif kind == "class":
        events["labels"] = [0, 1] * 3
    elif kind == "none":
        events = {name: [] for name in events}
    path = write_camera(tmp_path / "x.h5", "dvsgesture", "train", **events, dtype=dtype)
    with h5py.File(path, "a") as file:
        train = file.require_group("train")
        if kind == "no events":
            del train["4/time"], train["4/data"]
        elif kind == "no label":
            del train["4/labels"]
        elif kind == "two labels":
            del train["4/labels"]
            train["4/labels"] = np.zeros(2, np.uint8)
        elif kind == "gap":
            del train["1"]
        elif kind == "other split":
            file.move("train", "test")
        elif kind in ("floats", "columns"):
            del train["4/data"]
            train["4/data"] = np.zeros((50, 3)) if kind == "floats" else np.zeros((50, 4), np.uint8)
    if kind == "damaged":
        path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(InputError) as refusal:
        readers.read("dvsgesture", path, "train", CHANNELS["dvsgesture"], 3)
    assert str(refusal.value).startswith(str(path))
    assert BAD[kind] in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("layout", SIZE)
def test_missing_camera_file_says_how_to_make_it(tmp_path, layout):
    with pytest.raises(InputError, match=f"not found.*https?://.*datasets.prepare {layout}"):
        readers.read(layout, tmp_path / "x.h5", "train", CHANNELS[layout], 3)
