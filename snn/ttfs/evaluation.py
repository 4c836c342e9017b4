"""Evaluation of a TTFS network on images in one pass: accuracy, spikes, synaptic operations and spike times."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from snn import checks, statistics
from snn.errors import InputError
from snn.operations import fan_out
from snn.ttfs.layers import DirectEncoder
from snn.ttfs.network import TTFSNetwork

BINS = 20  # of a spike-time histogram, over [0, T]
SUMS = ("targets", "labels", "loss", "spikes", "operations", "histograms")


@dataclass
class TTFSEvaluation:
    """Sums over images, never means of batches, so that each image has the same weight."""

    targets: list[Tensor] = field(default_factory=list)  # of each batch, (B,)
    labels: list[Tensor] = field(default_factory=list)  # the decisions
    classes: int = 0
    loss: float = 0.0
    disagreements: int | None = None  # with a simulation over time, if one is run
    neurons: list[int] = field(default_factory=list)  # per layer
    spikes: Tensor | float = 0.0  # (layers,) float64
    operations: Tensor | float = 0.0  # (layers + readout,) float64: spikes at synapses
    fan_outs: list[Tensor] = field(default_factory=list)  # per layer and readout: the synapses of each input
    multiplications: int = 0  # in a direct encoder, per image
    histograms: Tensor | int = 0  # (layers, BINS) int64

    @property
    def images(self) -> int:
        return sum(map(len, self.targets))

    def decisions(self) -> tuple[np.ndarray, np.ndarray]:
        """Return (n,) true classes and (n,) decisions, in the order of the images."""
        if not self.targets:
            raise InputError("there are no images, so nothing was evaluated")
        return torch.cat(self.targets).numpy(), torch.cat(self.labels).numpy()

    def details(self) -> dict:
        """Return what a test adds to `metrics`: the interval of the accuracy in percent, and the confusion matrix."""
        target_n, label_n = self.decisions()
        low, high = statistics.wilson(int((target_n == label_n).sum()), self.images)
        return {
            "accuracy_interval": [100 * low, 100 * high],
            "confusion": statistics.confusion(target_n, label_n, self.classes).tolist(),
        }

    def __add__(self, other: "TTFSEvaluation") -> "TTFSEvaluation":
        """Return the evaluation of the images of both; either may be empty."""
        summed = {name: getattr(self, name) + getattr(other, name) for name in SUMS}
        return replace(self if self.images else other, **summed)

    def metrics(self) -> dict:
        """Return plain numbers, accuracy in percent."""
        target_n, label_n = self.decisions()
        shares = [float(spikes) / self.images / n for spikes, n in zip(self.spikes, self.neurons, strict=True)]
        operations = (self.operations / self.images).tolist()
        metrics = {
            "images": self.images,
            "loss": self.loss / self.images,
            "accuracy": 100 * int((target_n == label_n).sum()) / self.images,
            "spikes_per_neuron": float(self.spikes.sum()) / self.images / sum(self.neurons),
            "spikes_per_neuron_by_layer": shares,
            "synaptic_operations_per_image": sum(operations),
            "synaptic_operations_by_layer": operations,
            "synapses": sum(int(fan_out.sum()) for fan_out in self.fan_outs),
            "encoder_multiplications_per_image": self.multiplications,
            # the image comes in the first window, layer k fires in window k + 1, and the readout's clock ends at 2T
            "latency_windows": len(self.neurons) + 2,
        }
        if self.disagreements is not None:
            metrics["disagreements_with_simulation"] = self.disagreements
        return metrics


@torch.inference_mode()
def examine_images(
    network: TTFSNetwork,
    x_BCHW: Tensor,
    target_B: Tensor,
    device: torch.device,
    result: TTFSEvaluation,
    simulate: Callable[[Tensor], tuple[Tensor, list[Tensor]]] | None = None,
) -> None:
    """Run the network over a batch of pixels and labels, and add the outcome to `result`.

    `simulate` runs the same images another way; the images that it decides differently are counted.
    """
    checks.kind("a batch", x_BCHW, Tensor)
    network.eval()
    x_BCHW = x_BCHW.to(device)
    V_BN, passages, t_out = network(x_BCHW)
    checks.labels(target_B, *V_BN.shape)
    target_B = target_B.to(device)
    decision_B = V_BN.argmax(1)
    result.targets.append(target_B.cpu())
    result.labels.append(decision_B.cpu())
    result.loss += float(F.cross_entropy(V_BN, target_B, reduction="sum"))
    if simulate is not None:
        disagree = int((simulate(x_BCHW)[0].argmax(1) != decision_B).sum())
        result.disagreements = (result.disagreements or 0) + disagree
    if not result.fan_outs:
        result.fan_outs = [layer.fan_out(t_in.shape[1:]) for layer, t_in, _ in passages]
        result.fan_outs.append(fan_out(network.readout.weight).view(t_out.shape[1:]))
        result.classes = V_BN.shape[1]
        result.neurons = [t[0].numel() for _, _, t in passages]
        if isinstance(network.encoder, DirectEncoder):
            result.multiplications = int(network.encoder.layer.fan_out(x_BCHW.shape[1:]).sum())
    inputs = [*(t_in for _, t_in, _ in passages), t_out]
    result.operations += torch.stack(
        [
            ((t < math.inf).sum(0) * fan_out).sum(dtype=torch.float64)
            for t, fan_out in zip(inputs, result.fan_outs, strict=True)
        ]
    ).cpu()
    result.spikes += torch.stack([(t < math.inf).sum(dtype=torch.float64) for *_, t in passages]).cpu()
    result.histograms += (
        torch.stack([torch.histc(t[t < math.inf], BINS, 0, layer.T) for layer, _, t in passages]).long().cpu()
    )


@torch.inference_mode()
def decisions(network: TTFSNetwork, x_BCHW: Tensor) -> Tensor:
    """Return the classes (B,) that the network decides for."""
    return network.eval()(x_BCHW).V_BN.argmax(1)


def evaluate_images(
    network: TTFSNetwork, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device
) -> TTFSEvaluation:
    """Run `examine_images` over all batches of (pixels (B, C, H, W), labels (B,))."""
    result = TTFSEvaluation()
    for x_BCHW, target_B in batches:
        examine_images(network, x_BCHW, target_B, device, result)
    return result
