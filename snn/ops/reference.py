"""The neurons, defined once, in plain torch. Every other backend must equal what stands here.

One update covers the family (Liu et al. 2023, doi 10.3389/fnins.2023.1266003; Liu & Dragotti 2025, Neural Netw. 184):

    drive_n = x_n                    LIF, AdLIF        (Dynamics.current is False)
            = i_{n-1}                CuLIF, CuAdLIF    (Dynamics.current is True: one step of latency)
              minus w_{n-1}          AdLIF, CuAdLIF    (Dynamics.adaptation)
    h_n = λ_m v_{n-1} + (1 - λ_m) drive_n              membrane before the reset
    s_n = [h_n >= θ]                                   spike;  ds/dh = 1 / (1 + 5 |h - θ|)²
    v_n = (1 - s_n) h_n   or   h_n - θ s_n             hard or soft reset; the spike in it carries no gradient
    i_n = λ_s i_{n-1} + x_n                            synaptic current
    w_n = λ_w w_{n-1} + z_{n-1}                        adaptation
    z_n = a h_n + b s_n                                what joins the adaptation one step later

All quantities are per step; decays are λ = exp(-1/τ), τ in steps. A recurrent layer adds V y_{n-1} to x_n, y its own
output. With `Dynamics.spike_first` (the plain-autograd variant of the published code) the output is the spike of the
step before, y_n = [h_{n-1} > θ], strictly above the threshold.

Shapes: T steps, B samples, N neurons.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

SURROGATE_SLOPE = 5.0


@dataclass(frozen=True)
class Dynamics:
    """Which member of the family, and how it fires. Static: known before any tensor is."""

    current: bool
    adaptation: bool
    theta: float
    reset: Literal["hard", "soft"] = "hard"
    spike_first: bool = False


class Values(NamedTuple):
    """Decays per step and couplings, each of shape (N,) or (1,); None where the neuron has no such value."""

    lam_m: Tensor
    lam_s: Tensor | None = None
    lam_w: Tensor | None = None
    a: Tensor | None = None
    b: Tensor | None = None


class State(NamedTuple):
    """What is carried from one step, or one call, to the next: (B, N) each; None stands for zeros or for unused."""

    v: Tensor | None = None  # membrane after the reset
    i: Tensor | None = None  # synaptic current (Dynamics.current)
    w: Tensor | None = None  # adaptation (Dynamics.adaptation)
    z: Tensor | None = None  # what joins w at the next step (Dynamics.adaptation)
    h: Tensor | None = None  # potential whose spike is still to come out (Dynamics.spike_first)
    y: Tensor | None = None  # last output of a recurrent layer

    @staticmethod
    def used(neuron: Dynamics, recurrent: bool) -> tuple[str, ...]:
        """Names of the fields that this neuron carries."""
        carried = {
            "v": True,
            "i": neuron.current,
            "w": neuron.adaptation,
            "z": neuron.adaptation,
            "h": neuron.spike_first,
            "y": recurrent,
        }
        return tuple(name for name, is_used in carried.items() if is_used)

    def filled(self, neuron: Dynamics, recurrent: bool, like_BN: Tensor) -> "State":
        """Zeros for each field in use that is None."""
        return self._replace(
            **{name: torch.zeros_like(like_BN) for name in self.used(neuron, recurrent) if getattr(self, name) is None}
        )


class _Spike(torch.autograd.Function):
    """Heaviside step of u = h - θ with the fast-sigmoid surrogate of SuperSpike (Zenke & Ganguli 2018)."""

    @staticmethod
    def forward(ctx, u: Tensor, strict: bool) -> Tensor:
        ctx.save_for_backward(u)
        return ((u > 0) if strict else (u >= 0)).to(u.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (u,) = ctx.saved_tensors
        return grad / (1 + SURROGATE_SLOPE * u.abs()) ** 2, None


def spike(u: Tensor, strict: bool = False) -> Tensor:
    """[u >= 0], or [u > 0] if strict, as numbers of u's dtype; gradient 1 / (1 + 5|u|)²."""
    return _Spike.apply(u, strict)


def smooth_spike(u: Tensor, strict: bool = False) -> Tensor:
    """The function whose true derivative is the surrogate. In its place, `gradcheck` can judge the whole network."""
    return u / (1 + SURROGATE_SLOPE * u.abs())


SpikeFunction = Callable[[Tensor, bool], Tensor]


def single_step(
    x: Tensor, values: Values, state: State, neuron: Dynamics, spike_function: SpikeFunction = spike
) -> tuple[Tensor, Tensor, State]:
    """One step n of the equations above: (s_n, h_n, state). x is (B, N); the state must have its fields filled."""
    drive = state.i if neuron.current else x
    if neuron.adaptation:
        drive = drive - state.w
    h = values.lam_m * state.v + (1 - values.lam_m) * drive
    u = h - neuron.theta
    s = spike_function(u, neuron.spike_first)
    fired = (u > 0) if neuron.spike_first else (u >= 0)
    v = torch.where(fired, 0 if neuron.reset == "hard" else u, h)
    state = state._replace(v=v)
    if neuron.current:
        state = state._replace(i=values.lam_s * state.i + x)
    if neuron.adaptation:
        state = state._replace(w=values.lam_w * state.w + state.z, z=values.a * h + values.b * s)
    return s, h, state


def multi_step(
    x_TBN: Tensor,
    values: Values,
    state: State,
    neuron: Dynamics,
    V_NN: Tensor | None = None,
    *,
    spike_function: SpikeFunction = spike,
) -> tuple[Tensor, Tensor, State]:
    """All T steps: (y_TBN, h_TBN, final state).

    y is the output and h the potential it was compared with: s_n and h_n, or those of the step before when the neuron
    is `spike_first`. V_NN are the weights of a recurrent layer, V[to, from].
    """
    recurrent = V_NN is not None
    state = state.filled(neuron, recurrent, x_TBN[0])
    outputs, potentials = [], []
    for x in x_TBN:
        if recurrent:
            x = x + state.y @ V_NN.T
        s, h, state = single_step(x, values, state, neuron, spike_function)
        if neuron.spike_first:
            s, h, state = spike_function(state.h - neuron.theta, True), state.h, state._replace(h=h)
        if recurrent:
            state = state._replace(y=s)
        outputs.append(s)
        potentials.append(h)
    return torch.stack(outputs), torch.stack(potentials), state
