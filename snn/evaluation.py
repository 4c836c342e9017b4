"""One pass over recordings under both codes: accuracies, spikes and delays, as measured by Liu et al. 2023."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from snn.coding import first_times, fr_decision, fs_decision
from snn.events import Events
from snn.network import Activity, Network

EVENT_BUDGETS = 101  # points of a curve over events


@dataclass
class Evaluation:
    """Sums over samples, never means of batches, so that each sample weighs the same."""

    neurons: list[int]  # per layer, the output last
    samples: int = 0
    fs_correct: int = 0
    fr_correct: int = 0
    silent: int = 0  # samples without an output spike
    loss: float = 0.0  # sum over samples
    spikes: Tensor | int = 0  # (layers,) float64
    # of each batch, (T, B): has the sample an output spike by then and is the decision of the code right; events so far
    fs_right: list[Tensor] = field(default_factory=list)
    fr_right: list[Tensor] = field(default_factory=list)
    events: list[Tensor] = field(default_factory=list)

    def add(self, activity: Activity, target_B: Tensor, events_TB: Tensor) -> None:
        """Count one batch."""
        s_TBN, h_TBN, layers = activity
        T = len(s_TBN)
        t_BN = first_times(s_TBN, h_TBN)
        fs_right_B = fs_decision(t_BN) == target_B
        first_B = t_BN.amin(-1)
        n_T1 = torch.arange(1, T + 1, device=s_TBN.device).unsqueeze(1)
        decided_TB = first_B <= n_T1
        counts_TBN = s_TBN.cumsum(0)
        self.samples += len(target_B)
        self.fs_correct += int(fs_right_B.sum())
        self.fr_correct += int((fr_decision(counts_TBN[-1]) == target_B).sum())
        self.silent += int((first_B > T).sum())
        self.spikes += torch.stack([s.sum(dtype=torch.float64) for s in layers]).cpu()
        self.fs_right.append((decided_TB & fs_right_B).cpu())
        self.fr_right.append((decided_TB & (fr_decision(counts_TBN) == target_B)).cpu())
        self.events.append(events_TB.cumsum(0).to(torch.int64).cpu())

    def __add__(self, other: "Evaluation") -> "Evaluation":
        """Of the samples of both. A part may be without samples, and then knows no neurons."""
        summed = {field.name: getattr(self, field.name) + getattr(other, field.name) for field in fields(self)}
        return Evaluation(**summed | {"neurons": self.neurons or other.neurons})

    def metrics(self, dt_ms: float) -> dict:
        """Plain numbers, accuracies in percent; None where a delay does not exist (nothing was ever right)."""
        per_layer = [
            float(spikes) / self.samples / size for spikes, size in zip(self.spikes, self.neurons, strict=True)
        ]
        metrics = {
            "samples": self.samples,
            "loss": self.loss / self.samples,
            "fs_accuracy": 100 * self.fs_correct / self.samples,
            "fr_accuracy": 100 * self.fr_correct / self.samples,
            "spikes_per_neuron": float(self.spikes.sum()) / self.samples / sum(self.neurons),
            "spikes_per_neuron_by_layer": per_layer,
            "silent_samples": self.silent,
        }
        for prefix, right in (("", self.fs_right), ("fr_", self.fr_right)):
            curve_T = torch.cat(right, 1).sum(1)
            for percent in (50, 90):
                steps = delay_steps(curve_T, percent)
                metrics[f"{prefix}t_d{percent}_steps"] = steps
                metrics[f"{prefix}t_d{percent}_ms"] = None if steps is None else steps * dt_ms
        return metrics

    def anytime(self, dt_ms: float) -> dict[str, list]:
        """Accuracy in percent, were the recording cut after so much time, or after so many events of it.

        A sample without an output spike by then counts as wrong (Liu et al. 2023). Events come in whole steps.
        """
        seen_BT = torch.cat(self.events, 1).T.contiguous()
        T = seen_BT.shape[1]
        budget_E = torch.linspace(0, int(seen_BT.max()), EVENT_BUDGETS).round().to(torch.int64)
        steps_BE = torch.searchsorted(seen_BT, budget_E.expand(len(seen_BT), -1).contiguous(), right=True)
        curves = {"time_ms": [dt_ms * n for n in range(1, T + 1)], "events": budget_E.tolist()}
        for code, right in (("fs", self.fs_right), ("fr", self.fr_right)):
            right_BT = torch.cat(right, 1).T
            from_start_BT = torch.cat([torch.zeros_like(right_BT[:, :1]), right_BT], 1)  # after 0 steps: nothing
            for over, right_BX in (("time", right_BT), ("events", from_start_BT.gather(1, steps_BE))):
                curves[f"{code}_accuracy_over_{over}"] = (100 * right_BX.double().mean(0)).tolist()
        return curves


def delay_steps(curve_T: Tensor, percent: float) -> int | None:
    """t_d(p): the first step, from 1, at which the curve reaches p % of its own maximum; None if that is 0."""
    if not curve_T.max() > 0:
        return None
    reached = curve_T * 100 >= percent * curve_T.max()
    return int(reached.nonzero()[0]) + 1


@torch.inference_mode()
def evaluate(
    network: Network,
    batches: Iterable[tuple[Events | Tensor, Tensor]],
    objective: Callable[[Activity, Tensor], Tensor],
    device: torch.device,
) -> Evaluation:
    """Run the network over all batches of (counts (T, B, channels), labels (B,)), each from a fresh state.

    `objective` is the mean loss of a batch.
    """
    network.eval()
    result = Evaluation(neurons=[])
    for x_TBC, target_B in batches:
        network.reset()
        target_B = target_B.to(device)
        activity = network(x_TBC.to(device))
        result.neurons = [math.prod(s.shape[2:]) for s in activity.layers]
        events_TB = x_TBC.per_step() if isinstance(x_TBC, Events) else x_TBC.flatten(2).sum(2)
        result.add(activity, target_B, events_TB)
        result.loss += float(objective(activity, target_B)) * len(target_B)
    network.reset()
    return result
