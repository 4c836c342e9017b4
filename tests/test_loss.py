"""Losses against the published check values and term by term."""

import json
import math
import os
import shutil
import subprocess
import sys
from typing import ClassVar

import pytest
import torch

from snn import losses
from snn.coding import Window, first_times
from snn.errors import InputError
from snn.losses.firing_rate import firing_rate
from snn.losses.first_time import first_time, silent_target
from snn.losses.first_to_spike import first_to_spike
from snn.losses.loss import Loss, spike_count, spikes_per_neuron
from snn.network import Activity
from tests.conftest import REPOSITORY
from tests.programs import COMMANDS, TRAIN, blocks, metrics, rows, share_compiled

TIMES, TARGET = torch.tensor([[3.0, 102, 55], [101, 40, 60]], dtype=torch.float64), torch.tensor([0, 0])


def test_published_check():
    assert float(first_time(TIMES, TARGET, 0.2)) == pytest.approx(6.109093, abs=1e-6)
    assert float(silent_target(TIMES, TARGET, 100, 0.01, 0.02)) == pytest.approx(0.032692, abs=1e-6)


def test_large_times_do_not_underflow():
    value = first_time(torch.tensor([[1e4, 1.0]]), torch.tensor([0]), 0.2)
    assert float(value) == pytest.approx(0.2 * (1e4 - 1), rel=1e-5)


def test_silent_target_is_zero_where_the_target_fires():
    t = torch.tensor([[100.0, 101.0]])
    assert float(silent_target(t, torch.tensor([0]), 100, 0.01, 0.02)) == 0
    assert float(silent_target(t, torch.tensor([1]), 100, 0.01, 0.02)) == pytest.approx(0.01 * math.expm1(2.02))


def test_firing_rate():
    s_TBN = torch.zeros(10, 1, 2)
    s_TBN[:4, 0, 0] = 1  # rates 0.4 and 0
    expected = math.log1p(math.exp(-20 * 0.4))
    assert float(firing_rate(s_TBN.double(), torch.tensor([0]), 20.0)) == pytest.approx(expected, rel=1e-12)


def activity() -> Activity:
    random = torch.Generator().manual_seed(0)
    s, hidden = ((torch.rand(12, 3, n, generator=random) < 0.2).double() for n in (4, 6))
    s[:, 0, 0] = 0  # a silent target
    return Activity(s, torch.rand(12, 3, 4, generator=random, dtype=torch.float64), (hidden, s))


def test_spike_count():
    layers = activity().layers
    N_s = (float(layers[0].sum()) + float(layers[1].sum())) / 3 / 10
    assert float(spikes_per_neuron(layers)) == pytest.approx(N_s)
    assert float(spike_count(layers, 2.0, 100.0)) == pytest.approx(2 * (100 - N_s))


def test_objective_adds_the_terms_in_training_only():
    window, target = Window.of(12, 4.0, 1.0), torch.tensor([0, 1, 2])
    settings = {"fs": {"alpha": 0.2, "D": 4.0, "A": 1.0}, "fr": {"alpha": 20.0}, "treg": {"weight": 5.0, "beta": 0.02}}
    plain = losses.LossOptions(**settings)
    counted = losses.LossOptions(**settings, spike_count={"weight": 3.0, "target": 50.0})
    seen = activity()
    t = first_times(seen.s_TBN, seen.h_TBN, window)
    base = first_time(t, target, 0.2)
    silent = silent_target(t, target, 12, 5.0, 0.02)
    assert silent > 0
    assert losses.objective(seen, target, counted, training=False) == base
    assert losses.objective(seen, target, plain, training=True) == base + silent
    both = base + silent + spike_count(seen.layers, 3.0, 50.0)
    assert losses.objective(seen, target, counted, training=True) == both
    rate = losses.LossOptions(**settings, mode="firing_rate")
    assert losses.objective(seen, target, rate, training=True) == firing_rate(seen.s_TBN, target, 20.0)


def noisy_race(s_TN, h_TN, theta: float, slope: float, silent: float) -> tuple[list[float], float, float]:
    """Follow one sample step by step: P(each neuron spikes first), and the mean and mean square of the time to it."""
    waiting, P, time, square = 1.0, [0.0] * h_TN.shape[1], 0.0, 0.0
    for n, (s_N, h_N) in enumerate(zip(s_TN.tolist(), h_TN.tolist(), strict=True)):
        r_N = [math.exp(slope * (h / theta - 1)) for h in h_N]
        fires = 1.0 if any(s_N) else 1 - math.exp(-sum(r_N))
        P = [p + waiting * fires * r / sum(r_N) for p, r in zip(P, r_N, strict=True)]
        square += waiting * fires * n**2
        waiting *= 1 - fires
        time += waiting
    T, peaks = len(h_TN), [math.exp(slope * float(h) / theta) for h in h_TN.amax(0)]
    P = [p + waiting * math.exp(-silent) * q / sum(peaks) for p, q in zip(P, peaks, strict=True)]
    return P, time / T, square / T**2 + waiting


@pytest.mark.parametrize("silent", [0.0, 2.0])
def test_first_to_spike_follows_the_race_step_by_step(silent: float):
    torch.manual_seed(0)
    h_TBN = torch.rand(9, 5, 3, dtype=torch.float64) * 2.4
    s_TBN = (h_TBN >= 2.2).double()
    s_TBN[:, 0] = 0  # a sample without a spike
    assert not s_TBN[:, 0].any()
    assert s_TBN[:, 1:].any()
    for target in range(3):
        target_B = torch.full((5,), target)
        value = first_to_spike(s_TBN, h_TBN, target_B, 2.2, 4.0, silent, early=0.3, late=0.7)
        races = [noisy_race(s_TBN[:, b], h_TBN[:, b], 2.2, 4.0, silent) for b in range(5)]
        expected = sum(0.3 * time + 0.7 * square - math.log(P[target]) for P, time, square in races) / 5
        assert float(value) == pytest.approx(expected, rel=1e-9)


def test_each_step_up_to_the_decision_has_a_cross_entropy():
    torch.manual_seed(0)
    h_TBN = torch.rand(9, 5, 3, dtype=torch.float64) * 2.4
    s_TBN = (h_TBN >= 2.2).double()
    s_TBN[:, 0] = 0  # a sample without a spike, all of whose steps count
    s_TBN[0, 1, 2] = 1  # one that decides at once
    target_B = torch.tensor([0, 1, 2, 0, 1])
    total = 0.0
    for b, target in enumerate(target_B.tolist()):
        for s_N, h_N in zip(s_TBN[:, b].tolist(), h_TBN[:, b].tolist(), strict=True):
            r_N = [math.exp(4.0 * h / 2.2) for h in h_N]
            total -= math.log(r_N[target] / sum(r_N))
            if any(s_N):
                break
    plain, more = (first_to_spike(s_TBN, h_TBN, target_B, 2.2, 4.0, 1.0, 0.3, each) for each in (0.0, 0.7))
    assert float(more - plain) == pytest.approx(0.7 * total / 45, rel=1e-9)


def test_first_to_spike_of_a_tie_far_above_the_threshold():
    """The wrong neuron wins a tie in the first step; the softmax of potentials still says by how much, and pulls."""
    h_TBN = torch.tensor([[[1.9, 2.4]]], requires_grad=True)
    value = first_to_spike(torch.ones(1, 1, 2), h_TBN, torch.tensor([0]), 1.0, 10.0, each_step=1.0)
    value.backward()
    assert value.item() == pytest.approx(2 * math.log1p(math.exp(5)), rel=1e-5)
    assert h_TBN.grad[0, 0].tolist() == pytest.approx(
        [-2 * 10 / (1 + math.exp(-5)), 2 * 10 / (1 + math.exp(-5))], rel=1e-4
    )


def test_first_to_spike_gives_probabilities():
    torch.manual_seed(1)
    h_TBN = torch.randn(20, 1, 4, dtype=torch.float64) * 3
    for s_TBN in ((h_TBN >= 5).double(), (h_TBN >= 1).double()):
        P = [math.exp(-first_to_spike(s_TBN, h_TBN, torch.tensor([y]), 1.0, 10.0)) for y in range(4)]
        assert sum(P) == pytest.approx(1, rel=1e-9)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0, -100.0])
def test_first_to_spike_has_finite_gradients_up_to_the_first_spike(scale: float):
    torch.manual_seed(2)
    h_TBN = (torch.rand(12, 3, 4) * scale).requires_grad_()
    s_TBN = torch.zeros(12, 3, 4)
    s_TBN[5, 1, 2] = s_TBN[7, 1, 0] = 1
    first_to_spike(s_TBN, h_TBN, torch.tensor([0, 1, 2]), 1.0, 10.0, early=0.1, each_step=0.2).backward()
    assert h_TBN.grad.isfinite().all()
    assert not h_TBN.grad[6:, 1].any()


def test_first_to_spike_gradient():
    torch.manual_seed(3)
    h_TBN = (torch.rand(6, 3, 4, dtype=torch.float64) * 0.9).requires_grad_()
    s_TBN = torch.zeros(6, 3, 4, dtype=torch.float64)
    s_TBN[3, 1, 2] = 1
    target_B = torch.tensor([0, 1, 2])
    assert torch.autograd.gradcheck(
        lambda h: first_to_spike(s_TBN, h, target_B, 1.0, 6.0, 1.0, 0.5, 0.3, 0.7), (h_TBN,), check_batched_grad=False
    )


def test_objective_takes_the_mode_first_to_spike():
    seen, target = activity(), torch.tensor([0, 1, 2])
    constants = {"slope": 4.0, "silent": 1.0, "early": 0.5, "each_step": 0.2, "late": 0.7}
    wanted = losses.LossOptions(mode="first_to_spike", first_to_spike=constants)
    for training, weights in ((True, (0.5, 0.2, 0.7)), (False, ())):
        value = losses.objective(seen, target, wanted, training=training, theta=0.8)
        assert value == first_to_spike(seen.s_TBN, seen.h_TBN, target, 0.8, 4.0, 1.0, *weights)


@pytest.mark.parametrize("name", losses.LOSSES)
def test_every_loss_is_a_mean_over_samples_with_a_gradient(name):
    """Whether the target fires or is silent; that of the batch is the mean of those of its samples."""
    s_TBN, h_TBN, layers = activity()
    for leaf in (s_TBN, h_TBN):
        leaf.requires_grad_()
    wanted, target_B = losses.LossOptions(mode=name), torch.tensor([0, 1, 2])

    def value(at: slice) -> torch.Tensor:
        seen = Activity(s_TBN[:, at], h_TBN[:, at], tuple(s[:, at] for s in layers))
        return losses.objective(seen, target_B[at], wanted, training=True, theta=0.8)

    batch = value(slice(None))
    alone = [value(slice(b, b + 1)).item() for b in range(3)]
    assert batch.item() == pytest.approx(sum(alone) / 3, rel=1e-9)
    gradients = torch.autograd.grad(batch, (s_TBN, h_TBN), materialize_grads=True)
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert any(gradient.any() for gradient in gradients)


class Mine(Loss, name="mine"):
    about: ClassVar = "nothing"
    width: float = 1.0

    def scheduled(self, epoch: int, epochs: int) -> dict[str, float]:
        return {"widht": 0.5}


del losses.LOSSES["mine"]


def test_a_schedule_of_an_unknown_option_is_refused():
    class Options(losses.AnyLoss):
        mode: str = "mine"
        chosen: ClassVar = Mine()

    with pytest.raises(InputError, match="the loss mine schedules widht, which is not one of its options"):
        Options().at(0, 3)


def test_a_loss_called_as_another_field_of_its_section():
    with pytest.raises(InputError, match=r"the loss spike_count of .*: `loss` has a field spike_count: rename it"):

        class Again(Loss, name="spike_count"):
            pass


@pytest.mark.parametrize("words", [{"name": "first_time"}, {"name": "mine", "section": "fs"}], ids=["name", "section"])
def test_two_losses_of_one_name(words):
    """Otherwise the second would silently train in place of the first."""
    with pytest.raises(InputError, match=f"the loss {words['name']} of .*has the name or the section of first_time"):
        type("Other", (Loss,), {}, **words)


def test_a_loss_may_be_defined_again(monkeypatch):
    monkeypatch.setattr(losses.loss, "LOSSES", {})
    for width in (1.0, 2.0):
        again = type("Again", (Loss,), {"width": width, "__annotations__": {"width": float}}, name="again")
    assert list(losses.loss.LOSSES.values()) == [again]


@pytest.mark.slow
def test_a_new_loss_is_one_file(tmp_path, shd_folder):
    """That of docs/adding_a_loss.md, in a copy of the packages, is trained, tested and listed among the options."""
    for package in ("snn", "tasks", "datasets"):
        shutil.copytree(REPOSITORY / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    for script in ("train.py", "test.py", "first_spike.py"):
        shutil.copy2(REPOSITORY / script, tmp_path / script)
    share_compiled(tmp_path)
    (source,) = blocks("adding_a_loss.md", "python")
    (tmp_path / "snn" / "losses" / "margin.py").write_text(source)

    folder = tmp_path / "runs" / "shd_margin_tau20_adlif"
    # in plain torch, because numba would compile the kernels of the copy's neurons again
    train = f"{TRAIN} --epochs 3 --set train.backend=torch --loss_mode margin --set loss.margin.width=0.3"
    commands = [train.replace("train.py", "train").split(), ["test", "--load_pt_file", folder.name], ["snn.config"]]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}  # has tests/; the folder of the copy comes before it
    words = [sys.executable, "-c", COMMANDS, json.dumps(commands)]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    log = rows(folder / "metrics.jsonl")
    assert [row["width"] for row in log] == pytest.approx([0.1, 0.2, 0.3])
    assert log[0]["train_loss"] > 0
    assert "fs_accuracy" in metrics(folder)
    assert "loss.margin.width" in done.stdout
