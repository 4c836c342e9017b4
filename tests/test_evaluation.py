"""Accuracies, delays and spike counts against a slow version that looks at one sample at a time."""

import pytest
import torch

from snn.evaluation import Evaluation, delay_steps
from snn.network import Activity


def random_activity(B: int, seed: int, rate: float = 0.04) -> tuple[Activity, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    s_TBN = (torch.rand(20, B, 4, generator=random) < rate).float()
    s_TBN[:, 0] = 0  # a silent sample
    hidden_TBN = (torch.rand(20, B, 6, generator=random) < 0.3).float()
    h_TBN = torch.rand(20, B, 4, generator=random)
    return Activity(s_TBN, h_TBN, (hidden_TBN, s_TBN)), torch.randint(0, 4, (B,), generator=random)


def slow(activity: Activity, target: torch.Tensor) -> dict:
    s, h, _ = activity
    T, B, N = s.shape
    result = {"fs": 0, "fr": 0, "silent": 0, "fs_curve": [0] * T, "fr_curve": [0] * T}
    for b in range(B):
        firing = [(n, j) for n in range(T) for j in range(N) if s[n, b, j] > 0]
        if firing:
            decision = firing[0][1]  # the earliest; of equals the lower class
        else:
            result["silent"] += 1
            decision = max(range(N), key=lambda j: float(h[:, b, j].max()))
        result["fs"] += decision == target[b]
        counts = [0] * N
        for n in range(T):
            counts = [count + int(s[n, b, j]) for j, count in enumerate(counts)]
            leader = counts.index(max(counts))
            result["fr_curve"][n] += sum(counts) > 0 and leader == target[b]
            result["fs_curve"][n] += bool(firing) and firing[0][0] <= n and decision == target[b]
        result["fr"] += leader == target[b]
    return {name: [int(v) for v in value] if isinstance(value, list) else int(value) for name, value in result.items()}


def test_equals_the_slow_version_and_weighs_samples_not_batches():
    evaluation = Evaluation(neurons=[6, 4])
    batches = [random_activity(30, 0), random_activity(3, 1), random_activity(50, 2, rate=0.2)]
    expected: dict = {}
    spikes, samples = [0.0, 0.0], 0
    for activity, target in batches:
        evaluation.add(activity, target)
        for name, value in slow(activity, target).items():
            old = expected.get(name)
            expected[name] = value if old is None else old + value if isinstance(value, int) else add(old, value)
        spikes = [total + float(s.sum()) for total, s in zip(spikes, activity.layers, strict=True)]
        samples += len(target)
    assert evaluation.fs_correct == expected["fs"] > 0
    assert evaluation.fr_correct == expected["fr"] > 0
    assert evaluation.silent == expected["silent"] >= 3
    assert evaluation.fs_by_step.tolist() == expected["fs_curve"]
    assert evaluation.fr_by_step.tolist() == expected["fr_curve"]
    metrics = evaluation.metrics(dt_ms=5.0)
    assert metrics["samples"] == samples == 83
    assert metrics["fs_accuracy"] == pytest.approx(100 * expected["fs"] / 83)
    assert metrics["spikes_per_neuron"] == pytest.approx(sum(spikes) / 83 / 10)
    assert metrics["spikes_per_neuron_by_layer"] == pytest.approx([spikes[0] / 83 / 6, spikes[1] / 83 / 4])
    assert metrics["t_d50_ms"] == 5 * metrics["t_d50_steps"]


def add(one: list[int], other: list[int]) -> list[int]:
    return [a + b for a, b in zip(one, other, strict=True)]


def test_delay_is_the_first_step_that_reaches_the_share():
    curve = torch.tensor([0, 1, 4, 5, 9, 10, 8])
    assert [delay_steps(curve, p) for p in (10, 50, 90, 100)] == [2, 4, 5, 6]
    assert delay_steps(torch.zeros(5), 50) is None


def test_nothing_right_is_no_number():
    activity = Activity(torch.zeros(5, 2, 3), torch.zeros(5, 2, 3), (torch.zeros(5, 2, 3),))
    evaluation = Evaluation(neurons=[3])
    evaluation.add(activity, torch.tensor([1, 2]))
    metrics = evaluation.metrics(1.0)
    assert metrics["t_d50_ms"] is None
    assert metrics["silent_samples"] == 2
