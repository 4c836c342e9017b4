"""The leaky integrate-and-fire neuron, the baseline, with a given and with a learned decay."""

from dataclasses import replace

from snn.neurons.module import CubaLIF, SpikingNeuron
from snn.neurons.values import Decay


class LIF(SpikingNeuron):
    """LIF neuron. Nothing is learned.

        h_n = λ_m v_{n-1} + (1 - λ_m) x_n
        s_n = [h_n >= θ],   v_n = h_n after the reset

    SpikingJelly's LIFNode with decay_input and tau = 1 / (1 - λ_m) is the same neuron.
    """

    CUBA = CubaLIF()
    STATES = ("v",)
    VALUES = {"lam_m": Decay("membrane time constant", "tau_mem_steps", learned=False)}

    @staticmethod
    def step(x, state, p):
        """Compute one step: (s, h, next state)."""
        h = p.lam_m * state.v + (1 - p.lam_m) * x
        s, v = p.fire(h)
        return s, h, {"v": v}


class PLIF(LIF):
    """LIF with a learned decay λ_m = sigmoid(p). Fang et al. 2021 learn k = 1 - λ_m, one per layer (per="layer")."""

    VALUES = {"lam_m": replace(LIF.VALUES["lam_m"], learned=True)}
