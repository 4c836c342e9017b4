"""Check that the network and the loss follow all that changes over the epochs of a training."""

import itertools
import math

import numpy as np
import pytest
import torch

from snn import settings
from snn.losses import LOSSES
from snn.team import Team
from tasks.events import EventTraining, cures_of
from tests.conftest import REPOSITORY
from tests.programs import TRAIN, rows

EPOCHS = 10


def follow(folder, network: dict, loss: dict) -> tuple[EventTraining, list[dict[str, float]]]:
    """Begin each epoch of a training; return it with its schedule, which the network and the loss must follow."""
    values = settings.load(REPOSITORY / "configs" / "adlif_shd.yaml").model_dump(mode="json")
    values["data"] |= {"path": str(folder), "channels": 40, "num_classes": 3, "T": 20}
    values["network"] |= network
    values["loss"] |= loss
    values["train"] |= {"epochs": EPOCHS, "device": "cpu"}
    task, seen = EventTraining(settings.build(values, "test"), Team(torch.device("cpu"))), []
    for epoch in range(EPOCHS):
        now = task.begin_epoch(epoch, np.random.default_rng(0))
        delays = list(task.network.delays().values())
        assert ({each.sigma_steps for each in delays} or {0.0}) == {now["delay_sigma_steps"]}
        assert all(each.are_whole == (epoch >= 8) for each in delays)
        is_pruned = task.network.layers[0].linear.kept_NC is not None
        assert is_pruned == (epoch >= 3 and "density" in network)
        chosen = task.objective.keywords["loss"].chosen
        options = chosen.scheduled(0, 1)
        assert {name: getattr(chosen, name) for name in options} == {name: now[name] for name in options}
        seen.append(now)
    return task, seen


@pytest.mark.parametrize(
    ("network", "settles"),
    [
        ({"layers": ("16FD3",), "density": 0.5, "delay_sigma_steps": 2.0}, 8),
        ({"layers": ("16F",), "density": 0.5}, 3),
        ({"layers": ("16F",)}, 0),
    ],
    ids=["delays", "pruned", "neither"],
)
def test_the_form_of_the_network(shd_folder, network, settles):
    """The best model is chosen among the epochs in which nothing but values changes."""
    task, seen = follow(shd_folder, network, {})
    assert task.cfg.settles == settles
    sigma = [now["delay_sigma_steps"] for now in seen]
    if "delay_sigma_steps" in network:
        assert sigma[0] == 2.0
        assert all(a > b for a, b in itertools.pairwise(sigma[:9]))
        assert sigma[8:] == [0.0, 0.0]


def test_a_network_of_one_epoch_is_pruned():
    network = settings.load(REPOSITORY / "configs" / "speech.yaml").network
    assert network.scheduled(0, 1)["density"] == network.density < 1
    assert [network.scheduled(k, 2)["density"] for k in range(2)] == [1, network.density]


def test_the_prices_of_time_rise(shd_folder):
    race = {"mode": "first_to_spike", "first_to_spike": {"early": 2.0, "late": 1.0}}
    _, seen = follow(shd_folder, {"layers": ("16F",)}, race)
    assert [now["early"] for now in seen] == pytest.approx([0, 0.4, 0.8, 1.2, 1.6, 2, 2, 2, 2, 2])
    assert [now["late"] for now in seen] == pytest.approx([now["early"] / 2 for now in seen])


def test_the_window_of_the_gradient_narrows(shd_folder):
    _, seen = follow(shd_folder, {"layers": ("16F",)}, {"mode": "first_time", "fs": {"D": 2.0, "D_final": 8.0}})
    assert [now["D"] for now in seen] == pytest.approx([2 * 4 ** (k / EPOCHS) for k in range(EPOCHS)])


@pytest.mark.parametrize(("mode", "metric"), [("first_time", "fs_accuracy"), ("firing_rate", "fr_accuracy")])
def test_the_loss_that_trains_chooses_the_best_model_and_the_advice(shd_folder, mode, metric):
    task, _ = follow(shd_folder, {"layers": ("16F",)}, {"mode": mode})
    assert task.chosen_by == metric
    assert task.cures == cures_of(LOSSES[mode]())


@pytest.mark.usefixtures("shd_folder")
def test_the_log_has_what_changes(program, tmp_path):
    """The learning rate falls along a cosine, and D grows from D0 to D1; without schedules nothing changes."""
    words = "--epochs 4 --lr 8e-3 --lr_decay --FS 0.2 2 --set loss.fs.D_final=8 --save_name x"
    assert program(f"{TRAIN} {words}").returncode == 0
    log = rows(tmp_path / "runs" / "x" / "metrics.jsonl")
    assert [row["lr"] for row in log] == pytest.approx([4e-3 * (1 + math.cos(math.pi * k / 4)) for k in range(4)])
    assert [row["D"] for row in log] == pytest.approx([2 * 4 ** (k / 4) for k in range(4)])
    for name, value in (("density", 1), ("delays_are_whole", 0), ("delay_sigma_steps", 0)):
        assert {row[name] for row in log} == {value}
