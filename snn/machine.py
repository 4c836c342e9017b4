"""The machine: which device computes, and where and with what a number came to be."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

from snn.errors import InputError
from snn.files import REPOSITORY

PACKAGES = ("torch", "spikingjelly", "numpy", "numba")


def find_device(name: str) -> torch.device:
    """The device of that name, with TF32 off; auto is CUDA where there is one. Raises InputError if it cannot be used.

    TF32 would keep 10 bits of a float32's mantissa in convolutions, and the network would decide differently than on
    the CPU.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(name)
        if chosen.type != "cpu":
            torch.zeros(1, device=chosen).item()  # meta makes tensors, but they hold no numbers
            torch.backends.cudnn.allow_tf32 = False
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"train.device = {name}: cannot be used here ({reason:.100}); take cpu or auto") from None
    return chosen


def processor() -> str:
    """The model's name as Linux has it, else what Python knows."""
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8") if info.exists() else ""
    names = [line.split(":")[1].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()


def machine(device: torch.device) -> dict[str, str | int]:
    """The processor, on how many of its cores this process may run, and the GPU if that is the device."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpu = {"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {}
    return {"processor": processor(), "cores": cores} | gpu


def versions() -> dict[str, str]:
    """Of Python, the packages that compute, and this repository: its commit, with + if files have changed since."""
    found = {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
    git = ["git", "-C", str(REPOSITORY)]
    try:
        commit, changed = (
            subprocess.run([*git, *words], capture_output=True, text=True, check=True, timeout=10).stdout.strip()
            for words in (("rev-parse", "--short", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        )
    except (OSError, subprocess.SubprocessError):  # no git, or no repository
        return found
    return found | {"commit": commit + ("+" if changed else "")}
