"""Speed of the artificial cochlea on one core: `python -m benchmarks.cochlea [--json FILE]`.

Prints medians over alternating runs, as multiples of real time by the processor's clock: of the whole cochlea in Python
and (if there is a compiler) in C, of each stage, and of the authors' program `lauscher`, if it is installed, on a few
channels, extrapolated to 700.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numba import njit

from benchmarks.figures import Figure, Other, add_option, store
from datasets.prepare import cochlea as c
from datasets.prepare import cochlea_c
from datasets.prepare.speech import synthesise
from snn import cli

LAUSCHER_CHANNELS = 4
COMPILERS = {"gcc": ("gcc",), "zig": (sys.executable, "-m", "ziglang", "cc")}


@njit(error_model="numpy")
def _hair_cells(velocity, ear, probability):
    for step in range(len(velocity)):
        c.hair_cell_step(velocity[step], ear.free, ear.cleft, ear.reprocessed, probability[step])


@njit(error_model="numpy")
def _fibres(probability, ear, counts):
    for step in range(len(probability)):
        c.fibre_step(probability[step], ear.random, ear.ready, ear.fired[step % len(ear.fired)], counts[step])


@njit(error_model="numpy")
def _bushy_cells(counts, ear, spikes):
    for step in range(len(counts)):
        c.bushy_cell_step(counts[step], ear.current, ear.potential, ear.dead_steps, spikes)


def stages(audio: np.ndarray, sample_rate_hz: int) -> dict[str, Callable[[], object]]:
    """Return functions that run the whole, and each stage, once on input made beforehand."""
    conditioned = c.condition(audio, sample_rate_hz)
    in_c = {
        f"whole in C ({name})": partial(cochlea_c.Compiled(command).cochlea, audio, sample_rate_hz, 0)
        for name, command in COMPILERS.items()
        if (find_spec("ziglang") if name == "zig" else shutil.which(name))
    }
    velocity = np.concatenate([hop.copy() for hop in c.membrane_velocity(conditioned)])
    probability, counts = np.empty_like(velocity), np.empty_like(velocity)
    spikes = np.empty(c.N_PLACES, np.bool_)
    _hair_cells(velocity, c.Ear.at_rest(0), probability)
    return {
        "whole": lambda: c.cochlea(audio, sample_rate_hz, 0),
        **in_c,
        "conditioning": lambda: c.condition(audio, sample_rate_hz),
        "membrane": lambda: list(c.membrane_velocity(conditioned)),
        "hair cells": lambda: _hair_cells(velocity, c.Ear.at_rest(0), probability),
        "fibres": lambda: _fibres(probability, c.Ear.at_rest(0), counts),
        "bushy cells": lambda: _bushy_cells(counts, c.Ear.at_rest(0), spikes),
    }


def lauscher(audio: np.ndarray) -> Callable[[], object]:
    """Return the authors' chain on LAUSCHER_CHANNELS channels of audio at 48 kHz."""
    from lauscher.audiowaves import MonoAudioWave
    from lauscher.transformations.wave2spike import Wave2Spike

    return lambda: MonoAudioWave(audio, c.AUDIO_RATE_HZ).transform(Wave2Spike(LAUSCHER_CHANNELS))


def figure(times_real_time: dict[str, float]) -> Figure:
    """Return the row of docs/speed.md."""
    in_c = [f"{rate:.2g}" for name, rate in times_real_time.items() if name.startswith("whole in C")]
    here = f"{times_real_time['whole']:.2g} x real time" + (f"; in C {' and '.join(in_c)} x" if in_c else "")
    words = f"x real time, from {LAUSCHER_CHANNELS} of {c.N_PLACES} channels"
    theirs = [rate for name, rate in times_real_time.items() if name.startswith("lauscher")]
    return Figure("cochlea, one core", here, [Other("lauscher", f"{rate:.2g} {words}") for rate in theirs])


def main() -> None:
    """Measure, print a table and, if asked, write it as JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cochlea", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--runs", type=int, default=15, help="alternating runs of each stage (default: 15)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="file for the result (JSON)")
    add_option(parser)
    args = parser.parse_args()

    started = time.perf_counter()
    c.cochlea(np.random.default_rng(0).standard_normal(c.AUDIO_RATE_HZ // 10), c.AUDIO_RATE_HZ, 0)
    start_s = time.perf_counter() - started
    audio, sample_rate_hz = synthesise("seven", "en", "f2", pitch=50, rate_words_per_min=175)
    audio_s = len(audio) / sample_rate_hz
    measured = stages(audio, sample_rate_hz)
    if find_spec("lauscher"):
        measured["lauscher"] = lauscher(c.condition(audio, sample_rate_hz))

    seconds: dict[str, list[float]] = {name: [] for name in measured}
    for run in range(-1, args.runs):  # the first warms the compiler and the caches and does not count
        for name, function in measured.items():
            begin = time.process_time()
            function()
            if run >= 0:
                seconds[name].append(time.process_time() - begin)

    medians_s = {name: statistics.median(times) for name, times in seconds.items()}
    if "lauscher" in medians_s:
        name = f"lauscher, extrapolated from {LAUSCHER_CHANNELS} channels"
        medians_s[name] = medians_s.pop("lauscher") * c.N_PLACES / LAUSCHER_CHANNELS
    result = {
        "audio_s": audio_s,
        "runs": args.runs,
        "machine": f"{platform.processor() or platform.machine()}, Python {platform.python_version()}",
        "start_s": start_s,
        "median_s": medians_s,
        "times_real_time": {name: audio_s / median_s for name, median_s in medians_s.items()},
    }
    print(f"{audio_s:.2f} s of speech, one core, median of {args.runs} runs; once per process {start_s:.1f} s")
    for name, median_s in medians_s.items():
        print(f"{name:40s} {1000 * median_s:10.1f} ms {audio_s / median_s:10.3g} x real time")
    if args.store:
        store([figure(result["times_real_time"])])
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    cli.run(main)
