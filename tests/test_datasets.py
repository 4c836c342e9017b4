"""Readers, binning and the held-out share."""

import math
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from datasets import readers
from datasets.binning import Bins, batches, bin_dense, bin_events
from datasets.recordings import Recordings, as_inputs, downsampled
from datasets.splits import groups_by, hold_out
from snn.config import Data, Sensor
from snn.errors import InputError
from tests.conftest import make_events, write_shd

CPU = torch.device("cpu")


def read(path: Path, channels: int = 40, classes: int = 3, layout: str = "shd", split: str = "train", **more: object):
    return readers.read(layout, path, split, channels, classes, **more)


def slow_counts(times, units, dt_ms, T, T_empty, channels):
    """Event by event, in Python's own floats."""
    frame = torch.zeros(T + T_empty, channels)
    for t, unit in zip(times, units, strict=True):
        n = math.floor(1000 * float(np.float32(t)) / dt_ms)
        if n < T:
            frame[n, unit] += 1
    return frame


@pytest.mark.parametrize("dt_ms", [10.0, 1.0, 0.7, 3.3])
def test_counts_equal_the_slow_version(tmp_path, dt_ms):
    events = make_events(12, 3, 40, 0)
    events["times"][3] = np.array([0.0, 0.01, 0.02, 0.07, 0.0999, 0.1, 5.0])  # edges of bins, and beyond the window
    events["units"][3] = np.array([0, 39, 39, 39, 0, 1, 2])
    recordings = read(write_shd(tmp_path / "x.h5", **events))
    index = np.array([3, 0, 11, 3])
    bins = Bins(dt_ms, 9, 2, 40)
    x_TBC = bin_events(recordings, index, bins).dense()
    assert torch.equal(bin_dense(recordings, index, bins, CPU), x_TBC)
    assert x_TBC.shape == (11, 4, 40)
    assert x_TBC.dtype == torch.float32
    for b, r in enumerate(index):
        assert torch.equal(x_TBC[:, b], slow_counts(events["times"][r], events["units"][r], dt_ms, 9, 2, 40))


def test_counts_are_not_binarised_and_do_not_overflow(tmp_path):
    path = write_shd(tmp_path / "x.h5", [np.full(70_000, 0.005)], [np.zeros(70_000)], [0])
    events = bin_events(read(path, classes=1), np.array([0]), Bins(10.0, 1, 0, 1))
    assert torch.equal(bin_dense(read(path, classes=1), np.array([0]), Bins(10.0, 1, 0, 1), CPU), events.dense())
    assert events.counts.tolist() == [70_000]
    assert events.dense().tolist() == [[[70_000]]]


def test_events_may_be_in_any_order():
    """Draw events of a recording and of a bin; some are past the window, many in one channel."""
    random = np.random.default_rng(0)
    times = random.integers(0, 60, 3000).astype(np.uint32)
    channels = random.integers(0, 20, 3000).astype(np.uint16)
    offsets = np.array([0, 1000, 1000, 3000])
    recordings = Recordings(offsets, times, 1000.0, channels, np.zeros(3, np.int64), None, "made up")
    index = np.array([2, 0, 1])
    expected = np.zeros((12, 3, 20), np.float32)
    for b, r in enumerate(index):
        for e in range(*offsets[r : r + 2]):
            if times[e] < 50:
                expected[times[e] // 5, b, channels[e]] += 1
    assert np.array_equal(bin_events(recordings, index, Bins(5, 10, 2, 20)).dense().numpy(), expected)


def test_half_precision_times_of_the_official_files(tmp_path):
    """SHD stores float16 seconds; they bin as their exact values."""
    times = np.array([0.01, 0.02, 0.0999, 0.1], np.float16)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        dataset = file.create_dataset("spikes/times", (1,), h5py.vlen_dtype(np.float16))
        dataset[0] = times
        file.create_dataset("spikes/units", (1,), h5py.vlen_dtype(np.uint16))[0] = np.arange(4, dtype=np.uint16)
        file["labels"] = np.zeros(1, np.uint16)
    recordings, bins = read(tmp_path / "x.h5", classes=1), Bins(10.0, 12, 0, 4)
    x_TBC = bin_events(recordings, np.array([0]), bins).dense()
    assert torch.equal(bin_dense(recordings, np.array([0]), bins, CPU), x_TBC)
    expected = [math.floor(1000 * float(t) / 10.0) for t in times]
    assert x_TBC[:, 0].argmax(0).tolist() == expected


def test_batches_cover_everything_once_in_order(shd_folder):
    recordings = read(shd_folder / "shd_train.h5")
    index = np.arange(60)[::-1].copy()
    seen = list(batches(recordings, index, Bins(10.0, 20, 0, 40), 16))
    assert [len(target) for _, target in seen] == [16, 16, 16, 12]
    assert torch.equal(torch.cat([target for _, target in seen]), torch.from_numpy(recordings.labels[index]))
    alone = bin_events(recordings, index[19:20], Bins(10.0, 20, 0, 40)).dense()
    assert torch.equal(seen[1][0].dense()[:, 3], alone[:, 0])


def test_hold_out_by_recording(shd_folder):
    recordings = read(shd_folder / "shd_train.h5")
    kept, held = hold_out(recordings, 0.1, 0)
    assert sorted([*kept, *held]) == list(range(60))
    assert np.bincount(recordings.labels[held]).tolist() == [2, 2, 2]
    assert np.array_equal(held, hold_out(recordings, 0.1, 0)[1])
    assert not np.array_equal(held, hold_out(recordings, 0.1, 1)[1])


def test_hold_out_whole_speakers(shd_folder):
    recordings = read(shd_folder / "shd_train.h5")
    kept, held = hold_out(recordings, 0.3, 0, groups_by(recordings, "speaker", "validation"))
    speakers = recordings.speakers
    assert len(set(speakers[held])) == 2
    assert not set(speakers[kept]) & set(speakers[held])


def test_hold_out_that_cannot_be(tmp_path):
    events = make_events(6, 3, 40, 0)
    one_voice = read(write_shd(tmp_path / "one.h5", **(events | {"speakers": [1] * 6})))
    with pytest.raises(InputError, match="class 0 has no recording left to train on"):
        hold_out(one_voice, 0.1, 0, groups_by(one_voice, "speaker", "validation"))
    single = read(write_shd(tmp_path / "single.h5", **(events | {"labels": [0, 1, 2, 0, 0, 0]})))
    kept, held = hold_out(single, 0.5, 0)
    assert set(single.labels[kept]) == {0, 1, 2}  # the only recording of a class is for training
    assert set(single.labels[held]) == {0}
    few = read(write_shd(tmp_path / "few.h5", **{name: values[:3] for name, values in events.items()}))
    with pytest.raises(InputError, match="nothing is held out"):
        hold_out(few, 0.5, 0)
    nameless = read(write_shd(tmp_path / "none.h5", **(events | {"speakers": None})))
    with pytest.raises(InputError, match="names no speakers"):
        hold_out(nameless, 0.1, 0, groups_by(nameless, "speaker", "validation"))


def test_ntidigits(tmp_path):
    """Times in µs count from the first event; each split has its own keys."""
    path = tmp_path / "n.hdf5"
    with h5py.File(path, "w") as file:
        for key, start, label in (("a", 4_000_000_000, 1), ("b", 77, 2), ("c", 5, 0)):
            file[f"data/{key}/times"] = np.array([start, start + 4999, start + 5000, start + 20_000], np.uint32)
            file[f"data/{key}/addrs"] = np.array([[3], [4], [4], [63]], np.uint8)
            file[f"data/{key}/labels"] = np.array([label], np.uint8)
        file["extra/train_keys"] = np.array([b"a", b"c"])
        file["extra/test_keys"] = np.array([b"b"])
    train = read(path, 64, 2, "ntidigits", "train")
    assert train.labels.tolist() == [1, 0]
    assert read(path, 64, 3, "ntidigits", "test").labels.tolist() == [2]
    for b in range(2):
        x_TC = bin_events(train, np.array([b]), Bins(5.0, 4, 0, 64)).dense()[:, 0]
        assert x_TC.nonzero().tolist() == [[0, 3], [0, 4], [1, 4]]
    with h5py.File(path, "a") as file:
        del file["data/b"]
    with pytest.raises(InputError, match="names 'b' but there is no group of it in /data"):
        read(path, 64, 3, "ntidigits", "test")


@pytest.mark.parametrize(
    ("ticks", "message"),
    [
        (np.array([5, 9, 7], np.uint32), "recording 0 goes back in time, from 9 to 7 µs at event 2"),
        (np.array([2**32 - 2, 2**32 - 1, 3], np.uint32), "if its counter has run over (32 bits: 71.6 min), unwrap it"),
        (np.array([0, 1, 2**32], np.uint64), "recording 0 is longer than a counter of 32 bits"),
        (np.array([0, 1, np.nan]), "recording 0 goes back in time, from 1.0 to nan"),
        (np.array([0, 1, np.inf]), "recording 0 has an event at the time inf"),
    ],
)
def test_ntidigits_with_broken_time(tmp_path, ticks, message):
    write_ntidigits(tmp_path / "n.hdf5", ticks)
    with pytest.raises(InputError) as refusal:
        read(tmp_path / "n.hdf5", 64, 1, "ntidigits")
    assert message in str(refusal.value)


@pytest.mark.parametrize(
    "ticks",
    [
        np.array([-128, 0, 127], "i1"),
        np.array([2**63, 2**63 + 128, 2**63 + 255], ">u8"),
        np.array([-8.5, 119.5, 246.5]),
    ],
)
def test_times_of_any_type_count_from_the_first(tmp_path, ticks):
    """A difference may need more bits than the file's type has, and files may have another order of bytes."""
    write_ntidigits(tmp_path / "n.hdf5", ticks)
    recordings = read(tmp_path / "n.hdf5", 64, 1, "ntidigits")
    assert recordings.times.tolist() == [0, 128, 255]
    x_TBC = bin_events(recordings, np.array([0]), Bins(0.05, 6, 0, 64)).dense()
    assert x_TBC[:, 0].nonzero().tolist() == [[0, 1], [2, 2], [5, 3]]
    assert torch.equal(bin_dense(recordings, np.array([0]), Bins(0.05, 6, 0, 64), CPU), x_TBC)


def write_ntidigits(path: Path, ticks: np.ndarray) -> None:
    with h5py.File(path, "w") as file:
        file["data/a/times"], file["data/a/addrs"] = ticks, np.array([[1], [2], [3]], np.uint8)
        file["data/a/labels"], file["extra/train_keys"] = np.uint8(0), np.array([b"a"])


@pytest.mark.parametrize("how", ["chunks", "compressed", "behind a user block"])
def test_lists_stored_otherwise(tmp_path, how):
    """Read the same events, although their lengths are elsewhere in the file, or known only by reading them."""
    plain = read(write_shd(tmp_path / "plain.h5", **GOOD))
    more = {"chunks": {"chunks": (4,), "maxshape": (None,)}, "compressed": {"chunks": (4,), "compression": "gzip"}}
    with h5py.File(tmp_path / "x.h5", "w", userblock_size=512 if how == "behind a user block" else 0) as file:
        for name, dtype in (("times", np.float32), ("units", np.uint16)):
            dataset = file.create_dataset(f"spikes/{name}", (6,), h5py.vlen_dtype(dtype), **more.get(how, {}))
            for r, row in enumerate(GOOD[name]):
                dataset[r] = np.asarray(row, dtype)
        file["labels"] = GOOD["labels"]
    recordings = read(tmp_path / "x.h5")
    for name in ("offsets", "times", "channels", "labels"):
        assert np.array_equal(getattr(recordings, name), getattr(plain, name))
    bin_events(recordings, np.arange(6), Bins(10.0, 20, 0, 40))


GOOD = make_events(6, 3, 40, 0)


def broken(path: Path, kind: str) -> None:
    events = {name: list(value) for name, value in GOOD.items()}
    if kind == "label":
        events["labels"][4] = 3
    elif kind == "class":
        events["labels"] = [0, 2, 0, 2, 0, 2]
    elif kind == "negative label":
        events["labels"][0] = -1
    elif kind == "channel":
        events["units"][5] = np.array([0] * 59 + [40])
    elif kind == "nan":
        events["times"][2] = np.array([math.nan] * 60)
    elif kind == "negative time":
        events["times"][2] = np.array([-0.1] * 60)
    elif kind == "lengths":
        events["times"][1] = events["times"][1][:-1]
    elif kind == "counts":
        events["labels"] = events["labels"][:-1]
    write_shd(path, **events)
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-4000])
    elif kind == "text":
        path.write_text("no HDF5")
    elif kind in ("no units", "dense", "groups", "strings", "none"):
        with h5py.File(path, "a") as file:
            if kind == "strings":
                del file["labels"]
                file["labels"] = np.array([b"one"] * 6)
                return
            del file["spikes/units"]
            if kind == "dense":
                file["spikes/units"] = np.zeros((6, 60), np.uint16)
            elif kind == "groups":
                file.create_group("spikes/units/x")
            elif kind == "none":
                del file["spikes/times"], file["labels"], file["extra"]
                for name, dtype in (("times", np.float32), ("units", np.uint16)):
                    file.create_dataset(f"spikes/{name}", (0,), h5py.vlen_dtype(dtype))
                file["labels"] = np.zeros(0, np.int64)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("label", "recording 4 has the label 3, outside 0..2"),
        ("negative label", "recording 0 has the label -1"),
        ("channel", "recording 5 has an event on channel 40, outside 0..39"),
        ("nan", "recording 2 has an event at the time nan"),
        ("negative time", "recording 2 has an event at the time -0.1"),
        ("lengths", "recording 1 does not have as many times as channels (59 times, 60 channels)"),
        ("counts", "labels has shape (5,), but spikes/times has (6,)"),
        ("class", "class 1 has no recording"),
        ("truncated", "not a readable HDF5 file, perhaps truncated"),
        ("text", "not a readable HDF5 file"),
        ("no units", "it has no data set /spikes/units"),
        ("dense", "/spikes/units must hold a variable-length list"),
        ("groups", "it has no data set /spikes/units"),
        ("strings", "/labels holds |S3, not numbers; give each kind a number, from 0"),
        ("none", "holds no recording"),
    ],
)
def test_files_that_are_refused(tmp_path, kind, message):
    path = tmp_path / "x.h5"
    broken(path, kind)
    with pytest.raises(InputError) as refusal:
        read(path)
    assert str(refusal.value).startswith(str(path))
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("labels", np.array([0.0, 1.0, 2.0, 0.0, 1.5, 2.0]), "/labels must hold whole numbers"),
        ("labels", np.array([0.0, 1.0, 2.0, 0.0, np.nan, 2.0]), "/labels must hold whole numbers"),
        ("labels", h5py.Empty("i8"), "/labels cannot hold values"),
        ("labels", np.zeros((6, 1), np.int64), "spikes/times has (6,); write one number a recording"),
        ("extra/speaker", np.array([b"x"] * 6), "/extra/speaker holds |S1, not numbers"),
        ("spikes/units", "<f4", "/spikes/units must hold a variable-length list of whole numbers"),
        ("spikes/units", ">u2", "/spikes/units holds lists in another order of bytes than this machine's"),
    ],
)
def test_values_of_the_wrong_kind(tmp_path, name, values, message):
    path = write_shd(tmp_path / "x.h5", **GOOD)
    with h5py.File(path, "a") as file:
        del file[name]
        if isinstance(values, str):
            file.create_dataset(name, (6,), h5py.vlen_dtype(np.dtype(values)))
        else:
            file[name] = values
    with pytest.raises(InputError) as refusal:
        read(path)
    assert message in str(refusal.value)


def test_times_in_another_unit_are_noticed(tmp_path, capsys):
    bins = Bins(10.0, 20, 0, 40)
    read(write_shd(tmp_path / "s.h5", **GOOD), bins=bins)
    assert not capsys.readouterr().err
    half = GOOD | {"times": [np.linspace(0, 1, 60)] * 6}
    read(write_shd(tmp_path / "half.h5", **half), bins=bins)
    assert "20 % of the events fall into the 20 bins" in capsys.readouterr().err
    in_ms = GOOD | {"times": [1000 * times + 300 for times in GOOD["times"]]}
    with pytest.raises(InputError, match="0 % of the events fall into the 20 bins"):
        read(write_shd(tmp_path / "ms.h5", **in_ms), bins=bins)


def test_missing_file_says_where_to_get_it(tmp_path):
    with pytest.raises(InputError, match=r"missing\.h5: not found\. .*zenkelab\.org"):
        read(tmp_path / "missing.h5")


@pytest.mark.parametrize("divide", [1, 2, 4])
@pytest.mark.parametrize("polarities", [1, 2])
def test_a_camera_is_seen_as_configured(tmp_path, divide, polarities):
    """Each event by hand: x // divide, y // divide, and its polarity's image; counts of merged pixels add up."""
    height, width = 6, 9
    sensor = Sensor(height=height, width=width, divide=divide, polarities=polarities)
    random = np.random.default_rng(0)
    p, y, x = random.integers(0, 2, 500), random.integers(0, height, 500), random.integers(0, width, 500)
    p[:3], y[:3], x[:3] = 1, height - 1, width - 1  # the last unit
    times = np.sort(random.uniform(0, 0.05, 500))
    path = write_shd(tmp_path / "x.h5", [times], [(p * height + y) * width + x], [0])
    recordings = downsampled(read(path, sensor.num_units, classes=1), sensor)
    assert sensor.shape == (polarities, math.ceil(height / divide), math.ceil(width / divide))
    frames = (
        bin_events(recordings, np.array([0]), Bins(10.0, 5, 0, math.prod(sensor.shape))).dense().view(5, *sensor.shape)
    )
    expected = torch.zeros_like(frames)
    for k in range(500):
        n = math.floor(1000 * float(np.float32(times[k])) / 10.0)
        expected[n, p[k] if polarities == 2 else 0, y[k] // divide, x[k] // divide] += 1
    assert torch.equal(frames, expected)


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("pool", [1, 3, 40, 50])
def test_neighbouring_channels_are_pooled(tmp_path, pool, in_memory):
    path = write_shd(tmp_path / "x.h5", **make_events(12, 3, 40, 0))
    data = Data(dataset_name="x", num_classes=3, channels=40, pool=pool, dt_ms=10.0, T=9)
    recordings, index = read(path, in_memory=in_memory), np.array([4, 0])
    ((whole_TBC, _),) = batches(recordings, index, Bins(10.0, 9, 0, 40), 2)
    ((pooled_TBC, _),) = batches(as_inputs(recordings, data), index, Bins.of(data, "train"), 2)
    assert data.shape == (math.ceil(40 / pool),)
    assert data.num_units == 40
    whole_TBC = torch.nn.functional.pad(whole_TBC.dense(), (0, -40 % pool))
    assert whole_TBC.sum() > 0
    assert torch.equal(pooled_TBC.dense(), whole_TBC.unflatten(2, (-1, pool)).sum(3))


def test_a_sensor_is_not_pooled():
    with pytest.raises(ValueError, match="a sensor has divide"):
        Data(dataset_name="x", num_classes=3, sensor=Sensor(height=2, width=2), pool=2, dt_ms=10.0, T=9)


def test_channels_are_not_mirrored():
    with pytest.raises(ValueError, match=r"augment\.flip is for a sensor"):
        Data(dataset_name="x", num_classes=3, channels=700, augment={"flip": True}, dt_ms=10.0, T=9)


def test_an_event_beside_the_sensor(tmp_path):
    sensor = Sensor(height=2, width=3)
    with pytest.raises(InputError, match=r"event on channel 12, outside 0\.\.11; set data\.channels, or data\.sensor"):
        read(write_shd(tmp_path / "x.h5", [[0.0]], [[12]], [0]), sensor.num_units, classes=1)
