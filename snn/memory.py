"""Memory between the steps of a training loop."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of mallopt(3)


def keep_freed_memory() -> None:
    """Let the C library keep what is freed for the next step, for the rest of this process (glibc; elsewhere nothing).

    It would else return each large tensor to the system and fetch it back page by page: a third of a training step.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(_M_MMAP_MAX, 0)  # no mapping of its own for a large tensor, which would end with it
        mallopt(_M_TRIM_THRESHOLD, -1)  # never
