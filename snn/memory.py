"""Memory: keep freed memory between the steps of a training loop, and find out how much is available."""

import ctypes
import os
import re
import resource
import sys
from contextlib import suppress
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of mallopt(3)
CONTROL_GROUPS = (  # version 2 and version 1: folder, limit, in use
    ("/sys/fs/cgroup", "memory.max", "memory.current"),
    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
)


def keep_freed_memory() -> None:
    """Make the C library keep freed memory for the next step, for the rest of this process (glibc only).

    Otherwise it returns each large tensor to the system and fetches it back page by page: a third of a training step.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(_M_MMAP_MAX, 0)  # a large tensor gets no mapping of its own, which would end with the tensor
        mallopt(_M_TRIM_THRESHOLD, -1)  # never give memory back


def available_bytes() -> int:
    """Return how much more memory this process may take, by the machine, its control group and its own limit."""
    try:
        (kilobytes,) = re.findall(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(encoding="utf-8"))
        limits = [1024 * int(kilobytes)]
    except (OSError, ValueError):  # not Linux: assume half of the machine's memory
        limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2]
    for folder, most, used in CONTROL_GROUPS:
        with suppress(OSError, ValueError):  # there is no such group, or its limit is "max"
            limits.append(
                int(Path(folder, most).read_text(encoding="utf-8"))
                - int(Path(folder, used).read_text(encoding="utf-8"))
            )
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        with suppress(OSError):  # not Linux
            pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0])
            limits.append(limit - pages * os.sysconf("SC_PAGE_SIZE"))
    return max(0, min(limits))
