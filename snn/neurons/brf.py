"""The balanced resonate-and-fire neuron."""

import torch

from snn.neurons.module import SpikingNeuron
from snn.neurons.values import Derived, Value


class BRF(SpikingNeuron):
    """Balanced resonate-and-fire neuron: a damped oscillation of two coupled states that spikes do not reset.

        b_n = p(ω) - |b| - q_{n-1},   p(ω) = (-1 + sqrt(1 - (δ ω)²)) / δ
        u_n = u_{n-1} + δ (b_n u_{n-1} - ω v_{n-1} + x_n)
        v_n = v_{n-1} + δ (ω u_{n-1} + b_n v_{n-1})
        s_n = [u_n >= θ + q_{n-1}],   q_n = 0.9 q_{n-1} + s_n

    u + iv is the complex state; q is a refractory variable that raises the threshold and the damping; δ = 0.01 s is the
    step for which ω (rad/s) and b (1/s) are given. Every term carries gradient. The potential of reports and losses is
    u_n - q_{n-1}, which is compared with θ. Source: Higuchi et al. 2024, arXiv 2402.14603.
    """

    STATES = ("u", "v", "q")
    VALUES = {
        "omega": Value("frequency, ω (rad/s)", low=0, high=99, draw=(5, 10)),
        "b": Value("damping, b (1/s)", low=0, high=100, draw=(2, 3)),
        "delta": Value("step, δ (s)", 0.01, learned=False),
        "gamma": Value("decay of the refractory variable", 0.9, learned=False),
        "p_omega": Derived(
            "damping at which the oscillation neither grows nor falls",
            function=lambda value: (torch.sqrt(1 - (value["delta"] * value["omega"]) ** 2) - 1) / value["delta"],
        ),
    }

    @staticmethod
    def step(x, state, p):
        """Compute one step: (s, h, next state)."""
        b = p.p_omega - p.b - state.q
        u = state.u + p.delta * (b * state.u - p.omega * state.v + x)
        v = state.v + p.delta * (p.omega * state.u + b * state.v)
        h = u - state.q
        s = p.spike(h - p.theta)
        return s, h, {"u": u, "v": v, "q": p.gamma * state.q + s}
