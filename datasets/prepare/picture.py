"""A picture of the converted recordings: events over the sensor and over time, by class."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from snn.compiling import kernel
from snn.files import whole
from snn.lettering import lettering

COARSE = 160  # pixels, at most, of a class's image
SLICES = 60  # of time
LOOKED_AT = 2**16  # events of a recording


class Picture:
    """Events over the sensor and over time, by class, so that a person sees a swapped axis or a wrong unit of time."""

    def __init__(self, labels: Sequence[str], sensor: tuple[int, int]):
        self.labels, self.sensor = labels, sensor
        self.divide = max(1, -(-max(sensor) // COARSE))
        height, width = (-(-side // self.divide) for side in sensor)
        self.counts = np.zeros((len(labels), 2, height, width), np.int64)
        self.recordings = np.zeros(len(labels), np.int64)
        self.slice_us, self.rates = 1, np.zeros((len(labels), SLICES), np.int64)

    def see(self, label: int, times: np.ndarray, units: np.ndarray) -> None:
        """Count the events of a recording; of a long one, only evenly spread events."""
        while times[-1] >= self.slice_us * SLICES:  # makes slices twice as long
            self.slice_us *= 2
            halves = self.rates.reshape(len(self.labels), SLICES // 2, 2).sum(2)
            self.rates = np.concatenate([halves, np.zeros_like(halves)], axis=1)
        step = -(-len(times) // LOOKED_AT)
        _count_into(units[::step], *self.sensor, self.divide, step, self.counts[label])
        self.rates[label] += step * np.bincount(times[::step] // self.slice_us, minlength=SLICES)
        self.recordings[label] += 1

    def save(self, path: Path) -> None:
        """Save the picture, or report that matplotlib is missing."""
        try:
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
        except ModuleNotFoundError:
            print(f"{path.name} is not drawn, because matplotlib is missing (pip install matplotlib)", file=sys.stderr)
            return

        short, fonts = lettering(self.labels)
        # matplotlib takes $...$ for a formula
        names = [f"class {k}" if name is None else name.replace("$", r"\$") for k, name in enumerate(short)]
        shown = min(len(names), 20)
        columns = min(shown, 5)
        rows = -(-shown // columns)
        figure = Figure(figsize=(2.2 * columns + 1, 2.2 * rows + 3), layout="constrained")
        FigureCanvasAgg(figure)
        above, below = figure.subfigures(2, 1, height_ratios=(2.2 * rows, 3))
        for k, axes in enumerate(np.atleast_1d(above.subplots(rows, columns, squeeze=False)).ravel()):
            axes.set_xticks([])
            axes.set_yticks([])
            if k >= shown:
                axes.set_axis_off()
                continue
            off, on = self.counts[k] / max(self.recordings[k], 1)
            bright = max(np.percentile(on, 99.5), np.percentile(off, 99.5), 1e-9)
            axes.imshow(
                np.clip(np.stack([on, 0 * on, off], axis=2) / bright, 0, 1),
                extent=(0, self.sensor[1], self.sensor[0], 0),
            )
            axes.set_title(f"{names[k]} ({self.recordings[k]:,})", fontsize=8, fontfamily=fonts)
        above.suptitle(
            f"events over the sensor of {self.sensor[0]} rows x {self.sensor[1]} columns,\nbrighter (red) and darker "
            "(blue); y grows downwards",
            fontsize=8 if columns > 1 else 6,
        )
        axes = below.subplots()
        middle_ms = (np.arange(SLICES) + 0.5) * self.slice_us / 1000
        for k in range(shown):
            rate = self.rates[k] / max(self.recordings[k], 1) / self.slice_us * 1000
            axes.plot(middle_ms, rate, label=names[k], linewidth=1)
        axes.set_xlabel("time (ms)", fontsize=8)
        axes.set_ylabel("events/ms, mean of the recordings", fontsize=8)
        axes.tick_params(labelsize=7)
        if shown > 1:
            axes.legend(prop={"family": fonts, "size": 6}, ncols=max(1, shown // 7))
        with whole(path) as part:
            figure.savefig(part, dpi=110, format="png")


@kernel
def _count_into(units, height, width, divide, weight, counts):
    for e in range(len(units)):
        unit = np.int64(units[e])
        row, x = unit // width, unit % width
        counts[row // height, row % height // divide, x // divide] += weight
