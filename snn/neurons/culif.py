"""The current-based leaky integrate-and-fire neuron, with given and with learned decays."""

from dataclasses import replace

from snn.neurons.module import CubaLIF, SpikingNeuron
from snn.neurons.values import Decay


class CuLIF(SpikingNeuron):
    """Current-based LIF neuron. Nothing is learned; the input takes effect one step late.

        h_n = λ_m v_{n-1} + (1 - λ_m) i_{n-1}
        s_n = [h_n >= θ],   v_n = h_n after the reset
        i_n = λ_s i_{n-1} + x_n

    Source: Liu, Leung, Dragotti 2023, doi 10.3389/fnins.2023.1266003.
    """

    CUBA = CubaLIF(lam_s="lam_s", current="i")
    STATES = ("v", "i")
    VALUES = {
        "lam_m": Decay("membrane time constant", "tau_mem_steps", learned=False),
        "lam_s": Decay("synaptic time constant", "tau_syn_steps", learned=False),
    }

    @staticmethod
    def step(x, state, p):
        """Compute one step: (s, h, next state)."""
        h = p.lam_m * state.v + (1 - p.lam_m) * state.i
        s, v = p.fire(h)
        return s, h, {"v": v, "i": p.lam_s * state.i + x}


class PCuLIF(CuLIF):
    """CuLIF with learned decays, λ = sigmoid(p)."""

    VALUES = {name: replace(value, learned=True) for name, value in CuLIF.VALUES.items()}
