"""Anchors see the data as train.py does, choose their epoch on held-out data, and read the test file last."""

import json

import numpy as np
import pytest
import torch

from benchmarks import anchors
from datasets import binning, readers
from datasets.binning import Bins
from snn import arguments, settings
from snn.errors import InputError
from tasks.events import EventTraining
from tests.conftest import ON_CPU, REPOSITORY, make_events, write_shd

EPOCHS = 12
DATA = "--dataset_name shd --path_to_dataset shd --num_classes 3 --T 20 --set data.channels=40 --batch-size 16"
WORDS = f"--path_to_yaml {REPOSITORY}/configs/adlif_shd.yaml {DATA} {ON_CPU} --set data.validation_by=speaker"
over_anchors = pytest.mark.parametrize("anchor", anchors.ANCHORS)


@pytest.fixture
def run(shd_folder, monkeypatch):
    """The program, in the folder of the data: run("--anchor gru")."""
    monkeypatch.chdir(shd_folder.parent)
    monkeypatch.setattr(anchors, "EPOCHS", EPOCHS)
    monkeypatch.setattr(anchors, "RESULTS", shd_folder.parent / "results")

    def program(words: str) -> None:
        monkeypatch.setattr("sys.argv", ["anchors", *words.split()])
        anchors.main()

    return program


def parsed(words: str):
    parser = arguments.Parser("", arguments.TRAIN)
    parser.add_argument("--anchor")
    parser.add_argument("--seeds", type=int, nargs="+")
    return parser, parser.parse_args(words.split())


@over_anchors
def test_an_anchor_is_trained_tested_once_and_stored(run, shd_folder, monkeypatch, anchor):
    begun, read = [], []
    begin, read_file = EventTraining.begin_epoch, readers.read

    def begin_epoch(self, epoch, random):
        begun.append(epoch)
        return begin(self, epoch, random)

    def reading(layout, path, *rest, **more):
        read.append((path.name, len(begun)))
        return read_file(layout, path, *rest, **more)

    monkeypatch.setattr(EventTraining, "begin_epoch", begin_epoch)
    monkeypatch.setattr(readers, "read", reading)
    run(f"{WORDS} --anchor {anchor} --seeds 0 3")
    ends = EPOCHS, 2 * EPOCHS
    train, test = "shd_train.h5", "shd_test.h5"
    assert read == [(train, 0), (test, ends[0]), (train, ends[0]), (test, ends[1])]

    path = shd_folder.parent / "results" / "anchors" / f"shd_{anchor}.json"
    result = json.loads(path.read_text())
    assert result["configuration"] == "configs/adlif_shd.yaml"
    assert result["command"].startswith(
        f"python -m benchmarks.anchors --path_to_yaml configs/adlif_shd.yaml --anchor {anchor}"
    )
    assert "--set data.validation_by=speaker" in result["command"]
    assert str(shd_folder.parent) not in path.read_text()
    assert result["weights"] > 1000
    assert result["multiply_accumulates"] > result["weights"]
    assert {"torch", "python"} <= result["versions"].keys()
    assert {"processor", "cores", "load_at_start"} <= result["machine"].keys()
    assert result["seeds"].keys() == {"0", "3"}
    for seed in result["seeds"].values():
        low, high = seed["accuracy_interval"]
        assert 60 < seed["accuracy"] <= 100
        assert low < seed["accuracy"] <= high
        assert seed["samples"] == 24
        assert 1 <= seed["epoch"] <= EPOCHS


def test_the_same_command_goes_on_with_the_seeds_that_are_missing(run, shd_folder):
    words = f"{WORDS} --anchor gru --seeds 0 3"
    run(words)
    path = shd_folder.parent / "results" / "anchors" / "shd_gru.json"
    whole = json.loads(path.read_text())
    part = whole | {"seeds": {"0": whole["seeds"]["0"] | {"train_seconds": -1}}}
    path.write_text(json.dumps(part))
    run(words)
    again = json.loads(path.read_text())
    assert again["seeds"]["0"]["train_seconds"] == -1
    for name in ("accuracy", "epoch", "validation_accuracy"):
        assert again["seeds"]["3"][name] == whole["seeds"]["3"][name]


def test_another_command_does_not_overwrite_a_result(run, shd_folder):
    path = shd_folder.parent / "result.json"
    for content in ("[]", "{}", "no JSON"):
        path.write_text(content)
        with pytest.raises(InputError, match=r"result\.json: is not such a result"):
            run(f"{WORDS} --anchor cnn --out {path}")
    path.write_text(json.dumps({"command": "x", "network": "y", "training": {}, "seeds": {}}))
    with pytest.raises(InputError, match=r"result\.json: is a result with another command, network, training"):
        run(f"{WORDS} --anchor cnn --out {path}")
    assert '"x"' in path.read_text()


def test_a_test_file_with_wrong_events_leaves_no_result(run, shd_folder):
    events = make_events(6, 3, 40, 1)
    events["times"][4][0] = -1
    write_shd(shd_folder / "shd_test.h5", **events)
    with pytest.raises(InputError, match=r"shd_test\.h5: .*recording 4.*time"):
        run(f"{WORDS} --anchor cnn --seeds 0")
    assert not list((shd_folder.parent / "results" / "anchors").iterdir())


@over_anchors
def test_the_weights_are_those_of_the_best_epoch_on_held_out_speakers(shd_folder, monkeypatch, anchor):
    monkeypatch.chdir(shd_folder.parent)
    monkeypatch.setattr(anchors, "EPOCHS", 4)
    by_seed, _ = anchors.read_configurations(*parsed(f"{WORDS} --anchor {anchor} --seeds 1 --set data.augment.drop=.5"))
    found = []
    examine = anchors.examine

    def examining(*words):
        found.append(examine(*words))
        # the second epoch is the best, whatever the network has learned
        return np.full_like(found[-1][0], len(found) == 2), found[-1][1]

    monkeypatch.setattr(anchors, "examine", examining)
    trained = anchors.train(by_seed[1], anchor)
    task = trained.task
    assert (trained.epoch, trained.validation_accuracy) == (2, 100)
    assert len(np.unique(task.recordings.speakers[task.held_out])) == 1
    assert not np.isin(task.recordings.speakers[task.kept], task.recordings.speakers[task.held_out]).any()
    right_n, loss = examine(trained.network, binning.batches(task.validation, task.held_out, task.bins, 256))
    assert np.array_equal(right_n, found[1][0])
    assert loss == pytest.approx(found[1][1], rel=1e-5)
    assert loss != pytest.approx(found[3][1], rel=1e-5)


def test_sizes_on_speech():
    cfg = settings.load(REPOSITORY / "configs" / "fsdd.yaml")
    sizes = {name: anchors.describe(cfg, name, ["", ""]) for name in anchors.ANCHORS}
    assert sizes["gru"]["network"] == "GRU, 140 channels, 2 layers of 128, 204 k weights"
    assert sizes["cnn"]["network"] == "CNN on 50 x 70 bins, 4 layers, 61 k weights"
    recurrent = 3 * 128 * (140 + 128) + 3 * 128 * (128 + 128)
    assert sizes["gru"]["multiply_accumulates"] == 100 * recurrent + 128 * 10


def test_neighbours_are_summed():
    x_TBC = torch.arange(5 * 2 * 7).view(5, 2, 7).float()
    y_TBC = anchors.pooled(x_TBC, 2, 3)
    assert y_TBC.shape == (3, 2, 3)
    assert torch.equal(y_TBC[1, 1], torch.stack([x_TBC[2:4, 1, c : c + 3].sum() for c in (0, 3, 6)]))
    assert y_TBC[2, 0, 2] == x_TBC[4, 0, 6]
    assert torch.equal(anchors.pooled(x_TBC, 1, 1), x_TBC)


def test_the_gru_decides_by_the_steps_up_to_the_last_event():
    network = anchors.GRU(Bins(10.0, 8, 0, 40), 3).eval()
    x_TBC = torch.poisson(torch.ones(8, 2, 40))
    longer_TBC = torch.cat([x_TBC, torch.zeros(5, 2, 40)])
    with torch.no_grad():
        torch.testing.assert_close(network(longer_TBC), network(x_TBC))
        assert network(torch.zeros(8, 2, 40)).isfinite().all()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (WORDS, "required: --anchor"),
        (f"{WORDS} --anchor mlp", "invalid choice: 'mlp'"),
        (f"{DATA} --anchor gru", "--path_to_yaml is missing"),
        (f"{WORDS} --anchor gru --epochs 3 --seed 1", "train.epochs, train.seed: an anchor has its own"),
        (f"{WORDS} --anchor gru --seeds 0 -1", "train.seed = -1"),
        (f"{WORDS} --anchor gru --load_pt_file x", "--load_pt_file"),
        (f"{WORDS} --anchor gru --set data.validation_share=0", "an anchor chooses its epoch on held-out data"),
        (f"{WORDS} --anchor gru --set data.test_file=none.h5", "none.h5: not found"),
        (f"--path_to_yaml {REPOSITORY}/configs/ttfs_mnist.yaml --anchor cnn", "channels in a row"),
        (f"--path_to_yaml {REPOSITORY}/configs/planes.yaml --anchor cnn", "channels in a row"),
    ],
)
def test_wrong_words(run, words, message, shd_folder):
    with pytest.raises(InputError, match=message):
        run(words)
    assert not list(shd_folder.parent.glob("results/**/*.json"))
