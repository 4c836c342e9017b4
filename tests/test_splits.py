"""Splits as published: a validation file, none at all, a test set apart from the training file."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import tasks
from datasets import binning
from datasets.binning import Bins
from datasets.recordings import Recordings
from datasets.splits import hold_out
from snn import config, settings
from snn.errors import InputError
from tests.conftest import REPOSITORY, TINY, assert_one_line, make_events, write_shd

TRAIN = f"train.py --path_to_yaml {REPOSITORY}/configs/adlif_shd.yaml --path_to_dataset shd --dataset_name shd {TINY}"
BINS = Bins(10.0, 20, 0, 40)


def data_of(folder: Path, **fields) -> config.Data:
    about = {"dataset_name": "shd", "path": str(folder), "channels": 40, "num_classes": 3, "dt_ms": 10.0, "T": 20}
    return config.Data(**{**about, **fields})


@pytest.mark.parametrize("name", [None, "shd_valid.h5"])
def test_the_validation_file_chooses_the_model_and_all_others_train(program, shd_folder, name):
    path = write_shd(shd_folder / (name or "shd_validation.h5"), **make_events(9, 3, 40, 5))
    words = f" --set data.validation_file={name}" if name else ""
    result = program(f"{TRAIN} --epochs 1{words}")
    assert result.returncode == 0, result.stderr
    assert "60 recordings to train on, 9 held out" in result.stdout
    data = data_of(shd_folder, validation_file=name)
    recordings = tasks.events.read_recordings(data, "train", BINS)
    kept, validation, held_out = tasks.events.for_validation(recordings, data, BINS, 0)
    assert kept.tolist() == list(range(60))
    assert (validation.where, held_out.tolist()) == (str(path), list(range(9)))
    result = program("test.py --load_pt_file runs/shd_fs0.2_tau20_adlif")
    assert result.returncode == 0, result.stderr


def test_files_for_training_and_test_do_not_choose_the_model(program, shd_folder):
    for name, what in (("shd_train.h5", "training"), ("shd_test.h5", "test")):
        refused = program(f"{TRAIN} --epochs 1 --set data.validation_file={name}")
        assert_one_line(refused, f"data.validation_file: shd/{name} is the {what} file, too; leave it out")
    write_shd(shd_folder / "late.h5", **make_events(30, 3, 40, 2))
    assert program(f"{TRAIN} --epochs 1 --save_name x --set data.validation_file=late.h5").returncode == 0
    tested = program("test.py --load_pt_file x --set data.test_file=late.h5")
    assert tested.returncode == 0, tested.stderr
    assert "warning: shd/late.h5: this file has chosen the best epoch of runs/x/best.pt" in tested.stderr


def test_a_validation_file_that_is_named_must_be_there(program, shd_folder):
    assert_one_line(program(f"{TRAIN} --epochs 1 --set data.validation_file=none.h5"), "none.h5: not found")


def name_classes(path: Path, names: list[str]) -> None:
    with h5py.File(path, "a") as file:
        file["extra/keys"] = names


@pytest.fixture
def named(shd_folder):
    """Name the classes in the training file; the validation file numbers them the other way round."""
    name_classes(shd_folder / "shd_train.h5", ["a", "b", "c"])
    made = make_events(9, 3, 40, 5)
    made["labels"] = [2 - label for label in made["labels"]]
    name_classes(write_shd(shd_folder / "shd_validation.h5", **made), ["c", "b", "a"])
    return shd_folder


def for_validation(folder: Path, **fields):
    data = data_of(folder, **fields)
    return tasks.events.for_validation(tasks.events.read_recordings(data, "train", BINS), data, BINS, 0)


def test_names_decide_on_the_classes_of_a_validation_file(named):
    _, validation, _ = for_validation(named)
    assert validation.labels.tolist() == [r % 3 for r in range(9)]
    assert validation.class_names == ("a", "b", "c")
    name_classes(write_shd(named / "other.h5", **make_events(9, 3, 40, 5)), ["a", "b", "d"])
    with pytest.raises(InputError, match=r"other.h5: its classes differ from those of .*shd_train.h5: only .* has 'd'"):
        for_validation(named, validation_file="other.h5")


def test_recordings_and_classes_that_validation_does_not_see_are_said(named, capsys):
    made = make_events(8, 2, 40, 5)
    made["times"][3] = made["times"][3] + 1.0
    name_classes(write_shd(named / "late.h5", **made), ["a", "b", "c"])
    for_validation(named, validation_file="late.h5")
    said = capsys.readouterr().err
    assert "late.h5: recordings without an event in the 20 bins of 10 ms: 1 of 8" in said
    assert "late.h5: nothing of class 2 (c) is held out, so the validation does not see it" in said
    with pytest.raises(InputError, match=r"late.h5: recordings without an event"):
        for_validation(named, validation_file="late.h5", strict=True)


def test_with_nothing_held_out_the_last_epoch_counts_and_it_says_so(program, shd_folder, tmp_path):
    result = program(f"{TRAIN} --epochs 3 --set data.validation_share=0")
    assert result.returncode == 0, result.stderr
    assert "60 recordings to train on, 0 held out" in result.stdout
    assert (
        "best epoch 3: the last, because nothing was held out to choose by (data.validation_share is 0)"
        in result.stdout
    )
    run = tmp_path / "runs/shd_fs0.2_tau20_adlif"
    best, last = (torch.load(run / name, weights_only=False) for name in ("best.pt", "last.pt"))
    assert best["epoch"] == 3
    assert all(torch.equal(best["network"][key], last["network"][key]) for key in best["network"])
    assert program("test.py --load_pt_file runs/shd_fs0.2_tau20_adlif").returncode == 0
    result = program(f"{TRAIN} --epochs 4 --set data.validation_share=0 --resume")
    assert "best epoch 4: the last" in result.stdout, result.stderr


@pytest.mark.parametrize("by", ["recording", "speaker"])
@pytest.mark.parametrize("in_memory", [True, False])
def test_a_set_without_a_test_file_sets_the_same_part_apart_for_every_seed(shd_folder, by, in_memory):
    (shd_folder / "shd_test.h5").unlink()
    data = data_of(shd_folder, test_by=by, in_memory=in_memory)
    recordings = tasks.events.read_recordings(data, "train", BINS)
    test = tasks.events.read_recordings(data, "test", BINS)
    parts = [tasks.events.for_validation(recordings, data, BINS, seed) for seed in (0, 1)]
    assert len(test) == 12
    rests = [np.sort(np.concatenate([kept, held_out])) for kept, _, held_out in parts]
    assert np.array_equal(*rests)
    assert not np.array_equal(parts[0][0], parts[1][0])
    tested = np.setdiff1d(np.arange(60), rests[0])
    assert test.labels.tolist() == recordings.labels[tested].tolist()
    assert test.speakers.tolist() == recordings.speakers[tested].tolist()
    assert test.first_times.tolist() == recordings.first_times[tested].tolist()
    if by == "speaker":
        assert not set(test.speakers) & set(recordings.speakers[rests[0]])
    for k, r in enumerate(tested):
        for of, number in ((test, k), (recordings, r)):
            loaded, (place,) = of.load(np.array([number]))
            part = slice(*loaded.offsets[place : place + 2])
            if number == k and of is test:
                found = loaded.times[part], loaded.channels[part]
        assert np.array_equal(found[0], loaded.times[part])
        assert np.array_equal(found[1], loaded.channels[part])
    x_TBC, labels = next(binning.batches(test, np.array([7, 2]), BINS, 2))
    y_TBC, _ = next(binning.batches(recordings, tested[[7, 2]], BINS, 2))
    assert torch.equal(x_TBC.dense(), y_TBC.dense())
    assert labels.tolist() == recordings.labels[tested[[7, 2]]].tolist()


def test_train_and_test_without_a_test_file(program, shd_folder):
    (shd_folder / "shd_test.h5").unlink()
    result = program(f"{TRAIN} --epochs 1 --set data.test_by=speaker")
    assert result.returncode == 0, result.stderr
    assert "60 recordings" not in result.stdout
    assert "test.py will refuse" not in result.stderr
    result = program("test.py --load_pt_file runs/shd_fs0.2_tau20_adlif")
    assert result.returncode == 0, result.stderr
    assert "recordings" in result.stdout
    for other in ("test_by=recording", "test_share=0.6"):  # would set some apart that were trained on
        refused = program(f"test.py --load_pt_file shd_fs0.2_tau20_adlif --set data.{other}")
        assert_one_line(refused, f"data.{other.split('=')[0]} was ", "in its training", "leave it as it was")
    write_shd(shd_folder / "shd_train.h5", **make_events(63, 3, 40, 0))
    refused = program("test.py --load_pt_file shd_fs0.2_tau20_adlif")  # would set others apart
    ways = "are others: take those of its training", "add --set data.test_by=null --set data.test_file=NAME"
    assert_one_line(refused, "the samples set apart for the test are not those of its training", *ways)
    (shd_folder / "shd_train.h5").rename(shd_folder.parent / "shd_train.h5")
    whole = "--path_to_dataset . --set data.test_by=null --set data.test_file=shd_train.h5"
    result = program(f"test.py --load_pt_file shd_fs0.2_tau20_adlif {whole}")
    assert result.returncode == 0, result.stderr
    with np.load(shd_folder.parent / "runs/shd_fs0.2_tau20_adlif/test/samples.npz") as samples:
        assert len(samples["target"]) == 63
    write_shd(shd_folder / "shd_train.h5", **make_events(60, 3, 40, 0))
    result = program(f"{TRAIN} --epochs 1 --set data.test_file=shd_train.h5 --save_name same")
    assert result.returncode == 0, result.stderr
    result = program("test.py --load_pt_file same")
    assert (result.returncode, "was trained on this file" in result.stderr) == (0, True)
    both = program(f"{TRAIN} --epochs 1 --set data.test_by=speaker --set data.test_file=x.h5")
    assert_one_line(both, "give either test_file, or test_by for a set without a test file")


def test_speakers_that_a_file_does_not_name_cannot_be_set_apart(program, shd_folder):
    made = make_events(30, 3, 40, 0)
    write_shd(shd_folder / "shd_train.h5", made["times"], made["units"], made["labels"])
    assert_one_line(
        program(f"{TRAIN} --epochs 1 --set data.test_by=speaker"), "names no speakers", "data.test_by=recording"
    )


def test_the_published_network_on_ssc_reads_the_official_files(program, tmp_path):
    for split, n in (("train", 70), ("valid", 35), ("test", 35)):
        write_shd(tmp_path / "data/ssc" / f"ssc_{split}.h5", **make_events(n, 35, 700, 0))
    result = program(
        f"train.py --path_to_yaml {REPOSITORY}/configs/adlif_ssc.yaml --epochs 1 --T 20 --hidden_size 512 512"
    )
    assert result.returncode == 0, result.stderr
    assert "70 recordings to train on, 35 held out" in result.stdout
    values = settings.read_yaml(REPOSITORY / "configs/adlif_ssc.yaml")
    cfg = settings.build(values, "adlif_ssc.yaml")
    assert (cfg.network.layers, cfg.network.neuron, cfg.data.num_classes) == (("512F", "512F"), "AdLIF", 35)


def test_a_seed_that_is_no_number_is_refused():
    recordings = Recordings(np.arange(5), np.zeros(4), 1.0, np.zeros(4, np.int64), np.array([0, 0, 1, 1]), None, "x")
    for seed in ("a", -1, 1.5, None):
        with pytest.raises(InputError, match="the seed must be a whole number"):
            hold_out(recordings, 0.5, seed)
