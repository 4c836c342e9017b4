"""Scaled output thresholds: each row equals a network with that threshold; held-out data choose."""

import shutil

import pytest
import torch

from snn import config
from snn.coding import decide
from snn.network import Network
from tasks import thresholds
from tests.conftest import assert_one_line
from tests.programs import TRAIN, metrics

NEURON = {"tau_mem_steps": 5, "tau_syn_steps": 5, "theta": 0.3}
OUTPUT = {"tau_mem_steps": 20, "tau_syn_steps": 5, "theta": 0.4}


def network(scale: float = 1.0) -> Network:
    torch.manual_seed(0)
    words = config.Network(
        layers=["12F"], neuron="AdLIF", neuron1=NEURON, neuron2=OUTPUT | {"theta": scale * OUTPUT["theta"]}
    )
    return Network(words, (10,), 4)


def test_each_row_is_that_of_a_network_with_this_threshold():
    torch.manual_seed(1)
    x_TBC, target_B = (torch.rand(30, 40, 10) < 0.4).float(), torch.randint(4, (40,))
    trained = network()
    before = trained.eval().run(x_TBC)
    assert before.s_TBN.any()
    rows = thresholds.curve(trained, [(x_TBC[:, :25], target_B[:25]), (x_TBC[:, 25:], target_B[25:])], dt_ms=2.0)
    assert [row["scale"] for row in rows] == list(thresholds.SCALES)
    for row in rows:
        s_TBN, h_TBN, _ = network(row["scale"]).eval().run(x_TBC)
        label_B, first_B = decide(s_TBN, h_TBN)
        assert row["fs_accuracy"] == pytest.approx(100 * float((label_B == target_B).float().mean()))
        assert row["time_ms"] == pytest.approx(2.0 * float(first_B.clamp(max=30).double().mean()))
    assert rows[0]["time_ms"] < rows[-1]["time_ms"]
    assert rows[0]["operations_to_decision"] < rows[-1]["operations_to_decision"]
    after = trained.run(x_TBC)
    assert torch.equal(before.s_TBN, after.s_TBN)
    assert torch.equal(before.h_TBN, after.h_TBN)


def test_the_earliest_scale_that_is_good_enough_is_chosen():
    rows = [(0.2, 70.0, 100.0), (0.5, 88.5, 200.0), (1.0, 90.0, 300.0), (1.3, 90.0, 350.0), (2.0, 80.0, 500.0)]
    held_out = [{"scale": scale, "fs_accuracy": fs, "time_ms": time} for scale, fs, time in rows]
    assert thresholds.chosen(held_out) == {"0": 1.0, "2": 0.5}


def test_a_test_draws_the_curve(program, tmp_path, shd_folder, monkeypatch):
    given, chosen = [], thresholds.chosen
    monkeypatch.setattr(thresholds, "chosen", lambda rows: (given.append(rows), chosen(rows))[1])
    assert program(f"{TRAIN} --epochs 1 --save_name x").returncode == 0
    tested = program("test.py --load_pt_file x --thresholds")
    assert tested.returncode == 0, tested.stderr
    assert "Scaled output thresholds" in tested.stdout
    measured = metrics(tmp_path / "runs" / "x")
    (same,) = (row for row in measured["thresholds"]["test"] if row["scale"] == 1.0)
    assert same["fs_accuracy"] == pytest.approx(measured["fs_accuracy"])
    assert set(measured["thresholds"]["chosen"]) == {"0", "2"}
    assert given == [measured["thresholds"]["held_out"]]
    assert given != [measured["thresholds"]["test"]]
    shutil.copy(shd_folder / "shd_train.h5", shd_folder / "shd_validation.h5")  # would be held out now
    refused = program("test.py --load_pt_file x --thresholds")
    assert_one_line(refused, "the samples held out are not those of its training", "or are others: take those")
    (shd_folder / "shd_validation.h5").unlink()
    (shd_folder / "shd_train.h5").unlink()  # nothing is held out without it
    assert_one_line(program("test.py --load_pt_file x --thresholds"), "shd_train.h5")


@pytest.mark.usefixtures("shd_folder")
def test_each_network_is_judged_on_what_was_held_out_from_its_own_training(program, tmp_path):
    for name, share in (("few", 0.1), ("many", 0.5)):
        words = f"--epochs 1 --save_name {name} --set data.validation_share={share}"
        assert program(f"{TRAIN} {words}").returncode == 0
    held_out = []
    for runs in ("few", "many few"):
        assert program(f"test.py --thresholds --load_pt_file {runs}").returncode == 0
        held_out.append(metrics(tmp_path / "runs" / "few")["thresholds"]["held_out"])
    assert held_out[0] == held_out[1]
    assert held_out[0] != metrics(tmp_path / "runs" / "many")["thresholds"]["held_out"]


def test_without_held_out_recordings_there_is_nothing_to_choose_by(program, shd_folder):
    assert program(f"{TRAIN} --epochs 1 --save_name x --set data.validation_share=0").returncode == 0
    assert_one_line(program("test.py --load_pt_file x --thresholds"), "data.validation_share is 0")


@pytest.mark.usefixtures("shd_folder")
def test_recordings_that_were_trained_on_do_not_choose(program):
    assert program(f"{TRAIN} --epochs 1 --save_name x").returncode == 0
    assert_one_line(program("test.py --load_pt_file x --seed 9"), "was trained with the seed 1", "leave train.seed")
    for words, field in (("train.lr=5", "train.lr"), ("data.augment.drop=0.5", "data.augment.drop")):
        assert_one_line(
            program(f"test.py --load_pt_file x --set {words}"), f"only train.py reads {field}; leave it out"
        )
    whole = program('test.py --load_pt_file x --set train={"epochs":1}')
    assert_one_line(whole, "only train.py reads all of train; set its fields one by one")
    for words, field in (
        ("--set data.validation_share=0.4", "data.validation_share"),
        ("--set data.test_share=0.4", "data.test_share"),
    ):
        assert_one_line(program(f"test.py --load_pt_file x --thresholds {words}"), f"leave {field} as it was")
