"""Compiled kernels for the steps between the products of a layer; each is one pass over memory.

The CPU kernels are here, compiled by numba, but for the gradient of a pool, which is in `snn.ops.max_pool`; those for
GPUs, all but the pools, are in `snn/ops/kernels/ttfs.cu`. They equal the plain torch of `snn.ttfs.functional` in every
bit. Arrays of a layer are flat; x and g hold two halves, see there. Maps of neurons have their channels last in memory
on the CPU, and any layout is accepted. Shapes and types are those that `snn.ttfs.functional` has checked.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from snn import checks, ops
from snn.errors import InputError
from snn.ops import max_pool
from snn.ops.compiled import in_parts, inlined, kernel
from snn.ops.max_pool import SERIAL_BELOW

ROUNDING = 1e-4  # as a share of T; an average of leads may exceed T by this much


# Selections instead of branches, and slices that begin at 0, let the compiler vectorise the loops.


@inlined
def _is_outside(t, low, high):
    return (t < low) | ((t > high) & (t != np.inf))


@kernel
def _check_times(outside, t, low, high, begin, end):
    """Set outside[0] = 1 if a time is neither in low ... high nor inf. NaN does not count."""
    t = t[begin:end]
    found = False
    for k in range(t.size):
        found |= _is_outside(t[k], low, high)
    if found:
        outside[0] = 1


@kernel
def _split(x, t, outside, T, low, high, begin, end):
    """Split times and check them, as `_check_times` does. NaN stays."""
    m, a, t = x[begin:end], x[t.size + begin : t.size + end], t[begin:end]
    one, zero = t.dtype.type(1), t.dtype.type(0)
    found = False
    for k in range(t.size):
        is_silent = t[k] == np.inf
        found |= _is_outside(t[k], low, high)
        m[k] = zero if is_silent else one
        a[k] = zero if is_silent else T - t[k]
    if found:
        outside[0] = 1


@kernel
def _fire(x, t, r, T, zero_drive_fires, begin, end):
    S_, A_, t, r = x[begin:end], x[t.size + begin : t.size + end], t[begin:end], r[begin:end]
    one, zero, inf = t.dtype.type(1), t.dtype.type(0), t.dtype.type(np.inf)
    for k in range(t.size):
        S, A = S_[k], A_[k]
        is_early = A >= T
        drive = T * S + A
        is_silent = (drive < zero) | ((abs(S) + abs(A) == zero) & (zero_drive_fires == zero))
        slope = one / (one + S)
        time = (T - A) * slope
        time = T if time > T else time
        r[k] = zero if is_early | is_silent else slope
        t[k] = zero if is_early else (inf if is_silent else time)


@kernel
def _spread(g, t, r, gx, T, clip, begin, end):
    g_m, g_a = gx[begin:end], gx[t.size + begin : t.size + end]
    g, t, r = g[begin:end], t[begin:end], r[begin:end]
    zero = t.dtype.type(0)
    if clip == np.inf:
        for k in range(t.size):
            time = zero if r[k] == zero else t[k]  # inf times 0 would be NaN
            g_m[k] = -(g[k] * (time * r[k]))
            g_a[k] = -(g[k] * r[k])
    else:
        for k in range(t.size):
            time = zero if r[k] == zero else t[k]
            g_I, g_S = min(r[k], clip), min((T + time) * r[k], clip)
            g_m[k] = g[k] * (T * g_I - g_S)
            g_a[k] = -g[k] * g_I


@kernel
def _by_time(g, t, begin, end):
    g, t = g[begin:end], t[begin:end]
    zero = t.dtype.type(0)
    for k in range(t.size):
        g[k] = zero if t[k] == np.inf else -g[k]


@kernel
def _earliest(t, out, places, _, begin, end):
    """Fill the lines begin ... end of `out`, over all images. The first of equal times wins, and NaN before all."""
    _, height, width, channels = out.shape
    for line in range(begin, end):
        b, y = line // height, line % height
        upper, lower, best, place = t[b, 2 * y], t[b, 2 * y + 1], out[b, y], places[b, y]
        for x in range(width):
            for c in range(channels):
                first, k = upper[2 * x, c], np.uint8(0)
                other = upper[2 * x + 1, c]
                is_earlier = (other < first) | (other != other)
                first, k = other if is_earlier else first, np.uint8(1) if is_earlier else k
                other = lower[2 * x, c]
                is_earlier = (other < first) | (other != other)
                first, k = other if is_earlier else first, np.uint8(2) if is_earlier else k
                other = lower[2 * x + 1, c]
                is_earlier = (other < first) | (other != other)
                first, k = other if is_earlier else first, np.uint8(3) if is_earlier else k
                best[x, c], place[x, c] = first, k


def fits(*tensors: Tensor) -> bool:
    """Return whether the kernels take these: on CPU or GPU, float32 or float64, and not while torch.compile traces."""
    return not torch.compiler.is_compiling() and all(
        x.device.type in ("cpu", "cuda") and x.dtype in checks.FLOATS for x in tensors
    )


def check_times(t: Tensor, T: float) -> None:
    """Raise InputError if a time on the CPU is neither in [0, T], up to rounding, nor inf. NaN passes and stays."""
    if t.device.type != "cpu" or not fits(t):
        return
    outside = torch.zeros(1, dtype=t.dtype)
    _run(_check_times, (outside, t), -ROUNDING * T, (1 + ROUNDING) * T)
    _refuse_if(outside, t, T)


def _refuse_if(outside: Tensor, t: Tensor, T: float) -> None:
    if outside.item():
        wrong = t[(t < 0) | ((t > T) & (t != np.inf))][0].item()
        raise InputError(f"a spike time is {wrong:g}; times lie in 0 to T = {T:g}, or are inf for no spike")


def split(t: Tensor, T: float) -> Tensor:
    """Return [m; a] of the times t along the first axis. InputError if a value on the CPU fails `check_times`."""
    x = _empty(t, 2 * len(t), *t.shape[1:])
    if t.is_cuda:
        _run(_split, (x, t), T)
        return x
    outside = torch.zeros(1, dtype=t.dtype)
    _run(_split, (x, t, outside), T, -ROUNDING * T, (1 + ROUNDING) * T)
    _refuse_if(outside, t, T)
    return x


def fire(x: Tensor, T: float, zero_drive_fires: bool) -> tuple[Tensor, Tensor]:
    """Return (times, 1 / (1 + S) for neurons that have a slope and 0 for others) from [S; A]."""
    t = _empty(x, len(x) // 2, *x.shape[1:])
    r = torch.empty_like(t)
    _run(_fire, (x, t, r), T, zero_drive_fires)
    return t, r


def spread(g: Tensor, t: Tensor, r: Tensor, T: float, clip: float) -> Tensor:
    """Return the gradient of [S; A] from that of the times."""
    gx = _empty(g, 2 * len(g), *g.shape[1:])
    _run(_spread, (g, t, r, gx), T, clip)
    return gx


def by_time(g: Tensor, t: Tensor) -> Tensor:
    """Overwrite g with -g, or 0 where t is silent."""
    g = g.contiguous(memory_format=layout(g))
    _run(_by_time, (g, t))
    return g


def earliest(t_BCHW: Tensor) -> Tensor:
    """Return the earliest spike of each 2 x 2 patch of maps on the CPU."""
    return max_pool.Pool.apply(t_BCHW.permute(0, 2, 3, 1), 2, _earliest).permute(0, 3, 1, 2)


def layout(x: Tensor) -> torch.memory_format:
    """Return where in memory the channels of x should lie: last in maps on the CPU, for fast convolutions."""
    is_map = x.dim() == 4 and x.device.type == "cpu"
    return torch.channels_last if is_map else torch.contiguous_format


def channels_last(x: Tensor) -> Tensor:
    """Return maps (..., C, H, W) as (..., H, W, C), with a copy only if they lie otherwise; vectors as they are."""
    return (x.detach().movedim(-3, -1) if x.dim() > 2 else x.detach()).contiguous()


def _empty(like: Tensor, *shape: int) -> Tensor:
    """Return memory for a tensor of this shape, in its layout."""
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout(like))


def _run(work: Callable, tensors: tuple[Tensor, ...], *constants: float) -> None:
    """Run `work` over flat views of the tensors (the second has one value per neuron), constants in their dtype."""
    if tensors[0].device.type == "cuda":
        _launch(work, tuple(x.contiguous() for x in tensors), *constants)
        return
    arrays = [(channels_last(x) if x.dim() == 4 else x.detach().contiguous()).view(-1).numpy() for x in tensors]
    numbers = [arrays[0].dtype.type(constant) for constant in constants]
    size = arrays[1].size
    threads = None if size >= SERIAL_BELOW else 1
    in_parts(work, (*arrays, *numbers), size, threads)


def _launch(work: Callable, tensors: tuple[Tensor, ...], *constants: float) -> None:
    """Launch the kernel of the same name on a GPU."""
    cuda, size = ops.kernels("cupy", tensors[0].device), tensors[1].numel()
    name = work.__name__.removeprefix("_")
    cuda.launch(cuda.file("ttfs.cu"), name, tensors, (*map(float, constants), size), size)
