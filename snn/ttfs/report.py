"""Pictures of when a network's neurons spike."""

import matplotlib

matplotlib.use("Agg")  # files only; no screen is needed

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

BLUE = "#0072B2"


def draw_spike_times(histograms: Tensor, T: float) -> Figure:
    """A histogram a layer, from `snn.ttfs.evaluation`: (layers, bins) spikes over [0, T] of each layer's clock."""
    layers, bins = histograms.shape
    figure, axes = plt.subplots(layers, sharex=True, squeeze=False, figsize=(5, 1 + 1.1 * layers), layout="constrained")
    edges = np.linspace(0, T, bins + 1)
    for k, (axis, counts) in enumerate(zip(axes[:, 0], histograms.cpu().numpy(), strict=True)):
        axis.stairs(100 * counts / max(counts.sum(), 1), edges, fill=True, color=BLUE)
        axis.set_ylabel(f"layer {k + 1} (%)")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_title("share of a layer's spikes, by time", fontsize=10)
    axes[-1, 0].set(xlabel=f"time since the layer's window began; T = {T:g} ends it", xlim=(0, T))
    return figure
