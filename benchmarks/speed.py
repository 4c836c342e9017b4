"""The tables and the picture of docs/speed.md, from benchmarks/speed.json.

The benchmarks store their figures there (`benchmarks.figures`). `python -m benchmarks.results --readme` rebuilds page
and picture.
"""

from matplotlib import pyplot as plt

from snn import pictures

PLACES = {"cpu": "Two cores of a CPU", "gpu": "A GPU"}
# the others that the picture shows, by the first words of their names, and their names in its legend
LEGEND = {
    "SpikingJelly": "SpikingJelly",
    "torch reference": "torch, step by step",
    "kernels written by hand, before": "ours, before",
    "ours, not replayed": "ours, before",
    "dense products": "torch, dense products",
    "the batched network, dense": "torch, dense products",
    "two products, as the authors compute it": "as the authors compute it",
    "JAX": "JAX",
}


def table(found: dict, machine: str) -> str:
    """Write a row, with its command, for each time measured on this machine, and below it the times of others.

    Rows that a benchmark stored have their date; the machines and versions of these follow the table.
    """
    lines, runs = ["| what | who | took | others take |", "|---|---|---|---|"], {}
    for one in found["measured"]:
        if one["machine"] == machine:
            date = ""
            if run := one.get("run"):
                date, where = f", {run['date']}", run["machine"]
                place = where.get("gpu", f"{where['cores']} cores of {where['processor']}")
                runs[f"{place}, {where['threads']} threads, torch {run['versions']['torch']}"] = None
            lines.append(f"| {one['what']} (`{one['command']}`{date}) | here | **{one['here']}** | |")
            lines += [f"| | {other['who']} | {other['took']} | {_times(other)} |" for other in one["others"]]
    if runs:
        lines += ["", f"Rows with a date were stored by their benchmark, on {'; '.join(runs)}."]
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
    kinds = list(dict.fromkeys(LEGEND.values()))
    heights = [len(there) for there in rows.values()]
    with plt.rc_context(pictures.STYLE):
        figure, panels = plt.subplots(
            len(rows), 1, figsize=(pictures.WIDTH, 0.24 * sum(heights) + 1.8), height_ratios=heights, sharex=True
        )
        for axis, (place, there) in zip(panels, rows.items(), strict=True):
            for k, one in enumerate(there):
                for other in one["others"]:
                    name = next((name for words, name in LEGEND.items() if other["who"].startswith(words)), None)
                    if name is not None and "times" in other:
                        low, high = other["times"]
                        colour = pictures.LAYERS[kinds.index(name)]
                        axis.plot([low, high], [k, k], color=colour, lw=2)
                        axis.plot((low * high) ** 0.5, k, "o", color=colour)
            axis.set_yticks(range(len(there)), [one["picture"] for one in there])
            axis.set(xscale="log", ylim=(len(there) - 0.5, -0.5), title=PLACES[place])
            axis.axvline(1, color="black", lw=0.8)
            axis.grid(axis="x", color=pictures.GREY, lw=0.4)
        ticks = (1, 2, 5, 10, 20, 50, 100)
        panels[-1].set_xticks(ticks, [f"{tick} x" for tick in ticks])
        panels[-1].set_xticks([], minor=True)
        panels[-1].set_xlabel("time of others / time here")
        points = [plt.Line2D([], [], marker="o", ls="", color=pictures.LAYERS[k]) for k in range(len(kinds))]
        figure.legend(points, kinds, loc="outside lower center", ncols=2, frameon=False)
    return figure
