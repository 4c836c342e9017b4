"""train.py and test.py as a user runs them: on small files of the true layout, and with bad input."""

import fcntl
import gc
import json
import math
import re
import shutil
import signal
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest
import torch
import yaml
from scipy.io import wavfile

from datasets import readers
from snn import checkpoint, config, settings
from snn.network import Network
from tests.cameras import make_pixels, write_camera
from tests.conftest import CONFIGURATIONS, REPOSITORY, assert_one_line, make_events, write_nmnist, write_shd
from tests.programs import AUGMENT, TRAIN, rows, run_here, without_times


@pytest.mark.usefixtures("shd_folder")
def test_train_then_test(program, tmp_path):
    """Run the whole path on a pair of files with any number of classes; only test.py needs the test file."""
    test_file = tmp_path / "shd" / "shd_test.h5"
    hidden = test_file.rename(tmp_path / "elsewhere.h5")
    trained = program(f"{TRAIN} --epochs 12 --lr 5e-3")
    assert trained.returncode == 0, trained.stderr
    assert "validation FS accuracy" in trained.stdout
    hidden.rename(test_file)
    run = tmp_path / "runs" / "shd_fs0.2_tau20_adlif"
    assert {path.name for path in run.iterdir()} >= {"best.pt", "last.pt", "config.yaml", "metrics.jsonl"}
    assert any(path.name.startswith("events.out.tfevents") for path in run.iterdir())
    log = rows(run / "metrics.jsonl")
    assert [row["epoch"] for row in log] == list(range(1, 13))
    assert log[-1]["train_loss"] < log[0]["train_loss"], [row["train_loss"] for row in log]
    best = max(log, key=lambda row: (row["validation_fs_accuracy"], -row["validation_loss"]))
    assert torch.load(run / "best.pt", weights_only=True)["epoch"] == best["epoch"]
    assert yaml.safe_load((run / "config.yaml").read_text())["data"]["num_classes"] == 3

    tested = program("test.py --load_pt_file runs/shd_fs0.2_tau20_adlif/best.pt")
    assert tested.returncode == 0, tested.stderr
    metrics = json.loads((run / "test" / "metrics.json").read_text())
    assert metrics["samples"] == 24
    assert metrics["fs_accuracy"] >= 75  # three well separated classes
    assert metrics["t_d50_ms"] <= metrics["t_d90_ms"] <= 200
    assert metrics["t_d50_ms"] == metrics["t_d50_steps"] * 10
    assert {"fr_accuracy", "spikes_per_neuron"} <= metrics.keys()
    assert f"{metrics['fs_accuracy']:.2f} %" in tested.stdout
    assert (run / "test" / "decision.png").read_bytes().startswith(b"\x89PNG")

    # by the published name, with another window, and with the published options
    again = program(
        f"test.py --path_to_yaml {REPOSITORY}/configs/adlif_shd.yaml --path_to_dataset shd --num_classes 3 --T 30 "
        "--set data.channels=40 --test-batch-size 5 --T_empty 0 --best_model "
        "--load_pt_file ../models/shd_fs0.2_tau20_adlif.pt --show --test_single_delay"
    )
    assert again.returncode == 0, again.stderr
    assert json.loads((run / "test" / "metrics.json").read_text())["T"] == 30
    drawn = {path.name for path in (run / "test").glob("*.png")}
    assert drawn >= {
        "decision.png",
        "anytime.png",
        "single_delay.png",
        *(f"decision_{label}.png" for label in range(3)),
    }
    refused = program("test.py --load_pt_file shd_fs0.2_tau20_adlif --simulate")
    assert_one_line(refused, "--simulate does not apply to a network with a section `network`")
    by_name = program("test.py --load_pt_file shd_fs0.2_tau20_adlif --streaming")
    assert by_name.returncode == 0, by_name.stderr
    metrics = json.loads((run / "test" / "metrics.json").read_text())
    assert metrics["anytime"]["fs_accuracy_over_time"][-1] <= metrics["fs_accuracy"]
    streaming = metrics["streaming"]
    assert streaming["differ_from_batches"] == streaming["without_events"] == 0
    assert streaming["fs_accuracy"] == metrics["fs_accuracy"] or streaming["moved_by_folding"] > 0
    assert 0 < streaming["to_decision"]["synaptic operations"] < streaming["whole_window"]["synaptic operations"]
    assert re.search(r"^decisions that differ from those in batches +0 of 24$", by_name.stdout, re.MULTILINE)


@pytest.mark.usefixtures("shd_folder")
def test_same_seed_same_run_and_resume(program, tmp_path):
    """Three epochs at once, or two and one more, give the same weights and log; another seed gives other weights."""
    for words in ("3 --save_name whole", "2 --save_name parts", "3 --save_name parts --resume"):
        result = program(f"{TRAIN} --epochs {words}")
        assert result.returncode == 0, result.stderr
    other = program(f"{TRAIN} --epochs 3 --save_name other --seed 2")
    assert other.returncode == 0
    whole, parts, other = (
        torch.load(tmp_path / "runs" / name / "last.pt", weights_only=True) for name in ("whole", "parts", "other")
    )
    assert all(torch.equal(whole["network"][name], parts["network"][name]) for name in whole["network"])
    assert not torch.equal(whole["network"]["layers.2.linear.weight"], other["network"]["layers.2.linear.weight"])
    logs = [rows(tmp_path / "runs" / name / "metrics.jsonl") for name in ("whole", "parts")]
    assert without_times(logs[0]) == without_times(logs[1])
    assert settings.load(tmp_path / "runs" / "parts" / "config.yaml").train.epochs == 3
    assert_one_line(program(f"{TRAIN} --epochs 1 --best_model"), "--best_model chooses among the checkpoints of")
    refused = program(f"{TRAIN} --epochs 4 --save_name parts --resume --lr 1e-2")
    assert_one_line(refused, "cannot resume with another train.lr")
    refused = program(f"{TRAIN} --epochs 2 --save_name parts --resume")
    assert_one_line(
        refused, "the run has begun epoch 3 already, beyond train.epochs = 2; give at least as many (--epochs)"
    )
    assert settings.load(tmp_path / "runs" / "parts" / "config.yaml").train.epochs == 3


@pytest.mark.usefixtures("shd_folder")
@pytest.mark.parametrize(
    ("epochs", "best"),
    [(60, (101.0, 0.0)), (3, (False, 101.0, 0.0))],
    ids=["of an earlier version", "interrupted again after its epochs were fewer"],
)
def test_a_resumed_run_with_fewer_epochs_chooses_a_pruned_network(program, tmp_path, epochs, best):
    """The best of 60 epochs so far is not yet pruned. In a run of 3 epochs the third is, and is chosen."""
    words = f"{TRAIN} --set network.density=0.5 --save_name x"
    assert program(f"{words} --epochs 2").returncode == 0
    path = tmp_path / "runs" / "x" / "last.pt"
    content = torch.load(path, weights_only=True)
    content["config"]["train"]["epochs"], content["best"] = epochs, best
    torch.save(content, path)
    assert program(f"{words} --epochs 3 --resume").returncode == 0
    assert torch.load(path.with_name("best.pt"), weights_only=True)["epoch"] == 3


@pytest.mark.usefixtures("shd_folder")
def test_augmentation_is_of_training_alone(program, tmp_path):
    """With weights that do not move, validation is that of the unchanged events."""
    words = "--epochs 1 --lr 1e-30 --weight_decay 0 --neuron1 5 5 .1 --neuron2 20 20 .1 --set network.batch_norm=false"
    logs = []
    for name, more in (("plain", ""), ("changed", AUGMENT)):
        assert program(f"{TRAIN} {words} --save_name {name} {more}").returncode == 0
        logs += rows(tmp_path / "runs" / name / "metrics.jsonl")
    plain, changed = logs
    assert plain["train_loss"] != changed["train_loss"]
    for name in plain:
        assert not name.startswith("validation") or plain[name] == changed[name]


def test_a_run_does_not_resume_with_other_recordings(program, shd_folder):
    """Some that were held out would be trained on."""
    assert program(f"{TRAIN} --epochs 1 --save_name x").returncode == 0
    write_shd(shd_folder / "shd_train.h5", **make_events(45, 3, 40, 0))
    refused = program(f"{TRAIN} --epochs 2 --save_name x --resume")
    assert_one_line(refused, "the samples to train on and held out are not those of its training", "bring those back")


@pytest.mark.usefixtures("shd_folder")
def test_resume_with_augmentation(program, tmp_path):
    for words in ("3 --save_name whole", "2 --save_name parts", "3 --save_name parts --resume"):
        assert program(f"{TRAIN} {AUGMENT} --epochs {words}").returncode == 0
    whole, parts = (torch.load(tmp_path / "runs" / name / "last.pt", weights_only=True) for name in ("whole", "parts"))
    assert all(torch.equal(whole["network"][name], parts["network"][name]) for name in whole["network"])
    logs = [rows(tmp_path / "runs" / name / "metrics.jsonl") for name in ("whole", "parts")]
    assert without_times(logs[0]) == without_times(logs[1])
    refused = program(f"{TRAIN} --epochs 4 --save_name parts --resume")
    assert_one_line(refused, "cannot resume with another data.augment.stretch, data.augment.time_jitter_ms")


@pytest.mark.parametrize("layout", config.SENSORS)
def test_camera_layouts_train_and_test(program, tmp_path, layout):
    """Sensors feed fully connected layers; augmentation moves pixels of the image that the network sees."""
    for seed, split in enumerate(("train", "test")):
        events = make_pixels(24, 3, layout, seed)
        write_camera(tmp_path / "data" / layout / f"{layout}_{split}.h5", layout, split, **events)
    height, width = config.SENSORS[layout]
    words = f"--dataset_name {layout} --path_to_dataset data/{layout} --set data.layout={layout}"
    words += f' --set data.channels=null --set data.sensor={{"height":{height},"width":{width},"divide":4}}'
    trained = program(f"{TRAIN} {words} --epochs 1 --save_name x {AUGMENT}".replace("--set data.channels=40", ""))
    assert trained.returncode == 0, trained.stderr
    tested = program("test.py --load_pt_file runs/x/best.pt")
    assert tested.returncode == 0, tested.stderr
    assert json.loads((tmp_path / "runs" / "x" / "test" / "metrics.json").read_text())["samples"] == 24


@pytest.mark.slow
def test_planes_are_made_where_they_are_missing(program, tmp_path):
    values = yaml.safe_load((REPOSITORY / "configs" / "planes.yaml").read_text())
    values["data"] |= {"prepare": "--recordings 20", "validation_share": 0.25}
    values["network"]["layers"] = ["4C5S2", "P2", "16R"]
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(values))
    words = "--batch-size 8 --epochs 1 --T 30 --save_name x"
    assert program(f"train.py --path_to_yaml small.yaml {words}").returncode == 0
    files = sorted((tmp_path / "data" / "planes").iterdir())
    assert [path.name for path in files] == ["planes-test.hdf5", "planes-train.hdf5"]
    made = [path.stat().st_mtime_ns for path in files]
    assert program("test.py --load_pt_file runs/x/best.pt").returncode == 0
    assert [path.stat().st_mtime_ns for path in files] == made


@pytest.mark.usefixtures("shd_folder")
def test_an_earlier_run_moves_aside(program, tmp_path):
    for _ in range(2):
        assert program(f"{TRAIN} --epochs 1 --add_name x").returncode == 0
    assert (tmp_path / "runs" / "shd_fs0.2_tau20_adlif_x.1" / "best.pt").exists()
    assert (tmp_path / "runs" / "shd_fs0.2_tau20_adlif_x" / "best.pt").exists()


@pytest.mark.usefixtures("shd_folder")
def test_text_is_added_to_a_name_of_ones_own(program, tmp_path):
    assert program(f"{TRAIN} --epochs 1 --save_name mine --add_name x").returncode == 0
    assert (tmp_path / "runs" / "mine_x" / "best.pt").exists()


@pytest.mark.usefixtures("shd_folder")
def test_two_runs_of_one_name_at_once_are_refused(program, tmp_path):
    (tmp_path / "runs").mkdir()
    with (tmp_path / "runs" / ".x.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert_one_line(program(f"{TRAIN} --epochs 1 --save_name x"), "runs/x is being trained by another process")
    assert program(f"{TRAIN} --epochs 1 --save_name x").returncode == 0


@pytest.mark.usefixtures("shd_folder")
def test_a_run_is_unlocked_when_it_ends(program):
    """A program's objects may live on until they are collected, its lock must not."""
    gc.disable()
    try:
        assert program(f"{TRAIN} --epochs 1 --save_name x").returncode == 0
        assert program(f"{TRAIN} --epochs 2 --save_name x --resume").returncode == 0
    finally:
        gc.enable()


@pytest.mark.usefixtures("shd_folder")
def test_a_folder_that_is_no_run_stays(program, tmp_path):
    (tmp_path / "runs" / "x").mkdir(parents=True)
    assert_one_line(program(f"{TRAIN} --epochs 1 --save_name x"), "runs/x already exists and is not a run of train.py")


@pytest.mark.usefixtures("shd_folder")
def test_resume_of_a_damaged_run(program, tmp_path):
    """A torn line in the log does no harm; a best.pt in place of last.pt, or a missing last.pt, is named."""
    assert program(f"{TRAIN} --epochs 2 --save_name x").returncode == 0
    run = tmp_path / "runs" / "x"
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3, "train_l')
    assert program(f"{TRAIN} --epochs 3 --save_name x --resume").returncode == 0
    assert [row["epoch"] for row in rows(run / "metrics.jsonl")] == [1, 2, 3]
    last = (run / "last.pt").read_bytes()
    (run / "last.pt").write_bytes((run / "best.pt").read_bytes())
    assert_one_line(program(f"{TRAIN} --epochs 4 --save_name x --resume"), "no optimizer; only last.pt of a run")
    (run / "last.pt").write_bytes(last)
    (run / "best.pt").unlink()
    assert_one_line(program(f"{TRAIN} --epochs 4 --save_name x --resume"), "best.pt: no such checkpoint")


@pytest.mark.usefixtures("shd_folder")
@pytest.mark.parametrize(
    "words",
    [
        "--loss_mode firing_rate --lr_decay --clip_norm 0 --verbose",
        "--set loss.fs.D_final=10 --set loss.fs.window=paper --set loss.spike_count.weight=0.1",
        pytest.param(  # more kernels
            "--set network.neuron=CuAdLIF --set network.layers=[16R,16F] --set network.reset=soft",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "--set network.variant=superspike --set network.neuron=PCuLIF --set network.values=layer --T_empty 5",
            marks=pytest.mark.slow,
        ),
        "--set data.validation_by=speaker --set network.batch_norm=false --set network.dropout=0 --hidden_size 8",
    ],
)
def test_options_train(program, words):
    result = program(f"{TRAIN} --epochs 1 {words}")
    assert result.returncode == 0, result.stderr
    assert "best epoch 1" in result.stdout


def test_nmnist_from_its_original_files_to_a_test(program, tmp_path):
    """Follow a camera: .bin files, preparation, convolutions with pools, training, a test with another T, pictures."""
    write_nmnist(tmp_path / "original", 4, 0)
    made = program("-m datasets.prepare events original --out data/nmnist --sensor 34x34")
    assert made.returncode == 0, made.stderr
    words = "--T 20 --dt 15 --epochs 4 --lr 1e-2 --batch-size 10 --hidden_size 32 --save_name x --verbose"
    # these learn something in so few steps
    words += " --set network.neuron=AdLIF --set loss.mode=first_time --set network.neuron1.theta=0.1"
    words += " --set network.neuron2.theta=0.1 --set network.dropout=0"
    layers = "[8C3S2,P2,8C3,A2,16R]"
    yaml_path = REPOSITORY / "configs" / "nmnist.yaml"
    trained = program(f"train.py --path_to_yaml {yaml_path} {words} --set network.layers={layers} --T_empty 2")
    assert trained.returncode == 0, trained.stderr
    assert "layers.2.linear: " in trained.stderr + trained.stdout
    log = rows(tmp_path / "runs" / "x" / "metrics.jsonl")
    assert log[-1]["train_loss"] < 0.8 * log[0]["train_loss"], [row["train_loss"] for row in log]
    tested = program("test.py --load_pt_file x --T 21 --T_empty 0 --show --test_single_delay --test-batch-size 7")
    assert tested.returncode == 0, tested.stderr
    metrics = json.loads((tmp_path / "runs" / "x" / "test" / "metrics.json").read_text())
    assert (metrics["samples"], metrics["T"]) == (40, 21)
    assert len(metrics["spikes_per_neuron_by_layer"]) == 6
    assert (tmp_path / "runs" / "x" / "test" / "decision_9.png").exists()
    words += f" --set network.layers={layers}"
    halved = program(f"train.py --path_to_yaml {yaml_path} {words} --set data.sensor.polarities=1 --resume")
    assert_one_line(halved, "cannot resume with another", "data.sensor.polarities")


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: path.stem)
def test_missing_data_are_one_line(program, tmp_path, path):
    """Every configuration says where its data come from, or makes them."""
    data = settings.load(path).data
    if data.layout not in readers.LAYOUTS:
        pytest.skip(f"no reader of the layout {data.layout} here")
    result = program(f"train.py --path_to_yaml {path} --path_to_dataset nowhere --set data.prepare=null")
    origin = " ".join(data.origin.split()) if data.origin else readers.LAYOUTS[data.layout][1]
    assert_one_line(result, str(data.train_path.relative_to(data.folder)), "not found", origin[:60])
    assert "http" in origin or "doi" in origin


def test_ctrl_c_and_resume(program, tmp_path, shd_folder, launch):
    command = [sys.executable, str(REPOSITORY / "train.py"), *f"{TRAIN} --epochs 3000 --save_name x".split()[1:]]
    process = launch(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 600
    while not (tmp_path / "runs" / "x" / "last.pt").exists():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=600)
    assert process.returncode == 130
    assert "Traceback" not in stderr
    assert "--resume" in stderr
    done = torch.load(tmp_path / "runs" / "x" / "last.pt", weights_only=True)["epoch"]
    resumed = program(f"{TRAIN} --epochs {done + 1} --save_name x --resume")
    assert resumed.returncode == 0, resumed.stderr
    assert len(rows(tmp_path / "runs" / "x" / "metrics.jsonl")) == done + 1


def break_file(path, kind: str) -> None:
    events = make_events(30, 3, 40, 0)
    if kind == "missing":
        path.unlink()
    elif kind == "truncated":
        path.write_bytes(path.read_bytes()[:3000])
    elif kind == "layout":
        with h5py.File(path, "a") as file:
            del file["labels"]
    elif kind == "channel":
        events["units"][7] = np.array([0] * 59 + [40])
        write_shd(path, **events)
    elif kind == "label":
        events["labels"][7] = 3
        write_shd(path, **events)


BAD_FILES = {
    "missing": "not found",
    "truncated": "perhaps truncated",
    "layout": "it has no data set /labels",
    "channel": "recording 7 has an event on channel 40, outside 0..39",
    "label": "recording 7 has the label 3, outside 0..2",
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_training_file(program, shd_folder, kind):
    break_file(shd_folder / "shd_train.h5", kind)
    assert_one_line(program(f"{TRAIN} --epochs 1"), "shd/shd_train.h5", BAD_FILES[kind])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--epochs 0", "train.epochs = 0: input should be greater than 0"),
        ("--set train.lrr=1", "train.lrr is not known"),
        ("--frobnicate", "unrecognized arguments: --frobnicate"),
        ("--set train.backend=cupy --set train.device=cpu", "runs on cuda"),
        ("--set train.device=cuda:99", "train.device = cuda:99: cannot be used here"),
        ("--load_pt_file nowhere.pt", "nowhere.pt: no such checkpoint"),
        ("--resume", "no such checkpoint"),
        ("--save_name ../shd", "'../shd' cannot name a run"),
        ("--save_name .", "'.' cannot name a run"),
        ("--add_name a/b", "cannot name a run"),
        ("--path_to_yaml nowhere.yaml", "nowhere.yaml: cannot be read"),
    ],
)
@pytest.mark.usefixtures("shd_folder")
def test_bad_words(program, words, message):
    assert_one_line(program(f"{TRAIN} {words}"), message)


def test_learning_that_blows_up_names_the_place(program, shd_folder):
    result = program(f"{TRAIN} --epochs 3 --lr 1e30 --set network.batch_norm=false")
    assert_one_line(result, "not a finite number in", "last.pt")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Make, once, a folder with a data set and a trained run `x`."""
    folder = tmp_path_factory.mktemp("trained")
    write_shd(folder / "shd" / "shd_train.h5", **make_events(60, 3, 40, 0))
    write_shd(folder / "shd" / "shd_test.h5", **make_events(24, 3, 40, 1))
    run_here(folder, f"{TRAIN} --epochs 1 --save_name x")
    return folder


@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_test_file(program, tmp_path, trained, kind):
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    break_file(tmp_path / "shd" / "shd_test.h5", kind)
    assert_one_line(program("test.py --load_pt_file runs/x/best.pt"), "shd/shd_test.h5", BAD_FILES[kind])


@pytest.mark.parametrize("kind", ["no checkpoint", "damaged", "another network", "none given", "unwritable"])
def test_bad_checkpoint(program, tmp_path, trained, kind):
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    path, words, message = tmp_path / "runs" / "x" / "best.pt", "--load_pt_file runs/x/best.pt", "runs/x/best.pt"
    if kind == "no checkpoint":
        path.write_text("not a checkpoint")
    elif kind == "damaged":
        path.write_bytes(path.read_bytes()[: math.ceil(path.stat().st_size / 2)])
    elif kind == "another network":
        words += " --neuron2 20 20 3"
        message = "it was trained with another network.neuron2.theta"
    elif kind == "none given":
        words, message = "", "--load_pt_file is missing"
    else:
        (path.parent / "test").write_text("in the way")
        message = "runs/x/test"
    assert_one_line(program(f"test.py {words}"), message)


def test_continue_from_a_checkpoint(program, tmp_path, trained):
    """--load_pt_file starts from its weights; those of another network are refused."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    weights = torch.load(tmp_path / "runs" / "x" / "last.pt", weights_only=True)["network"]
    assert program(f"{TRAIN} --epochs 1 --lr 1e-30 --weight_decay 0 --load_pt_file x --save_name y").returncode == 0
    moved = torch.load(tmp_path / "runs" / "y" / "last.pt", weights_only=True)["network"]
    assert torch.allclose(moved["layers.2.linear.weight"], weights["layers.2.linear.weight"], atol=1e-12)
    assert_one_line(program(f"{TRAIN} --load_pt_file x --hidden_size 8"), "belongs to another network")


def test_demo(program, tmp_path):
    """Pass a WAV file, and a word of the data set, through an untrained network."""
    values = settings.read_yaml(REPOSITORY / "configs" / "adlif_digits.yaml")
    values["network"] |= {"layers": ["8F"]}
    values["data"] |= {"test_T": 5}
    cfg = settings.build(values, "test")
    (tmp_path / "runs" / "x").mkdir(parents=True)
    torch.manual_seed(0)
    network = Network(cfg.network, cfg.data.shape, 20)
    content = {"epoch": 1, "class_names": ("nothing",) * 20}
    checkpoint.save(tmp_path / "runs" / "x" / "best.pt", cfg, network, **content)
    tone = 8000 * np.sin(2 * np.pi * 600 * np.arange(8000) / 16_000)
    wavfile.write(tmp_path / "tone.wav", 16_000, tone.astype(np.int16))
    heard = program("demo.py tone.wav")
    assert heard.returncode == 0, heard.stderr
    assert "no output spike in 50 ms; the highest potential decides for 'nothing'" in heard.stdout
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")
    spoken = program("demo.py --recording 27 --load_pt_file x --out spoken.png")
    assert spoken.returncode == 0, spoken.stderr
    assert "hearing 'seven'" in spoken.stdout
    assert (tmp_path / "spoken.png").is_file()
    assert_one_line(program("demo.py --recording 400"), "--recording 400: choose 0 to 399")
    assert_one_line(program("demo.py no.wav"), "no.wav cannot be read as WAV")
    wavfile.write(tmp_path / "empty.wav", 16_000, np.zeros(0, np.int16))
    assert_one_line(program("demo.py empty.wav"), "empty.wav: audio lasts 0 ms")
    assert_one_line(program("demo.py --loud"), "unrecognized arguments: --loud")
    for words, fault in (
        ("tone.wav --udp 3333", "a sound is not for live events"),
        ("--stdin --out x.png", "--out is not for live events"),
        ("tone.wav --layout csv", "--layout is for live events"),
        ("--stdin --host 0.0.0.0", "--host is for --udp"),
        ("tone.wav --recording 0", "--recording chooses a word of `digits`"),
        ("tone.wav --out nowhere/x.png", "nowhere/x.png: cannot be written; choose another --out"),
        ("tone.wav --out runs", "runs: cannot be written; choose another --out"),
    ):
        assert_one_line(program(f"demo.py {words}"), fault)

    narrow = cfg.model_copy(update={"data": cfg.data.model_copy(update={"channels": 40, "pool": 1})})
    checkpoint.save(tmp_path / "runs" / "x" / "best.pt", narrow, Network(cfg.network, (40,), 20), **content)
    assert_one_line(program("demo.py tone.wav"), "takes 40 channels, but the cochlea has 700")
    shutil.rmtree(tmp_path / "runs")
    assert_one_line(program("demo.py tone.wav"), "there is no runs/*/best.pt yet")
