"""Checks of a caller's arguments: a compiled kernel would read wherever a wrong shape or index points.

Shapes, types and devices cost nothing to check. Values do: the CPU would have to wait for a GPU, and a recorded step
(`snn.replay`) must not wait. So values on a GPU are not checked unless a docstring says so.
"""

import math
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from numbers import Integral, Real
from types import EllipsisType

import torch
from torch import Tensor

from snn.errors import InputError

FLOATS = (torch.float32, torch.float64)
WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
NUMBERS = (torch.bool, *WHOLE, torch.float16, torch.bfloat16, *FLOATS)
STORED = (*NUMBERS, torch.uint16, torch.uint32, torch.uint64)  # torch computes with few of these


def tensor(
    name: str,
    x: Tensor,
    shape: Sequence[int | str | EllipsisType],
    dtypes: Sequence[torch.dtype] = NUMBERS,
    device: torch.device | None = None,
) -> None:
    """Raise InputError unless x is a tensor of this shape, of one of these types, on this device.

    A word as a size stands for any size but 0 and says what it counts; an ellipsis stands for any number of sizes.
    """
    if not isinstance(x, Tensor) or x.layout != torch.strided or x.is_nested:
        raise InputError(f"{name} must be a dense torch tensor, but is a {_kind(x)}")
    if ... in shape:
        place, more = shape.index(...), ["more"] * (x.dim() - len(shape) + 1)
        shape = (*shape[:place], *more, *shape[place + 1 :])
    if not _fits(x.shape, shape):
        wanted = f"({', '.join(map(str, shape))}{',' * (len(shape) == 1)})"
        raise InputError(f"{name} must have the shape {wanted} without a size of 0, but has {tuple(x.shape)}")
    if x.dtype not in dtypes:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise InputError(f"{name} must be of the type {names}, but is {str(x.dtype).removeprefix('torch.')}")
    if device is not None and x.device != device:
        raise InputError(
            f"{name} is on {x.device}, but it is used with values on {device}; move one of them with .to()"
        )
    if x.device.type == "meta":
        raise InputError(f"{name} has no values: it is on the device 'meta'")


def kind(name: str, value: object, *types: type) -> None:
    """Raise InputError unless value is of one of these types."""
    if not isinstance(value, types):
        names = " or a ".join(f"{of.__module__}.{of.__name__}" for of in types)
        raise InputError(f"{name} must be a {names}, but is a {_kind(value)}")


def word(name: str, value: str, known: Iterable[str]) -> None:
    """Raise InputError unless value is one of the known words."""
    if value not in (known := tuple(known)):
        raise InputError(f"{name} '{value}' is not known; choose from {', '.join(known)}")


def weights(name: str, W: Tensor) -> None:
    """Raise InputError unless a layer can compute with W; half precision is too coarse to compare with a threshold."""
    if W.dtype not in FLOATS:
        kind = str(W.dtype).removeprefix("torch.")
        raise InputError(f"{name} is {kind}; layers compute in float32 or float64: call .float() on the network")
    if W.device.type == "meta":
        raise InputError(f"{name} has no values: it is on the device 'meta'")


def without_autocast(device: torch.device) -> AbstractContextManager:
    """Return a context in which operations keep the type of their inputs."""
    on = torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if on else nullcontext()


def like_weights(name: str, x: Tensor, shape: Sequence[int | str], W: Tensor) -> Tensor:
    """Return x, any real numbers, in the type of W. Raise InputError unless its shape fits and it is on W's device."""
    weights("the layer's weight", W)
    tensor(name, x, shape, STORED, W.device)
    return x.to(W.dtype)


def finite(name: str, x: Tensor, entries: Tensor | None = None) -> None:
    """Raise InputError if a number on the CPU is NaN or infinite. If `entries` are given, all others are 0 or 1.

    torch.compile skips this check, which would break its graph.
    """
    if torch.compiler.is_compiling():
        return
    x, entries = x.detach(), (x if entries is None else entries).detach()
    if x.device.type != "cpu" or math.isfinite(entries.sum().item()):
        return
    if not x.isfinite().all():  # a sum of large finite numbers may overflow
        place = (~x.isfinite()).nonzero()[0].tolist()
        raise InputError(f"{name} holds {x[tuple(place)].item()} at {place}; every number must be finite")


def labels(target_B: Tensor, samples: int, classes: int, device: torch.device | None = None) -> None:
    """Raise InputError unless these are class numbers, 0 to classes - 1, one for each of the `samples`."""
    tensor("the labels", target_B, (samples,), (torch.int64,), device)
    if target_B.device.type == "cpu" and samples:
        low, high = (bound.item() for bound in target_B.aminmax())
        if low < 0 or high >= classes:
            raise InputError(f"the labels go from {low} to {high}, but the classes are 0 to {classes - 1}")


def number(name: str, value: float, least: float = -math.inf, above: float = -math.inf) -> None:
    """Raise InputError unless value is a finite number, at least `least` and above `above`."""
    if not (is_number(value) and math.isfinite(value) and value >= least and value > above):
        bound = f" above {above:g}" if above > -math.inf else f", at least {least:g}" if least > -math.inf else ""
        raise InputError(f"{name} must be a finite number{bound}, but is {value!r}")


def whole(name: str, value: int, least: int, most: int = 2**31 - 1) -> None:
    """Raise InputError unless value is a whole number from least to most."""
    if not (is_number(value) and isinstance(value, Integral) and least <= value <= most):
        raise InputError(f"{name} must be a whole number, {least} to {most}, but is {value!r}")


def sizes(name: str, shape: tuple[int, ...]) -> None:
    """Raise InputError unless shape is a tuple of sizes of at least 1."""
    if not isinstance(shape, tuple | list) or not len(shape):
        raise InputError(f"{name} must be a tuple of sizes, as (700,) or (2, 34, 34), but is {shape!r}")
    for size in shape:
        whole(f"a size in {name}", size, 1)


def is_number(value: object) -> bool:
    """Return whether value is a plain real number, not a boolean."""
    return isinstance(value, Real) and not isinstance(value, bool)


def _fits(sizes: tuple[int, ...], shape: Sequence[int | str | EllipsisType]) -> bool:
    return len(sizes) == len(shape) and all(
        size > 0 if isinstance(wanted, str) else size == wanted for size, wanted in zip(sizes, shape, strict=True)
    )


def _kind(x: object) -> str:
    if not isinstance(x, Tensor):
        return type(x).__name__
    return "nested tensor" if x.is_nested else f"tensor with the layout {x.layout}"
