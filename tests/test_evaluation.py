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


def events_of(B: int) -> torch.Tensor:
    """(T, B) numbers of events, some steps without any."""
    random = torch.Generator().manual_seed(B)
    return torch.randint(0, 6, (20, B), generator=random) * (torch.rand(20, B, generator=random) < 0.7)


def test_accuracy_over_events_cuts_each_sample_by_its_own_events():
    evaluation = Evaluation(neurons=[6, 4])
    batches = [random_activity(B, seed, rate=0.2) for B, seed in ((30, 0), (7, 1))]
    for activity, target in batches:
        evaluation.add(activity, target, events_of(len(target)))
    curves = evaluation.anytime(dt_ms=1.0)
    assert curves["events"][0] == 0
    assert curves["events"][-1] == max(int(events_of(len(target)).sum(0).max()) for _, target in batches)
    for place in (0, 10, 50, 100):
        budget, right = curves["events"][place], {"fs": 0, "fr": 0}
        for activity, target in batches:
            for b in range(len(target)):
                seen = events_of(len(target))[:, b].cumsum(0)
                steps = int((seen <= budget).sum())  # those wholly within the budget
                if steps == 0:
                    continue
                s, h, layers = activity
                one = Activity(s[:, b : b + 1], h[:, b : b + 1], layers)
                for code in right:
                    right[code] += slow(one, target[b : b + 1])[f"{code}_curve"][steps - 1]
        for code in right:
            assert curves[f"{code}_accuracy_over_events"][place] == pytest.approx(100 * right[code] / 37)
    assert right["fs"] > 0


def test_equals_the_slow_version_and_weighs_samples_not_batches():
    evaluation = Evaluation(neurons=[6, 4])
    batches = [random_activity(30, 0), random_activity(3, 1), random_activity(50, 2, rate=0.2)]
    expected: dict = {}
    spikes, samples = [0.0, 0.0], 0
    for activity, target in batches:
        evaluation.add(activity, target, events_of(len(target)))
        for name, value in slow(activity, target).items():
            old = expected.get(name)
            expected[name] = value if old is None else old + value if isinstance(value, int) else add(old, value)
        spikes = [total + float(s.sum()) for total, s in zip(spikes, activity.layers, strict=True)]
        samples += len(target)
    assert evaluation.fs_correct == expected["fs"] > 0
    assert evaluation.fr_correct == expected["fr"] > 0
    assert evaluation.silent == expected["silent"] >= 3
    over_time = evaluation.anytime(dt_ms=5.0)
    assert over_time["time_ms"][:2] == [5.0, 10.0]
    for code in ("fs", "fr"):
        curve = [100 * right / 83 for right in expected[f"{code}_curve"]]
        assert over_time[f"{code}_accuracy_over_time"] == pytest.approx(curve)
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
    evaluation.add(activity, torch.tensor([1, 2]), torch.ones(5, 2))
    metrics = evaluation.metrics(1.0)
    assert metrics["t_d50_ms"] is None
    assert metrics["silent_samples"] == 2
