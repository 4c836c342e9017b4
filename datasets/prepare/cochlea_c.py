"""The artificial cochlea in C (`cochlea.c`): its constants and tables, and the same call as in Python, to compare."""

from __future__ import annotations

import ctypes
import math
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from datasets.prepare import cochlea as c

SOURCE = Path(__file__).with_name("cochlea.c")
FLAGS = ("-std=c99", "-O3", "-ffp-contract=off")  # contraction would round differently, and move a spike now and then
ROOTS = 24_576  # all FFTs take their roots of unity from one table; their sizes divide it


def constants() -> str:
    """Return the text of the header cochlea_constants.h: the numbers of cochlea.py."""
    blocks = [len(transfer) for filter in c.filters() for transfer in filter.transfer]
    free, cleft, reprocessed = c.resting_transmitter()
    whole = {
        "PLACES": c.N_PLACES,
        "PLACES_PADDED": c.BLOCKS * c.LANES,
        "LANES": c.LANES,
        "PAIRS": c.LANES // 2,
        "RATE_HZ": c.RATE_HZ,
        "HOP": c.HOP,
        "PAST": c.PAST,
        "LOOKAHEAD": c.LOOKAHEAD,
        "WINDOW": c.WINDOW,
        "TAPS": c.TAPS,
        "ALL_DECIMATIONS": sum(group.decimation for group in c.GROUPS),
        "MOST_BINS": max(blocks),
        "MOST_POINTS": max(group.points for group in c.GROUPS),
        "ROOTS": ROOTS,
        "TABLES": tables().size,
        "FIBRES": c.N_FIBRES,
        "REFRACTORY_STEPS": c.REFRACTORY_STEPS,
    }
    single = {name: getattr(c, name) for name in "Y G R X A B HAIR_M LOSS RELEASE DT THIRD TO_UNIFORM".split()}
    single |= {name: getattr(c, name) for name in "DECAY_MEM DECAY_SYN THRESHOLD WEIGHT".split()}
    single |= {"FREE_AT_REST": free, "CLEFT_AT_REST": cleft, "REPROCESSED_AT_REST": reprocessed}
    single["SIN_60"] = math.sin(math.pi / 3)
    listed = {
        "GROUPS": "{" + ", ".join("{" + ", ".join(map(str, group)) + "}" for group in c.GROUPS) + "}",
        "BINS_OF_BLOCK": "{" + ", ".join(map(str, blocks)) + "}",
    }
    lines = [f"#define EAR_{name} {value}" for name, value in (whole | listed).items()]
    lines += [f"#define EAR_{name} {float(np.float32(value)).hex()}f" for name, value in single.items()]
    return "\n".join(["/* Printed by cochlea_c.py. */", *lines, ""])


@cache
def tables() -> np.ndarray:
    """Return the tables for `cochlea_start`, float32: roots of unity, interpolation weights, each block's transfer."""
    turns = np.exp(-2j * np.pi * np.arange(ROOTS) / ROOTS).astype(np.complex64)
    parts = [turns.view(np.float32), *(filter.taps.ravel() for filter in c.filters())]
    blocks = (transfer for filter in c.filters() for transfer in filter.transfer)
    parts += [np.stack([transfer.real, transfer.imag], axis=1).ravel() for transfer in blocks]  # [bins, 2, LANES]
    return np.concatenate(parts)


class Compiled:
    """cochlea.c as a library of this machine. compiler: a command such as ("gcc",)."""

    def __init__(self, compiler: Sequence[str], flags: Sequence[str] = (*FLAGS, "-march=native")):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "cochlea_constants.h").write_text(constants(), encoding="utf-8")
            library = folder / "cochlea.so"
            command = [*compiler, *flags, "-shared", "-fPIC", "-I", str(folder), "-o", str(library), str(SOURCE)]
            subprocess.run(command, check=True)
            self._library = ctypes.CDLL(str(library))
        room = np.zeros(2_000_000, np.uint8)  # more than a struct cochlea takes
        self._ear = room[-room.ctypes.data % 64 :]  # aligned as by the compiler: vectors within cache lines

    def cochlea(
        self, audio: np.ndarray, sample_rate_hz: int, seed: int | Sequence[int], at_once: int = 2**30
    ) -> tuple[np.ndarray, np.ndarray]:
        """Do as `cochlea.cochlea`; at_once: how many samples are pushed together."""
        most = c.BLOCKS * c.LANES * (c.HOP // c.REFRACTORY_STEPS + 1)
        ear, random, audio = self._ear, c.noise_states(seed), c.condition(audio, sample_rate_hz)
        self._library.cochlea_start(*(ctypes.c_void_p(array.ctypes.data) for array in (ear, tables(), random)))
        n_steps = c.steps_of(len(audio))
        padded = np.zeros(2 * (math.ceil(n_steps / c.HOP) * c.HOP + c.LOOKAHEAD), np.float32)
        padded[: len(audio)] = audio
        number, steps = np.frombuffer(ear, np.int32, 1), np.frombuffer(ear, np.int32, most, 64)
        units = np.frombuffer(ear, np.uint16, most, 64 + 4 * most)
        found, at = [], 0
        while at < len(padded):
            count = min(at_once, len(padded) - at)
            at += self._library.cochlea_push(
                ctypes.c_void_p(ear.ctypes.data), ctypes.c_void_p(padded.ctypes.data + 4 * at), count
            )
            found.append((steps[: number[0]].copy(), units[: number[0]].copy()))
        steps, units = (np.concatenate(part) for part in zip(*found, strict=True))
        is_heard = steps < n_steps
        return (steps[is_heard] * c.STEP_S).astype(np.float32), units[is_heard]
