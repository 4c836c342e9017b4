"""The adaptive leaky integrate-and-fire neuron in its symplectic Euler form."""

from snn.neurons.module import SpikingNeuron
from snn.neurons.values import BoundedDecay, Value


class SEAdLIF(SpikingNeuron):
    """AdLIF with an adaptation driven by the new potential and spike, so that oscillations do not grow by themselves.

        h_n = λ_m v_{n-1} + (1 - λ_m) (x_n - w_{n-1})
        s_n = [h_n >= θ],   v_n = h_n after the reset
        w_n = λ_w w_{n-1} + (1 - λ_w) q (a v_n + b s_n)

    λ = exp(-1/τ), with τ_m learned between 5 and 25 steps and τ_w between 60 and 300 steps; q = 120. Source: Baronig et
    al. 2025, arXiv 2408.07517, with the surrogate "slayer", θ = 1 and a hard reset whose spike carries no gradient.
    """

    STATES = ("v", "w")
    VALUES = {
        "lam_m": BoundedDecay("membrane time constant", shortest_steps=5, longest_steps=25),
        "lam_w": BoundedDecay("adaptation time constant", shortest_steps=60, longest_steps=300),
        "a": Value("adaptation to the potential, a", low=0, high=1),
        "b": Value("adaptation to spikes, b", low=0, high=2),
        "q": Value("strength of the adaptation, q", 120.0, learned=False),
    }

    @staticmethod
    def step(x, state, p):
        """Compute one step: (s, h, next state)."""
        h = p.lam_m * state.v + (1 - p.lam_m) * (x - state.w)
        s, v = p.fire(h)
        w = p.lam_w * state.w + (1 - p.lam_w) * p.q * (p.a * v + p.b * s)
        return s, h, {"v": v, "w": w}
