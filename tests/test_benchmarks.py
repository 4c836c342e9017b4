"""The benchmarks measure what their rows say, and mistakes are one line."""

import subprocess

import numpy as np
import pytest
import torch

from benchmarks import events, ttfs, ttfs_events
from snn import checkpoint, config
from snn.ops import sparse_conv
from snn.ttfs import products
from snn.ttfs.network import TTFSNetwork
from tests.cameras import LOW, X, Y, write_words
from tests.conftest import assert_one_line
from tests.networks import build, small


@pytest.fixture
def saved(tmp_path, shd_folder):
    """Write a run on the recordings of shd_folder, with its 40 channels pooled to 8, and return its checkpoint."""
    cfg = small(layers=("16F",))
    data = {"channels": 40, "pool": 5, "num_classes": 3, "dataset_name": "shd", "path": str(shd_folder), "T": 20}
    train = cfg.train.model_copy(update={"batch_size": 8})
    cfg = cfg.model_copy(update={"data": cfg.data.model_copy(update=data), "train": train})
    checkpoint.save(tmp_path / "best.pt", cfg, build(cfg), epoch=1, validation={})
    return tmp_path / "best.pt"


def test_a_stream_takes_the_recordings_of_the_run(saved, monkeypatch):
    """The channels of the file are pooled as the network sees them, and the row names the data set."""
    streamed, rows, measure = [], [], events.streaming

    def streaming(network, cfg, recordings, rounds) -> dict:
        streamed.append(recordings)
        return measure(network, cfg, recordings, rounds)

    monkeypatch.setattr(events.torch, "set_num_threads", lambda _: None)  # other tests keep theirs
    monkeypatch.setattr(events, "products", lambda _: [])
    monkeypatch.setattr(events, "training_step", lambda *_: {"event-driven": 1.0})
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 0, "1.0\n"))
    monkeypatch.setattr(events, "streaming", streaming)
    monkeypatch.setattr(events, "store", rows.extend)
    monkeypatch.setattr("sys.argv", ["events", "--load_pt_file", str(saved), "--rounds", "1", "--store"])
    events.main()
    (recordings,) = streamed
    assert recordings.where.endswith("shd_test.h5")
    assert np.diff(recordings.offsets).tolist() == [60] * 8
    assert recordings.channels.max() < 8
    assert rows[-1].what == "a recording of `shd` as a stream, one core, to the decision"


@torch.inference_mode()
def test_the_dense_pass_beside_events_is_dense(monkeypatch):
    """A convolution is otherwise summed over the inputs that fire, if they are few."""
    torch.manual_seed(0)
    network = TTFSNetwork(config.TTFS(layers="16C3 - P2 - 16F"), (1, 8, 8), 3).folded()
    x_BCHW, calls, summed, product = torch.zeros(2, 1, 8, 8), [], [], sparse_conv.product
    x_BCHW[:, :, 2:4, 2:4] = 0.5
    monkeypatch.setattr(sparse_conv, "product", lambda *given, **more: calls.append(given) or product(*given, **more))
    network.register_forward_pre_hook(lambda *_: calls.clear())
    network.register_forward_hook(lambda *_: summed.append(len(calls)))
    expected, before = network(x_BCHW).V_BN.argmax(1), products.DENSE_ABOVE
    dense, _, _ = ttfs_events.decide(network, x_BCHW)
    assert dense == expected.tolist()
    assert summed == [1, 0, 0]
    assert before == products.DENSE_ABOVE


def test_the_memory_that_a_contender_keeps_is_without_its_weights():
    """Each contender with a copy of the weights leaves out its own: they are most of what this network needs."""
    kept = ttfs.compare("512F - 512F", (1, 12, 12), 3, 1, 1, "cpu")["kept_megabytes"]
    assert all(0 < megabytes < 4 * 512 * 512 / 1e6 for megabytes in kept.values()), kept


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("reading --recordings 0", "--recordings 0: there must be at least 20"),
        ("reading --rounds 0", "--rounds 0: there must be at least 1"),
        ("cameras still.raw", "still.raw: has no time (no word TIME_HIGH); give a recording in EVT3"),
        ("cameras still.raw --repeats 0", "--repeats 0: there must be at least 1"),
    ],
)
def test_a_mistake_is_one_line(program, tmp_path, words, message):
    write_words(tmp_path / "still.raw", [LOW(5), Y(3), X(4)])
    assert_one_line(program(f"-m benchmarks.{words}"), message)
