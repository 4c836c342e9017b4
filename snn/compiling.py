"""Compilation of kernels by numba, the cache on disk, and the notice to the user. Does not import torch."""

import os
import sys
import tempfile
from collections.abc import Callable, Iterable
from functools import cache
from hashlib import sha256
from multiprocessing import parent_process
from pathlib import Path
from threading import Lock
from types import FunctionType, ModuleType
from typing import Any

import numba
from numba.core import event, sigutils
from numba.core.caching import FunctionCache
from numba.extending import register_jitable

from snn.files import write_whole

if numba.config.DISABLE_JIT:
    print("warning: NUMBA_DISABLE_JIT is set, but the kernels run only compiled, so it is ignored", file=sys.stderr)
    os.environ.pop("NUMBA_DISABLE_JIT", None)
    numba.config.DISABLE_JIT = 0

# For functions that kernels call, and that Python runs uncompiled: to compile them alone as well, with entries from
# Python and C, would take twice the time. Python's check for division by zero would prevent vectorisation.
inlined = register_jitable(error_model="numpy")
NOT_KEPT = "no cache folder is writable, so each program compiles it again; set NUMBA_CACHE_DIR to a writable one"
_place_of: dict[Callable, Path | None] = {}  # kernel -> its cache folder
hash_of: dict[Callable, str] = {}  # kernel -> hash of the source files that it was made from
_lock = Lock()


class _Cache(FunctionCache):
    """numba's cache, except that it gives no code for other types than asked for.

    If two processes compile a kernel for two types at once, numba takes the same file for both codes, and its index may
    then say that this file holds the code of the one while it holds that of the other.
    """

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        found = super().load_overload(sig, target_context)
        wanted, _ = sigutils.normalize_signature(sig)
        return found if found is not None and tuple(found.signature.args) == tuple(wanted) else None


def kernel(function: Callable) -> Callable:
    """Compile a kernel at its first call and cache it on disk if a folder can be written. It releases the GIL.

    numba compiles a cached kernel again if its own file has changed. A kernel that calls functions in other files is
    cached in a folder named after a hash of those files, so that it is compiled again if they change.
    """
    if function.__closure__:
        raise TypeError(f"the kernel {function.__qualname__} must take what it needs as arguments, not from around it")
    place = _first_writable(beside(function))
    files = _files_of(function, set())
    others = files - {function.__code__.co_filename}
    folder = place and (place / f"with-{hash_files(others)}" if others else place)
    compiled = cached(function, folder)
    _place_of[compiled], hash_of[compiled] = place, hash_files(files)
    return compiled


def cached(function: Callable, folder: Path | None) -> Callable:
    """Compile a function at its first call, and cache it in this folder, if any."""
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True}
    with _lock:
        before = numba.config.CACHE_DIR
        numba.config.CACHE_DIR = "" if folder in (None, beside(function)) else str(folder)
        try:
            compiled = numba.njit(**options)(function)
            if folder is not None:
                compiled._cache = _Cache(function)
            return compiled
        finally:
            numba.config.CACHE_DIR = before


def beside(function: Callable) -> Path:
    """Return numba's own choice of a cache folder."""
    return Path(function.__code__.co_filename).parent / "__pycache__"


def hash_files(paths: Iterable[str]) -> str:
    """Return a short hash of what these files hold now."""
    return sha256(b"".join(Path(path).read_bytes() for path in sorted(paths) if Path(path).is_file())).hexdigest()[:12]


def printed(name: str, source: str) -> ModuleType:
    """Make a module of source text, stored in a file if possible, since numba caches only code that has a file."""
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
    """Return the first writable folder: NUMBA_CACHE_DIR, beside the source, the user's cache, a temporary one."""
    places = [
        *([Path(numba.config.CACHE_DIR).absolute()] if numba.config.CACHE_DIR else []),
        beside,
        Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "first-spike"),
    ]
    found = (place for place in places if place.is_absolute() and _is_writable(place))  # without a home, ~ remains
    return next(found, None) or _own_temporary()


def _is_writable(folder: Path) -> bool:
    """Make the folder, and return whether it can hold new files."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return False
    return True


@cache
def _own_temporary() -> Path | None:
    """Return a temporary folder that nobody else may write to, because numba runs the code it finds there."""
    try:
        folder = Path(tempfile.gettempdir(), f"first-spike-{os.getuid()}")
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except OSError:
        return None
    is_own = status.st_uid == os.getuid() and status.st_mode & 0o170077 == 0o040000  # a folder, for its owner alone
    return folder if is_own and _is_writable(folder) else None


def _files_of(function: Callable, seen: set[Callable]) -> set[str]:
    """Return the source files of a function and of all compiled functions that it calls, directly or not."""
    seen.add(function)
    files = {function.__code__.co_filename}
    for name in function.__code__.co_names:
        value = function.__globals__.get(name)
        called = getattr(value, "py_func", None) or getattr(value, "__wrapped__", value)  # compiled, or an intrinsic
        if isinstance(called, FunctionType) and called not in seen:
            files |= _files_of(called, seen)
    return files


class _CompileNotice(event.Listener):
    """A notice that a first call waits for a compilation. numba sends the event only if its cache has no match."""

    def on_start(self, event: event.Event) -> None:
        function = event.data["dispatcher"]
        if function in _place_of and parent_process() is None:  # otherwise each of many processes would say so
            place = _place_of[function]
            keeping = f"this happens once; the result is kept in {place}" if place else NOT_KEPT
            print(f"compiling a CPU kernel ({function.__name__.strip('_')}); {keeping}", file=sys.stderr, flush=True)

    def on_end(self, event: event.Event) -> None:
        """Do nothing."""


event.register("numba:compile", _CompileNotice())
