"""The tables and the picture of the networks in docs/frontier.md, from results/ and results/anchors/.

`python -m benchmarks.results --readme` rebuilds the page and its picture.
"""

import json
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from matplotlib import pyplot as plt
from matplotlib.ticker import LogLocator, NullLocator

from benchmarks.figures import mean_of, row, unpacked
from snn import pictures, settings, statistics
from snn.files import REPOSITORY
from snn.schema import AnyConfig

DATA = "dsp20"


class Stored(NamedTuple):
    """The results on the data set DATA."""

    ours: dict[str, dict]  # of networks that spike, by the name of the configuration
    anchors: list[dict]


def stored(results: dict[str, dict], folder: Path) -> Stored:
    """Choose from the stored results of configurations, and read the others in their folder."""
    ours = {name: result for name, result in results.items() if _cfg(name).data.dataset_name == DATA}
    anchors = sorted((folder / "anchors").glob(f"{DATA}_*.json"))
    return Stored(ours, [json.loads(path.read_text(encoding="utf-8")) for path in anchors])


def _cfg(name: str) -> AnyConfig:
    return settings.load(REPOSITORY / "configs" / f"{name}.yaml")


def table(found: Stored) -> str:
    """Write a row for each network: accuracy, the time of its decisions, and what they cost."""
    lines = [
        "| network | weights | seeds | FS | FR | 90 % right by | events heard | operations | spikes/neuron |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, result in ranked(found):
        if name not in found.ours:
            seeds, weights = list(result["seeds"].values()), f"{result['weights'] / 1000:.0f} k"
            cells = [mean_of(seeds, "accuracy", 1, " %"), "", "the end", "100 %"]
            cells += [f"{result['multiply_accumulates'] / 1e6:.1f} M multiplications", ""]
            lines.append(row([result["network"].rpartition(", ")[0], weights, str(len(seeds)), *cells]))
            continue
        seeds = _seeds(result)
        cells = [mean_of(seeds, "fs_accuracy", 1, " %"), mean_of(seeds, "fr_accuracy", 1, " %")]
        cells += [mean_of(seeds, "t_d90_ms", 0, " ms"), mean_of(seeds, "events_heard", 0, " %")]
        cells += [mean_of(seeds, "operations", 2, " M"), mean_of(seeds, "spikes_per_neuron", 1, "")]
        weights = f"{sum(p.numel() for p in _cfg(name).new_network().parameters()) / 1000:.0f} k"
        lines.append(row([f"`configs/{name}.yaml`: {result['network']}", weights, str(len(seeds)), *cells]))
    commands = [f"`{result['command']}`" for result in (*found.ours.values(), *found.anchors)]
    said = "Mean ± std over seeds on the test file; events and operations are those up to the decision."
    return "\n".join([*lines, "", f"{said} Commands: {'; '.join(commands)}."])


def ranked(found: Stored) -> list[tuple[str, dict]]:
    """Return all networks by their names, the most accurate first: configurations of ours, and what anchors are."""
    ours = [(_mean(result["seeds"].values(), "fs_accuracy"), name, result) for name, result in found.ours.items()]
    anchors = [
        (_mean(result["seeds"].values(), "accuracy"), result["network"].partition(",")[0], result)
        for result in found.anchors
    ]
    return [(name, result) for _, name, result in sorted([*ours, *anchors], key=lambda one: -one[0])]


def comparisons(found: Stored) -> str:
    """Write a row for each seed that two neighbours of the table share: they are compared as compare.py does."""
    heads = ["more accurate", "less accurate", "seed", "difference", "only the first right", "only the second right"]
    lines = []
    for (first, one), (second, other) in pairwise(ranked(found)):
        for seed in sorted(one["seeds"].keys() & other["seeds"].keys(), key=int):
            tested = one["seeds"][seed], other["seeds"][seed]
            if not all("right" in each for each in tested) or tested[0]["samples_of"] != tested[1]["samples_of"]:
                continue
            right = [unpacked(each["right"], each["samples"]) for each in tested]
            shares, second_alone, first_alone, p = statistics.paired_decisions(*reversed(right))
            value, low, high = (100 * share for share in shares)
            difference = f"{value:.1f} points ({low:.1f} to {high:.1f})"
            cells = [first, second, seed, difference, str(first_alone), str(second_alone), f"{p:.2g}"]
            lines.append(row(cells))
    return "\n".join([row([*heads, "p (McNemar)"]), "|---|---|---|---|---|---|---|", *lines]) if lines else ""


def _seeds(result: dict) -> list[dict]:
    """Return the metrics of each seed, with its costs as shares and millions."""
    seeds = []
    for seed in result["seeds"].values():
        decided, whole = seed["cost"]["to_decision"], seed["cost"]["whole_window"]
        more = {
            "steps": decided["steps"],
            "events_heard": 100 * decided["events"] / whole["events"],
            "operations": decided["synaptic operations"] / 1e6,
            "operations_of_window": whole["synaptic operations"] / 1e6,
        }
        seeds.append(seed | more)
    return seeds


def draw(found: Stored) -> plt.Figure | None:
    """Draw accuracy against the time of the decision and against operations; lines are scaled output thresholds."""
    if not found.ours:
        return None
    with plt.rc_context(pictures.STYLE):
        figure, (by_time, by_work) = plt.subplots(1, 2, figsize=(pictures.WIDTH * 1.4, 3.2), sharey=True)
        for k, (name, result) in enumerate(found.ours.items()):
            seeds, colour = _seeds(result), pictures.LAYERS[k % len(pictures.LAYERS)]
            accuracy = _mean(seeds, "fs_accuracy")
            by_time.plot(_cfg(name).data.dt_ms * _mean(seeds, "steps"), accuracy, "o", color=colour)
            by_work.plot(_mean(seeds, "operations"), accuracy, "o", color=colour, label=f"{name}, first spike")
            rates, label = _mean(seeds, "fr_accuracy"), f"{name}, firing rate, whole window"
            by_work.plot(_mean(seeds, "operations_of_window"), rates, "s", mfc="none", color=colour, label=label)
            curves = [seed["thresholds"]["test"] for seed in seeds if "thresholds" in seed]
            scales = list(zip(*curves, strict=True))  # the rows of all seeds for each scale
            accuracies = [_mean(rows, "fs_accuracy") for rows in scales]
            by_time.plot([_mean(rows, "time_ms") for rows in scales], accuracies, lw=1, color=colour)
            millions = [_mean(rows, "operations_to_decision") / 1e6 for rows in scales]
            by_work.plot(millions, accuracies, lw=1, color=colour)
        for k, result in enumerate(found.anchors):
            accuracy = _mean(result["seeds"].values(), "accuracy")
            label, colour = f"{result['network'].partition(',')[0]}, at the end", pictures.LAYERS[-1 - k]
            by_time.axhline(accuracy, ls="--", lw=1, color=colour)
            by_work.plot(result["multiply_accumulates"] / 1e6, accuracy, "D", color=colour, label=label)
        by_time.set(xlabel="mean time of the decision (ms)", ylabel="correct decisions (%)")
        by_work.set(xlabel="million operations", xscale="log")
        by_work.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        by_work.xaxis.set_major_formatter("{x:g}")
        by_work.xaxis.set_minor_locator(NullLocator())
        for axis in (by_time, by_work):
            axis.grid(color=pictures.GREY, lw=0.4)
        figure.legend(*by_work.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return figure


def _mean(rows: Iterable[dict], key: str) -> float:
    return fmean(one[key] for one in rows)
