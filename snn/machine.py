"""Where and with what a number came to be."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGES = ("torch", "spikingjelly", "numpy", "numba")


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
