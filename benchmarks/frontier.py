"""The tables and the picture of docs/frontier.md, from results/, results/anchors/ and results/ablation/.

`python -m benchmarks.results --readme` rebuilds page and picture.
"""

import json
import statistics
from pathlib import Path
from typing import NamedTuple

from matplotlib import pyplot as plt
from matplotlib.ticker import LogLocator, NullLocator

from benchmarks.figures import mean_of, row
from snn import pictures, settings
from snn.files import REPOSITORY

DATA, ABLATED = "dsp20", "speech"
RESULTS = REPOSITORY / "results"
NOT_RUN = "Not run yet."


class Stored(NamedTuple):
    """What the page tells, by the name of the configuration or of the anchor."""

    ours: dict[str, dict]  # networks that spike
    anchors: dict[str, dict]
    ablation: dict | None


def stored() -> Stored:
    """Return what is stored about the data set DATA."""
    ours = {path.stem: path for path in sorted(RESULTS.glob("*.json")) if _is_on_data(path.stem)}
    anchors = {path.stem: path for path in sorted((RESULTS / "anchors").glob(f"{DATA}_*.json"))}
    ablation = RESULTS / "ablation" / f"{ABLATED}.json"
    return Stored(
        {name: _read(path) for name, path in ours.items()},
        {name: _read(path) for name, path in anchors.items()},
        _read(ablation) if ablation.exists() else None,
    )


def _is_on_data(name: str) -> bool:
    path = REPOSITORY / "configs" / f"{name}.yaml"
    return path.exists() and settings.load(path).data.dataset_name == DATA


def _read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def tables(found: Stored) -> dict[str, str]:
    """Return the tables of the page by the names in its marker comments."""
    return {"networks": table(found), "ablation": ablation_table(found)}


def table(found: Stored) -> str:
    """Write a row for each network: accuracy, the time of its decisions, and what they cost."""
    lines = [
        "| network | weights | seeds | FS | FR | 90 % right by | events heard | operations | spikes/neuron |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, result in found.ours.items():
        seeds = [_flat(seed) for seed in result["seeds"].values()]
        cells = [mean_of(seeds, "fs_accuracy", 1, " %"), mean_of(seeds, "fr_accuracy", 1, " %")]
        cells += [mean_of(seeds, "t_d90_ms", 0, " ms"), mean_of(seeds, "events_heard", 0, " %")]
        cells += [mean_of(seeds, "operations", 2, " M"), mean_of(seeds, "spikes_per_neuron", 1, "")]
        cfg = settings.load(REPOSITORY / result["configuration"])
        weights = f"{sum(p.numel() for p in cfg.new_network().parameters()) / 1000:.0f} k"
        lines.append(row([f"`configs/{name}.yaml`: {result['network']}", weights, str(len(seeds)), *cells]))
    for result in found.anchors.values():
        seeds, name = list(result["seeds"].values()), result["network"].rpartition(", ")[0]
        weights = f"{result['weights'] / 1000:.0f} k"
        cells = [mean_of(seeds, "accuracy", 1, " %"), "", "the end", "100 %"]
        work = f"{result['multiply_accumulates'] / 1e6:.1f} M multiplications"
        lines.append(row([name, weights, str(len(seeds)), *cells, work, ""]))
    commands = [f"`{result['command']}`" for result in (*found.ours.values(), *found.anchors.values())]
    said = "Mean ± std over seeds on the test file; events and operations are those up to the decision."
    return "\n".join([*lines, "", f"{said} Commands: {'; '.join(commands)}."])


def _flat(seed: dict) -> dict:
    """Return the numbers of a seed, with shares and millions."""
    cost = seed["cost"]
    heard = 100 * cost["to_decision"]["events"] / cost["whole_window"]["events"]
    return seed | {"events_heard": heard, "operations": cost["to_decision"]["synaptic operations"] / 1e6}


def ablation_table(stored: Stored) -> str:
    """Write a row for each ingredient: the accuracy with it alone, and without it."""
    if (found := stored.ablation) is None:
        return NOT_RUN
    by_place = {(one["ingredient"], one["which"]): list(one["seeds"].values()) for one in found["rows"]}

    def cells(*place: str) -> list[str]:
        if place not in by_place:
            return ["not run", ""]
        seeds = [seed | {"operations": seed["synaptic_operations_to_decision"] / 1e6} for seed in by_place[place]]
        return [mean_of(seeds, "fs_accuracy", 1, " %"), mean_of(seeds, "operations", 2, " M")]

    lines = ["| ingredient | alone: FS | operations | left out: FS | operations |", "|---|---|---|---|---|"]
    lines.append(row(["none (plain), all (recipe)", *cells("", "plain"), *cells("", "recipe")]))
    names = dict.fromkeys(name for name, _ in by_place if name)
    lines += [row([name, *cells(name, "alone"), *cells(name, "left out")]) for name in names]
    seeds = ", ".join(dict.fromkeys(seed for one in found["rows"] for seed in one["seeds"]))
    where = found["machine"]
    place = where.get("gpu") or f"{where['cores']} cores of an {where['processor']}"
    said = f"On held-out speakers, seeds {seeds}, {place}, torch {found['versions']['torch']}: `{found['command']}`."
    return "\n".join([*lines, "", said])


def draw(found: Stored) -> plt.Figure | None:
    """Draw accuracy against the time of the decision and against operations; lines are scaled output thresholds."""
    if not found.ours:
        return None
    with plt.rc_context(pictures.STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(pictures.WIDTH * 1.4, 3.2), sharey=True)
        for k, (name, result) in enumerate(found.ours.items()):
            seeds, colour = list(result["seeds"].values()), pictures.LAYERS[k % len(pictures.LAYERS)]
            steps = statistics.mean(seed["cost"]["to_decision"]["steps"] for seed in seeds)
            operations = statistics.mean(seed["cost"]["to_decision"]["synaptic operations"] for seed in seeds) / 1e6
            time_ms = steps * settings.load(REPOSITORY / result["configuration"]).data.dt_ms
            accuracy = statistics.mean(seed["fs_accuracy"] for seed in seeds)
            for axis, x in zip(axes, (time_ms, operations), strict=True):
                axis.plot(x, accuracy, "o", color=colour, label=f"{name}, first spike")
            rate = statistics.mean(seed["fr_accuracy"] for seed in seeds)
            whole = statistics.mean(seed["cost"]["whole_window"]["synaptic operations"] for seed in seeds) / 1e6
            axes[1].plot(whole, rate, "s", mfc="none", color=colour, label=f"{name}, firing rate, whole window")
            curves = [seed["thresholds"]["test"] for seed in seeds if "thresholds" in seed]
            if curves:
                rows = list(zip(*curves, strict=True))
                lines = {
                    key: [statistics.mean(one[key] for one in at) for at in rows]
                    for key in ("time_ms", "operations_to_decision", "fs_accuracy")
                }
                axes[0].plot(lines["time_ms"], lines["fs_accuracy"], "-", lw=1, color=colour)
                millions = [value / 1e6 for value in lines["operations_to_decision"]]
                axes[1].plot(millions, lines["fs_accuracy"], "-", lw=1, color=colour)
        for k, result in enumerate(found.anchors.values()):
            accuracy = statistics.mean(seed["accuracy"] for seed in result["seeds"].values())
            name, colour = result["network"].partition(",")[0], pictures.LAYERS[-1 - k]
            axes[0].axhline(accuracy, ls="--", lw=1, color=colour)
            axes[1].plot(result["multiply_accumulates"] / 1e6, accuracy, "D", color=colour, label=f"{name}, at the end")
        axes[0].set(xlabel="mean time of the decision (ms)", ylabel="correct decisions (%)")
        axes[1].set(xlabel="million operations", xscale="log")
        axes[1].xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes[1].xaxis.set_major_formatter("{x:g}")
        axes[1].xaxis.set_minor_locator(NullLocator())
        for axis in axes:
            axis.grid(color=pictures.GREY, lw=0.4)
        figure.legend(*axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return figure
