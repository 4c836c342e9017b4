"""The values of a neuron: initial value, range, parametrisation, unit, and name in the report.

A value is declared once, in the neuron's class; layer and report use the declaration. For a learned value the layer
holds a parameter of one number per neuron or per layer, from which `of` computes the value that the step sees.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from snn.errors import InputError


@dataclass(frozen=True)
class Value:
    """A number stored without transformation, kept between `low` and `high`.

    Args:
        title: its title in the report.
        initial: a number, the name of one of the layer's settings, or None: drawn evenly between the bounds of `draw`,
            by default its range.
        low, high: its range, both ends included.
        learned: true if it is a parameter.
        draw: the bounds of the initial values.
    """

    title: str
    initial: float | str | None = None
    low: float = -math.inf
    high: float = math.inf
    learned: bool = True
    draw: tuple[float, float] | None = None

    unit = "1"

    @property
    def bounds(self) -> tuple[float, float]:
        """Return the bounds of initial values that are drawn; those of a time constant are in steps."""
        return self.draw or (self.low, self.high)

    @property
    def allowed(self) -> tuple[float, float]:
        """Return the bounds of an initial value that is given; those of a time constant are in steps."""
        return self.low, self.high

    @property
    def has_range(self) -> bool:
        """Return whether the value is bounded: a learned value needs low, high or draw."""
        return not self.learned or self.low > -math.inf or self.high < math.inf or self.draw is not None

    def start(self, name: str, settings: Mapping[str, float | None]) -> float | None:
        """Return the initial value, or None if it is drawn."""
        initial = settings[name] if settings.get(name) is not None else self.initial
        if not isinstance(initial, str):
            return initial
        if settings.get(initial) is None:
            raise InputError(f"the value {name} needs {initial}")
        return settings[initial]

    def tensor(self, initial: float | None, shape: tuple[int, ...]) -> Tensor:
        """Return the stored tensor at the start of training."""
        if initial is not None:
            return torch.full(shape, float(initial))
        low, high = self.bounds
        if not math.isfinite(high - low):
            raise InputError(f"the {self.title} is drawn, but not between bounds: give initial, draw, or low and high")
        return torch.rand(shape) * (high - low) + low

    def add_to(self, module: nn.Module, name: str, shape: tuple[int, ...], initial: float | None) -> None:
        """Register this value in a layer: as a parameter, or as a buffer that the configuration restores."""
        if self.learned:
            module.register_parameter(self.stored_as(name), nn.Parameter(self.tensor(initial, shape)))
        elif initial is None:
            raise InputError(f"the value {name} is not learned, so it cannot be drawn: give `initial`")
        else:
            module.register_buffer(name, self.fixed(initial), persistent=False)

    def fixed(self, initial: float) -> Tensor:
        """Return the value if it is not learned, (1,)."""
        return torch.full((1,), float(initial))

    def stored_as(self, name: str) -> str:
        """Return the parameter's name."""
        return name

    def of(self, stored: Tensor) -> Tensor:
        """Compute the value from the stored tensor."""
        return stored

    def clamp_(self, stored: Tensor) -> None:
        """Bring the stored tensor back into its range."""
        stored.clamp_(self.low, self.high)

    def holds(self, value: Tensor) -> Tensor:
        """Return a mask of the entries that lie in the range."""
        return (value >= self.low) & (value <= self.high)

    def word(self, name: str) -> str:
        """Return the value's name in reports and logs."""
        return name

    def shown(self, value: Tensor, dt_ms: float) -> Tensor:
        """Return the value in the report's unit."""
        return value

    def began(self, initial: float | None, dt_ms: float) -> tuple[float, float]:
        """Return the bounds of the initial values in the report's unit."""
        low, high = (initial, initial) if initial is not None else self.bounds
        scale = dt_ms if self.unit == "ms" else 1.0
        return scale * low, scale * high


@dataclass(frozen=True)
class Decay(Value):
    """A decay per step, λ = exp(-1/τ), 0 < λ < 1, given by τ in steps.

    It is learned as sigmoid(p), or "raw" as a number kept within [2/e, 0.995] (as published for `superspike`).
    """

    low: float = 0.0
    high: float = 1.0
    parametrisation: Literal["sigmoid", "raw"] = "sigmoid"

    unit = "ms"

    @property
    def allowed(self) -> tuple[float, float]:
        return 0.1, math.inf

    def tensor(self, initial: float | None, shape: tuple[int, ...]) -> Tensor:
        if initial is None:
            raise InputError(f"the {self.title} is a Decay, which cannot be drawn: give `initial`")
        is_raw = self.parametrisation == "raw"
        return torch.full(shape, math.exp(-1 / initial) if is_raw else -math.log(math.expm1(1 / initial)))

    def fixed(self, initial: float) -> Tensor:
        return torch.full((1,), math.exp(-1 / initial))

    def stored_as(self, name: str) -> str:
        return name if self.parametrisation == "raw" else f"p_{name}"

    def of(self, stored: Tensor) -> Tensor:
        return stored if self.parametrisation == "raw" else torch.sigmoid(stored)

    def clamp_(self, stored: Tensor) -> None:
        if self.parametrisation == "raw":
            stored.clamp_(2 / math.e, 0.995)
        else:  # beyond these bounds, float32 has no decay between 0 and 1
            stored.clamp_(-15, 15)

    def holds(self, value: Tensor) -> Tensor:
        return (value > 0) & (value < 1)

    def word(self, name: str) -> str:
        return name.replace("lam_", "tau_")

    def shown(self, value: Tensor, dt_ms: float) -> Tensor:
        return -dt_ms / value.double().log()


@dataclass(frozen=True)
class BoundedDecay(Decay):
    """λ = exp(-1/τ) with τ = shortest + r (longest - shortest) steps; r in [0, 1] is drawn evenly and learned."""

    shortest_steps: float = 1.0
    longest_steps: float = 100.0

    def tensor(self, initial: float | None, shape: tuple[int, ...]) -> Tensor:
        if initial is None:
            return torch.rand(shape)
        return torch.full(shape, (initial - self.shortest_steps) / (self.longest_steps - self.shortest_steps))

    @property
    def allowed(self) -> tuple[float, float]:
        return self.bounds

    def stored_as(self, name: str) -> str:
        return f"r_{name}"

    @property
    def bounds(self) -> tuple[float, float]:
        return self.shortest_steps, self.longest_steps

    def of(self, stored: Tensor) -> Tensor:
        return torch.exp(-1 / (self.shortest_steps + stored * (self.longest_steps - self.shortest_steps)))

    def clamp_(self, stored: Tensor) -> None:
        stored.clamp_(0, 1)


@dataclass(frozen=True)
class RateDecay(Decay):
    """λ = exp(-e^q), where q, the logarithm of the rate 1/τ per step, is learned and drawn evenly in log space.

    `draw` gives the bounds of the rate, per step; by default those of 1 to 100 steps.
    """

    draw: tuple[float, float] = (0.01, 1.0)

    def tensor(self, initial: float | None, shape: tuple[int, ...]) -> Tensor:
        if initial is not None:
            return torch.full(shape, -math.log(initial))
        low, high = map(math.log, self.draw)
        return torch.rand(shape) * (high - low) + low

    def stored_as(self, name: str) -> str:
        return f"q_{name}"

    @property
    def bounds(self) -> tuple[float, float]:
        return 1 / self.draw[1], 1 / self.draw[0]

    def of(self, stored: Tensor) -> Tensor:
        return torch.exp(-torch.exp(stored))

    def clamp_(self, stored: Tensor) -> None:
        stored.clamp_(-15, 4)


@dataclass(frozen=True)
class Derived(Value):
    """A number computed in torch from the values declared before it, once and not in every step."""

    learned: bool = False
    function: Callable[[Mapping[str, Tensor]], Tensor] = field(kw_only=True)

    def add_to(self, module: nn.Module, name: str, shape: tuple[int, ...], initial: float | None) -> None:
        """Store nothing."""
