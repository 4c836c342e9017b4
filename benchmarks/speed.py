"""The tables and the picture of docs/speed.md, from benchmarks/speed.json.

The benchmarks print what they measure, and benchmarks/speed.json stores it: for each command the task, the time it took
here, and the time others took, with the ratio if it was measured in the same run ([lowest, highest]).
`python -m benchmarks.results --readme` rebuilds the page and the picture.
"""

import json
from pathlib import Path

from matplotlib import pyplot as plt

from snn import pictures

STORED = Path(__file__).with_name("speed.json")
PLACES = {"cpu": "Two cores of a CPU", "gpu": "A GPU"}


def stored() -> dict:
    """Return the contents of benchmarks/speed.json: `origin`, `machines` by name, and the list `measured`."""
    return json.loads(STORED.read_text(encoding="utf-8"))


def table(found: dict, machine: str) -> str:
    """Write rows of what was measured on this machine, each with those of others below it, and the command."""
    lines = ["| what | who | took | others take |", "|---|---|---|---|"]
    for one in found["measured"]:
        if one["machine"] == machine:
            lines.append(f"| {one['what']} (`{one['command']}`) | here | **{one['here']}** | |")
            lines += [f"| | {other['who']} | {other['took']} | {_times(other)} |" for other in one["others"]]
    return "\n".join([f"On {found['machines'][machine]}.", "", *lines])


def _times(other: dict) -> str:
    if "times" not in other:
        return ""
    low, high = other["times"]
    return f"{low:g} x" if low == high else f"{low:g} to {high:g} x"


def draw(found: dict) -> plt.Figure:
    """Draw how many times as long others take, a row for each task, with a line over the range of the runs."""
    shown = [one for one in found["measured"] if "picture" in one]
    rows = {place: [one for one in shown if one["machine"] == place] for place in PLACES}
    kinds = list(dict.fromkeys(other["kind"] for one in shown for other in one["others"] if "times" in other))
    heights = [len(there) for there in rows.values()]
    with plt.rc_context(pictures.STYLE):
        figure, panels = plt.subplots(
            len(rows), 1, figsize=(pictures.WIDTH, 0.24 * sum(heights) + 1.8), height_ratios=heights, sharex=True
        )
        for axis, (place, there) in zip(panels, rows.items(), strict=True):
            for k, one in enumerate(there):
                for other in one["others"]:
                    if "times" in other:
                        low, high = other["times"]
                        colour = pictures.LAYERS[kinds.index(other["kind"])]
                        axis.plot([low, high], [k, k], color=colour, lw=2)
                        axis.plot((low * high) ** 0.5, k, "o", color=colour)
            axis.set_yticks(range(len(there)), [one["picture"] for one in there])
            axis.set(xscale="log", ylim=(len(there) - 0.5, -0.5), title=PLACES[place])
            axis.axvline(1, color="black", lw=0.8)
            axis.grid(axis="x", color=pictures.GREY, lw=0.4)
        ticks = (1, 2, 5, 10, 20, 50, 100)
        panels[-1].set_xticks(ticks, [f"{tick} x" for tick in ticks])
        panels[-1].set_xticks([], minor=True)
        panels[-1].set_xlabel("others take so many times as long as ours")
        points = [plt.Line2D([], [], marker="o", ls="", color=pictures.LAYERS[k]) for k in range(len(kinds))]
        figure.legend(points, kinds, loc="outside lower center", ncols=2, frameon=False)
    return figure
