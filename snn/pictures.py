"""Pictures of a network's activity and results. Each is narrow, so that its text can also be read on a telephone."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from functools import cache, wraps
from types import ModuleType
from typing import TYPE_CHECKING, Any, ParamSpec

import numpy as np
import torch
from torch import Tensor

from snn.coding import decide
from snn.evaluation import NOTHING, Evaluation, Samples
from snn.inputs import SparseCounts
from snn.learned import Learned
from snn.lettering import LONGEST, columns, lettering
from snn.network import Network
from snn.tables import layer_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

Words = ParamSpec("Words")

# colours that are safe for the colour-blind (Okabe & Ito), and two greys
BLACK, ORANGE, BLUE, GREY, DARK = "#000000", "#D55E00", "#0072B2", "#BBBBBB", "#555555"
LAYERS = (BLUE, "#E69F00", "#009E73", "#CC79A7", "#56B4E9", ORANGE, "#F0E442")  # one after another
CODES = (("fs", "first spike", ORANGE, "-"), ("fr", "firing rate", BLUE, "--"))
WIDTH = 5  # inches
HIGHEST = 60  # inches
DPI = 200
LONGEST_TITLE = 58  # columns
MOST_NAMES = 40  # of classes at an axis; more classes than that are numbered
BINS = 40  # of a histogram

STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "text.parse_math": False,  # a $ in a name is a $
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.constrained_layout.use": True,
}


@cache
def pyplot() -> ModuleType:
    """Import matplotlib.pyplot with the first picture, since training does not need it."""
    import matplotlib

    matplotlib.use("Agg")  # draws into files and needs no screen
    from matplotlib import pyplot

    return pyplot


def styled(draw: Callable[Words, Figure]) -> Callable[Words, Figure]:
    """Make a function draw in our style."""

    @wraps(draw)
    def drawn(*args: Words.args, **kwargs: Words.kwargs) -> Figure:
        with pyplot().rc_context(STYLE):
            return draw(*args, **kwargs)

    return drawn


def png(figure: Figure) -> bytes:
    """Render a figure as PNG and close it."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI)
    pyplot().close(figure)
    return file.getvalue()


@styled
@torch.inference_mode()
def draw_decision(
    network: Network,
    x_T1C: SparseCounts | Tensor,
    dt_ms: float,
    *,
    names: Sequence[str] | None = None,
    target: int | None = None,
    audio: tuple[np.ndarray, int] | None = None,
) -> Figure:
    """Draw one recording on one time axis: events, hidden spikes, output potentials and spikes, with the decision.

    names: class names; target: the true class, if known; audio: [samples] and sample rate (Hz), drawn on top if given.
    """
    short, fonts = lettering(names)
    activity = network.eval().run(x_T1C)
    T = x_T1C.shape[0]
    decision, first_step = map(int, decide(activity.s_TBN, activity.h_TBN))
    time_ms = dt_ms * np.arange(1, T + 1)
    rasters = [("input channel", x_T1C.dense() if isinstance(x_T1C, SparseCounts) else x_T1C)]
    rasters += [(f"hidden layer {k + 1}", s_TBN) for k, s_TBN in enumerate(activity.layers[:-1])]
    heights = [*([0.6] if audio else []), *([1.2] * len(rasters)), 1.4, 0.8]
    size = WIDTH, 1.2 * sum(heights)
    figure, axes = pyplot().subplots(len(heights), sharex=True, figsize=size, height_ratios=heights)
    if audio:
        samples, rate_hz = audio
        axes[0].plot(1000 * np.arange(len(samples)) / rate_hz, samples, color=BLACK, lw=0.4)
        axes[0].set(ylabel="audio", yticks=[])
    for axis, (name, s_TBN) in zip(axes[len(heights) - len(rasters) - 2 :], rasters, strict=False):
        step, index = s_TBN[:, 0].flatten(1).nonzero().cpu().numpy().T
        axis.scatter(time_ms[step], index, s=3, marker=".", color=BLACK, linewidths=0)
        neurons = s_TBN[0].numel()
        axis.set(ylabel=name, ylim=(-0.03 * neurons, 1.03 * neurons))  # the same whichever neurons are silent
    colours = {target: BLUE} | {decision: ORANGE}
    _draw_potentials(axes[-2], time_ms, activity.h_TBN[:, 0].cpu().numpy(), network.output.neurons.threshold, colours)
    _draw_output_spikes(axes[-1], time_ms, activity.s_TBN[:, 0].cpu().numpy(), colours)
    axes[-1].set(xlabel="time (ms)", xlim=(0, dt_ms * T))
    figure.align_ylabels(axes)

    verdict = f"no output spike; the highest potential decides for {class_name(decision, short)}"
    if first_step <= T:
        verdict = f"decides for {class_name(decision, short)} at {first_step * dt_ms:g} ms"
        ring = {"marker": "o", "facecolors": "none", "edgecolors": ORANGE, "clip_on": False}
        axes[-1].scatter(first_step * dt_ms, decision, s=90, lw=1.2, **ring)
        for axis in axes:
            axis.axvline(first_step * dt_ms, color=ORANGE, lw=1, ls="--", zorder=1)
    truth = "" if target is None else f"(truth: {class_name(target, short)})"
    between = " " if columns(verdict + truth) < LONGEST_TITLE else "\n"
    axes[0].set_title(f"{verdict}{between}{truth}".strip(), fontfamily=fonts)
    return figure


def _draw_potentials(
    axis: Axes, time_ms: np.ndarray, h_TN: np.ndarray, theta: float, colours: dict[int | None, str]
) -> None:
    """Draw the potential of each output neuron, with separate colours for some neurons."""
    for neuron, h_T in enumerate(h_TN.T):
        colour = colours.get(neuron, GREY)
        width = {ORANGE: 1.8, BLUE: 1.2, GREY: 0.7}[colour]
        axis.plot(time_ms, h_T, color=colour, lw=width, zorder=2 + (colour == ORANGE))
    axis.axhline(theta, color=BLACK, lw=0.8, ls=":")
    axis.annotate("threshold", (time_ms[0], theta), fontsize=8, va="bottom")
    axis.set_ylabel("output potential")


def _draw_output_spikes(axis: Axes, time_ms: np.ndarray, s_TN: np.ndarray, colours: dict[int | None, str]) -> None:
    """Draw the spikes of each output neuron, those of the decided class in its colour."""
    step, index = s_TN.nonzero()
    is_decided = [colours.get(neuron) == ORANGE for neuron in index.tolist()]
    axis.scatter(time_ms[step], index, s=22, marker="|", color=[ORANGE if it else BLACK for it in is_decided])
    axis.set(ylim=(-0.7, s_TN.shape[1] - 0.3), ylabel="output neuron")


def class_name(label: int, names: Sequence[str | None] | None) -> str:
    """Return the name of a class, or its number if it has no name."""
    return f"class {label}" if names is None or label >= len(names) or names[label] is None else f"'{names[label]}'"


def class_ticks(classes: int, names: Sequence[str] | None) -> dict[str, Any]:
    """Return the ticks of an axis of classes: names, or round numbers if names would not fit."""
    if classes > MOST_NAMES:
        numbers = range(0, classes, 5 * -(-classes // 200))
        return {"ticks": numbers, "labels": list(map(str, numbers)), "fontsize": 7}
    size, longest = (7, LONGEST) if classes <= 25 else (5, 15)
    short, fonts = lettering(names, longest)
    labels = [str(k) if short is None or k >= len(short) else short[k] or str(k) for k in range(classes)]
    return {"ticks": range(classes), "labels": labels, "fontsize": size, "fontfamily": fonts}


@styled
@torch.inference_mode()
def draw_single_delay(
    network: Network, x_TBC: SparseCounts | Tensor, target_B: Tensor, dt_ms: float, names: Sequence[str] | None
) -> Figure:
    """Draw the output spikes of one recording of each class: a raster with a row per recording, first spikes marked."""
    short, fonts = lettering(names)
    activity = network.eval().run(x_TBC)
    decision_B, first_B = decide(activity.s_TBN, activity.h_TBN)
    T = x_TBC.shape[0]
    figure, axis = pyplot().subplots(figsize=(WIDTH, min(1 + 0.28 * len(target_B), HIGHEST)))
    step, row, _ = activity.s_TBN.nonzero().cpu().numpy().T
    axis.scatter(dt_ms * (step + 1), row, s=40, marker="|", color=GREY)
    above = {
        "fontsize": 7,
        "xytext": (0, 4),
        "textcoords": "offset points",
        "fontfamily": fonts,
    }  # the spikes in the row
    rows = zip(decision_B.tolist(), first_B.tolist(), target_B.tolist(), strict=True)
    for row, (decision, first_step, target) in enumerate(rows):
        verdict = class_name(decision, short) + ("" if decision == target else ", wrong")
        if first_step <= T:
            colour = BLUE if decision == target else ORANGE
            axis.scatter(dt_ms * first_step, row, s=90, marker="|", color=colour, linewidths=2)
            side = "right" if first_step > 0.6 * T else "left"  # keeps the text within the picture
            axis.annotate(f"{verdict}, {first_step * dt_ms:g} ms", (dt_ms * first_step, row), ha=side, **above)
        else:
            axis.annotate(f"  silent; the highest potential decides for {verdict}", (0, row), **above)
    axis.set(xlim=(0, dt_ms * T), ylim=(-0.7, len(target_B) - 0.2), xlabel="time (ms)", ylabel="recording of")
    labels = [class_name(target, short) for target in target_B.tolist()]
    axis.set_yticks(range(len(target_B)), labels, fontfamily=fonts)
    return figure


@styled
def draw_anytime(curves_of: dict[str, dict[str, list]]) -> Figure:
    """Draw the curves of `Evaluation.anytime` for one or several networks, by name: accuracy over time and events.

    The line style shows the code. The colour shows the network or, if there is only one, also the code.
    """
    names, fonts = lettering(list(curves_of), longest=48)
    figure, axes = pyplot().subplots(2, figsize=(WIDTH, 5))
    for axis, x, over, label in zip(
        axes, ("time_ms", "events"), ("time", "events"), ("elapsed time (ms)", "events seen"), strict=True
    ):
        for k, (short, curves) in enumerate(zip(names or curves_of, curves_of.values(), strict=True)):
            for code, name, colour, style in CODES:
                if len(curves_of) > 1:
                    name, colour = f"{name}: {short or k}", LAYERS[k % len(LAYERS)]
                axis.plot(curves[x], curves[f"{code}_accuracy_over_{over}"], color=colour, ls=style, label=name)
        end = max(curves[x][-1] for curves in curves_of.values())
        axis.set(xlabel=label, ylabel="correct decisions (%)", ylim=(0, 100), xlim=(0, end))
        axis.grid(color=GREY, lw=0.4)
    if len(curves_of) > 1:
        ncols, font = 2 if max(map(columns, curves_of)) <= LONGEST else 1, {"family": fonts, "size": 8}
        figure.legend(
            *axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=ncols, prop=font, frameon=False
        )
    else:
        axes[0].legend(loc="lower right", frameon=False)
    return figure


@styled
def draw_thresholds(measured: dict[str, list[dict]]) -> Figure:
    """Draw accuracy against the mean time of the decision at scaled output thresholds, held-out and test."""
    figure, axis = pyplot().subplots(figsize=(WIDTH, 3))
    for of, name, colour in (("held_out", "held out", GREY), ("test", "test", BLUE)):
        rows = measured[of]
        axis.plot(
            [row["time_ms"] for row in rows], [row["fs_accuracy"] for row in rows], "o-", ms=3, c=colour, label=name
        )
    for row in measured["test"]:
        place = row["time_ms"], row["fs_accuracy"]
        axis.annotate(f"{row['scale']:g}", place, (3, -8), textcoords="offset points", fontsize=7)
    axis.set(xlabel="mean time of the decision (ms)", ylabel="correct decisions (%)")
    axis.grid(color=GREY, lw=0.4)
    axis.legend(loc="lower right", frameon=False)
    return figure


@styled
def draw_latencies(samples: Samples, dt_ms: float, names: Sequence[str] | None) -> Figure:
    """Draw the times of the first output spike: for right and wrong decisions, and for each class."""
    classes, T = samples.output_spikes.shape[1], samples.fs_right.shape[1]
    spoke = samples.first_step != NOTHING
    time_ms = dt_ms * samples.first_step[spoke].numpy()
    target = samples.target[spoke].numpy()
    right = (samples.fs_label == samples.target)[spoke].numpy()
    # each bin has the same whole number of steps, so that none is higher because it covers more steps
    steps = -(-T // 50)
    edges_ms = dt_ms * (np.arange(0, T + steps, steps) + 0.5)  # the last bin may go beyond T
    height = 0.6 + 0.17 * min(classes, MOST_NAMES)
    figure, (all_of_them, by_class) = pyplot().subplots(
        2, sharex=True, figsize=(WIDTH, 2 + height), height_ratios=[1.6, height]
    )
    all_of_them.hist(
        [time_ms[right], time_ms[~right]], edges_ms, stacked=True, color=[BLUE, ORANGE], label=["right", "wrong"]
    )
    all_of_them.set_ylabel("samples")
    all_of_them.set_title("first output spike", loc="left")
    all_of_them.legend(loc="lower right", bbox_to_anchor=(1, 0.97), ncols=2, frameon=False)  # beside the title
    shares = np.stack([np.histogram(time_ms[target == label], edges_ms)[0] for label in range(classes)]).astype(float)
    shares *= 100 / np.maximum(1, np.bincount(samples.target.numpy(), minlength=classes))[:, None]
    mesh = by_class.pcolormesh(edges_ms, np.arange(classes + 1) - 0.5, shares, cmap="cividis")
    for label in range(classes):
        if (target == label).any():
            median_ms = np.median(time_ms[target == label])
            by_class.plot([median_ms] * 2, [label - 0.4, label + 0.4], color="white", lw=2.5)
            by_class.plot([median_ms] * 2, [label - 0.4, label + 0.4], color=ORANGE, lw=1.5)
    by_class.set_yticks(**class_ticks(classes, names))
    by_class.set(xlabel="time (ms)", ylabel="true class", xlim=(0, dt_ms * (T + 0.5)), ylim=(classes - 0.5, -0.5))
    figure.colorbar(mesh, ax=by_class, label="share of the class (%)", location="bottom", aspect=40, shrink=0.8)
    return figure


@styled
def draw_confusion(confusion: Sequence[Sequence[int]], code: str, names: Sequence[str] | None) -> Figure:
    """Draw true classes as rows and decisions as columns: shares of a row as colours, and numbers where they fit."""
    counts = np.asarray(confusion)
    classes = len(counts)
    shares = 100 * counts / np.maximum(1, counts.sum(1, keepdims=True))
    figure, axis = pyplot().subplots(figsize=(WIDTH, WIDTH + 0.4))
    image = axis.imshow(shares, cmap="cividis", vmin=0, vmax=100)
    axis.spines[:].set_visible(False)
    if classes <= 25:
        for row, column in zip(*np.nonzero(counts), strict=True):
            colour = BLACK if shares[row, column] > 55 else "white"
            axis.annotate(
                counts[row, column],
                (column, row),
                ha="center",
                va="center",
                color=colour,
                fontsize=6 if classes > 12 else 8,
            )
    ticks = class_ticks(classes, names)
    axis.set_xticks(**ticks, rotation=90)
    axis.set_yticks(**ticks)
    axis.set(xlabel="decided", ylabel="true class", title=code)
    figure.colorbar(image, ax=axis, label="share of the true class (%)", location="bottom", aspect=40, shrink=0.8)
    return figure


@styled
def draw_rates(evaluation: Evaluation) -> Figure:
    """Draw a histogram for each layer of its neurons' spikes per sample. The title counts neurons that never fire."""
    n = len(evaluation.samples().target)
    layers = evaluation.neuron_spikes
    highest = max(float(spikes_N.max()) / n for spikes_N in layers) or 1.0
    figure, axes = pyplot().subplots(len(layers), sharex=True, squeeze=False, figsize=(WIDTH, 0.6 + 1.2 * len(layers)))
    for k, (axis, spikes_N) in enumerate(zip(axes[:, 0], layers, strict=True)):
        axis.hist((spikes_N / n).numpy(), np.linspace(0, highest, BINS + 1), color=LAYERS[k % len(LAYERS)])
        silent = int((spikes_N == 0).sum())
        axis.set_title(f"{layer_name(k, len(layers))}: {silent} of {len(spikes_N)} never fire", loc="right", fontsize=9)
        axis.set_ylabel("neurons")
    axes[-1, 0].set(xlabel="spikes per sample", xlim=(0, highest))
    return figure


@styled
def draw_learned(values: dict[str, dict[str, Learned]]) -> Figure:
    """Draw a histogram of each learned value, with the layers overlaid and dotted lines at its initial bounds."""
    figure, axes = pyplot().subplots(len(values), squeeze=False, figsize=(WIDTH, 0.8 + 1.5 * len(values)))
    layers = list(dict.fromkeys(layer for of_layers in values.values() for layer in of_layers))
    for axis, of_layers in zip(axes[:, 0], values.values(), strict=True):
        arrays = {layer: learned.value.double().cpu().numpy() for layer, learned in of_layers.items()}
        began = sorted({bound for learned in of_layers.values() for bound in learned.began})
        title, unit, *_ = next(iter(of_layers.values()))
        everything = np.concatenate([*arrays.values(), began])
        if unit == "ms" and everything.min() > 0:  # time constants spread over decades
            low, high = everything.min() / 1.05, everything.max() * 1.05
            edges = np.geomspace(low, high, BINS + 1)
            axis.set_xscale("log")
            readable_log_axis(axis.xaxis)
        else:
            low, high = everything.min(), everything.max() + 1e-9
            edges = np.linspace(low, high, BINS + 1)
        for bound in began:
            axis.axvline(bound, color=BLACK, lw=1, ls=":", label="before training")
        for layer, array in arrays.items():
            colour = LAYERS[layers.index(layer) % len(LAYERS)]
            axis.hist(array, edges, histtype="step", lw=1.4, color=colour, label=layer)
        axis.set(xlabel=f"{title} (ms)" if unit == "ms" else title, ylabel="number", xlim=(low, high))
    by_label = dict(zip(*reversed(axes[0, 0].get_legend_handles_labels()), strict=True))
    figure.legend(by_label.values(), by_label, loc="outside upper center", ncols=min(4, len(by_label)), frameon=False)
    return figure


def readable_log_axis(axis: Axis) -> None:
    """Label a logarithmic axis with plain numbers at 1, 2 and 5 of each decade."""
    from matplotlib import ticker

    axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    axis.set_minor_locator(ticker.NullLocator())


@styled
def draw_learning(rows: Sequence[dict], best_epoch: int) -> Figure:
    """Draw the curves of metrics.jsonl by epoch: losses, and accuracies and spikes on the held-out samples."""
    groups: list[tuple[str, list[tuple[str, ...]]]] = [
        ("loss", [("train_loss", "training", BLACK, "-"), ("validation_loss", "held out", BLUE, "--")]),
        (
            "accuracy, held out (%)",
            [*((f"validation_{c}_accuracy", *rest) for c, *rest in CODES), ("validation_accuracy", "", BLUE, "-")],
        ),
        ("spikes per neuron", [("validation_spikes_per_neuron", "", BLUE, "-")]),
    ]
    groups = [(label, [curve for curve in curves if curve[0] in rows[0]]) for label, curves in groups]
    groups = [(label, curves) for label, curves in groups if curves]
    figure, axes = pyplot().subplots(len(groups), sharex=True, squeeze=False, figsize=(WIDTH, 0.4 + 1.6 * len(groups)))
    epochs = [row["epoch"] for row in rows]
    for axis, (label, curves) in zip(axes[:, 0], groups, strict=True):
        for name, words, colour, style in curves:
            axis.plot(epochs, [row.get(name, np.nan) for row in rows], color=colour, ls=style, label=words)
        axis.axvline(best_epoch, color=DARK, lw=0.8, ls=":")
        axis.set_ylabel(label)
        axis.grid(color=GREY, lw=0.4)
        if len(curves) > 1:
            axis.legend(frameon=False)
    side = "right" if best_epoch > (epochs[0] + epochs[-1]) / 2 else "left"  # keeps the text within the picture
    where = {"xycoords": ("data", "axes fraction"), "va": "top", "ha": side, "fontsize": 8}
    axes[0, 0].annotate(" this checkpoint ", (best_epoch, 1), **where)
    axes[-1, 0].set_xlabel("epoch")
    axes[-1, 0].xaxis.get_major_locator().set_params(integer=True)
    return figure


@styled
def draw_spike_times(histograms: Tensor, T: float) -> Figure:
    """Draw a histogram per layer from `snn.ttfs.evaluation`: (layers, bins) spikes over [0, T] of the layer's clock."""
    layers, bins = histograms.shape
    figure, axes = pyplot().subplots(layers, sharex=True, squeeze=False, figsize=(WIDTH, 1 + 1.1 * layers))
    edges = np.linspace(0, T, bins + 1)
    for k, (axis, counts) in enumerate(zip(axes[:, 0], histograms.cpu().numpy(), strict=True)):
        axis.stairs(100 * counts / max(counts.sum(), 1), edges, fill=True, color=BLUE)
        axis.set_ylabel(f"layer {k + 1} (%)")
    axes[0, 0].set_title("share of a layer's spikes, by time")
    axes[-1, 0].set(xlabel=f"time since the layer's window began; T = {T:g} ends it", xlim=(0, T))
    return figure
