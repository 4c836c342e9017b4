"""The benchmarks measure what their rows say, and mistakes are one line."""

import subprocess

import numpy as np
import pytest

from benchmarks import events
from snn import checkpoint
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
