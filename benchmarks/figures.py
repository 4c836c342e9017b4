"""The figures of the benchmarks in benchmarks/speed.json: each benchmark stores its own with --store.

A figure is a row of docs/speed.md: the task, the time it took here, and the time others took, with the ratio if both
ran in the same command. A stored figure replaces the one of the same task on the same kind of machine, and keeps the
command, date, machine and versions it comes from under `run`. Figures without `run` were written down by hand.
"""

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from snn.files import write_whole
from snn.machine import machine, versions
from snn.tables import DASH, mean_and_std

STORED = Path(__file__).with_name("speed.json")


class Other(NamedTuple):
    """The time another implementation took, in words, and its ratio to the time here if it is known."""

    who: str
    took: str
    ratio: float | None = None


class Figure(NamedTuple):
    """A task, the time it took here in words, and the times of others."""

    what: str
    here: str
    others: Sequence[Other] = ()


def stored() -> dict[str, Any]:
    """Return the contents of benchmarks/speed.json: `origin`, `machines` by name, and the list `measured`."""
    return json.loads(STORED.read_text(encoding="utf-8"))


def duration(ms: float) -> str:
    """Format a time given in ms, in seconds if it is at least one second."""
    return f"{ms:.3g} ms" if ms < 1000 else f"{ms / 1000:.3g} s"


def others(times_ms: dict[str, float], here: str, who: dict[str, str]) -> list[Other]:
    """Compare contenders with the one named `here`; `who` gives their names on the page, and the rest is left out."""
    ours = times_ms[here]
    return [
        Other(title, duration(times_ms[name]), times_ms[name] / ours) for name, title in who.items() if name in times_ms
    ]


def row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def mean_of(seeds: Sequence[dict], key: str, digits: int, unit: str) -> str:
    """Write mean ± std over seeds, or the value of a single seed; a dash if a seed has none."""
    words = mean_and_std([seed[key] for seed in seeds], digits)
    return words if words == DASH else f"{words}{unit}"


def packed(right_n: np.ndarray) -> str:
    """Write which samples are right, (n,) bool, as hexadecimal digits: the first sample is the highest bit."""
    return np.packbits(right_n).tobytes().hex()


def unpacked(right: str, samples: int) -> np.ndarray:
    """Return what `packed` has written, (samples,) bool."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(right), np.uint8), count=samples).astype(bool)


def machine_in_use(device: torch.device, **load: float) -> dict[str, str | int | float]:
    """Return the machine with the number of threads and its load, for a stored result."""
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    return machine(device) | {"threads": threads} | {when: round(value, 1) for when, value in load.items()}


def add_option(parser: argparse.ArgumentParser) -> None:
    """Add the option --store."""
    parser.add_argument("--store", action="store_true", help="store the figures in benchmarks/speed.json")


def store(figures: Iterable[Figure], device: str = "cpu") -> None:
    """Store the figures of this program, which ran on this device."""
    found, place = stored(), "cpu" if device == "cpu" else "gpu"
    words = ["PATH" if os.path.exists(word) else word for word in sys.argv[1:] if word != "--store"]
    command = shlex.join(["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *words])
    run = {
        "command": command,
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine_in_use(torch.device(device), load_at_end=os.getloadavg()[0]),
        "versions": versions(),
    }
    for figure in figures:
        _put(found["measured"], place, command, run, figure)
    write_whole(STORED, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    print(f"stored in {STORED}; python -m benchmarks.results --readme puts the figures into docs/speed.md")


def _put(measured: list[dict], place: str, command: str, run: dict, figure: Figure) -> None:
    """Replace a figure or append it. The name of the task in the picture stays."""
    names = [(one["machine"], one["what"]) for one in measured]
    at = names.index((place, figure.what)) if (place, figure.what) in names else len(measured)
    old = measured[at] if at < len(measured) else {}
    new = {"machine": place, "what": figure.what}
    if "picture" in old:
        new["picture"] = old["picture"]
    rows: list[dict] = []
    for who, took, ratio in figure.others:
        times = {} if ratio is None else {"times": [float(f"{ratio:.2g}")] * 2}
        rows.append({"who": who, "took": took} | times)
    new |= {"command": command, "here": figure.here, "others": rows, "run": run}
    measured[at : at + 1] = [new]
