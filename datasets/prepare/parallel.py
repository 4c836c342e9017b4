"""Run a function over many recordings on all cores."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import get_context
from typing import TypeVar

from tqdm import tqdm

from snn.errors import InputError

Task = TypeVar("Task")
Result = TypeVar("Result")


def map_in_order(
    function: Callable[[Task], Result], tasks: Sequence[Task], processes: int | None, description: str
) -> Iterator[Result]:
    """Yield function(task) for every task, in order, computed by fresh processes (None: one for each core).

    Shows a progress bar on a terminal. An exception in a process is raised here and ends all of them.
    """
    if processes is not None and processes < 1:
        raise InputError(f"processes is {processes}: choose at least 1")
    # The workers ignore Ctrl-C: it reaches this process too, which then ends them.
    ignore_interrupt = (signal.SIGINT, signal.SIG_IGN)
    with get_context("spawn").Pool(processes, initializer=signal.signal, initargs=ignore_interrupt) as pool:
        results = pool.imap(function, tasks, chunksize=4)
        yield from tqdm(results, total=len(tasks), desc=description, unit="recording", disable=None)
