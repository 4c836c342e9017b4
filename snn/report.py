"""Pictures of what a network does."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # files only; no screen is needed

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor

from snn.coding import first_times, fs_decision
from snn.events import Events
from snn.network import Network

# colour-blind safe (Okabe & Ito)
BLACK, ORANGE, BLUE, GREY = "#000000", "#D55E00", "#0072B2", "#BBBBBB"


@torch.inference_mode()
def draw_decision(
    network: Network,
    x_T1C: Events,
    dt_ms: float,
    path: Path,
    *,
    names: Sequence[str] | None = None,
    target: int | None = None,
    audio: tuple[np.ndarray, int] | None = None,
) -> None:
    """One recording on one time axis: events, hidden spikes, output potentials and spikes, the decision marked.

    names: of the classes; target: the true class, where it is known; audio: [samples] and sample rate (Hz), drawn on
    top, where there is one.
    """
    network.eval()
    network.reset()
    activity = network(x_T1C)
    network.reset()
    T = x_T1C.shape[0]
    t_1N = first_times(activity.s_TBN, activity.h_TBN)
    decision, first_step = int(fs_decision(t_1N)), int(t_1N.min())
    is_silent = first_step > T
    h_TN, theta = activity.h_TBN[:, 0].cpu().numpy(), network.output.dynamics.theta
    time_ms = dt_ms * np.arange(1, T + 1)

    rasters = [("input channel", x_T1C.dense())]
    rasters += [(f"hidden layer {k + 1}", s_TBN) for k, s_TBN in enumerate(activity.layers[:-1])]
    heights = [*([0.6] if audio else []), *([1.2] * len(rasters)), 1.4, 0.8]
    figure, axes = plt.subplots(
        len(heights), sharex=True, figsize=(8, 1.7 * sum(heights)), height_ratios=heights, layout="constrained"
    )
    if audio:
        samples, rate_hz = audio
        axes[0].plot(1000 * np.arange(len(samples)) / rate_hz, samples, color=BLACK, lw=0.4)
        axes[0].set_ylabel("audio")
        axes[0].set_yticks([])
    for axis, (name, s_TBN) in zip(axes[len(axes) - len(rasters) - 2 :], rasters, strict=False):
        step, index = s_TBN[:, 0].flatten(1).nonzero().cpu().numpy().T
        axis.scatter(time_ms[step], index, s=3, marker=".", color=BLACK, linewidths=0)
        axis.set_ylabel(name)
    potentials, spikes = axes[-2:]
    for neuron in range(h_TN.shape[1]):
        is_decision = neuron == decision
        colour, width = (ORANGE, 1.8) if is_decision else (BLUE, 1.2) if neuron == target else (GREY, 0.7)
        potentials.plot(time_ms, h_TN[:, neuron], color=colour, lw=width, zorder=2 + is_decision)
    potentials.axhline(theta, color=BLACK, lw=0.8, ls=":")
    potentials.annotate("threshold", (time_ms[0], theta), fontsize=8, va="bottom")
    potentials.set_ylabel("output potential")
    step, index = activity.s_TBN[:, 0].nonzero().cpu().numpy().T
    spikes.scatter(time_ms[step], index, s=22, marker="|", color=[ORANGE if n == decision else BLACK for n in index])
    spikes.set_ylim(-0.7, h_TN.shape[1] - 0.3)
    spikes.set_ylabel("output neuron")
    spikes.set_xlabel("time (ms)")
    spikes.set_xlim(0, dt_ms * T)

    if is_silent:
        verdict = f"no output spike; the highest potential says {class_name(decision, names)}"
    else:
        verdict = f"decides for {class_name(decision, names)} at {first_step * dt_ms:g} ms, at the first output spike"
        for axis in axes:
            axis.axvline(first_step * dt_ms, color=ORANGE, lw=1, ls="--", zorder=1)
    truth = "" if target is None else f" (truth: {class_name(target, names)})"
    axes[0].set_title(verdict + truth, fontsize=10)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def class_name(label: int, names: Sequence[str] | None) -> str:
    """What to call a class: its name where it has one, else its number."""
    return f"class {label}" if names is None or label >= len(names) else f"'{names[label]}'"


@torch.inference_mode()
def draw_single_delay(
    network: Network, x_TBC: Events, target_B: Tensor, dt_ms: float, path: Path, names: Sequence[str] | None
) -> None:
    """One recording of each class: all output spikes in one raster, a row a recording, the first spike marked."""
    network.eval()
    network.reset()
    activity = network(x_TBC)
    network.reset()
    t_BN = first_times(activity.s_TBN, activity.h_TBN).cpu()
    decision_B, T = fs_decision(t_BN), x_TBC.shape[0]
    figure, axis = plt.subplots(figsize=(8, 1 + 0.28 * len(target_B)), layout="constrained")
    step, row, _ = activity.s_TBN.nonzero().cpu().numpy().T
    axis.scatter(dt_ms * (step + 1), row, s=40, marker="|", color=GREY)
    for row, (decision, target) in enumerate(zip(decision_B.tolist(), target_B.tolist(), strict=True)):
        first_step = int(t_BN[row].min())
        verdict = class_name(decision, names) + ("" if decision == target else ", wrong")
        if first_step <= T:
            colour = BLUE if decision == target else ORANGE
            axis.scatter(dt_ms * first_step, row, s=90, marker="|", color=colour, linewidths=2)
            axis.annotate(f" {verdict}, {first_step * dt_ms:g} ms", (dt_ms * first_step, row), fontsize=7, va="bottom")
        else:
            axis.annotate(f"silent; the highest potential says {verdict}", (0, row), fontsize=7, va="bottom")
    axis.set(xlim=(0, dt_ms * T), ylim=(-0.7, len(target_B) - 0.2), xlabel="time (ms)", ylabel="recording of")
    axis.set_yticks(range(len(target_B)), [class_name(target, names) for target in target_B.tolist()])
    figure.savefig(path, dpi=150)
    plt.close(figure)


def draw_anytime(curves: dict[str, list], path: Path) -> None:
    """The curves of `Evaluation.anytime`: accuracy against elapsed time, and against events seen."""
    figure, axes = plt.subplots(1, 2, sharey=True, figsize=(9, 3.6), layout="constrained")
    for axis, x, over, label in zip(
        axes, ("time_ms", "events"), ("time", "events"), ("elapsed time (ms)", "events seen"), strict=True
    ):
        for code, name, colour, style in (("fs", "first spike", ORANGE, "-"), ("fr", "firing rate", BLUE, "--")):
            axis.plot(curves[x], curves[f"{code}_accuracy_over_{over}"], color=colour, ls=style, label=name)
        axis.set(xlabel=label, ylim=(0, 100), xlim=(0, curves[x][-1]))
        axis.grid(color=GREY, lw=0.4)
    axes[0].set_ylabel("right decisions (%)")
    axes[0].legend(loc="lower right", frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)
