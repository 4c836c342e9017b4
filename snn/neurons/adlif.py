"""The adaptive leaky integrate-and-fire neuron."""

from snn.neurons.module import CubaLIF, SpikingNeuron
from snn.neurons.values import Decay, Value


class AdLIF(SpikingNeuron):
    """Adaptive LIF neuron: an adaptation w couples to the potential (a) and to the spikes (b); all values are learned.

        h_n = λ_m v_{n-1} + (1 - λ_m) (x_n - w_{n-1})
        s_n = [h_n >= θ],   v_n = h_n after the reset
        w_n = λ_w w_{n-1} + z_{n-1},   z_n = a h_n + b s_n

    Source: Liu, Leung, Dragotti 2023, doi 10.3389/fnins.2023.1266003. z joins w one step later; it is a state, so that
    a sequence may come in chunks.
    """

    CUBA = CubaLIF(zeroed=("a", "b"))
    STATES = ("v", "w", "z")
    VALUES = {
        "lam_m": Decay("membrane time constant", "tau_mem_steps"),
        "lam_w": Decay("adaptation time constant", "tau_ada_steps"),
        "a": Value("adaptation to the potential, a", low=0, high=1),
        "b": Value("adaptation to spikes, b", low=0, high=1),
    }

    @staticmethod
    def step(x, state, p):
        """Compute one step: (s, h, next state)."""
        h = p.lam_m * state.v + (1 - p.lam_m) * (x - state.w)
        s, v = p.fire(h)
        return s, h, {"v": v, "w": p.lam_w * state.w + state.z, "z": p.a * h + p.b * s}
