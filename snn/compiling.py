"""Kernels compiled by numba: how, where the result is kept, and what the user hears of it. Does without torch."""

import os
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from hashlib import sha256
from multiprocessing import parent_process
from pathlib import Path
from types import ModuleType

import numba
from numba.core import event

from snn.files import write_whole

if numba.config.DISABLE_JIT:
    print("warning: NUMBA_DISABLE_JIT is set, but our kernels run compiled only: it is passed over", file=sys.stderr)
    os.environ.pop("NUMBA_DISABLE_JIT", None)
    numba.config.DISABLE_JIT = 0

inlined = numba.njit(error_model="numpy")  # Python's check for a division by zero would keep loops from vectors
NOT_KEPT = "no folder can be written to keep it, so each program compiles anew; NUMBA_CACHE_DIR can name one"
_place_of: dict[Callable, Path | None] = {}  # kernel -> the folder that keeps it


def kernel(function: Callable) -> Callable:
    """Compile at the first call and keep the result on disk where a folder can be written; other threads run meanwhile.

    numba compiles anew what it kept when the kernel's own file has changed. A kernel that calls those of other files is
    kept in a folder named after what these hold, so that it is compiled anew with them too.
    """
    own = function.__code__.co_filename
    beside = Path(own).parent / "__pycache__"  # numba's own choice
    place = _first_writable(beside)
    others = sorted(_files_of(function, set()) - {own})
    folder = place
    if place and others:
        state = sha256(b"".join(Path(path).read_bytes() for path in others)).hexdigest()[:12]
        folder = place / f"with-{state}"
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = "" if folder in (None, beside) else str(folder)
    try:
        compiled = numba.njit(nogil=True, cache=folder is not None, error_model="numpy")(function)
    finally:
        numba.config.CACHE_DIR = before
    _place_of[compiled] = place
    return compiled


def printed(name: str, source: str) -> ModuleType:
    """A module of source text, kept as a file where one can be written, as numba needs for what it keeps on disk."""
    title = f"snn.ops.printed.{name}_{sha256(source.encode()).hexdigest()[:12]}"
    if title in sys.modules:
        return sys.modules[title]
    place = _first_writable(Path(__file__).parent / "ops" / "__pycache__")
    path = Path(f"<{title}>")
    if place is not None:
        path = place / "printed" / f"{title.rpartition('.')[2]}.py"
        path.parent.mkdir(exist_ok=True)
        if not path.is_file():
            write_whole(path, source)
    module = ModuleType(title)
    exec(compile(source, str(path), "exec"), vars(module))
    return sys.modules.setdefault(title, module)


@cache
def _first_writable(beside: Path) -> Path | None:
    """NUMBA_CACHE_DIR, beside the source, the user's cache or a folder of the user's own in the temporary directory."""
    places = [
        *([Path(numba.config.CACHE_DIR).absolute()] if numba.config.CACHE_DIR else []),
        beside,
        Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "first-spike"),
    ]
    found = (place for place in places if place.is_absolute() and _is_writable(place))  # without a home, ~ stays
    return next(found, None) or _own_temporary()


def _is_writable(folder: Path) -> bool:
    """Return whether files can be made there; makes the folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return False
    return True


@cache
def _own_temporary() -> Path | None:
    """A temporary folder that nobody else may write, as numba runs what it finds there."""
    try:
        folder = Path(tempfile.gettempdir(), f"first-spike-{os.getuid()}")
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except OSError:
        return None
    is_own = status.st_uid == os.getuid() and status.st_mode & 0o170077 == 0o040000  # a folder, for its owner alone
    return folder if is_own and _is_writable(folder) else None


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


class _CompileNotice(event.Listener):
    """Says what a first call waits for. numba sends this event only when nothing that fits lies in its disk cache."""

    def on_start(self, event: event.Event) -> None:
        function = event.data["dispatcher"]
        if function in _place_of and parent_process() is None:  # else one of many alike
            place = _place_of[function]
            keeping = f"this happens once, it is kept in {place}" if place else NOT_KEPT
            print(f"compiling a CPU kernel ({function.__name__.strip('_')}); {keeping}", file=sys.stderr, flush=True)

    def on_end(self, event: event.Event) -> None:
        """Nothing to say."""


event.register("numba:compile", _CompileNotice())
