"""One trained network at other output thresholds: earlier or surer decisions without retraining."""

from collections.abc import Iterable

import torch
from torch import Tensor

from snn.evaluation import Evaluation
from snn.inputs import SparseCounts
from snn.network import Activity, Network
from snn.operations import SynapticOperations

SCALES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.15, 1.3, 1.5, 2.0)
MAY_LOSE = (0.0, 2.0)  # points of held-out accuracy that an earlier decision may cost


@torch.inference_mode()
def curve(network: Network, batches: Iterable[tuple[SparseCounts | Tensor, Tensor]], dt_ms: float) -> list[dict]:
    """Return the outcome for each of SCALES: accuracy in percent, and means of the time, events and operations.

    The hidden layers run once for all thresholds. The network is left as it was.
    """
    neurons, heard = network.output.neurons, []
    evaluations, operations = [Evaluation() for _ in SCALES], SynapticOperations(network)
    hook = neurons.register_forward_pre_hook(lambda _, inputs: heard.append(inputs[0]))
    theta = neurons.theta.clone()
    try:
        for x_TBC, target_B in batches:
            x_TBC, target_B = x_TBC.to(theta.device), target_B.to(theta.device)
            heard.clear()
            hidden = network.eval().run(x_TBC).layers[:-1]
            x_TBN = heard[0]
            events_TB = x_TBC.per_step() if isinstance(x_TBC, SparseCounts) else x_TBC.flatten(2).sum(2)
            for scale, evaluation in zip(SCALES, evaluations, strict=True):
                neurons.theta.copy_(scale * theta)
                neurons.reset()
                s_TBN, h_TBN = neurons(x_TBN)
                activity = Activity(s_TBN, h_TBN, (*hidden, s_TBN))
                evaluation.neurons = [s.shape[2] for s in activity.layers]
                evaluation.add(activity, target_B, events_TB, operations.per_step(x_TBC, activity.layers))
    finally:
        hook.remove()
        neurons.theta.copy_(theta)
        neurons.reset()
    return [_row(scale, evaluation, dt_ms) for scale, evaluation in zip(SCALES, evaluations, strict=True)]


def _row(scale: float, evaluation: Evaluation, dt_ms: float) -> dict:
    seen, metrics = evaluation.samples(), evaluation.metrics(dt_ms)
    return {
        "scale": scale,
        "fs_accuracy": metrics["fs_accuracy"],
        "t_d90_ms": metrics["t_d90_ms"],
        "time_ms": dt_ms * float(seen.steps_to_decision.double().mean()),
        "events_share": 100 * float(seen.events_to_decision.sum() / seen.events.sum().clamp(min=1)),
        "operations_to_decision": float(seen.operations_to_decision.double().mean()),
        "silent_samples": metrics["silent_samples"],
    }


def chosen(held_out: list[dict]) -> dict[str, float]:
    """Return, for each loss of MAY_LOSE, the scale that decides earliest on held-out data without losing more."""
    best = max(row["fs_accuracy"] for row in held_out)
    good_enough = {lose: [row for row in held_out if row["fs_accuracy"] >= best - lose] for lose in MAY_LOSE}
    return {f"{lose:g}": min(rows, key=lambda row: row["time_ms"])["scale"] for lose, rows in good_enough.items()}
