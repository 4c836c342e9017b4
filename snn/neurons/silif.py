"""The leaky integrate-and-fire neuron that is initialised and learned like a state-space model."""

from snn.neurons.module import SpikingNeuron
from snn.neurons.values import RateDecay, Value


class SiLIF(SpikingNeuron):
    """Adaptive LIF whose decays are learned as logarithms of their rates, λ = exp(-e^q).

        h_n = λ_m v_{n-1} + (1 - λ_m) (x_n - w_{n-1})
        s_n = [h_n >= θ],   v_n = h_n after the reset
        w_n = λ_w w_{n-1} + a h_n + b s_n

    Rates are drawn from 10 to 250 (λ_m) and 2.5 to 10 per second (λ_w) at steps of 4 ms. Source: Fabre et al. 2025,
    arXiv 2506.06374. Their code has the soft reset with a spike that carries gradient (here reset="soft", it carries
    none), the surrogate "boxcar", random initial states (here 0), and w one step later, the same from zero states.
    """

    STATES = ("v", "w")
    VALUES = {
        "lam_m": RateDecay("membrane time constant", draw=(0.04, 1.0)),
        "lam_w": RateDecay("adaptation time constant", draw=(0.01, 0.04)),
        "a": Value("adaptation to the potential, a", low=0, high=1),
        "b": Value("adaptation to spikes, b", low=0, high=2),
    }

    @staticmethod
    def step(x, state, p):
        """One step: (s, h, next state)."""
        h = p.lam_m * state.v + (1 - p.lam_m) * (x - state.w)
        s, v = p.fire(h)
        return s, h, {"v": v, "w": p.lam_w * state.w + (p.a * h + p.b * s)}
