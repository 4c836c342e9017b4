"""Recordings and classes that a window misses, and the messages about a test file before training."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

from datasets import hdf5, images, readers
from datasets.binning import Bins, batches
from datasets.recordings import Recordings
from datasets.splits import hold_out, name_of
from datasets.window import check_first_times
from snn.errors import InputError
from tests.cameras import CHANNELS, make_pixels, write_camera
from tests.conftest import REPOSITORY, TINY, assert_one_line, make_events, write_shd
from tests.make import image_data

TRAIN = f"train.py --path_to_yaml {REPOSITORY}/configs/adlif_shd.yaml --path_to_dataset shd --dataset_name shd {TINY}"
BINS = Bins(10.0, 20, 0, 40)


def late(events: dict, which) -> dict:
    """Return the events, with the recordings that `which` picks moved behind the window."""
    return events | {"times": [np.asarray(times) + 37 * bool(which(r)) for r, times in enumerate(events["times"])]}


def empty(events: dict, *numbers: int) -> dict:
    return events | {
        name: [[] if r in numbers else row for r, row in enumerate(events[name])] for name in ("times", "units")
    }


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda e: late(e, lambda r: r % 3 == 0), ["20 of 60 (0 empty, 20 that begin later), all 20 of class 0"]),
        (
            lambda e: late(e, lambda r: r == 59),
            ["1 of 60 (0 empty, 1 that begin later), 1 of 20 of class 2; by number 59"],
        ),
        (lambda e: empty(e, 7, 8), ["2 of 60 (2 empty, 0 that begin later)", "1 of 20 of class 1, 1 of 20 of class 2"]),
        (lambda e: late(empty(e, 1), lambda r: r % 3 == 1), ["(1 empty, 19 that begin later), all 20 of class 1"]),
    ],
)
def test_recordings_are_counted_by_class(tmp_path, capsys, in_memory, change, parts):
    path = write_shd(tmp_path / "x.h5", **change(make_events(60, 3, 40, 0)))
    readers.read("shd", path, "train", 40, 3, in_memory=in_memory, bins=BINS)
    said = capsys.readouterr().err
    for part in [*parts, "data.strict=true", "check data.T, data.dt_ms"]:
        assert part in said
    with pytest.raises(InputError, match=r"data\.strict=false"):
        readers.read("shd", path, "train", 40, 3, in_memory=in_memory, bins=BINS, strict=True)


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_class_that_loses_most_of_its_events_is_named(tmp_path, capsys, in_memory):
    """Its recordings begin in the window and continue after it; most events of the whole set are in the window."""
    events = make_events(60, 3, 40, 0)
    events["times"] = [times * (1 if r % 3 else 10) for r, times in enumerate(events["times"])]
    readers.read("shd", write_shd(tmp_path / "x.h5", **events), "train", 40, 3, in_memory=in_memory, bins=BINS)
    (said,) = [line for line in capsys.readouterr().err.splitlines() if "% of the events fall into" in line]
    share = np.mean(np.concatenate(events["times"][::3]) < 0.2)
    assert share < 0.2
    assert f"{100 * share:.3g} % of those of class 0; its times reach" in said
    assert "class 1" not in said


def test_a_class_that_is_not_validated_is_named(shd_folder, capsys):
    recordings = readers.read("shd", shd_folder / "shd_train.h5", "train", 40, 3)
    hold_out(recordings, 0.1, 0)
    assert not capsys.readouterr().err
    one_each = replace(recordings, labels=np.array([0] * 58 + [1, 2]), class_names=("a", "b", "c"))
    hold_out(one_each, 0.1, 0)
    assert "nothing of class 1 (b), class 2 (c) is held out" in capsys.readouterr().err


def test_nothing_is_said_of_a_file_without_fault(shd_folder, capsys):
    readers.read("shd", shd_folder / "shd_train.h5", "train", 40, 3, bins=BINS, strict=True)
    assert not capsys.readouterr().err


def test_classes_are_named(tmp_path, capsys):
    one = Recordings(
        np.array([0, 1, 1]), np.zeros(1), 1.0, np.zeros(1, int), np.arange(2), None, "x.h5", ("ja", "nein")
    )
    check_first_times(one, one.first_times, 1.0, "the window", "data.T", False)
    assert "all 1 of class 1 (nein)" in capsys.readouterr().err


def test_an_empty_recording_neither_ends_training_nor_test(program, tmp_path):
    write_shd(tmp_path / "shd" / "shd_train.h5", **empty(make_events(60, 3, 40, 0), 0, 4))
    write_shd(tmp_path / "shd" / "shd_test.h5", **empty(make_events(24, 3, 40, 1), 0))
    trained = program(f"{TRAIN} --epochs 1 --save_name x --set data.augment.drop=.1 --set data.in_memory=false")
    assert trained.returncode == 0, trained.stderr
    assert "shd_train.h5: recordings without an event in the 20 bins of 10 ms: 2 of 60 (2 empty" in trained.stderr
    tested = program("test.py --load_pt_file x --show --streaming --energy")
    assert tested.returncode == 0, tested.stderr
    assert "shd_test.h5: recordings without an event in the 20 bins of 10 ms: 1 of 24 (1 empty" in tested.stderr
    metrics = json.loads((tmp_path / "runs" / "x" / "test" / "metrics.json").read_text())
    assert (metrics["samples"], metrics["streaming"]["without_events"]) == (24, 1)
    if not metrics["streaming"]["moved_by_folding"]:
        assert metrics["streaming"]["fs_accuracy"] == pytest.approx(metrics["fs_accuracy"])
    # unless asked to
    assert_one_line(program("test.py --load_pt_file x --set data.strict=true"), "shd_test.h5", "1 of 24 (1 empty")
    assert_one_line(program(f"{TRAIN} --set data.strict=true"), "shd_train.h5", "2 of 60 (2 empty")


@pytest.mark.parametrize("layout", ["dvsgesture", "ntidigits"])
def test_empty_recordings_of_every_layout(tmp_path, layout):
    path, channels = tmp_path / "x.h5", {"ntidigits": 64}.get(layout) or CHANNELS[layout]
    if layout == "dvsgesture":
        events = make_pixels(6, 3, layout, 0)
        events["times"][1], events["data"][1] = [], np.zeros((0, 3))
        write_camera(path, layout, "train", **events)
    else:
        with h5py.File(path, "w") as file:
            for r in range(6):
                n = 0 if r == 1 else 9
                file[f"data/{r}/times"], file[f"data/{r}/addrs"] = np.arange(n, dtype="u4"), np.zeros((n, 1), "u1")
                file[f"data/{r}/labels"] = np.uint8(r % 3)
            file["extra/train_keys"] = [str(r).encode() for r in range(6)]
    for in_memory in (True, False):
        recordings = readers.read(layout, path, "train", channels, 3, in_memory=in_memory)
        assert np.isinf(recordings.first_times).tolist() == [False, True, False, False, False, False]
        x_TBC, _ = next(batches(recordings, np.arange(6), Bins(10.0, 20, 0, channels), 6))
        assert (x_TBC.dense().sum((0, 2)) > 0).tolist() == [True, False, True, True, True, True]


def test_first_events_of_a_pixel_count_lost_recordings_too(tmp_path, capsys):
    write_shd(tmp_path / "x_train.h5", **late(make_events(60, 3, 40, 0), lambda r: r % 3 == 2))
    data = image_data("shd", tmp_path, "x", (1, 5, 8), 3, window_ms=200.0)
    images.read(data, "train")
    assert "all 20 of class 2" in capsys.readouterr().err
    with pytest.raises(InputError, match="in the first 200 ms: 20 of 60"):
        images.read(data.model_copy(update={"strict": True}), "train")


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_images_that_lack_a_class_are_not_trained_on(tmp_path, missing):
    y = np.delete(np.arange(30) % 3, np.s_[missing::3])
    x = np.zeros((len(y), 4, 4), np.uint8)
    np.savez(tmp_path / "x.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    data = image_data("npz", tmp_path, "x", (1, 4, 4), 3)
    with pytest.raises(InputError, match=f"x.npz: class {missing} has no image"):
        images.read(data, "train")
    assert len(images.read(data, "test")) == 20


# data that test.py will refuse


def remove(path: Path) -> None:
    path.unlink()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:3000])


def without_labels(path: Path) -> None:
    with h5py.File(path, "a") as file:
        del file["labels"]


def without_recordings(path: Path) -> None:
    with h5py.File(path, "w") as file:
        for name in ("times", "units"):
            file.create_dataset(f"spikes/{name}", (0,), h5py.vlen_dtype(np.dtype("u2")))
        file["labels"] = np.zeros(0, int)


def too_few_labels(path: Path) -> None:
    with h5py.File(path, "a") as file:
        del file["labels"]
        file["labels"] = np.zeros(5, int)


def small_labels(path: Path) -> None:
    with h5py.File(path, "a") as file:
        del file["labels"]
        file["labels"] = np.zeros(24, np.float32).astype("S3")


FAULTS = {
    remove: "shd_test.h5: not found",
    truncate: "perhaps truncated",
    without_labels: "it has no data set /labels",
    without_recordings: "holds no recording",
    too_few_labels: "labels has shape (5,), but spikes/times has (24,)",
    small_labels: "/labels holds |S3, not numbers",
}


@pytest.mark.parametrize("spoil", FAULTS)
def test_training_says_what_test_will_refuse(program, tmp_path, shd_folder, spoil):
    spoil(shd_folder / "shd_test.h5")
    trained = program(f"{TRAIN} --epochs 1 --save_name x")
    assert trained.returncode == 0, trained.stderr
    (line,) = [line for line in trained.stderr.splitlines() if "test.py will refuse" in line]
    assert FAULTS[spoil] in line
    assert_one_line(program("test.py --load_pt_file x"), FAULTS[spoil])


def test_training_reads_neither_labels_nor_events_of_the_test_file(shd_folder, monkeypatch):
    """Its contents cannot be read here; training still looks at its layout."""
    for name in ("whole_numbers", "lengths_of_lists", "numbers"):
        monkeypatch.setattr(hdf5.File, name, lambda *_: pytest.fail("contents were read"))
    found = readers.look("shd", shd_folder / "shd_test.h5", "test", 40, 3)
    assert found.number == 24


def test_training_says_that_an_empty_test_recording_is_too_strict(program, tmp_path, shd_folder):
    write_shd(shd_folder / "shd_test.h5", **empty(make_events(24, 3, 40, 1), 7))
    trained = program(f"{TRAIN} --epochs 1 --set data.strict=true")
    assert trained.returncode == 0
    assert "test.py will refuse the test data: shd/shd_test.h5: recording 7 is empty" in trained.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_test": np.zeros((6, 4, 5), np.uint8)}, "the images have shape"),
        ({"y_test": np.zeros(5, int)}, "x_test holds 6 images and y_test 5 labels"),
        ({"y_test": np.zeros(6)}, "y_test holds float64"),
        ({}, None),
    ],
)
def test_the_layout_of_images_is_looked_at_as_well(tmp_path, change, message):
    x, y = np.zeros((6, 4, 4), np.uint8), np.arange(6) % 3
    np.savez_compressed(tmp_path / "x.npz", **({"x_train": x, "y_train": y, "x_test": x, "y_test": y} | change))
    data = image_data("npz", tmp_path, "x", (1, 4, 4), 3)
    for look in (images.look, images.read):
        if message is None:
            look(data, "test")
            continue
        with pytest.raises(InputError, match=message):
            look(data, "test")


CASES = REPOSITORY.parent / "shared" / "cases"


@pytest.mark.skipif(not CASES.is_dir(), reason="the cases of users are not here")
@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("h5_one_class_late", "20 of 60 (0 empty, 20 that begin later), all 20 of class 0"),
        ("h5_empty_test_recording", ""),
    ],
)
def test_cases_of_users(program, tmp_path, case, said):
    shutil.copytree(CASES / case, tmp_path / "in")
    words = "--dataset_name mine --set data.channels=30 --T 50 --path_to_dataset in --save_name x --epochs 1"
    trained = program(f"{TRAIN} {words}")
    assert trained.returncode == 0, trained.stderr
    assert said in trained.stderr
    assert program("test.py --load_pt_file x").returncode == 0


def test_a_label_below_zero_has_no_name():
    """The fuzz of calls found this fault: a name was looked up from the end."""
    assert name_of(SimpleNamespace(class_names=("low", "high")), -3) == "class -3"
