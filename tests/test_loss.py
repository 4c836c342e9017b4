"""Losses against the published check values and term by term."""

import math

import pytest
import torch

from snn import config, loss
from snn.coding import Window
from snn.network import Activity

TIMES, TARGET = torch.tensor([[3.0, 102, 55], [101, 40, 60]], dtype=torch.float64), torch.tensor([0, 0])


def test_published_check():
    assert float(loss.first_time(TIMES, TARGET, 0.2)) == pytest.approx(6.109093, abs=1e-6)
    assert float(loss.silent_target(TIMES, TARGET, 100, 0.01, 0.02)) == pytest.approx(0.032692, abs=1e-6)


def test_large_times_do_not_underflow():
    value = loss.first_time(torch.tensor([[1e4, 1.0]]), torch.tensor([0]), 0.2)
    assert float(value) == pytest.approx(0.2 * (1e4 - 1), rel=1e-5)


def test_silent_target_is_zero_where_the_target_fires():
    t = torch.tensor([[100.0, 101.0]])
    assert float(loss.silent_target(t, torch.tensor([0]), 100, 0.01, 0.02)) == 0
    assert float(loss.silent_target(t, torch.tensor([1]), 100, 0.01, 0.02)) == pytest.approx(0.01 * math.expm1(2.02))


def test_firing_rate():
    s_TBN = torch.zeros(10, 1, 2)
    s_TBN[:4, 0, 0] = 1  # rates .4 and 0
    expected = math.log1p(math.exp(-20 * 0.4))
    assert float(loss.firing_rate(s_TBN.double(), torch.tensor([0]), 20.0)) == pytest.approx(expected, rel=1e-12)


def activity() -> Activity:
    random = torch.Generator().manual_seed(0)
    s, hidden = ((torch.rand(12, 3, n, generator=random) < 0.2).double() for n in (4, 6))
    s[:, 0, 0] = 0  # a silent target
    return Activity(s, torch.rand(12, 3, 4, generator=random, dtype=torch.float64), (hidden, s))


def test_spike_count():
    layers = activity().layers
    N_s = (float(layers[0].sum()) + float(layers[1].sum())) / 3 / 10
    assert float(loss.spikes_per_neuron(layers)) == pytest.approx(N_s)
    assert float(loss.spike_count(layers, 2.0, 100.0)) == pytest.approx(2 * (100 - N_s))


def test_objective_adds_the_terms_in_training_only():
    window, target = Window.of(12, 4, 1.0), torch.tensor([0, 1, 2])
    settings = {"fs": {"alpha": 0.2}, "fr": {"alpha": 20.0}, "treg": {"weight": 5.0, "beta": 0.02}}
    plain = config.Loss(**settings)
    counted = config.Loss(**settings, spike_count={"weight": 3.0, "target": 50.0})
    seen = activity()
    t = loss.first_times(seen.s_TBN, seen.h_TBN, window)
    base = loss.first_time(t, target, 0.2)
    silent = loss.silent_target(t, target, 12, 5.0, 0.02)
    assert silent > 0
    assert loss.objective(seen, target, counted, window, training=False) == base
    assert loss.objective(seen, target, plain, window, training=True) == base + silent
    both = base + silent + loss.spike_count(seen.layers, 3.0, 50.0)
    assert loss.objective(seen, target, counted, window, training=True) == both
    rate = config.Loss(**settings, mode="firing_rate")
    assert loss.objective(seen, target, rate, window, training=True) == loss.firing_rate(seen.s_TBN, target, 20.0)
