"""Evaluation of recordings under both codes in one pass: accuracies, spikes, delays (Liu et al. 2023), and costs."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from snn import checks, statistics
from snn.coding import first_times, fr_decision, fs_decision
from snn.errors import InputError
from snn.inputs import SparseCounts
from snn.network import Activity, Network
from snn.operations import SynapticOperations

EVENT_BUDGETS = 101  # points of a curve over events
NOTHING = -1  # no decision, or no first spike
PERCENTILES = (0, 5, 25, 50, 75, 95, 100)


class Samples(NamedTuple):
    """The results of n samples. Steps count from 1; a decision is made at the first output spike, or at the end."""

    target: Tensor  # (n,) int64, like the next four
    fs_label: Tensor
    fr_label: Tensor
    first_step: Tensor  # of the first output spike, or NOTHING
    target_step: Tensor  # of the first spike of the target's neuron, or NOTHING
    output_spikes: Tensor  # (n, classes) int32
    layer_spikes: Tensor  # (n, layers) int32, the output last
    steps_to_decision: Tensor  # (n,) int64, like the next four
    events: Tensor  # in the whole window
    events_to_decision: Tensor
    operations: Tensor  # synaptic operations, see `snn.operations`
    operations_to_decision: Tensor
    fs_right: Tensor  # (n, T) bool: the sample has an output spike by then, and the decision of the code is right
    fr_right: Tensor
    events_by_step: Tensor  # (n, T) int32: the sum up to each step


@dataclass
class Evaluation:
    """Results kept per sample and not per batch, so that each sample has the same weight."""

    neurons: list[int] = field(default_factory=list)  # per layer, the output last
    loss: float = 0.0  # sum over samples
    neuron_spikes: list[Tensor] = field(default_factory=list)  # per layer (N,) float64: each neuron's, all samples
    batches: list[Samples] = field(default_factory=list)
    operations: SynapticOperations | None = field(default=None, repr=False)  # built once for all batches

    def add(self, activity: Activity, target_B: Tensor, events_TB: Tensor, operations_TB: Tensor) -> None:
        """Add one batch."""
        s_TBN, h_TBN, layers = activity
        T, B, classes = s_TBN.shape
        checks.labels(target_B, B, classes, s_TBN.device)
        t_BN = first_times(s_TBN, h_TBN).long()
        fs_label_B = fs_decision(t_BN)
        first_B, target_step_B = t_BN.amin(-1), t_BN.gather(1, target_B.unsqueeze(1)).squeeze(1)
        n_T1 = torch.arange(1, T + 1, device=s_TBN.device).unsqueeze(1)
        decided_TB = first_B <= n_T1
        counts_TBN = s_TBN.cumsum(0)
        fr_label_TB = fr_decision(counts_TBN)
        end_1B = first_B.clamp(max=T).unsqueeze(0)
        events_TB, operations_TB = events_TB.cumsum(0).long(), operations_TB.cumsum(0).long()
        spikes_by_layer = [s.sum(0) for s in layers]
        samples = Samples(
            target=target_B,
            fs_label=fs_label_B,
            fr_label=fr_label_TB[-1],
            first_step=torch.where(first_B > T, NOTHING, first_B),
            target_step=torch.where(target_step_B > T, NOTHING, target_step_B),
            output_spikes=counts_TBN[-1].int(),
            layer_spikes=torch.stack([s_BN.sum(1, dtype=torch.float64) for s_BN in spikes_by_layer], 1).int(),
            steps_to_decision=end_1B[0],
            events=events_TB[-1],
            events_to_decision=events_TB.gather(0, end_1B - 1)[0],
            operations=operations_TB[-1],
            operations_to_decision=operations_TB.gather(0, end_1B - 1)[0],
            fs_right=(decided_TB & (fs_label_B == target_B)).T,
            fr_right=(decided_TB & (fr_label_TB == target_B)).T,
            events_by_step=events_TB.T.int(),
        )
        self.batches.append(Samples(*(value.cpu() for value in samples)))
        of_neurons = [s_BN.sum(0, dtype=torch.float64).cpu() for s_BN in spikes_by_layer]
        before = self.neuron_spikes or [torch.zeros_like(s_N) for s_N in of_neurons]
        self.neuron_spikes = [sum_N + s_N for sum_N, s_N in zip(before, of_neurons, strict=True)]

    def samples(self) -> Samples:
        """Return all samples in their order."""
        if not self.batches:
            raise InputError("there are no samples, so nothing was evaluated")
        if len(self.batches) > 1:
            self.batches = [Samples(*(torch.cat(parts) for parts in zip(*self.batches, strict=True)))]
        return self.batches[0]

    def __add__(self, other: "Evaluation") -> "Evaluation":
        """Return the evaluation of the samples of both; either may be empty."""
        if not (self.batches and other.batches):
            return self if self.batches else other
        spikes = [a_N + b_N for a_N, b_N in zip(self.neuron_spikes, other.neuron_spikes, strict=True)]
        return Evaluation(self.neurons, self.loss + other.loss, spikes, self.batches + other.batches)

    def metrics(self, dt_ms: float) -> dict:
        """Return plain numbers, accuracies in percent. A delay is None if no decision was ever right."""
        seen = self.samples()
        n = len(seen.target)
        spikes_L = seen.layer_spikes.sum(0, dtype=torch.float64)
        metrics = {
            "samples": n,
            "loss": self.loss / n,
            "fs_accuracy": 100 * int((seen.fs_label == seen.target).sum()) / n,
            "fr_accuracy": 100 * int((seen.fr_label == seen.target).sum()) / n,
            "spikes_per_neuron": float(spikes_L.sum()) / n / sum(self.neurons),
            "spikes_per_neuron_by_layer": [
                float(spikes) / n / size for spikes, size in zip(spikes_L, self.neurons, strict=True)
            ],
            "silent_samples": int((seen.first_step == NOTHING).sum()),
            "synaptic_operations_to_decision": float(seen.operations_to_decision.double().mean()),
        }
        for prefix, right_nT in (("", seen.fs_right), ("fr_", seen.fr_right)):
            for percent in (50, 90):
                (reached,) = statistics.delays(right_nT.sum(0, keepdim=True).numpy(), percent)
                steps = None if math.isnan(reached) else int(reached)
                metrics[f"{prefix}t_d{percent}_steps"] = steps
                metrics[f"{prefix}t_d{percent}_ms"] = None if steps is None else steps * dt_ms
        return metrics

    def details(self, dt_ms: float) -> dict:
        """Return what a test adds to `metrics`: intervals, classes, distributions and the cost of a decision."""
        seen = self.samples()
        n, classes = seen.output_spikes.shape
        T = seen.fs_right.shape[1]
        details: dict = {"silent_targets": int((seen.target_step == NOTHING).sum()), "confusion": {}}
        for code, label_n in (("fs", seen.fs_label), ("fr", seen.fr_label)):
            low, high = statistics.wilson(int((label_n == seen.target).sum()), n)
            details[f"{code}_accuracy_interval"] = [100 * low, 100 * high]
            details["confusion"][code] = statistics.confusion(seen.target.numpy(), label_n.numpy(), classes).tolist()
        details["by_class"] = [self._of_class(seen, label, dt_ms) for label in range(classes)]
        details["spikes_per_sample"] = {
            "percentiles": PERCENTILES,
            "of_neurons_by_layer": [percentiles(spikes_N / n) for spikes_N in self.neuron_spikes],
            "never_fired_by_layer": [int((spikes_N == 0).sum()) for spikes_N in self.neuron_spikes],
        }
        neurons = sum(self.neurons)
        to_decision, whole = (
            {
                "steps": float(steps.double().mean()),
                "events": float(events.double().mean()),
                "synaptic operations": float(operations.double().mean()),
                "neuron updates": neurons * float(steps.double().mean()),
            }
            for steps, events, operations in (
                (seen.steps_to_decision, seen.events_to_decision, seen.operations_to_decision),
                (torch.full((n,), T), seen.events, seen.operations),
            )
        )
        return details | {"cost": {"to_decision": to_decision, "whole_window": whole}}

    def _of_class(self, seen: Samples, label: int, dt_ms: float) -> dict:
        """Return the results of one class: accuracies in percent (None without samples) and first-spike times."""
        is_of_class = seen.target == label
        n = int(is_of_class.sum())
        steps = seen.first_step[is_of_class]
        right = [int((labels[is_of_class] == label).sum()) for labels in (seen.fs_label, seen.fr_label)]
        return {
            "samples": n,
            **{f"{code}_accuracy": 100 * k / n if n else None for code, k in zip(("fs", "fr"), right, strict=True)},
            "silent_samples": int((steps == NOTHING).sum()),
            "silent_targets": int((seen.target_step[is_of_class] == NOTHING).sum()),
            "first_spike_ms_percentiles": percentiles(dt_ms * steps[steps != NOTHING]),
        }

    def anytime(self, dt_ms: float) -> dict[str, list]:
        """Return the accuracy in percent if each recording ended after a given time, or a given number of events.

        A sample without an output spike by then counts as wrong (Liu et al. 2023). Events come in whole steps.
        """
        samples = self.samples()
        seen_BT = samples.events_by_step.contiguous()
        T = seen_BT.shape[1]
        budget_E = torch.linspace(0, int(seen_BT.max()), EVENT_BUDGETS).round().to(torch.int32)
        steps_BE = torch.searchsorted(seen_BT, budget_E.expand(len(seen_BT), -1).contiguous(), right=True)
        curves = {"time_ms": [dt_ms * n for n in range(1, T + 1)], "events": budget_E.tolist()}
        for code, right_BT in (("fs", samples.fs_right), ("fr", samples.fr_right)):
            from_start_BT = torch.cat([torch.zeros_like(right_BT[:, :1]), right_BT], 1)  # after 0 steps: none right
            for over, right_BX in (("time", right_BT), ("events", from_start_BT.gather(1, steps_BE))):
                curves[f"{code}_accuracy_over_{over}"] = (100 * right_BX.double().mean(0)).tolist()
        return curves


def percentiles(values_n: Tensor) -> list[float] | None:
    """Return the values at PERCENTILES, or None if there are no values."""
    if not len(values_n):
        return None
    return torch.quantile(values_n.double(), torch.tensor(PERCENTILES, dtype=torch.float64) / 100).tolist()


@torch.inference_mode()
def examine(
    network: Network,
    x_TBC: SparseCounts | Tensor,
    target_B: Tensor,
    objective: Callable[[Activity, Tensor], Tensor],
    device: torch.device,
    result: Evaluation,
) -> None:
    """Run the network over counts (T, B, channels) from a fresh state, and add the outcome for labels (B,) to `result`.

    `objective` returns the mean loss of a batch.
    """
    checks.kind("a batch", x_TBC, Tensor, SparseCounts)
    network.eval()
    x_TBC = x_TBC.to(device)
    activity = network.run(x_TBC)
    checks.labels(target_B, *activity.s_TBN.shape[1:])
    target_B = target_B.to(device)
    result.neurons = [math.prod(s.shape[2:]) for s in activity.layers]
    events_TB = x_TBC.per_step() if isinstance(x_TBC, SparseCounts) else x_TBC.flatten(2).sum(2)
    result.operations = result.operations or SynapticOperations(network)
    result.add(activity, target_B, events_TB, result.operations.per_step(x_TBC, activity.layers))
    result.loss += float(objective(activity, target_B)) * len(target_B)


def evaluate(
    network: Network,
    batches: Iterable[tuple[SparseCounts | Tensor, Tensor]],
    objective: Callable[[Activity, Tensor], Tensor],
    device: torch.device,
) -> Evaluation:
    """Run `examine` over all batches."""
    result = Evaluation()
    for x_TBC, target_B in batches:
        examine(network, x_TBC, target_B, objective, device, result)
    return result
