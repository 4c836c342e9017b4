"""Preparation of the published sets from small originals in their true formats."""

from pathlib import Path

import h5py
import numpy as np
import pytest
from scipy.io import savemat
from spikingjelly.datasets.utils import load_aedat_v3

from datasets import readers
from datasets.prepare import dvsgesture, dvsplane, ntidigits
from snn.errors import InputError
from tests.originals import (
    GESTURES_HEADER,
    POLARITY,
    SPECIAL,
    packet,
    polarity_packet,
    write_drop,
    write_gestures,
    write_original_digits,
)


def refuse(message: str, convert, *arguments) -> None:
    """Check that `convert` raises an InputError of one line that matches."""
    with pytest.raises(InputError, match=message) as refusal:
        convert(*arguments)
    assert "\n" not in str(refusal.value)


# N-TIDIGITS


def test_ntidigits(program, tmp_path):
    recordings = write_original_digits(tmp_path / "n-tidigits.hdf5")
    done = program("-m datasets.prepare ntidigits", tmp_path / "n-tidigits.hdf5", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    path = tmp_path / "out" / "n-tidigits-single.hdf5"
    with h5py.File(path) as file:
        assert dict(file["extra"].attrs) == {"N": 44, "Ntrain": 22, "Ntest": 22}
        assert file["extra/test_keys"][()].tolist() == list(range(22, 44))
        assert set(file) == {"data", "extra"}
        first = file["data/0"]
        assert (first["times"].dtype, first["addrs"].dtype, first["labels"].dtype) == (np.uint32, np.uint8, np.uint8)
        assert first["addrs"].shape == (20, 1)
        assert first["labels"].shape == ()
        assert np.array_equal(first["times"][()], np.floor(1e6 * recordings["train"][0][0]))
    for split, expected in recordings.items():
        read = readers.read("ntidigits", path, split, 64, 11)
        assert read.labels.tolist() == [label for _, _, label in expected]
        assert read.labels.tolist() == [*range(11)] * 2
        assert np.array_equal(read.channels, np.concatenate([channels for _, channels, _ in expected]))


BAD_DIGITS = {
    "text": "not a readable HDF5 file",
    "layout": "it has no data set test_labels; give the original",
    "orphan": "the recording 'test_timestamps/man-a-3-3' has a label but is missing",
    "lengths": "man-a-3-3 has 3 times and 23 addresses",
    "negative": "man-a-3-3 has a time outside 0 to 4294 s",
    "overflow": "man-a-3-3 has a time outside 0 to 4294 s",
    "address": "man-a-3-3 has an address outside 0..63",
    "word": "the label 'man-a-0-x' does not end in a digit",
    "class": "test_labels has no single '7'",
}


@pytest.mark.parametrize("kind", BAD_DIGITS)
def test_bad_ntidigits(tmp_path, kind):
    path = tmp_path / "n-tidigits.hdf5"
    write_original_digits(path)
    with h5py.File(path, "a") as file:
        times, addresses = "test_timestamps/man-a-3-3", "test_addresses/man-a-3-3"
        if kind == "layout":
            del file["test_labels"]
        elif kind == "orphan":
            del file[times]
        elif kind == "lengths":
            del file[times]
            file[times] = np.arange(3.0)
        elif kind in ("negative", "overflow"):
            file[times][5] = {"negative": -0.1, "overflow": 4295}[kind]
        elif kind == "address":
            file[addresses][5] = 64
        elif kind in ("word", "class"):
            old, new = {"word": (b"-z", b"-x"), "class": (b"-7", b"-8")}[kind]
            file["test_labels"][...] = [name.replace(old, new) for name in file["test_labels"][()]]
    if kind == "text":
        path.write_text("x")
    refuse(BAD_DIGITS[kind], ntidigits.convert_ntidigits, path, tmp_path / "out")
    assert not [*tmp_path.glob("out/*"), *tmp_path.glob("out/.*")]


# DVSGesture


@pytest.fixture
def gestures(tmp_path) -> Path:
    """Write user23 and user24, each with all eleven gestures and the eighth twice."""
    for user in (23, 24):
        write_gestures(tmp_path / "in", f"user{user}_lab", [*range(1, 12), 8], user)
    return tmp_path / "in"


def test_the_eleventh_class_on_request(program, tmp_path):
    folder = tmp_path / "in"
    made = {n: write_gestures(folder, n, list(range(1, 12)), k, classes=11) for k, n in enumerate(("user01", "user24"))}
    done = program(
        "-m datasets.prepare dvsgesture", folder, "--out", tmp_path / "out", "--processes", 1, "--classes", 11
    )
    assert done.returncode == 0, done.stderr
    for split, name in (("train", "user01"), ("test", "user24")):
        path = tmp_path / "out" / f"DVS-Gesture-{split}11.hdf5"
        read = readers.read("dvsgesture", path, split, 2 * 128 * 128, 11)
        assert read.labels.tolist() == list(range(11))
        assert np.array_equal(read.times, np.concatenate([times_us for times_us, _, _ in made[name]]))


def test_aedat_is_read_as_spikingjelly_reads_it(gestures):
    """Other packets are skipped, and the clock continues past 31 bits."""
    write_gestures(gestures, "user1_long", [1, 2], 7, start_us=2**31 - 15_000)
    for path in gestures.glob("*.aedat"):
        times_us, data, _ = dvsgesture.read_aedat(path)
        known = load_aedat_v3(path)
        assert len(times_us) == 33 * (2 if path.stem == "user1_long" else 12)
        assert np.array_equal(times_us, known["t"])
        assert np.array_equal(data, np.stack([known[name] for name in "xyp"], axis=1))
    assert dvsgesture.read_aedat(gestures / "user1_long.aedat").times_us.max() > 2**31


@pytest.mark.parametrize("trials", [False, True])
def test_dvsgesture(program, tmp_path, trials):
    """The users' numbers give the split, or the lists of trials do."""
    folder, labels = tmp_path / "in", [*range(1, 12), 8]
    made = {
        name: write_gestures(folder, name, labels, k) for k, name in enumerate(("user02_lab", "user23_a", "user24_b"))
    }
    expected = {"train": ["user02_lab", "user23_a"], "test": ["user24_b"]}
    if trials:
        expected = {"train": ["user24_b"], "test": ["user23_a", "user02_lab"]}
        for split, names in expected.items():
            (folder / f"trials_to_{split}.txt").write_text("".join(f"{name}.aedat\n" for name in names))
    done = program("-m datasets.prepare dvsgesture", folder, "--out", tmp_path / "out", "--processes", 1)
    assert done.returncode == 0, done.stderr
    for split, names in expected.items():
        path = tmp_path / "out" / f"DVS-Gesture-{split}10.hdf5"
        gestures = [gesture for name in names for gesture in made[name]]
        with h5py.File(path) as file:
            assert list(file) == [split]
            assert len(file[split]) == len(gestures) == 11 * len(names)
            stored = file[f"{split}/0"]
            assert (stored["time"].dtype, stored["data"].dtype, stored["labels"].dtype) == (np.uint32, *[np.uint8] * 2)
            assert stored["labels"].shape == ()
        read = readers.read("dvsgesture", path, split, 2 * 128 * 128, 10)
        assert read.labels.tolist() == [label for _, _, label in gestures]
        assert np.array_equal(read.times, np.concatenate([times_us for times_us, _, _ in gestures]))
        x, y, p = np.concatenate([data for _, data, _ in gestures]).T
        assert np.array_equal(read.channels, p * 128 * 128 + y * 128 + x)


def break_gestures(folder: Path, kind: str) -> None:
    recording, table = folder / "user23_lab.aedat", folder / "user23_lab_labels.csv"
    content, rows = recording.read_bytes(), table.read_text().splitlines()
    if kind == "truncated events":
        recording.write_bytes(content[: len(GESTURES_HEADER) + 44 + 28 + 100])
    elif kind == "truncated packet":
        recording.write_bytes(content[: len(GESTURES_HEADER) + 44 + 20])
    elif kind == "truncated header":
        recording.write_bytes(GESTURES_HEADER[:-10])
    elif kind == "older":
        recording.write_bytes(content.replace(b"DAT3.1", b"DAT2.0"))
    elif kind == "no events":
        recording.write_bytes(GESTURES_HEADER + packet(SPECIAL, bytes(16), 8))
    elif kind == "sizes":
        recording.write_bytes(GESTURES_HEADER + packet(POLARITY, bytes(24), 12))
    elif kind == "outside":
        recording.write_bytes(content + polarity_packet(np.array([10**6]), np.array([[5, 128, 0]])))
    elif kind == "back":
        recording.write_bytes(
            GESTURES_HEADER + content[len(GESTURES_HEADER) + 44 + 28 + 33 * 8 :] + content[len(GESTURES_HEADER) :]
        )
        rows[1] = "1,1000,40000"
    elif kind == "no table":
        table.unlink()
        return
    elif kind == "orphan":
        recording.unlink()
    elif kind == "empty table":
        rows = rows[:1]
    elif kind == "words":
        rows[3] = "wave,1,2"
    elif kind == "columns":
        rows[3] = "1,2"
    elif kind == "gesture":
        rows[3] = "12,1,2"
    elif kind == "ends first":
        rows[3] = "3,500,400"
    elif kind == "no such time":
        rows[3] = "3,900000000,900000001"
    elif kind == "class":
        rows = [row for row in rows if not row.startswith("5,")]
    elif kind == "name":
        recording.rename(folder / "user30.aedat")
        table.rename(folder / "user30_labels.csv")
        return
    elif kind == "one list":
        (folder / "trials_to_train.txt").write_text("user23_lab.aedat\n")
    elif kind in ("both lists", "not there"):
        for split in ("train", "test"):
            name = "user23_lab" if kind == "both lists" else f"user23_{split}"
            (folder / f"trials_to_{split}.txt").write_text(f"{name}.aedat\n")
    table.write_text("\n".join(rows) + "\n")


BAD_GESTURES = {
    "truncated events": r"user23_lab.aedat: is truncated within the packet at byte \d+",
    "truncated packet": r"user23_lab.aedat: is truncated within the packet at byte \d+",
    "truncated header": "user23_lab.aedat: not an AEDAT 3.1 file",
    "older": "user23_lab.aedat: not an AEDAT 3.1 file",
    "no events": "user23_lab.aedat: holds no brightness events",
    "sizes": "user23_lab.aedat: damaged, the packet at byte .* is of type 1 and has 2 of 2 events of 12 bytes",
    "outside": "user23_lab.aedat: an event at x = 5, y = 128 is outside the sensor",
    "back": "user23_lab_labels.csv: gesture 1, 1000 to 40000 µs of user23_lab.aedat, goes back in time",
    "no table": "user23_lab_labels.csv: no table of class,startTime_usec,endTime_usec",
    "orphan": "user23_lab_labels.csv: its recording user23_lab.aedat is missing",
    "empty table": "user23_lab_labels.csv: needs the columns",
    "words": "user23_lab_labels.csv: no table of .*'wave'",
    "columns": "user23_lab_labels.csv: needs the columns",
    "gesture": "user23_lab_labels.csv, line 4: 12,1,2 is not class 1 to 11",
    "ends first": "user23_lab_labels.csv, line 4: 3,500,400 is not class",
    "no such time": "gesture 3, 900000000 to 900000001 µs of user23_lab.aedat, has no event",
    "class": "no train recording has the gesture 5",
    "name": "user30.aedat: its name must begin with user01 to user29",
    "one list": "trials_to_train.txt exists, but",
    "both lists": "user23_lab.aedat is listed for training and for testing",
    "not there": "trials_to_train.txt: user23_train.aedat is missing",
}


@pytest.mark.parametrize("kind", BAD_GESTURES)
def test_bad_dvsgesture(tmp_path, gestures, monkeypatch, kind):
    monkeypatch.setattr(dvsgesture, "map_in_order", lambda function, tasks, *_: map(function, tasks))  # no processes
    break_gestures(gestures, kind)
    refuse(BAD_GESTURES[kind], dvsgesture.convert_dvsgesture, gestures, tmp_path / "out", 1)
    assert not [*tmp_path.glob("out/*"), *tmp_path.glob("out/.*")]


# DVSPlane


@pytest.fixture
def drops(tmp_path) -> Path:
    """Write recordings 2, 10 and 161 of each class."""
    for label, plane in enumerate(dvsplane.CLASSES):
        for number in (2, 10, 161):
            write_drop(tmp_path / "in", f"{plane}_{number}", 1000 * label + number)
    return tmp_path / "in"


def test_dvsplane(program, tmp_path, drops):
    done = program("-m datasets.prepare dvsplane", drops, "--out", tmp_path / "out", "--processes", 1)
    assert done.returncode == 0, done.stderr
    for split, numbers in (("train", (2, 10)), ("test", (161,))):
        path = tmp_path / "out" / f"DVSPlane-{split}.hdf5"
        with h5py.File(path) as file:
            assert len(file) == 4 * len(numbers)
            assert (file["0/time"].dtype, file["0/data"].dtype, file["0/labels"].dtype) == (
                np.uint32,
                np.uint16,
                np.uint8,
            )
        read = readers.read("dvsplane", path, split, 2 * 240 * 304, 4)
        assert read.labels.tolist() == [0, 1, 2, 3] * len(numbers)  # by number, then class
        for r, (number, label) in enumerate((number, label) for number in numbers for label in range(4)):
            times_us, data = write_drop(tmp_path / "again", "x", 1000 * label + number)
            part = dvsplane.busy_part(times_us)
            events = slice(read.offsets[r], read.offsets[r + 1])
            assert np.array_equal(read.times[events], times_us[part] - times_us[part.start])
            assert 190_000 < read.times[events][-1] < 260_000
            x, y, p = data[part].T
            assert np.array_equal(read.channels[events], (p * 240 + y) * 304 + x)


def busy_part_step_by_step(times_us: list[int]) -> tuple[int, int]:
    """Apply the rule of the published preparation, span by span."""
    spans = [times_us[k + 1000] - times_us[k] for k in range(len(times_us) - 1000)]
    shortest = min(spans)
    busy = [k for k, span in enumerate(spans) if span / 1000 < 10 * shortest / 1000]
    if times_us[busy[-1] - 1] - times_us[busy[0]] > 300_000:
        busy = [k for k, span in enumerate(spans) if span / 1000 < 5 * shortest / 1000]
        for i in range(2001, len(busy) - 1):
            if busy[i + 1] - busy[i] > 2:
                busy = busy[:i]
                break
    return busy[0], busy[-1]


@pytest.mark.parametrize("seed", range(6))
def test_busy_part(seed):
    """Bursts of random length and rate, with quiet between them; some are long, some have a gap."""
    random = np.random.default_rng(seed)
    intervals_us = np.concatenate(
        [random.exponential(random.uniform(10, 900), random.integers(500, 4000)) for _ in range(8)]
    )
    times_us = np.cumsum(intervals_us).astype(np.int64)
    part = dvsplane.busy_part(times_us)
    assert (part.start, part.stop) == busy_part_step_by_step(times_us.tolist())


BAD_DROPS = {
    "text": "Su24_10.mat: not a MATLAB file with a structure TD",
    "truncated": "Su24_10.mat: not a MATLAB file with a structure TD",
    "other struct": "Su24_10.mat: not a MATLAB file with a structure TD",
    "no field": "Su24_10.mat: not a MATLAB file with a structure TD",
    "lengths": "Su24_10.mat: not a MATLAB file with a structure TD",
    "outside": "Su24_10.mat: events outside x 1..304",
    "polarity": "Su24_10.mat: events outside .* polarity -1, 0, 1",
    "fractions": "Su24_10.mat: .* must be lists of whole numbers",
    "back": "Su24_10.mat: goes back in time, from 3000 to 1 µs",
    "short": "Su24_10.mat: finding its busy part takes more than 1000 events",
    "one time": "Su24_10.mat: finding its busy part takes more than 1000 events, not all at one time",
    "name": "B52_1.mat: its name is not like F117_1.mat",
    "number": "Su24_201.mat: its number is not 1 to 200",
    "twice": "are both number 10 of Su24",
    "class": "Su24 has no recording of 161 to 200, those of the test file",
    "none": "holds no .*mat",
}


@pytest.mark.parametrize("kind", BAD_DROPS)
def test_bad_dvsplane(tmp_path, drops, monkeypatch, kind):
    monkeypatch.setattr(dvsplane, "map_in_order", lambda function, tasks, *_: map(function, tasks))
    path = drops / "Su24_10.mat"
    ramp = np.arange(3000.0)
    fields = {"x": ramp % 304 + 1, "y": ramp % 240 + 1, "p": ramp % 2, "ts": ramp}
    if kind == "text":
        path.write_text("x")
    elif kind == "truncated":
        path.write_bytes(path.read_bytes()[:5000])
    elif kind in ("other struct", "no field"):
        savemat(path, {"other": fields} if kind == "other struct" else {"TD": {"x": ramp}})
    elif kind == "none":
        drops = tmp_path / "nothing"
        drops.mkdir()
    elif kind in ("name", "number"):
        path.rename(drops / {"name": "B52_1.mat", "number": "Su24_201.mat"}[kind])
    elif kind == "twice":
        (drops / "deep").mkdir()
        (drops / "deep" / "su24_010_td.mat").write_bytes(path.read_bytes())
    elif kind == "class":
        (drops / "Su24_161.mat").unlink()
    else:
        wrong = {"x": fields["x"] + 1} if kind == "outside" else {}
        wrong |= {"p": ramp} if kind == "polarity" else {}
        wrong |= {"x": ramp[:-1]} if kind == "lengths" else {}
        wrong |= {"ts": ramp / 2} if kind == "fractions" else {}
        wrong |= {"ts": np.roll(ramp + 1, 1) * (ramp != 0) + 3000 * (ramp == 0)} if kind == "back" else {}
        wrong |= {"ts": ramp * 0} if kind == "one time" else {}
        fields |= wrong
        if kind == "short":
            fields = {name: values[:1000] for name, values in fields.items()}
        savemat(path, {"TD": fields})
    refuse(BAD_DROPS[kind], dvsplane.convert_dvsplane, drops, tmp_path / "out", 1)
    assert not [*tmp_path.glob("out/*"), *tmp_path.glob("out/.*")]


@pytest.mark.parametrize(
    ("source", "where"),
    [("ntidigits", "docs.google.com"), ("dvsgesture", "research.ibm.com"), ("dvsplane", "greg-cohen.com")],
)
def test_help_names_where_to_get_the_original(program, source, where):
    done = program(f"-m datasets.prepare {source} --help")
    assert done.returncode == 0
    assert where in done.stdout.replace("\n", "").replace(" ", "")
    refused = program(f"-m datasets.prepare {source} nowhere --out nowhere")
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: nowhere")
    assert refused.stderr.count("\n") == 1
