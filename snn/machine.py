"""The machine: the choice of a device, and the hardware and software versions behind a number."""

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
    """Return the device of this name and turn TF32 off; "auto" is CUDA if available. InputError if it cannot be used.

    TF32 would keep only 10 mantissa bits in convolutions, and the network would decide differently than on the CPU.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(name)
        if chosen.type != "cpu":
            torch.zeros(1, device=chosen).item()  # fails on the meta device, whose tensors hold no numbers
            torch.backends.cudnn.allow_tf32 = False
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"train.device = {name}: cannot be used here ({reason:.100}); use cpu or auto") from None
    return chosen


def processor() -> str:
    """Return the processor's name from Linux, or what Python knows on other systems."""
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8") if info.exists() else ""
    names = [line.split(":")[1].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()


def machine(device: torch.device) -> dict[str, str | int | None]:
    """Return the processor, the number of cores this process may use, and the GPU if that is the device."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found: dict[str, str | int | None] = {"processor": processor(), "cores": cores}
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    return found


def versions() -> dict[str, str]:
    """Return versions of Python, the computing packages and this repository: its commit, with + if a file is changed.

    Results are no part of the code, so a changed result does not count.
    """
    found = {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
    git = ["git", "-C", str(REPOSITORY)]
    try:
        commit, changed = (
            subprocess.run([*git, *words], capture_output=True, text=True, check=True, timeout=10).stdout.strip()
            for words in (
                ("rev-parse", "--short", "HEAD"),
                ("status", "--porcelain", "--untracked-files=no", ":!results"),
            )
        )
    except (OSError, subprocess.SubprocessError):  # there is no git, or no repository
        return found
    return found | {"commit": commit + ("+" if changed else "")}
