"""A guard of memory: each array that a kernel takes ends, or begins, at a page that nothing may touch."""

import ctypes
import mmap
import sys
from collections.abc import Callable
from types import ModuleType

import numpy as np

from snn import compiling
from snn.ops import cpu, stream


class Guard:
    """Memory of its own for each array that a kernel takes, between pages that nothing may touch.

    `at_end` is the share of arrays that end at such a page; the others begin at one.
    """

    def __init__(self, at_end: float = 0.8):
        self.at_end = at_end
        self.free: dict[int, list[mmap.mmap]] = {}
        self.random = np.random.default_rng(0)
        self.arrays = 0
        self.wrapped: list[tuple[ModuleType, str, Callable]] = []
        for module in (cpu, stream):  # modules printed from now on import the kernels themselves, and are guarded, too
            module.printed = self.printed

    def printed(self, name: str, source: str) -> ModuleType:
        for module, attribute, kernel in self.wrapped:
            setattr(module, attribute, kernel)
        try:
            return compiling.printed(name, source)
        finally:
            self.wrap()

    def wrap(self) -> None:
        """Put every kernel that Python calls behind this guard. Kernels that other kernels call stay as they are."""
        compiled: set[Callable] = set()
        for kernel in compiling._place_of:
            compiling._files_of(kernel.py_func, compiled)
        for module in [module for name, module in sys.modules.items() if name.split(".")[0] in ("snn", "datasets")]:
            inside = [function for function in compiled if function.__globals__ is vars(module)]
            called = {name for function in inside for name in function.__code__.co_names}
            for name, value in list(vars(module).items()):
                if hasattr(value, "py_func") and value in compiling._place_of and name not in called:
                    self.wrapped.append((module, name, value))
                    setattr(module, name, self.guarded(value))

    def guarded(self, kernel: Callable) -> Callable:
        def call(*arguments):
            held: list[tuple[np.ndarray, np.ndarray, mmap.mmap]] = []
            try:
                result = kernel(*(self.copy(argument, held) for argument in arguments))
            finally:
                for array, copied, memory in held:
                    if array.flags.writeable:
                        array[...] = copied
                    self.free[len(memory)].append(memory)
            return result

        call.__name__ = kernel.__name__
        return call

    def copy(self, argument, held: list):
        if isinstance(argument, tuple):
            return tuple(self.copy(item, held) for item in argument)
        if not isinstance(argument, np.ndarray) or not argument.flags.c_contiguous or argument.nbytes == 0:
            return argument
        memory = self.memory(argument.nbytes)
        end = len(memory) - mmap.PAGESIZE
        start = end - argument.nbytes if self.random.random() < self.at_end else mmap.PAGESIZE
        copied = np.ndarray(argument.shape, argument.dtype, memory, start)
        copied[...] = argument
        copied.flags.writeable = argument.flags.writeable
        held.append((argument, copied, memory))
        self.arrays += 1
        return copied

    def memory(self, size: int) -> mmap.mmap:
        size = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE + 2 * mmap.PAGESIZE
        if self.free.setdefault(size, []):
            return self.free[size].pop()
        memory = mmap.mmap(-1, size)
        start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        libc = ctypes.CDLL(None, use_errno=True)
        for page in (start, start + size - mmap.PAGESIZE):
            assert libc.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(mmap.PAGESIZE), 0) == 0  # PROT_NONE
        return memory
