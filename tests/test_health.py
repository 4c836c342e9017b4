"""A run that goes wrong says why: each warning comes from a real epoch that deserves it, and none from a good one."""

import itertools
import json

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import tasks
from snn import config, health, manual, schema
from snn.losses import LOSSES
from snn.losses.first_time import FirstTime
from snn.network import Network
from tests.conftest import REPOSITORY, TINY

CURES = tasks.events.cures_of(FirstTime())
TRAIN = f"train.py --path_to_yaml {REPOSITORY}/configs/adlif_shd.yaml --path_to_dataset shd --dataset_name shd {TINY}"

WELL = {
    "validation_fs_accuracy": 90.0,
    "validation_samples": 100,
    "validation_silent_samples": 10,
    "validation_spikes_per_neuron_by_layer": [3.0, 2.0, 0.5],
    "gradient_norm": 2000.0,
    "gradient_norm/layers.0.linear": 300.0,
}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"validation_spikes_per_neuron_by_layer": [3.0, 0, 0.5]}, ["layer 2 is dead", "network.neuron1.theta"]),
        ({"validation_spikes_per_neuron_by_layer": [3.0, 2.0, 0]}, ["layer 3 is dead", "network.neuron2.theta"]),
        ({"validation_silent_samples": 51}, ["silent outputs", "network.neuron2.theta", "loss.treg.weight"]),
        ({"gradient_norm": 2e6}, ["exploding gradients", "train.lr", "train.clip_norm"]),
        ({"gradient_norm/layers.0.linear": 0.0}, ["vanishing gradients", "layers.0.linear"]),
    ],
)
def test_each_fault_is_named_with_its_cure(change, words):
    assert health.warnings_of(WELL, CURES) == []
    (warning,) = health.warnings_of(WELL | change, CURES)
    for word in words:
        assert word in warning


def test_cures_are_fields_of_the_configuration():
    fields = {option.name for kind in schema.KINDS.values() for option in manual.options(kind)}
    worst = {"validation_spikes_per_neuron_by_layer": [0, 0], "gradient_norm": 1e9, "gradient_norm/x": 0.0}
    silent = {"validation_fs_accuracy": 0, "validation_samples": 1, "validation_silent_samples": 1}
    named = set()
    of_events = [tasks.events.cures_of(loss()) for loss in LOSSES.values()]
    for row, cures in itertools.product((worst, worst | silent), [*of_events, tasks.images.ImageTraining.cures]):
        for warning in health.warnings_of(row, cures):
            named |= {word.strip("(),;:.") for word in warning.split() if word.count(".") and word[0] in "nltd"}
    named = {name for name in named if name.split(".")[0] in ("network", "loss", "train", "data", "ttfs")}
    assert len(named) >= 8
    assert named <= fields


def test_a_cure_is_a_field_of_the_loss_that_trains():
    row = WELL | {"validation_silent_samples": 51, "gradient_norm": 2e6}
    for name, loss in LOSSES.items():
        advice = " ".join(health.warnings_of(row, tasks.events.cures_of(loss())))
        assert {other for other in LOSSES.values() if f"loss.{other.section}." in advice} <= {loss}, name
    advice = " ".join(health.warnings_of(row, tasks.events.cures_of(LOSSES["first_to_spike"]())))
    assert "a larger loss.first_to_spike.silent, or empty steps" in advice
    assert "loss.treg" not in advice


def test_gradient_norms_are_those_before_clipping():
    torch.manual_seed(0)
    constants = config.NeuronParams(tau_mem_steps=5, tau_syn_steps=5, theta=0.1)
    network = Network(config.Network(layers=["6F"], neuron="PCuLIF", neuron1=constants, neuron2=constants), (5,), 3)
    network(torch.rand(7, 4, 5)).h_TBN.sum().backward()
    whole = {name: p.grad.clone() for name, p in network.named_parameters()}
    norm = torch.nn.utils.clip_grad_norm_(network.parameters(), 0.1)
    assert norm > 0.1
    norms = health.gradient_norms(network, float(norm), 0.1)
    assert norms["gradient_norm"] == float(norm)
    expected = float(whole["layers.0.linear.weight"].norm())
    assert norms["gradient_norm/layers.0.linear"] == pytest.approx(expected, rel=1e-3)
    assert norms["gradient_norm"] == pytest.approx(
        sum(v**2 for name, v in norms.items() if "/" in name) ** 0.5, rel=1e-3
    )


def test_learned_values_are_time_constants_and_couplings():
    constants = config.NeuronParams(tau_mem_steps=5, tau_syn_steps=7, theta=0.1)
    section = config.Network(layers=["6F"], neuron="CuAdLIF", neuron1=constants, neuron2=constants, tau_ada_steps=50)
    found = Network(section, (5,), 3).learned(dt_ms=1.0)
    assert found["layers.0"].keys() == {"tau_m", "tau_s", "tau_w", "a", "b"}
    assert found["layers.1"] == {}  # a CuLIF output learns none
    for symbol, tau in (("tau_m", 5), ("tau_s", 7), ("tau_w", 50)):
        learned = found["layers.0"][symbol]
        torch.testing.assert_close(learned.value, torch.full((6,), float(tau)).double(), rtol=1e-4, atol=0)
        assert learned.began == (tau, tau)


@pytest.mark.usefixtures("shd_folder")
def test_training_logs_and_warns_once(program, tmp_path):
    """A threshold out of reach: two epochs, each warning once; the same scalars for machines and for TensorBoard."""
    result = program(f"{TRAIN} --epochs 2 --save_name run --neuron2 20 20 1e6 --set loss.treg.weight=0.0")
    assert result.returncode == 0, result.stderr
    warnings = [line for line in result.stderr.splitlines() if line.startswith("warning:")]
    assert len(warnings) == len(set(warnings)) >= 2
    assert any("layer 3 is dead" in line for line in warnings)
    assert any("silent outputs" in line for line in warnings)
    run = tmp_path / "runs" / "run"
    row = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][-1]
    assert row["learned/layers.0/tau_m"] > 1
    assert "gradient_norm/layers.0.linear" in row
    board = EventAccumulator(str(run))
    board.Reload()
    tags = board.Tags()
    assert {"validation/spikes_per_neuron_by_layer/1", "gradient_norm", "learned/layers.1/a"} <= set(tags["scalars"])
    assert "learned/layers.0/tau_m" in tags["histograms"]
    logged = board.Scalars("learned/layers.0/tau_m")[-1]
    assert (logged.step, logged.value) == (2, pytest.approx(row["learned/layers.0/tau_m"]))
