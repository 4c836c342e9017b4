"""Neurons in plain torch, step after step. Every other backend must equal what this computes.

A neuron is a pure function `step(x, state, p) -> (s, h, next state)` in plain torch (see `snn.neurons`): x is the input
of a step, `state` has its states by name, and `p` the values by name (θ among them) with two functions,

    p.spike(u)   [u >= 0] as a number; its derivative is the surrogate's
    p.fire(h)    (s, v): s = [h >= θ] and the membrane after the reset, v = (1 - s) h or, soft, h - θ s; the spike in
                 the reset carries no gradient

The code around it is the same for all neurons. A recurrent layer adds V y to its input, where y is its own output of
the step before, or, with a delay d_j for each neuron j, V ((1 - f) y_{n-1-k} + f y_{n-2-k}), k = floor(d), f = d - k.
A layer that is `normed` reads scale · x + shift instead of x, so a BatchNorm before it need not store that.
With `spike_first` (the plain-autograd variant of the published code, Liu et al. 2023, doi 10.3389/fnins.2023.1266003)
the output is the spike of the step before, y_n = [h_{n-1} > θ], strictly above the threshold.

Shapes: T steps, B samples, N neurons, D outputs before the first.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from snn.ops.surrogate import Surrogate

State = Mapping[str, Tensor | None]  # what is carried from one step, or one call, to the next; None stands for zeros
NORM = ("scale", "shift")  # values of a layer that is `normed`


@dataclass(frozen=True)
class Dynamics:
    """The definition of a neuron and how it fires, all of which is known before there are any tensors."""

    name: str
    step: Callable
    states: tuple[str, ...]
    values: tuple[str, ...]  # names of what `step` reads from p, each of shape (N,) or (1,)
    reset: Literal["hard", "soft"] = "hard"
    spike_first: bool = False
    surrogate: Surrogate = field(default_factory=Surrogate)
    normed: bool = False

    def behind_norm(self) -> "Dynamics":
        """Return the same neuron with two more values, the scale and shift of its input."""
        return replace(self, values=(*self.values, *NORM), normed=True)

    def carried(self, recurrent: bool) -> tuple[str, ...]:
        """Return the names of all that a layer carries: h is a potential whose spike is to come, y the last outputs."""
        return (*self.states, *(("h",) if self.spike_first else ()), *(("y",) if recurrent else ()))


class Parameters(SimpleNamespace):
    """The values and functions that `step` reads as `p`. `spike_function` takes u = h - θ."""

    def __init__(self, neuron: Dynamics, values: Mapping[str, Any], spike_function: Callable[[Any], Any]):
        super().__init__(**values)
        self.spike = spike_function
        self._neuron = neuron

    def normed(self, x: Tensor) -> Tensor:
        """Return the input of `step` for the input x of the layer."""
        return self.scale * x + self.shift if self._neuron.normed else x

    def fire(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Return (spike, membrane after the reset)."""
        u = h - self.theta
        fired = u > 0 if self._neuron.spike_first else u >= 0
        return self.spike(u), torch.where(fired, u if self._neuron.reset == "soft" else 0.0, h)


class _Spike(torch.autograd.Function):
    """Heaviside step of u with the derivative of a surrogate."""

    @staticmethod
    def forward(ctx, u: Tensor, strict: bool, surrogate: Surrogate) -> Tensor:
        ctx.save_for_backward(u)
        ctx.surrogate = surrogate
        return ((u > 0) if strict else (u >= 0)).to(u.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (u,) = ctx.saved_tensors
        return grad * ctx.surrogate.derivative(u), None, None


def spike(u: Tensor, neuron: Dynamics) -> Tensor:
    """Return [u >= 0], or [u > 0] if the neuron spikes first, as numbers of u's dtype."""
    return _Spike.apply(u, neuron.spike_first, neuron.surrogate)


class Feedback(NamedTuple):
    """The feedback of a recurrent layer to itself."""

    V_NN: Tensor  # V[to, from]
    delay_N: Tensor | None = None  # steps beyond the one that each output takes anyway, from 0 to `longest`
    longest: int = 0

    @property
    def D(self) -> int:
        """Return how many outputs before the first one are read."""
        return 1 if self.delay_N is None else self.longest + 2

    @property
    def parts(self) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """Return the whole steps of the delays (int64) and the shares of the step after, or nothing without delays."""
        if self.delay_N is None:
            return None, None
        whole_N = self.delay_N.detach().floor()
        return whole_N.long(), self.delay_N - whole_N


def filled(state: State, neuron: Dynamics, like_BN: Tensor, D: int) -> dict[str, Tensor]:
    """Return a tensor for each field that a layer carries, zeros where the state has none; y is (D, B, N)."""
    result = {}
    for name in neuron.carried(D > 0):
        tensor = state.get(name)
        if tensor is None:
            tensor = torch.zeros_like(like_BN) if name != "y" else like_BN.new_zeros(D, *like_BN.shape)
        result[name] = tensor
    return result


def multi_step(
    x_TBN: Tensor,
    values: Mapping[str, Tensor],
    state: State,
    neuron: Dynamics,
    feedback: Feedback | None = None,
    *,
    spike_function: Callable[[Tensor, Dynamics], Tensor] = spike,
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Run all T steps: (y_TBN, h_TBN, final state).

    y is the output, and h the potential that decided it: s_n and h_n, or those of the step before when the neuron is
    `spike_first`. `feedback` makes the layer recurrent.
    """
    state = filled(state, neuron, x_TBN[0], feedback.D if feedback else 0)
    p = Parameters(neuron, values, lambda u: spike_function(u, neuron))
    outputs, potentials = [], []
    fed = list(state["y"]) if feedback else []
    for x in x_TBN:
        x = p.normed(x)
        if feedback:
            x = x + delayed(torch.stack(fed), feedback)[0] @ feedback.V_NN.T
        s, h, new = neuron.step(x, SimpleNamespace(**{name: state[name] for name in neuron.states}), p)
        state |= new
        if neuron.spike_first:
            s, h, state["h"] = spike_function(state["h"] - p.theta, neuron), state["h"], h
        fed = [*fed[1:], s]
        outputs.append(s)
        potentials.append(h)
    if feedback:
        state["y"] = torch.stack(fed)
    return torch.stack(outputs), torch.stack(potentials), state


def delayed(past_XBN: Tensor, feedback: Feedback) -> Tensor:
    """Return what comes back to a layer after each window of D outputs: (X - D + 1, B, N).

    A delay that lies between two steps takes a share of each.
    """
    whole_N, share_N = feedback.parts
    if whole_N is None or share_N is None:
        return past_XBN
    windows = len(past_XBN) - feedback.D + 1
    newest_W1 = torch.arange(feedback.D - 1, len(past_XBN), device=past_XBN.device)[:, None]
    near_W1N = (newest_W1 - whole_N)[:, None]
    near, far = (past_XBN.gather(0, (near_W1N - k).expand(windows, *past_XBN.shape[1:])) for k in (0, 1))
    return (1 - share_N) * near + share_N * far
