"""What the kernels compiled by numba have in common: how they are compiled, and how they share torch's threads."""

import ctypes
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from threading import get_ident
from types import ModuleType

import numba
from numba.core import event

from snn.files import write_whole

PARTS_PER_THREAD = 4  # so that a thread whose core is busy elsewhere does not hold up the others

inlined = numba.njit(error_model="numpy")
_kernels = set()


def kernel(function: Callable) -> Callable:
    """Compile at the first call and keep the result on disk; other threads run meanwhile.

    numba compiles anew what it kept when the kernel's own file has changed. A kernel that calls those of other files is
    kept in a folder named after what these hold, so that it is compiled anew with them too.
    """
    own = function.__code__.co_filename
    others = sorted(_files_of(function, set()) - {own})
    before = numba.config.CACHE_DIR
    if others:
        state = sha256(b"".join(Path(path).read_bytes() for path in others)).hexdigest()[:12]
        numba.config.CACHE_DIR = str(Path(before or Path(own).parent / "__pycache__") / f"with-{state}")
    try:
        compiled = numba.njit(nogil=True, cache=True, error_model="numpy")(function)
    finally:
        numba.config.CACHE_DIR = before
    _kernels.add(compiled)
    return compiled


def _files_of(function: Callable, seen: set[Callable]) -> set[str]:
    """The source files of a function and of all compiled ones that it calls, and they call."""
    seen.add(function)
    files = {function.__code__.co_filename}
    for name in function.__code__.co_names:
        value = function.__globals__.get(name)
        called = getattr(value, "py_func", None) or getattr(value, "__wrapped__", None)  # compiled, or an intrinsic
        if called is not None and called not in seen:
            files |= _files_of(called, seen)
    return files


def printed(name: str, source: str) -> ModuleType:
    """A module of source text that was printed for this process: kept as a file, as numba needs for its disk cache."""
    title = f"snn.ops.printed.{name}_{sha256(source.encode()).hexdigest()[:12]}"
    if title in sys.modules:
        return sys.modules[title]
    folder = Path(numba.config.CACHE_DIR or Path(__file__).parent / "__pycache__") / "printed"
    path = folder / f"{title.rpartition('.')[2]}.py"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, source.encode())
    spec = spec_from_file_location(title, path)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[title] = module
    return module


class _CompileNotice(event.Listener):
    """Says what a first call waits for. numba sends this event only when nothing that fits lies in its disk cache."""

    def on_start(self, event: event.Event) -> None:
        function = event.data["dispatcher"]
        if function in _kernels:
            line = f"compiling a CPU kernel ({function.__name__.strip('_')}); this happens once, it is kept on disk"
            print(line, file=sys.stderr, flush=True)

    def on_end(self, event: event.Event) -> None:
        """Nothing to say."""


event.register("numba:compile", _CompileNotice())


# The GNU OpenMP that torch brings along on Linux, or None.
_gomp_parallel = getattr(ctypes.CDLL(None), "GOMP_parallel", None) if sys.platform == "linux" else None
_TASK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def in_parts(work: Callable[[int, int], None], size: int, threads: int) -> None:
    """work(begin, end) for parts that together cover 0 ... size, each thread taking the next part that is left."""
    step = max(1, -(-size // (threads * PARTS_PER_THREAD)) if threads > 1 else size)
    begins = iter(range(0, size, step))

    def take() -> None:
        for begin in begins:  # shared by all threads
            work(begin, min(begin + step, size))

    _on_threads(threads, take)


def _on_threads(threads: int, work: Callable[[], None]) -> None:
    """Run `work` on as many threads at once: torch's own where possible.

    After each of its operations these keep spinning for milliseconds; other threads would get half a core beside them.
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
        if get_ident() not in ran_in:  # Ctrl-C came on the very threshold of `task`, where ctypes swallows it
            raise KeyboardInterrupt
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(task, range(threads)))
    if failures:
        raise failures[0]
