"""The neurons of `snn.ops.reference` on a CUDA device: `kernels/neuron.cu`. The only importer of cupy.

Kernels run on torch's tensors where they lie, on torch's current stream of that device. A recurrent layer launches them
for one step at a time, with a dense product in between: its loop over the steps is in Python, and in training is
recorded once (`snn.replay`). `launch` runs what else lies in `kernels/`, too.
"""

from functools import cache
from pathlib import Path

import cupy
import torch
from cupy.cuda import nvrtc
from torch import Tensor

from snn.errors import InputError
from snn.ops.reference import SURROGATE_SLOPE, Dynamics, State, Values

KERNELS = Path(__file__).parent / "kernels"
THREADS = 128  # a block; small, so that few columns still reach many multiprocessors
CARRY = 5  # rows that the backward kernel hands from launch to launch


class CannotCompile(Exception):
    """NVRTC does not take this; with its words."""


@cache
def defines(neuron: Dynamics, dtype: torch.dtype, learned: bool) -> tuple[str, ...]:
    """The variant of the source that this neuron needs, as compiler options (of nvrtc and g++ alike)."""
    flags = {
        "CURRENT": neuron.current,
        "ADAPTATION": neuron.adaptation,
        "SOFT": neuron.reset == "soft",
        "STRICT": neuron.spike_first,
        "LEARNED": learned,
    }
    return (
        real(dtype),
        f"-DTHREADS={THREADS}",
        f"-DSURROGATE_SLOPE={SURROGATE_SLOPE}",
        *(f"-D{name}={int(is_set)}" for name, is_set in flags.items()),
    )


def real(dtype: torch.dtype) -> str:
    """The option that says in which numbers to compute."""
    return f"-DREAL={'float' if dtype == torch.float32 else 'double'}"


def machine_code(source: str, architecture: str, options: tuple[str, ...]) -> tuple[bytes, str]:
    """The kernels of one variant of a file for sm_<architecture>, and the compiler's report.

    Not by cupy.RawModule, which adds -ftz=true: potentials below the normal numbers would differ from the reference.
    """
    program = nvrtc.createProgram((KERNELS / source).read_text(encoding="utf-8"), source, [], [])
    try:
        nvrtc.compileProgram(program, [f"-arch=sm_{architecture}", "--fmad=false", "--ptxas-options=-v", *options])
        return nvrtc.getCUBIN(program), nvrtc.getProgramLog(program)
    except nvrtc.NVRTCError as error:
        raise CannotCompile(f"{source} for sm_{architecture}: {error}: {nvrtc.getProgramLog(program)}") from None
    finally:
        nvrtc.destroyProgram(program)


@cache
def _module(source: str, options: tuple[str, ...], device: int) -> cupy.cuda.function.Module:
    """The compiled kernels of one variant, loaded on that device; some .1 s at their first use in a process."""
    with cupy.cuda.Device(device) as gpu:
        architecture = gpu.compute_capability
        try:
            code, _ = machine_code(source, architecture, options)
        except CannotCompile as error:
            raise InputError(
                f"backend 'cupy' cannot compile {' '.join(str(error).split())}; for a GPU that this cupy does not "
                "know, install the package of a newer CUDA"
            ) from None
        module = cupy.cuda.function.Module()
        module.load(code)
        return module


@cache
def _function(source: str, kernel: str, options: tuple[str, ...], device: int) -> cupy.cuda.function.Function:
    return _module(source, options, device).get_function(kernel)


def launch(
    source: str,
    kernel: str,
    options: tuple[str, ...],
    tensors: tuple[Tensor | None, ...],
    scalars: tuple[float, ...],
    threads: int,
) -> None:
    """Run a kernel of a file in `kernels/`, in so many threads. Tensors come first, None as a null pointer."""
    device = tensors[0].device
    function = _function(source, kernel, options, device.index)
    stream = cupy.cuda.Stream.from_external(torch.cuda.current_stream(device))
    with cupy.cuda.Device(device.index), stream:
        pointers = (0 if tensor is None else tensor.data_ptr() for tensor in tensors)
        function((-(-threads // THREADS),), (THREADS,), (*pointers, *scalars))


def forward(
    x_TBN: Tensor,
    y_TBN: Tensor,
    h_TBN: Tensor | None,
    total_TBN: Tensor | None,
    state: State,
    first_DBN: Tensor | None,
    values: Values,
    neuron: Dynamics,
    V_NN: Tensor | None,
) -> None:
    """See `snn.ops.fused.Backend`."""
    T, B, N = x_TBN.shape

    options = defines(neuron, x_TBN.dtype, learned=False)

    def run(x_TBN: Tensor, begin: int, end: int) -> None:
        tensors = (x_TBN, y_TBN, h_TBN, *state[:4], *values)
        launch("neuron.cu", "forward", options, tensors, (neuron.theta, begin, end, B * N, N), B * N)

    if V_NN is None:
        run(x_TBN, 0, T)
        return
    total_TBN = torch.empty_like(x_TBN) if total_TBN is None else total_TBN
    D = len(first_DBN)
    for t in range(T):
        fed_BN = first_DBN[t] if t < D else y_TBN[t - D]
        torch.add(x_TBN[t], fed_BN @ V_NN.T, out=total_TBN[t])
        run(total_TBN, t, t + 1)


def backward(
    gy_TBN: Tensor,
    gh_TBN: Tensor | None,
    x_TBN: Tensor | None,
    h_TBN: Tensor,
    gx_TBN: Tensor,
    sums_KBN: Tensor | None,
    gstate: State,
    gfirst_DBN: Tensor | None,
    state: State,
    values: Values,
    neuron: Dynamics,
    V_NN: Tensor | None,
) -> None:
    """See `snn.ops.fused.Backend`."""
    T, B, N = h_TBN.shape
    learned = sums_KBN is not None
    carry_KBN = h_TBN.new_empty(CARRY, B, N) if V_NN is not None and learned else None

    options = defines(neuron, h_TBN.dtype, learned)

    def run(gy_TBN: Tensor, begin: int, end: int) -> None:
        tensors = (gy_TBN, gh_TBN, x_TBN, h_TBN, gx_TBN, sums_KBN, carry_KBN, *gstate[:4], *state[:4], *values)
        launch("neuron.cu", "backward", options, tensors, (neuron.theta, T, begin, end, B * N, N), B * N)

    if V_NN is None:
        run(gy_TBN, 0, T)
        return
    gy_TBN = gy_TBN.clone()
    D = len(gfirst_DBN)
    for t in reversed(range(T)):
        if t + D < T:
            gy_TBN[t].addmm_(gx_TBN[t + D], V_NN)
        run(gy_TBN, t, t + 1)
    for d in range(min(D, T)):
        gfirst_DBN[d].addmm_(gx_TBN[d], V_NN)
