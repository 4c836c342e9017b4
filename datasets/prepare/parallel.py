"""Run a function over many recordings on all cores."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from threading import Thread
from typing import TypeVar

from tqdm import tqdm

from snn.errors import InputError

Task = TypeVar("Task")
Result = TypeVar("Result")

CHUNK = 4  # recordings that a process takes at once


def map_in_order(
    function: Callable[[Task], Result], tasks: Sequence[Task], processes: int | None, description: str
) -> Iterator[Result]:
    """Yield function(task) for every task, in order, computed by fresh processes (None: one for each core).

    Shows a progress bar on a terminal. An exception in a process is raised here and ends all of them; a process that
    dies, as SciPy does of some damaged MATLAB files, is an InputError.
    """
    if processes is not None and processes < 1:
        raise InputError(f"processes is {processes}: choose at least 1")
    with ProcessPoolExecutor(processes, get_context("spawn"), _begin) as pool:
        results = pool.map(function, tasks, chunksize=CHUNK)
        done = 0
        try:
            for result in tqdm(results, total=len(tasks), desc=description, unit="recording", disable=None):
                yield result
                done += 1
        except BrokenProcessPool:
            raise InputError(
                f"{description}: a process died, of a damaged file or for want of memory, at recording {done} "
                f"({_name(tasks[done])}) or one of the next; look at their files, or try --processes 1"
            ) from None
        finally:
            # It waits for the pool's thread, also where all went well: one that is left closes the pipe through which
            # Python wakes it at the end of the program, and says "Bad file descriptor".
            pool.shutdown(cancel_futures=True)


def _begin() -> None:
    """A worker ignores Ctrl-C, which reaches its parent too, and ends with its parent, however that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent_process().join()
    os._exit(1)


def _name(task: object) -> str:
    """Return what a task is about: mostly it begins with its file."""
    return f"{task[0] if isinstance(task, tuple) else task}"
