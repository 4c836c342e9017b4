"""One operation, several backends: `multi_step` runs a layer of neurons over all steps.

A backend is a contract. The one that is named runs, or an error says what is missing; nothing falls back silently.
"""

from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor

from snn.errors import InputError
from snn.ops import fused, reference
from snn.ops.reference import Dynamics, State, Values

# backend: (device it needs, module, package it needs, how to install that)
_FUSED = {
    "cpu": ("cpu", "snn.ops.cpu", "numba", "pip install numba"),
    "cupy": ("cuda", "snn.ops.cuda", "cupy", "pip install cupy-cuda13x, or the cupy package of your CUDA version"),
}
BACKENDS = ("torch", *_FUSED)


def multi_step(
    x_TBN: Tensor,
    values: Values,
    state: State,
    neuron: Dynamics,
    V_NN: Tensor | None = None,
    *,
    backend: str = "auto",
    want_h: bool = True,
) -> tuple[Tensor, Tensor | None, State]:
    """Run T steps of a layer: (y_TBN, h_TBN, final state). See `snn.ops.reference` for the equations and shapes.

    `auto` takes the compiled backend of x's device, where there is one. h is None, and not even stored without a
    gradient, unless wanted.
    """
    _check(x_TBN, values, state, neuron, V_NN)
    if backend == "auto":
        backend = {"cpu": "cpu", "cuda": "cupy"}.get(x_TBN.device.type, "torch")
    if backend == "torch":
        y_TBN, h_TBN, state = reference.multi_step(x_TBN, values, state, neuron, V_NN)
        return y_TBN, h_TBN if want_h else None, state
    if backend not in _FUSED:
        raise InputError(f"backend '{backend}' is not known; known are auto, {', '.join(BACKENDS)}")
    return fused.multi_step(kernels(backend, x_TBN.device), x_TBN, values, state, neuron, V_NN, want_h)


def kernels(backend: str, device: torch.device) -> ModuleType:
    """The module of a compiled backend, for tensors on that device; InputError if it cannot run there."""
    needs, module, package, install = _FUSED[backend]
    if device.type != needs:
        raise InputError(f"backend '{backend}' runs on {needs}, but the input is on {device}; move it or use 'auto'")
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise InputError(f"backend '{backend}' needs {package}: {install}") from None


def _check(x_TBN: Tensor, values: Values, state: State, neuron: Dynamics, V_NN: Tensor | None) -> None:
    """Shapes, dtypes and devices, in words; beyond here a mistake would be a wrong address in a kernel."""
    if x_TBN.ndim != 3 or 0 in x_TBN.shape:
        raise InputError(f"x must be (steps, samples, neurons), none of them zero, but is {tuple(x_TBN.shape)}")
    if x_TBN.dtype not in (torch.float32, torch.float64):
        raise InputError(f"x must be float32 or float64, but is {x_TBN.dtype}")
    _, B, N = x_TBN.shape
    needed = {"lam_m": True, "lam_s": neuron.current, **dict.fromkeys(("lam_w", "a", "b"), neuron.adaptation)}
    for name, value in values._asdict().items():
        if (value is not None) != needed[name]:
            raise InputError(f"{name} is {'missing' if needed[name] else 'not a value'} of {neuron}")
    named = [(name, value, ((N,), (1,))) for name, value in values._asdict().items()]
    named += [(f"state.{name}", getattr(state, name), ((B, N),)) for name in State.used(neuron, V_NN is not None)]
    named += [("V", V_NN, ((N, N),))]
    for name, tensor, shapes in named:
        if tensor is None:
            continue
        if tuple(tensor.shape) not in shapes:
            raise InputError(f"{name} must be {' or '.join(map(str, shapes))}, but is {tuple(tensor.shape)}")
        if tensor.dtype != x_TBN.dtype or tensor.device != x_TBN.device:
            raise InputError(f"{name} is {tensor.dtype} on {tensor.device}, but x is {x_TBN.dtype} on {x_TBN.device}")


__all__ = ["BACKENDS", "Dynamics", "State", "Values", "kernels", "multi_step"]
