"""The adaptive leaky integrate-and-fire neuron with a synaptic current."""

from snn.neurons.adlif import AdLIF
from snn.neurons.module import CubaLIF, SpikingNeuron
from snn.neurons.values import Decay


class CuAdLIF(SpikingNeuron):
    """AdLIF driven by a synaptic current, so that the input takes effect one step late; all values are learned.

        h_n = λ_m v_{n-1} + (1 - λ_m) (i_{n-1} - w_{n-1})
        s_n = [h_n >= θ],   v_n = h_n after the reset
        i_n = λ_s i_{n-1} + x_n
        w_n = λ_w w_{n-1} + z_{n-1},   z_n = a h_n + b s_n

    Source: Liu, Dragotti 2025, Neural Networks 184, 107043.
    """

    CUBA = CubaLIF(lam_s="lam_s", current="i", zeroed=("a", "b"))
    STATES = ("v", "i", "w", "z")
    VALUES = {
        "lam_m": AdLIF.VALUES["lam_m"],
        "lam_s": Decay("synaptic time constant", "tau_syn_steps"),
        **{name: AdLIF.VALUES[name] for name in ("lam_w", "a", "b")},
    }

    @staticmethod
    def step(x, state, p):
        """Compute one step: (s, h, next state)."""
        h = p.lam_m * state.v + (1 - p.lam_m) * (state.i - state.w)
        s, v = p.fire(h)
        i, w = p.lam_s * state.i + x, p.lam_w * state.w + state.z
        return s, h, {"v": v, "i": i, "w": w, "z": p.a * h + p.b * s}
