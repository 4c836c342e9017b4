"""Kernels share torch's threads; `snn.compiling` compiles them."""

import ctypes
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import get_ident

from snn.compiling import inlined, kernel, printed

__all__ = ["in_parts", "inlined", "kernel", "printed"]

PARTS_PER_THREAD = 4  # so that a thread whose core is busy elsewhere does not hold up the others


# The GNU OpenMP that comes with torch on Linux, or None.
_gomp_parallel = getattr(ctypes.CDLL(None), "GOMP_parallel", None) if sys.platform == "linux" else None
_TASK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def in_parts(work: Callable[[int, int], None], size: int, threads: int) -> None:
    """Call work(begin, end) on parts that together cover 0 ... size; each thread takes the next part that is left."""
    step = max(1, -(-size // (threads * PARTS_PER_THREAD)) if threads > 1 else size)
    begins = iter(range(0, size, step))

    def take() -> None:
        for begin in begins:  # shared by all threads
            work(begin, min(begin + step, size))

    _on_threads(threads, take)


def _on_threads(threads: int, work: Callable[[], None]) -> None:
    """Run `work` on this many threads at once: torch's own where possible.

    Torch's threads keep spinning for milliseconds after each operation, so others would get half a core beside them.
    """
    failures, ran_in = [], set()

    def task(_: int | None) -> None:
        try:
            ran_in.add(get_ident())
            work()
        except BaseException as failure:  # ctypes would swallow it
            failures.append(failure)

    if threads == 1:
        task(None)
    elif _gomp_parallel:
        _gomp_parallel(_TASK(task), None, threads, 0)
        if get_ident() not in ran_in:  # Ctrl-C came before the first line of `task`, where ctypes swallows it
            raise KeyboardInterrupt
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(task, range(threads)))
    if failures:
        raise failures[0]
