"""Recordings from arrays, into a file and into memory, and from a Tonic data set."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from datasets import arrays, readers
from datasets.binning import Bins, batches
from datasets.recordings import downsampled
from snn import config, settings
from snn.errors import InputError
from snn.network import Network
from tests.conftest import REPOSITORY, nmnist_bytes

KIND = np.dtype([("x", np.int16), ("y", np.int16), ("p", bool), ("t", np.int64)])  # as Tonic's data sets give them
SENSOR = (240, 304)  # more units than 16 bits can number


def structures(n: int, seed: int, label: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    e = np.zeros(n, KIND)
    e["t"], e["x"] = np.sort(random.integers(0, 190_000, n)), random.integers(0, SENSOR[1], n)
    e["y"], e["p"] = random.integers(80 * label, 80 * label + 80, n), random.integers(0, 2, n)
    return e


def camera(n: int = 9) -> list[tuple]:
    return [(structures(50 + r, r, r % 3), f"class {r % 3}", f"person {r % 2}") for r in range(n)]


def check(recordings, made: list[tuple]) -> None:
    assert recordings.ticks_per_second == 1e6
    assert recordings.class_names == ("class 0", "class 1", "class 2")
    assert recordings.labels.tolist() == [r % 3 for r in range(len(made))]
    assert recordings.speakers.tolist() == [r % 2 for r in range(len(made))]
    for r, (e, *_) in enumerate(made):
        part = slice(*recordings.offsets[r : r + 2])
        assert recordings.times[part].tolist() == e["t"].tolist()
        units = (e["p"].astype(int) * SENSOR[0] + e["y"]) * SENSOR[1] + e["x"]
        assert recordings.channels[part].tolist() == units.tolist()


def test_a_file_and_memory_hold_every_event(tmp_path):
    made = camera()
    path = tmp_path / "deep" / "mine_train.h5"
    assert arrays.write(path, iter(made), time_unit="us", sensor=SENSOR) == 9
    check(readers.read("shd", path, "train", 2 * SENSOR[0] * SENSOR[1], 3), made)
    check(arrays.in_memory(made, time_unit="us", sensor=SENSOR), made)
    columns = [((e["t"] / 1e6, e["x"], e["y"], 2 * e["p"].astype(int) - 1), *rest) for e, *rest in made]
    check(arrays.in_memory(columns, time_unit="s", sensor=SENSOR), made)
    with h5py.File(path) as file:
        assert h5py.check_vlen_dtype(file["spikes/units"].dtype) == np.uint32
        assert h5py.check_vlen_dtype(file["spikes/times"].dtype) == np.uint32


def test_channels_of_a_cochlea_and_numbers_as_labels(tmp_path):
    made = [((np.array([0.001, 0.0105]), np.array([3, r])), torch.tensor(r % 3)) for r in range(6)]
    arrays.write(tmp_path / "a.h5", made, time_unit="s", channels=40, class_names=["a", "b", "c"])
    recordings = readers.read("shd", tmp_path / "a.h5", "train", 40, 3)
    assert recordings.times.tolist() == [1000, 10_500] * 6
    assert recordings.channels[1::2].tolist() == list(range(6))
    assert recordings.labels.tolist() == [0, 1, 2] * 2
    assert recordings.speakers is None
    assert recordings.class_names == ("a", "b", "c")
    with h5py.File(tmp_path / "a.h5") as file:
        assert h5py.check_vlen_dtype(file["spikes/units"].dtype) == np.uint16


def with_ticks(path: Path, ticks) -> Path:
    arrays.write(
        path, [((np.array([1000, 2000]), np.array([0, 1])), r % 2) for r in range(4)], time_unit="us", channels=2
    )
    with h5py.File(path, "r+") as file:
        file.attrs["ticks_per_second"] = ticks
    return path


@pytest.mark.parametrize("ticks", ["1000", b"1000", 1000, np.uint64(1000), 1000.0, np.array([[1000.0]])])
def test_ticks_a_second_as_text_or_a_whole_number(tmp_path, ticks):
    assert readers.read("shd", with_ticks(tmp_path / "a.h5", ticks), "train", 2, 2).ticks_per_second == 1000


@pytest.mark.parametrize(
    "ticks", [0.5, float("nan"), np.array([1000, 1000]), True, h5py.Empty("i8"), "", "1e6", 0, -3, 1e300]
)
def test_ticks_a_second_that_are_no_whole_number(tmp_path, ticks):
    with pytest.raises(InputError, match=r"a.h5: .*whole number"):
        readers.read("shd", with_ticks(tmp_path / "a.h5", ticks), "train", 2, 2)


def test_events_at_the_edge_of_a_bin_fall_into_the_later_one(tmp_path):
    """Seconds in floating point would put some into the earlier."""
    t = np.arange(1000) * 1000
    made = [((t, np.zeros(1000, int)), 0)]
    arrays.write(tmp_path / "a.h5", made, time_unit="us", channels=1)
    for recordings in (
        readers.read("shd", tmp_path / "a.h5", "test", 1, 1),
        arrays.in_memory(made, time_unit="us", channels=1),
    ):
        x_TBC, _ = next(batches(recordings, np.array([0]), Bins(1.0, 1000, 0, 1), 1))
        assert x_TBC.dense().flatten().tolist() == [1.0] * 1000


def test_what_is_written_trains(program, tmp_path):
    for split, n in (("train", 24), ("test", 9)):
        arrays.write(tmp_path / f"mine/mine_{split}.h5", camera(n), time_unit="us", sensor=SENSOR)
    words = (
        f"--path_to_yaml {REPOSITORY}/configs/adlif_shd.yaml --dataset_name mine --path_to_dataset mine --num_classes "
        "3 "
        "--set data.channels=null --set data.sensor.height=240 --set data.sensor.width=304 --set data.sensor.divide=16 "
        "--set network.layers=[16F] --T 20 --epochs 1 --batch-size 8 --set data.validation_by=speaker "
        "--set data.validation_share=0.5"
    )
    result = program(f"train.py {words}")
    assert result.returncode == 0, result.stderr
    assert "12 recordings to train on, 12 held out" in result.stdout


def test_recordings_in_memory_reach_a_network():
    recordings = arrays.in_memory(camera(), time_unit="us", sensor=SENSOR)
    sensor = config.Sensor(height=SENSOR[0], width=SENSOR[1], divide=16)
    recordings = downsampled(recordings, sensor)
    bins = Bins(10.0, 20, 0, 2 * 15 * 19)
    x_TBC, labels = next(batches(recordings, np.arange(9), bins, 9))
    values = settings.read_yaml(REPOSITORY / "configs/adlif_shd.yaml")
    network = Network(settings.build(values, "x").network, sensor.shape, 3, "auto")
    s_TBN, *_ = network(x_TBC)
    assert s_TBN.shape == (20, 9, 3)
    assert labels.tolist() == [0, 1, 2] * 3


E = structures(20, 0)
BAD = {
    "unsorted": (E[::-1], 0, "recording 1: goes back in time at event 1"),
    "beyond": (np.array([(304, 0, 1, 5)], KIND), 0, "event 0 is at x = 304, y = 0, and there are x in 0..303"),
    "negative": (np.array([(1, 1, 1, -5)], KIND), 0, "has the times -5 to -5 µs, not within 0 and 71.6 min"),
    "late": (np.array([(1, 1, 1, 2**32)], KIND), 0, "subtract the first, or cut it"),
    "empty": (E[:0], 0, "has no events; leave it out"),
    "lengths": ((E["t"], E["x"], E["y"], E["p"][1:]), 0, "must be arrays (t, x, y, p) of equal length"),
    "three": ((E["t"], E["x"], E["y"]), 0, "must be arrays (t, x, y, p) of equal length"),
    "field": (E[["x", "y", "t"]], 0, "has the fields x, y, t; p is missing"),
    "words": ((E["t"], E["x"], E["y"], np.array(["on"] * 20)), 0, "not numbers"),
    "polarity": (
        (E["t"], E["x"], E["y"], np.full(20, 3)),
        0,
        "has the polarity 3; it must be 0 or 1, or -1 or 1; correct it",
    ),
    "time": ((E["t"].astype(float) * np.nan, E["x"], E["y"], E["p"]), 0, "has the time nan; correct it"),
    "ragged": ((E["t"], E["x"], E["y"], [[1], [2, 3]]), 0, "must be arrays of numbers: setting an array element"),
    "graph": ((torch.ones(1, requires_grad=True), [1], [1], [1]), 0, "must be arrays of numbers: Can't call numpy()"),
    "label": (E, 1.5, "the label 1.5 is neither a name nor a number from 0"),
    "mixed": (E, "name", "the labels mix names and numbers, such as 'name' and 0; use one"),
    "sample": (None, None, "recording 1 is not (events, label) or (events, label, subject)"),
}


@pytest.mark.parametrize("kind", BAD)
def test_arrays_that_are_refused_leave_no_file(tmp_path, kind):
    events, label, words = BAD[kind]
    made = [(E, 0), (events, label) if events is not None else E]
    for make in (
        lambda: arrays.write(tmp_path / "a.h5", made, time_unit="us", sensor=SENSOR),
        lambda: arrays.in_memory(made, time_unit="us", sensor=SENSOR),
    ):
        with pytest.raises(InputError) as caught:
            make()
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)
        assert "--" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_class_has_one_spelling(tmp_path):
    made = [(([1], [1]), name) for name in ("caf\u00e9", " cafe\u0301", "b")]
    arrays.write(tmp_path / "a.h5", made, time_unit="us", channels=3)
    for found in (
        readers.read("shd", tmp_path / "a.h5", "train", 3, 2),
        arrays.in_memory(made, time_unit="us", channels=3),
    ):
        assert (found.class_names, found.labels.tolist()) == (("b", "caf\u00e9"), [1, 1, 0])


def test_what_is_said_about_arrays_is_checked(tmp_path):
    for words, message in (
        ({"time_unit": "min", "channels": 3}, "time_unit is 'min'; it must be one of s, ms, us, ns"),
        ({"time_unit": ["us"], "channels": 3}, "time_unit is ['us']; it must be one of s, ms, us, ns"),
        ({"time_unit": "us", "sensor": (70_000, 70_000)}, "2 · height · width of the sensor must be a whole number"),
        ({"time_unit": "us"}, "give either sensor"),
        ({"time_unit": "us", "channels": 3, "sensor": (2, 2)}, "give either sensor"),
        ({"time_unit": "us", "channels": 0}, "channels must be a whole number, 1 to 2147483647, but is 0"),
        ({"time_unit": "us", "sensor": (2, 2, 2)}, "sensor must be (height, width), but is (2, 2, 2)"),
        ({"time_unit": "us", "sensor": (2, 0)}, "a size in .*sensor must be a whole number"),
        ({"time_unit": "us", "channels": 3, "class_names": []}, "the label 0 has no name: there are 0"),
        ({"time_unit": "us", "channels": 3, "class_names": ["a", "a "]}, "two classes have the name 'a'; rename one"),
        ({"time_unit": "us", "channels": 3, "class_names": [1]}, "the names of the classes must be texts"),
    ):
        with pytest.raises(InputError, match=message.replace("(", r"\(").replace(")", r"\)").replace("[", r"\[")):
            arrays.write(tmp_path / "a.h5", [(([1], [1]), 0)], **words)
    with pytest.raises(InputError, match="'x' is not one of the classes a, b"):
        arrays.in_memory([(([1], [1]), "x")], time_unit="us", channels=3, class_names=["a", "b"])
    for name in ("a\0", "a\udcff"):
        with pytest.raises(InputError, match=r"the label .* has characters that cannot be stored: rename it"):
            arrays.write(tmp_path / "a.h5", [(([1], [1]), name)], time_unit="us", channels=3)
    with pytest.raises(InputError, match=r"the recordings must be a list of \(events, label\), not 5"):
        arrays.write(tmp_path / "a.h5", 5, time_unit="us", channels=3)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot be written .* choose another folder for it$"):
        arrays.write(tmp_path / "file" / "a.h5", [(([1], [1]), 0)], time_unit="us", channels=3)
    with pytest.raises(FileNotFoundError, match=r"gone\.npy"):  # which is not the file that is written
        arrays.write(tmp_path / "a.h5", (np.load(tmp_path / "gone.npy") for _ in "a"), time_unit="us", channels=3)
    with pytest.raises(InputError, match="recording 1 names no subject, but others do"):
        arrays.write(tmp_path / "a.h5", [(([1], [1]), 0, 4), (([1], [1]), 0)], time_unit="us", channels=3)
    with pytest.raises(InputError, match=r"event 0 is at channel 3, and there are channels 0..2"):
        arrays.in_memory([(([1], [3]), 0)], time_unit="us", channels=3)
    for events in (structures(1, 0), ([1], [1], [1], [1])):  # of a camera
        with pytest.raises(InputError, match=r"recording 0 must be arrays \(t, channel\) of equal length$"):
            arrays.in_memory([(events, 0)], time_unit="us", channels=3)
    with pytest.raises(InputError, match=r"event 1 is at channel 1.5, and there are channels 0..69999"):
        arrays.in_memory([(([1, 2], [3, 1.5]), 0)], time_unit="us", channels=70_000)
    assert arrays.in_memory([(([1], [66_000]), 0)], time_unit="us", channels=70_000).channels.tolist() == [66_000]
    with pytest.raises(InputError, match="there are no recordings"):
        arrays.in_memory([], time_unit="us", channels=3)


def test_a_tonic_data_set_in_three_lines(tmp_path, monkeypatch):
    tonic = pytest.importorskip("tonic")
    folder = tmp_path / "NMNIST" / "Train"
    for digit in range(10):
        (folder / str(digit)).mkdir(parents=True)
        (folder / str(digit) / "0.bin").write_bytes(nmnist_bytes([digit, 2], [3, 4], [0, 1], [50, 9000]))
    monkeypatch.setattr(tonic.datasets.NMNIST, "_check_exists", lambda self: True)

    dataset = tonic.datasets.NMNIST(str(tmp_path), train=True)
    height, width = tonic.datasets.NMNIST.sensor_size[1::-1]
    arrays.write(tmp_path / "nmnist_train.h5", dataset, time_unit="us", sensor=(height, width))

    recordings = readers.read("shd", tmp_path / "nmnist_train.h5", "train", 2 * 34 * 34, 10)
    assert sorted(recordings.labels.tolist()) == list(range(10))
    assert recordings.times.tolist() == [50, 9000] * 10
    units = [unit for label in recordings.labels for unit in (3 * 34 + label, (34 + 4) * 34 + 2)]
    assert recordings.channels.tolist() == units
