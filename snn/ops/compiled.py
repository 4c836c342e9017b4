"""Kernels on torch's own threads; `snn.compiling` compiles them.

Torch's threads keep spinning for milliseconds after each operation, so others would get half a core beside them. With
the GNU OpenMP that comes with torch on Linux, a compiled function hands them the parts of a kernel. This takes about
two microseconds, as no thread needs Python's lock. Elsewhere threads of Python take the parts.
"""

import ctypes
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import torch
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from snn import compiling
from snn.compiling import inlined, kernel, printed

__all__ = ["in_parts", "inlined", "kernel", "printed"]

PARTS_PER_THREAD = 4  # so that a thread whose core is busy elsewhere does not hold up the others
_gomp = getattr(ctypes.CDLL(None), "GOMP_parallel", None) if sys.platform == "linux" else None
GOMP_PARALLEL = ctypes.cast(_gomp, ctypes.c_void_p).value if _gomp else None  # its address
OWN_HASH = compiling.hash_files([__file__])


def in_parts(work: Callable[..., None], arguments: Sequence, size: int, threads: int | None = None) -> None:
    """Call the kernel `work`(*arguments, begin, end) on parts that together cover 0 ... size.

    Each thread takes the next part that is left. By default there are as many threads as torch has, even for fewer
    parts: GNU OpenMP ends threads that a team lacks, and torch's next operation would have to start them again.
    MemoryError if a kernel cannot have the memory it asks for.
    """
    threads = threads or torch.get_num_threads()
    step = max(1, -(-size // (threads * PARTS_PER_THREAD)))
    if threads == 1 or size == 1:
        work(*arguments, 0, size)
    elif GOMP_PARALLEL:
        if not _team(work)(tuple(arguments), size, step, threads, GOMP_PARALLEL):
            raise MemoryError(f"a part of the kernel {work.__name__} failed, most likely for lack of memory")
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda begin: work(*arguments, begin, min(begin + step, size)), range(0, size, step)))


@cache
def _team(work: Any) -> Callable[..., bool]:
    """Return the compiled function that hands out the parts of a kernel."""
    line = work.py_func.__code__.co_firstlineno
    source = (  # with the hashes, the cache holds no code of earlier files
        f"# {work.__qualname__} of {work.__module__}, line {line}, {compiling.hash_of[work]}, {OWN_HASH}\n"
        "def team(arguments, size, step, threads, start):\n"
        "    return hand_out(work, arguments, size, step, threads, start)\n"
    )
    module = printed(f"team_{work.__name__.strip('_')}", source)
    vars(module).update(work=work, hand_out=_hand_out)
    is_kept = Path(module.team.__code__.co_filename).is_file()
    return compiling.cached(module.team, compiling.beside(module.team) if is_kept else None)


@intrinsic
def _hand_out(typing, work, arguments, size, step, threads, start):
    """Call the kernel on parts of `step` from each of these threads, and return whether all parts succeeded.

    `start` is the address of GOMP_parallel(task, data, threads, flags), which calls task(data) in each thread.
    """
    called = work.get_call_type(typing, (*arguments.types, types.intp, types.intp), {})

    def code(context, builder, signature, values):
        _, arguments, size, step, threads, start = values
        context.add_linking_libs(context.get_function(work, called).libs)
        begin, failures = size.type(0), size.type(0)  # of the next part; how many failed
        fields = cgutils.pack_struct(builder, (begin, failures, size, step, arguments))
        data = cgutils.alloca_once_value(builder, fields)
        pointer, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        name = f"{builder.function.name}.task"
        task = ir.Function(builder.module, ir.FunctionType(ir.VoidType(), [pointer]), name)
        task.linkage = "internal"
        function = work.dispatcher.get_compile_result(called).fndesc
        _take_parts(context, task, data.type, function, called)

        kind = ir.FunctionType(ir.VoidType(), [task.type, pointer, number, number])
        run = builder.inttoptr(start, kind.as_pointer())
        builder.call(run, [task, builder.bitcast(data, pointer), builder.trunc(threads, number), number(0)])
        failed = builder.load(cgutils.gep_inbounds(builder, data, 0, 1))
        return builder.icmp_signed("==", failed, failures)

    return types.boolean(work, arguments, *[types.intp] * 4), code


def _take_parts(context, task, data_type, work, called):
    """Write the body of a task: while there are parts left, take the next one and call the kernel on it."""
    builder = ir.IRBuilder(task.append_basic_block())
    data = builder.bitcast(task.args[0], data_type)
    next_, failures, size, step, arguments = (cgutils.gep_inbounds(builder, data, 0, k) for k in range(5))
    size, step, arguments = map(builder.load, (size, step, arguments))
    arguments = cgutils.unpack_tuple(builder, arguments)
    loop, body, done = (task.append_basic_block() for _ in range(3))
    builder.branch(loop)
    builder.position_at_end(loop)
    begin = builder.atomic_rmw("add", next_, step, "monotonic")
    builder.cbranch(builder.icmp_signed("<", begin, size), body, done)
    builder.position_at_end(body)
    end = builder.add(begin, step)
    end = builder.select(builder.icmp_signed("<", end, size), end, size)
    status, _ = context.call_internal_no_propagate(builder, work, called, [*arguments, begin, end])
    builder.atomic_rmw("add", failures, builder.zext(status.is_error, size.type), "monotonic")
    builder.branch(loop)
    builder.position_at_end(done)
    builder.ret_void()
