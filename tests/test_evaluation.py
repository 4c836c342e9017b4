"""Accuracies, delays and spike counts against a slow version that looks at one sample at a time."""

import numpy as np
import pytest
import torch

from snn.coding import first_times, fr_decision, fs_decision
from snn.conv import EventConv
from snn.evaluation import PERCENTILES, Evaluation, evaluate
from snn.inputs import SparseCounts
from snn.network import Activity
from snn.operations import SynapticOperations
from snn.ops import sparse
from tests.networks import build, image_events, small_conv
from tests.streams import N_RECORDINGS, binned, decide, make_stream, over_all, recordings, trained


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
    """Return (T, B) numbers of events, with some steps without any."""
    random = torch.Generator().manual_seed(B)
    return torch.randint(0, 6, (20, B), generator=random) * (torch.rand(20, B, generator=random) < 0.7)


def operations_of(B: int) -> torch.Tensor:
    return 7.0 * events_of(B)


def test_accuracy_over_events_cuts_each_sample_by_its_own_events():
    evaluation = Evaluation(neurons=[6, 4])
    batches = [random_activity(B, seed, rate=0.2) for B, seed in ((30, 0), (7, 1))]
    for activity, target in batches:
        evaluation.add(activity, target, events_of(len(target)), operations_of(len(target)))
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
        evaluation.add(activity, target, events_of(len(target)), operations_of(len(target)))
        for name, value in slow(activity, target).items():
            old = expected.get(name)
            expected[name] = value if old is None else old + value if isinstance(value, int) else add(old, value)
        spikes = [total + float(s.sum()) for total, s in zip(spikes, activity.layers, strict=True)]
        samples += len(target)
    assert expected["fs"] > 0
    assert expected["fr"] > 0
    over_time = evaluation.anytime(dt_ms=5.0)
    assert over_time["time_ms"][:2] == [5.0, 10.0]
    for code in ("fs", "fr"):
        curve = [100 * right / 83 for right in expected[f"{code}_curve"]]
        assert over_time[f"{code}_accuracy_over_time"] == pytest.approx(curve)
    metrics = evaluation.metrics(dt_ms=5.0)
    assert metrics["samples"] == samples == 83
    assert metrics["fs_accuracy"] == pytest.approx(100 * expected["fs"] / 83)
    assert metrics["fr_accuracy"] == pytest.approx(100 * expected["fr"] / 83)
    assert metrics["silent_samples"] == expected["silent"] >= 3
    assert metrics["spikes_per_neuron"] == pytest.approx(sum(spikes) / 83 / 10)
    assert metrics["spikes_per_neuron_by_layer"] == pytest.approx([spikes[0] / 83 / 6, spikes[1] / 83 / 4])
    assert metrics["t_d50_ms"] == 5 * metrics["t_d50_steps"]


def add(one: list[int], other: list[int]) -> list[int]:
    return [a + b for a, b in zip(one, other, strict=True)]


def test_nothing_right_is_no_number():
    activity = Activity(torch.zeros(5, 2, 3), torch.zeros(5, 2, 3), (torch.zeros(5, 2, 3),))
    evaluation = Evaluation(neurons=[3])
    evaluation.add(activity, torch.tensor([1, 2]), torch.ones(5, 2), torch.ones(5, 2))
    metrics = evaluation.metrics(1.0)
    assert metrics["t_d50_ms"] is None
    assert metrics["silent_samples"] == 2


def test_details_against_one_sample_at_a_time():
    """Classes, confusion, first spikes, silent targets, rates and the cost up to the decision."""
    evaluation = Evaluation(neurons=[6, 4])
    rows = []
    for activity, target in (random_activity(40, 0), random_activity(7, 1, rate=0.2)):
        evaluation.add(activity, target, events_of(len(target)), operations_of(len(target)))
        t_BN = first_times(activity.s_TBN, activity.h_TBN)
        fs, fr = fs_decision(t_BN), fr_decision(activity.s_TBN.sum(0))
        for b in range(len(target)):
            first = int(t_BN[b].min())
            steps = min(first, 20)
            rows.append(
                {
                    "target": int(target[b]),
                    "fs": int(fs[b]),
                    "fr": int(fr[b]),
                    "first": first,
                    "silent_target": not activity.s_TBN[:, b, target[b]].any(),
                    "events": int(events_of(len(target))[:steps, b].sum()),
                    "operations": int(operations_of(len(target))[:steps, b].sum()),
                    "steps": steps,
                    "spikes": activity.layers[0][:, b].sum(0).numpy(),
                }
            )
    details = evaluation.details(dt_ms=5.0)
    for code in ("fs", "fr"):
        expected = np.zeros((4, 4), int)
        for row in rows:
            expected[row["target"], row[code]] += 1
        assert details["confusion"][code] == expected.tolist()
        low, high = details[f"{code}_accuracy_interval"]
        assert low < 100 * np.trace(expected) / 47 < high
    assert details["silent_targets"] == sum(row["silent_target"] for row in rows) > 0
    for label, of_class in enumerate(details["by_class"]):
        mine = [row for row in rows if row["target"] == label]
        assert of_class["samples"] == len(mine)
        assert of_class["fs_accuracy"] == pytest.approx(100 * np.mean([row["fs"] == label for row in mine]))
        assert of_class["silent_samples"] == sum(row["first"] > 20 for row in mine)
        firsts = [5 * row["first"] for row in mine if row["first"] <= 20]
        assert of_class["first_spike_ms_percentiles"] == pytest.approx(np.percentile(firsts, PERCENTILES))
    to_decision, whole = details["cost"]["to_decision"], details["cost"]["whole_window"]
    for name, key in (("steps", "steps"), ("events", "events"), ("synaptic operations", "operations")):
        assert to_decision[name] == pytest.approx(np.mean([row[key] for row in rows]))
        assert to_decision[name] < whole[name]
    assert to_decision["neuron updates"] == pytest.approx(10 * to_decision["steps"])
    of_metrics = evaluation.metrics(5.0)["synaptic_operations_to_decision"]
    assert of_metrics == pytest.approx(to_decision["synaptic operations"])
    assert whole["steps"] == 20
    rates = np.mean([row["spikes"] for row in rows], 0)
    assert details["spikes_per_sample"]["of_neurons_by_layer"][0] == pytest.approx(np.percentile(rates, PERCENTILES))


@over_all
def test_the_cost_of_a_decision_is_that_of_the_stream(changes):
    """Compare steps, events, synaptic operations and spikes of each sample, up to the decision and of the whole window.

    A tenth of the weights is 0; an event at such a weight is no operation.
    """
    network = trained(**changes)
    x_TBC = binned(network)
    goal = lambda activity, target_B: torch.tensor(0.0)  # noqa: E731
    target_B = torch.zeros(N_RECORDINGS, dtype=torch.int64)
    seen = evaluate(network.folded(), [(x_TBC, target_B)], goal, torch.device("cpu")).samples()
    assert len(set(seen.first_step.tolist())) > 1
    for r in range(N_RECORDINGS):
        stream, whole = make_stream(network), make_stream(network, stops=False)
        decision = decide(stream, r, 10)
        data = recordings(num_channels=network.num_channels)
        whole.reset()
        whole.push(*(column[slice(*data.offsets[r : r + 2])] for column in (data.times, data.channels)))
        whole.finish()
        assert seen.fs_label[r] == decision.label
        assert stream.work.steps == seen.steps_to_decision[r]
        assert stream.work.events == seen.events_to_decision[r]
        assert stream.work.synaptic_operations == seen.operations_to_decision[r]
        assert whole.work.events == seen.events[r]
        assert whole.work.synaptic_operations == seen.operations[r]
        assert list(whole.work.spikes) == seen.layer_spikes[r].tolist()


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("pruned", [False, True])
def test_operations_of_convolutions_are_the_weights_that_an_entry_meets(stride, pruned):
    """Run each layer again with weights of 1, or 0 where a weight is 0: the sum of its output counts the additions."""
    layers = (f"6C3S{stride}", "P2", "4C3", "9R", "8F") if stride == 1 else ("6C3S2", "4C3S2", "9R")
    network = build(small_conv(layers=layers)).eval()
    x_TBC = (image_events() > 0).float()
    with torch.no_grad():
        for weight in (
            p for name, p in network.named_parameters() if pruned and name.endswith(("linear.weight", ".V"))
        ):
            weight[torch.rand_like(weight) < 0.1] = 0
        activity = network(x_TBC)
        counted_TB = SynapticOperations(network).per_step(x_TBC, activity.layers)
        expected_TB = torch.zeros_like(counted_TB)

        def count(module, inputs, outputs):
            weight = module.weight.clone()
            module.weight.copy_(weight != 0)
            expected_TB.add_(module._product(inputs[0]).reshape(*expected_TB.shape, -1).sum(2))
            module.weight.copy_(weight)

        network.reset()
        hooks = [
            layer.linear.register_forward_hook(count) for layer in network.layers if isinstance(layer.linear, EventConv)
        ]
        network(x_TBC)
        for hook in hooks:
            hook.remove()
        full = [
            (layer, s) for layer, s in zip(network.layers, activity.layers, strict=True) if layer.neurons.V is not None
        ]
        assert full
        for k, layer in enumerate(network.layers):
            if hasattr(layer.linear, "out_features"):
                expected_TB += (activity.layers[k - 1] @ (layer.linear.weight != 0).float().T).sum(2)
        for layer, s_TBN in full:
            assert s_TBN.any()
            expected_TB[1:] += (s_TBN[:-1] @ (layer.neurons.V != 0).float().T).sum(2)
    assert torch.equal(counted_TB, expected_TB)
    x_RC = x_TBC.flatten(0, 1)
    events = SparseCounts(*sparse.compress(x_RC, sparse.find(x_RC)), tuple(x_TBC.shape))
    assert torch.equal(SynapticOperations(network).per_step(events, activity.layers), expected_TB)
