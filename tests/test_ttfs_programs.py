"""train.py and test.py on images as a user runs them, and with bad input."""

import json
import re
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml

import tasks
from snn import config, settings
from snn.team import Team
from snn.ttfs.network import TTFSNetwork
from tests.conftest import REPOSITORY, TINY, assert_one_line, write_shd
from tests.programs import TRAIN_IMAGES, rows

RUN = "toy_ttfs_256F"


def test_train_then_test(program, tmp_path, toy_file):
    """Run the whole path; training does not need the test split."""
    with np.load(toy_file) as file:
        arrays = dict(file)
    np.savez(toy_file, **{name: value for name, value in arrays.items() if "test" not in name})
    trained = program(f"{TRAIN_IMAGES} --epochs 6")
    assert trained.returncode == 0, trained.stderr
    assert "validation accuracy" in trained.stdout
    np.savez(toy_file, **arrays)
    run = tmp_path / "runs" / RUN
    log = rows(run / "metrics.jsonl")
    assert log[-1]["train_loss"] < log[0]["train_loss"]
    best = max(log, key=lambda row: (row["validation_accuracy"], -row["validation_loss"]))
    assert torch.load(run / "best.pt", weights_only=True)["epoch"] == best["epoch"]
    assert yaml.safe_load((run / "config.yaml").read_text())["ttfs"]["layers"] == "256F"

    tested = program(f"test.py --load_pt_file {RUN} --simulate")
    assert tested.returncode == 0, tested.stderr
    metrics = json.loads((run / "test" / "metrics.json").read_text())
    assert metrics["images"] == 30
    assert metrics["accuracy"] >= 90
    assert metrics["disagreements_with_simulation"] == 0
    assert metrics["latency_windows"] == 3
    assert 0 < metrics["spikes_per_neuron"] < 1
    assert metrics["synapses"] == 144 * 256 + 256 * 3
    assert 0 < metrics["synaptic_operations_per_image"] < metrics["synapses"]
    fired = round(metrics["spikes_per_neuron"] * 256 * 30)
    assert sum(metrics["spike_time_histograms"][0]) == fired
    assert f"{metrics['accuracy']:.2f} %" in tested.stdout
    assert (run / "test" / "spike_times.png").read_bytes().startswith(b"\x89PNG")


def test_same_seed_same_run_and_resume(program, tmp_path, toy_file):
    """Three epochs at once equal two and one more, also with augmentation; another seed gives another run."""
    for words in (
        "3 --save_name whole",
        "2 --save_name parts",
        "3 --save_name parts --resume",
        "3 --save_name b --seed 2",
    ):
        result = program(f"{TRAIN_IMAGES} --set train.lr_decay=false --epochs {words}")
        assert result.returncode == 0, result.stderr
    whole, parts, other = (
        torch.load(tmp_path / "runs" / name / "last.pt", weights_only=True)["network"]
        for name in ("whole", "parts", "b")
    )
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert not torch.equal(whole["readout.weight"], other["readout.weight"])
    refused = program(f"{TRAIN_IMAGES} --epochs 4 --save_name parts --resume --set ttfs.T=2.0")
    assert_one_line(refused, "cannot resume with another ttfs.T")
    with np.load(toy_file) as file:
        arrays = dict(file)
    np.savez(toy_file, **arrays | {"x_train": arrays["x_train"][::-1], "y_train": arrays["y_train"][::-1]})
    refused = program(f"{TRAIN_IMAGES} --epochs 4 --save_name parts --resume --set train.lr_decay=false")
    assert_one_line(refused, "the samples to train on and held out are not those of its training", "bring those back")


@pytest.mark.usefixtures("toy_file")
def test_patience_and_schedule(program, tmp_path):
    """Training ends when the best epoch lies `patience` back, also after a resume; lr falls by its factor."""
    words = "--set train.lr_decay=false --set train.lr_factor=0.5 --set train.patience=2 --lr 1e-12 --save_name x"
    assert program(f"{TRAIN_IMAGES} {words} --epochs 30 --set data.augment=[]").returncode == 0
    log = rows(tmp_path / "runs" / "x" / "metrics.jsonl")
    best = torch.load(tmp_path / "runs" / "x" / "best.pt", weights_only=True)["epoch"]
    assert len(log) == best + 2 < 30
    assert [row["lr"] for row in log] == pytest.approx([1e-12 * 0.5**k for k in range(len(log))])
    assert program(f"{TRAIN_IMAGES} {words} --epochs 30 --set data.augment=[] --resume").returncode == 0
    assert len(rows(tmp_path / "runs" / "x" / "metrics.jsonl")) == best + 2


@pytest.mark.usefixtures("toy_file")
def test_with_nothing_held_out_the_last_epoch_counts_and_it_says_so(program, tmp_path):
    words = f"{TRAIN_IMAGES} --set data.validation_share=0 --set train.patience=1 --save_name x --verbose"
    result = program(f"{words} --epochs 3")
    assert result.returncode == 0, result.stderr
    assert "90 images to train on, 0 held out" in result.stdout
    assert (
        "best epoch 3: the last, because nothing was held out to choose by (data.validation_share is 0)"
        in result.stdout
    )
    best, last = (torch.load(tmp_path / "runs/x" / name, weights_only=True) for name in ("best.pt", "last.pt"))
    assert best["epoch"] == 3
    assert all(torch.equal(best["network"][key], last["network"][key]) for key in best["network"])
    result = program(f"{words} --epochs 4 --resume")
    assert "best epoch 4: the last" in result.stdout, result.stderr
    assert program("test.py --load_pt_file x").returncode == 0


@pytest.mark.usefixtures("toy_file")
@pytest.mark.parametrize(
    "words",
    [
        "--set ttfs.layers=4C3-P2-8C3S2-A2-10F --set ttfs.T=3.0 --verbose",
        "--set ttfs.encoder=direct --set ttfs.layers=4C3-8F --set data.augment=[crop,flip,cutout]",
        "--set ttfs.standardised=true --set ttfs.grad_clip=1.0 --set ttfs.zero_drive_fires=true",
        "--set train.clip_norm=1.0 --set train.silent_drive=0",
    ],
)
def test_options_train(program, words):
    result = program(f"{TRAIN_IMAGES} --epochs 1 --save_name x {words}")
    assert result.returncode == 0, result.stderr
    assert "best epoch 1" in result.stdout
    tested = program("test.py --load_pt_file x --simulate")
    assert tested.returncode == 0, tested.stderr
    assert re.search(r"^decisions that differ from the simulation over time +0 of \d+$", tested.stdout, re.MULTILINE)


def test_train_on_first_events(program, tmp_path):
    """The class shows in which of two places of a small sensor fires first."""
    random = np.random.default_rng(0)
    for split, n in (("train", 40), ("test", 20)):
        times, units = [], []
        for r in range(n):
            first, second = (0.01, 0.06) if r % 2 else (0.06, 0.01)
            times.append(np.concatenate([np.full(8, first), np.full(8, second)]) + random.uniform(0, 0.02, 16))
            units.append(np.arange(16))
        write_shd(tmp_path / "data" / f"toy_{split}.h5", times, units, [r % 2 for r in range(n)])
    words = (
        "--set data.layout=shd --set data.shape=[1,4,4] --set data.window_ms=100 --set data.augment=[] --num_classes 2"
    )
    trained = program(f"{TRAIN_IMAGES} {words} --epochs 10")
    assert "36 images to train on, 4 held out" in trained.stdout, trained.stderr
    tested = program(f"test.py --load_pt_file {RUN}")
    assert tested.returncode == 0, tested.stderr
    assert json.loads((tmp_path / "runs" / RUN / "test" / "metrics.json").read_text())["accuracy"] == 100
    shutil.copy(tmp_path / "data" / "toy_test.h5", tmp_path / "data" / "toy_validation.h5")
    with h5py.File(tmp_path / "data" / "toy_validation.h5", "a") as file:  # each class has the name of the other
        file["labels"][:] = 1 - file["labels"][:]
    trained = program(f"{TRAIN_IMAGES} {words} --epochs 10 --save_name own")
    assert "40 images to train on, 20 held out" in trained.stdout, trained.stderr
    assert rows(tmp_path / "runs" / "own" / "metrics.jsonl")[-1]["validation_accuracy"] == 0
    with h5py.File(tmp_path / "data" / "toy_train.h5", "a") as file:  # 8 files, each cut into 5 windows
        file["extra/file"] = np.arange(40) // 10 * 2 + np.arange(40) % 2
    (tmp_path / "data" / "toy_validation.h5").unlink()
    trained = program(f"{TRAIN_IMAGES} {words} --epochs 1 --save_name windows")
    assert "30 images to train on, 10 held out" in trained.stdout, trained.stderr


@pytest.mark.usefixtures("toy_file")
def test_continue_from_a_checkpoint(program, tmp_path):
    assert program(f"{TRAIN_IMAGES} --epochs 1 --save_name x").returncode == 0
    weights = torch.load(tmp_path / "runs" / "x" / "best.pt", weights_only=True)["network"]
    words = f"{TRAIN_IMAGES} --epochs 1 --lr 1e-30 --weight_decay 0 --load_pt_file x --save_name y"
    assert program(words).returncode == 0
    moved = torch.load(tmp_path / "runs" / "y" / "last.pt", weights_only=True)["network"]
    torch.testing.assert_close(moved, weights, rtol=0, atol=1e-12)
    refused = program(f"{TRAIN_IMAGES} --load_pt_file x --save_name z --set ttfs.layers=8F")
    assert_one_line(refused, "belongs to another network")
    assert not (tmp_path / "runs" / "z").exists()


@pytest.mark.usefixtures("toy_file")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--set ttfs.T=0.0", "ttfs.T = 0.0: input should be greater than 0"),
        ("--set ttfs.T=-1.0", "ttfs.T = -1.0: input should be greater than 0"),
        ("--set ttfs.T=.nan", "ttfs.T = nan: input should be a finite number"),
        ("--set ttfs.layers=64C3-X", "layer 'X' is not known"),
        ("--set ttfs.layers=64C3-X --path_to_dataset nowhere", "layer 'X' is not known"),  # before any image is read
        ("--set ttfs.layers=64R", "a neuron that spikes once has no recurrent layer"),
        ("--set ttfs.encoder=rate", "ttfs.encoder = 'rate': input should be 'unit' or 'direct'"),
        ("--set ttfs.neuron=AdLIF", "ttfs.neuron is not known; ttfs has layers, T, encoder"),
        ("--hidden_size 16", "network.layers is not known; the configuration has data, ttfs, train"),
        ("--set data.shape=[1,28,28]", "the images have shape (1, 12, 12), data.shape says (1, 28, 28)"),
        ("--num_classes 2", "image 2 has the label 2, outside 0..1"),
        ("--path_to_dataset nowhere", "nowhere/toy.npz: not found"),
        ("--set data.augment=[autoaugment,blur]", "data.augment.1 = 'blur'"),
        ("--lr 1e30", "not a finite number in"),
    ],
)
def test_bad_words(program, words, message):
    assert_one_line(program(f"{TRAIN_IMAGES} --epochs 3 {words}"), message)


def test_bad_pixels(program, toy_file):
    """Numbers outside 0 to 1 and NaN are refused, in training and in a test."""
    with np.load(toy_file) as file:
        good = dict(file)
    np.savez(toy_file, **good | {"x_train": good["x_train"].astype(np.float32)})
    assert_one_line(
        program(f"{TRAIN_IMAGES} --epochs 1"), "data/toy.npz: x_train goes from 0 to 220; pixels must be uint8"
    )
    spoiled = good["x_test"] / 255
    spoiled[3, 0, 0] = np.nan
    np.savez(toy_file, **good | {"x_test": spoiled})
    assert program(f"{TRAIN_IMAGES} --epochs 1").returncode == 0
    assert_one_line(program(f"test.py --load_pt_file {RUN}"), "data/toy.npz: x_test goes from nan to nan")


def test_unfit_images_are_refused_before_the_run_begins(program, tmp_path, toy_file):
    with np.load(toy_file) as file:
        content = dict(file)
    np.savez(toy_file, **content | {"x_train": content["x_train"].astype(np.float32) / 255})
    refused = program(f"{TRAIN_IMAGES} --epochs 1 --save_name x --set data.augment=[autoaugment]")
    assert_one_line(refused, "but these have 1, stored as float32")
    assert not (tmp_path / "runs" / "x").exists()


@pytest.mark.usefixtures("toy_file", "shd_folder")
def test_other_kinds_of_checkpoint(program, tmp_path):
    """A run of the other kind of network is neither resumed nor tested with the options of this one."""
    assert program(f"{TRAIN_IMAGES} --epochs 1 --save_name x").returncode == 0
    events = f"train.py --path_to_yaml {REPOSITORY}/configs/adlif_shd.yaml --path_to_dataset shd {TINY}"
    events += " --save_name x --resume"
    assert_one_line(program(events), "cannot resume with another kind of network")
    assert_one_line(program("test.py --load_pt_file x --set ttfs.layers=8F"), "it was trained with another ttfs.layers")
    other = f"{REPOSITORY}/configs/smoke.yaml"
    says = (f"{other}: describes a network with a section `network`", "x/best.pt has a section `ttfs`")
    assert_one_line(program(f"test.py --load_pt_file x --path_to_yaml {other}"), *says)
    assert_one_line(program("demo.py --load_pt_file x"), "the network takes images, not events")
    assert_one_line(program("test.py --load_pt_file x --streaming"), "--streaming does not apply to a network with")
    path = tmp_path / "runs" / "x" / "best.pt"
    content = torch.load(path, weights_only=True)
    content["network"]["readout.weight"][0, 0] = float("nan")
    torch.save(content, path)
    assert_one_line(program("test.py --load_pt_file x"), "readout.weight holds a value that is not a finite number")


@pytest.mark.parametrize("name", sorted(path.name for path in (REPOSITORY / "configs").glob("ttfs_*.yaml")))
def test_every_configuration_builds(name):
    path = REPOSITORY / "configs" / name
    cfg = settings.load(path)
    assert isinstance(cfg, config.TTFSConfig)
    with torch.device("meta"):
        TTFSNetwork(cfg.ttfs, cfg.data.shape, cfg.data.num_classes)


SHARED = REPOSITORY.parent / "shared" / "data"
MNIST, CIFAR10_SMALL = SHARED / "mnist.npz", SHARED / "cifar10_small.npz"


@pytest.mark.long
@pytest.mark.skipif(not MNIST.exists(), reason="needs ../shared/data")
def test_mnist_mlp(program):
    """784-256-10 learns MNIST to 98 % on the test images; the simulation decides the same on each of them."""
    words = f"--set data.layout=npz --path_to_dataset {MNIST.parent}"
    result = program(f"train.py --path_to_yaml {REPOSITORY}/configs/ttfs_mnist_mlp.yaml {words}")
    assert result.returncode == 0, result.stderr
    tested = program("test.py --load_pt_file mnist_ttfs_256F --simulate")
    assert tested.returncode == 0, tested.stderr
    metrics = json.loads(Path("runs/mnist_ttfs_256F/test/metrics.json").read_text())
    assert metrics["accuracy"] >= 98.0
    assert metrics["disagreements_with_simulation"] == 0


@pytest.mark.slow
@pytest.mark.skipif(not CIFAR10_SMALL.exists(), reason="needs ../shared/data")
def test_vgg7_learns_images():
    """Some steps of VGG7 on one batch of photographs lower its loss."""
    path = REPOSITORY / "configs" / "ttfs_cifar10_small.yaml"
    values = settings.read_yaml(path)
    values["data"] |= {"path": str(CIFAR10_SMALL.parent), "augment": []}
    values["ttfs"]["layers"], values["train"]["lr"] = "vgg7", 2e-4
    task = tasks.images.ImageTraining(settings.build(values, str(path)), Team(torch.device("cpu")))
    task.begin_epoch(0, np.random.default_rng(0))
    x_BCHW, target_B = next(task.batches(task.kept[:: len(task.kept) // 32][:32]))
    losses = []
    for _ in range(12):
        task.optimizer.zero_grad()
        losses.append(task.loss(x_BCHW, target_B, 1.0))
        losses[-1].backward()
        task.optimizer.step()
    losses = [loss.item() for loss in losses]
    assert np.mean(losses[-3:]) < 0.5 * losses[0], losses
