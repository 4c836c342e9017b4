"""Neurons on a CUDA device, printed from their definition with the frame of `kernels/neuron.cu`.

This is the only module that imports cupy. Kernels run on torch's tensors in place, on torch's current stream of that
device. A recurrent layer launches them for one step at a time, with a dense product in between: its loop over the steps
is in Python, and in training is recorded once (`snn.replay`). `launch` also runs the other kernels in `kernels/`.
"""

from functools import cache

import cupy
import torch
from cupy.cuda import nvrtc
from torch import Tensor

from snn.errors import InputError
from snn.ops import printer, reference
from snn.ops.fused import Call
from snn.ops.printer import segment

KEPT_BYTES = 512  # threads of a block times bytes of a number: small, so that few columns still reach many
# multiprocessors, and what a segment keeps fits the memory that a block shares


source, file = cache(printer.cuda), printer.file


def threads_of(dtype: torch.dtype) -> int:
    """Return the number of threads of a block."""
    return KEPT_BYTES // dtype.itemsize


def options_of(dtype: torch.dtype) -> tuple[str, ...]:
    """Return the compiler options (for nvrtc and g++ alike) of kernels that compute in this type."""
    return f"-DREAL={'float' if dtype == torch.float32 else 'double'}", f"-DTHREADS={threads_of(dtype)}"


def machine_code(source: str, architecture: str, options: tuple[str, ...]) -> tuple[bytes, str]:
    """Return the kernels of a source text for sm_<architecture>, and NVRTC's report; InputError if it refuses.

    cupy.RawModule would add -ftz=true, and potentials below the normal numbers would differ from the reference.
    """
    program = nvrtc.createProgram(source, "kernels.cu", [], [])
    try:
        nvrtc.compileProgram(program, [f"-arch=sm_{architecture}", "--fmad=false", "--ptxas-options=-v", *options])
        return nvrtc.getCUBIN(program), nvrtc.getProgramLog(program)
    except nvrtc.NVRTCError as error:
        words = " ".join(f"{error}: {nvrtc.getProgramLog(program)}".split())
        raise InputError(
            f"backend 'cupy' cannot compile for sm_{architecture}: {words}; for a GPU that this cupy does not know, "
            "install the package of a newer CUDA"
        ) from None
    finally:
        nvrtc.destroyProgram(program)


@cache
def _module(source: str, options: tuple[str, ...], device: int) -> cupy.cuda.function.Module:
    """Return the compiled kernels of one variant, loaded on that device; their first use in a process takes 0.1 s."""
    with cupy.cuda.Device(device) as gpu:
        code, _ = machine_code(source, gpu.compute_capability, options)
        module = cupy.cuda.function.Module()
        module.load(code)
        return module


@cache
def _function(source: str, kernel: str, options: tuple[str, ...], device: int) -> cupy.cuda.function.Function:
    return _module(source, options, device).get_function(kernel)


def launch(
    source: str, kernel: str, tensors: tuple[Tensor | None, ...], scalars: tuple[float, ...], threads: int
) -> None:
    """Run a kernel of a source text in this many threads. Tensors come first; None becomes a null pointer."""
    device, dtype = tensors[0].device, tensors[0].dtype
    function = _function(source, kernel, options_of(dtype), device.index)
    stream = cupy.cuda.Stream.from_external(torch.cuda.current_stream(device))
    with cupy.cuda.Device(device.index), stream:
        pointers = (0 if tensor is None else tensor.data_ptr() for tensor in tensors)
        block = threads_of(dtype)
        function((-(-threads // block),), (block,), (*pointers, *scalars))


def forward(call: Call, x_TBN, s_TBN, h_TBN, total_TBN, marks_CSBN, state_SBN, past_DBN, values_PN) -> None:
    """See `snn.ops.fused.Backend`."""
    T, B, N = x_TBN.shape

    def run(x_TBN: Tensor, begin: int, end: int) -> None:
        tensors = (x_TBN, s_TBN, h_TBN, marks_CSBN, state_SBN, values_PN)
        launch(source(call.neuron, frozenset()), "forward", tensors, (T, begin, end, B * N, N), B * N)

    if call.feedback is None:
        run(x_TBN, 0, T)
        return
    total_TBN = torch.empty_like(x_TBN) if total_TBN is None else total_TBN
    lag, D = 1 + call.neuron.spike_first, call.feedback.D
    outputs_XBN = torch.cat([past_DBN, torch.zeros_like(x_TBN)])  # step t is in row t + D + lag - 1
    for t in range(T):
        fed_BN = reference.delayed(outputs_XBN[t : t + D], call.feedback)[0]
        torch.add(x_TBN[t], fed_BN @ call.feedback.V_NN.T, out=total_TBN[t])
        run(total_TBN, t, t + 1)
        outputs_XBN[t + D + lag - 1] = s_TBN[t]


def backward(
    call: Call, gs_TBN, gh_TBN, x_TBN, gx_TBN, marks_CSBN, state_SBN, gstate_SBN, gvalues_QBN, values_PN
) -> None:
    """See `snn.ops.fused.Backend`."""
    T, B, N = x_TBN.shape
    text, kept = source(call.neuron, call.learned), None

    def run(gs_TBN: Tensor, begin: int, end: int) -> None:
        tensors = (gs_TBN, gh_TBN, x_TBN, gx_TBN, marks_CSBN, state_SBN, gstate_SBN, gvalues_QBN, kept, values_PN)
        launch(text, "backward", tensors, (T, begin, end, B * N, N), B * N)

    if call.feedback is None:
        run(gs_TBN, 0, T)
        return
    kept = x_TBN.new_empty(segment(call.neuron), max(1, len(call.neuron.states)), B, N)
    lag, D = 1 + call.neuron.spike_first, call.feedback.D
    # The gradients of the outputs: those of step t, and of the steps before the first, are in row t + D + lag - 1.
    back_XBN = torch.cat([gs_TBN.new_zeros(D + lag - 1, *gs_TBN.shape[1:]), gs_TBN])
    whole_N, share_N = call.feedback.parts
    for t in reversed(range(T)):
        run(back_XBN[D + lag - 1 :], t, t + 1)
        gfed_BN = gx_TBN[t] @ call.feedback.V_NN
        if whole_N is None:
            back_XBN[t] += gfed_BN
            continue
        near_1BN = (t + D - 1 - whole_N).expand(1, B, N)
        back_XBN.scatter_add_(0, near_1BN, ((1 - share_N) * gfed_BN)[None])
        back_XBN.scatter_add_(0, near_1BN - 1, (share_N * gfed_BN)[None])
