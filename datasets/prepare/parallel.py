"""Run a function over many recordings on all cores, by processes or by threads; the results come in order."""

from __future__ import annotations

import os
import queue
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing import get_context, parent_process, resource_tracker
from threading import Event, Thread
from typing import Any, NamedTuple, TypeVar

from tqdm import tqdm

from snn.errors import InputError

Task = TypeVar("Task")
Result = TypeVar("Result")

CHUNK = 4  # recordings that a process takes at once
AHEAD = 4  # parts of its task that a thread holds ready


def map_in_order(
    function: Callable[[Task], Result], tasks: Sequence[Task], processes: int | None, description: str
) -> Iterator[Result]:
    """Yield function(task) for every task, in order, computed by fresh processes (None: one for each core).

    Shows a progress bar on a terminal. An exception in a process is raised here and ends all of them; a process that
    dies, as SciPy does on some damaged MATLAB files, is an InputError.
    """
    if processes is not None and processes < 1:
        raise InputError(f"processes is {processes}: choose at least 1")
    with ProcessPoolExecutor(processes, get_context("spawn"), _begin) as pool:
        done = 0
        try:
            results = _started(pool, function, tasks)
            for result in tqdm(results, total=len(tasks), desc=description, unit="recording", disable=None):
                yield result
                done += 1
        except BrokenProcessPool:
            raise InputError(
                f"{description}: a process died, because of a damaged file or too little memory, at recording {done} "
                f"({_name(tasks[done])}) or one of the next; check these files, or try --processes 1"
            ) from None
        finally:
            # It waits for the pool's thread even if all went well: a thread that is left closes the pipe through which
            # Python wakes it at the end of the program, and prints "Bad file descriptor".
            pool.shutdown(cancel_futures=True)


def _started(pool: ProcessPoolExecutor, function: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[Result]:
    """Start the processes and give them their tasks, in a thread that Ctrl-C does not reach, and neither do they.

    A process starts with the signals of its thread blocked. Otherwise Ctrl-C would end it, with a traceback, until it
    has come to `_begin`; and in this thread, Ctrl-C could leave a process half started, and its pool waiting for it.
    """
    resource_tracker.ensure_running()  # it would unblock them
    with ThreadPoolExecutor(1, initializer=signal.pthread_sigmask, initargs=(signal.SIG_BLOCK, [signal.SIGINT])) as one:
        return one.submit(pool.map, function, tasks, chunksize=CHUNK).result()


def _begin() -> None:
    """Have a worker ignore Ctrl-C, which reaches its parent too, and end with its parent, however that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent_process().join()
    os._exit(1)


def _name(task: object) -> str:
    """Name a task by its first part, which is mostly its file."""
    return f"{task[0] if isinstance(task, tuple) else task}"


class Done(NamedTuple):
    """The end of the parts of a task."""

    result: object  # what its generator returned


def parts_in_order(
    function: Callable[[Task], Generator[Any, None, Any]], tasks: Sequence[Task], threads: int
) -> Iterator[tuple[int, Any]]:
    """Yield (number of the task, part from its generator) in order, and (number, `Done`) after the last of each task.

    Each generator runs in a thread, `threads` of them at once, and is a few parts ahead. Compiled code runs in
    parallel. An exception in a thread is raised here when its turn comes.
    """
    stop = Event()

    def put(ready: queue.Queue, part: object) -> bool:
        while not stop.is_set():
            with suppress(queue.Full):
                ready.put(part, timeout=0.2)
                return True
        return False

    def work(task: Task, ready: queue.Queue) -> None:
        def parts() -> Iterator:
            yield Done((yield from function(task)))

        try:
            for part in parts():
                if not put(ready, part):
                    return
        except BaseException as error:
            put(ready, error)

    with ThreadPoolExecutor(threads) as pool:
        waiting = iter(enumerate(tasks))
        active: deque[tuple[int, queue.Queue]] = deque()

        def fill() -> None:
            while len(active) <= threads and (following := next(waiting, None)):
                active.append((following[0], queue.Queue(AHEAD)))
                pool.submit(work, following[1], active[-1][1])

        try:
            fill()
            while active:
                number, ready = active[0]
                part = None
                while not isinstance(part, Done):
                    part = ready.get()
                    if isinstance(part, BaseException):
                        raise part
                    yield number, part
                active.popleft()
                fill()
        finally:
            stop.set()
