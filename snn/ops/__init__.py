"""One operation, several backends: `multi_step` runs a layer of neurons over all steps.

A backend is a contract. The one that is named runs, or an error says what is missing; nothing falls back silently.
"""

from collections.abc import Mapping
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor

from snn import checks
from snn.errors import InputError
from snn.ops import fused, reference
from snn.ops.reference import Dynamics, Feedback, State
from snn.ops.surrogate import Surrogate

# backend: (device it needs, module, package it needs, how to install that)
_FUSED = {
    "cpu": ("cpu", "snn.ops.cpu", "numba", "pip install numba"),
    "cupy": ("cuda", "snn.ops.cuda", "cupy", "pip install cupy-cuda13x, or the cupy package for your CUDA version"),
}
BACKENDS = ("torch", *_FUSED)


def multi_step(
    x_TBN: Tensor,
    values: Mapping[str, Tensor],
    state: State,
    neuron: Dynamics,
    feedback: Feedback | None = None,
    *,
    backend: str = "auto",
    want_h: bool = True,
    near_TW: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
    """Run T steps of a layer: (y_TBN, h_TBN, final state). See `snn.ops.reference` for the equations and shapes.

    `auto` takes the compiled backend of x's device, if there is one. Without `want_h`, h is not stored and None is
    returned for it. near_TW is a result of `near_room`, which this call fills.
    """
    _check(x_TBN, values, state, neuron, feedback)
    backend = _named(backend, x_TBN)
    if backend == "torch":
        y_TBN, h_TBN, state = reference.multi_step(x_TBN, values, state, neuron, feedback)
        return y_TBN, h_TBN if want_h else None, state
    checks.word("backend", backend, ("auto", *BACKENDS))
    return fused.multi_step(kernels(backend, x_TBN.device), x_TBN, values, state, neuron, feedback, want_h, near_TW)


def near_room(x_TBN: Tensor, neuron: Dynamics, feedback: Feedback | None, backend: str = "auto") -> Tensor | None:
    """Return a tensor in which `multi_step` marks, on the CPU, where u is within reach of a surrogate of finite width.

    It is (T, ceil(B·N / 64)) int64, with a bit for each column b·N + n. Where the bit is 0, a gradient of the output
    has no effect. The result is None if it may have an effect everywhere.
    """
    if _named(backend, x_TBN) != "cpu":
        return None
    return kernels("cpu", x_TBN.device).near_room(x_TBN, neuron, feedback is not None)


def _named(backend: str, x_TBN: Tensor) -> str:
    """Return the name of a backend, which for "auto" depends on the device of x."""
    return {"cpu": "cpu", "cuda": "cupy"}.get(x_TBN.device.type, "torch") if backend == "auto" else backend


def kernels(backend: str, device: torch.device) -> ModuleType:
    """Return the module of a compiled backend, for tensors on that device; InputError if it cannot run there."""
    needs, module, package, install = _FUSED[backend]
    if device.type != needs:
        raise InputError(f"backend '{backend}' runs on {needs}, but the input is on {device}; move it or use 'auto'")
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise InputError(f"backend '{backend}' needs {package}: {install}") from None


def _check(
    x_TBN: Tensor, values: Mapping[str, Tensor], state: State, neuron: Dynamics, feedback: Feedback | None
) -> None:
    """Check shapes, dtypes and devices; a mistake that passes would be a wrong address in a kernel."""
    if not isinstance(x_TBN, Tensor) or x_TBN.layout != torch.strided:
        raise InputError(f"x must be a dense tensor, but is {getattr(x_TBN, 'layout', type(x_TBN).__name__)}")
    if x_TBN.ndim != 3 or 0 in x_TBN.shape:
        raise InputError(f"x must be (steps, samples, neurons), none of them zero, but is {tuple(x_TBN.shape)}")
    if x_TBN.dtype not in (torch.float32, torch.float64):
        raise InputError(f"x must be float32 or float64, but is {x_TBN.dtype}")
    _, B, N = x_TBN.shape
    carried = neuron.carried(feedback is not None)
    for what, given, known in (("value", values, neuron.values), ("state", state, carried)):
        if unknown := [name for name in given if name not in known]:
            raise InputError(f"{unknown[0]} is not a {what} of {neuron.name}; choose from {', '.join(known)}")
    if missing := [name for name in neuron.values if name not in values]:
        raise InputError(f"{missing[0]} is missing; {neuron.name} has the values {', '.join(neuron.values)}")
    named: list[tuple[str, Tensor | None, tuple[tuple[int, ...], ...]]]  # name, tensor, the shapes it may have
    named = [(name, value, ((N,), (1,))) for name, value in values.items()]
    named += [(f"state.{name}", tensor, ((B, N),)) for name, tensor in state.items() if name != "y"]
    if feedback is not None:
        if neuron.normed:
            raise InputError(
                "a recurrent layer takes its input unchanged: scale and shift would also act on what is fed back"
            )
        named += [("V", feedback.V_NN, ((N, N),)), ("delay", feedback.delay_N, ((N,),))]
        named += [("state.y", state.get("y"), ((feedback.D, B, N),))]
        if feedback.delay_N is not None and feedback.delay_N.device.type == "cpu":
            low, high = (float(bound) for bound in feedback.delay_N.detach().aminmax())
            if not 0 <= low <= high <= feedback.longest:
                raise InputError(f"delays of {low:g} to {high:g} steps lie outside 0 to {feedback.longest}")
    for name, tensor, shapes in named:
        if tensor is None:
            continue
        if tuple(tensor.shape) not in shapes:
            forget = "; call reset() before another batch size" if name.startswith("state.") else ""
            raise InputError(f"{name} must be {' or '.join(map(str, shapes))}, but is {tuple(tensor.shape)}{forget}")
        if tensor.dtype != x_TBN.dtype or tensor.device != x_TBN.device:
            raise InputError(f"{name} is {tensor.dtype} on {tensor.device}, but x is {x_TBN.dtype} on {x_TBN.device}")


__all__ = ["BACKENDS", "Dynamics", "Feedback", "State", "Surrogate", "kernels", "multi_step"]
