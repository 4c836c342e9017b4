"""The leaky integrate-and-fire neuron that is initialised and learned like a state-space model."""

from snn.neurons.module import SpikingNeuron
from snn.neurons.values import RateDecay, Value


class SiLIF(SpikingNeuron):
    """Adaptive LIF that learns its decays as logarithms of their rates, λ = exp(-e^q).

        h_n = λ_m v_{n-1} + (1 - λ_m) (x_n - w_{n-1})
        s_n = [h_n >= θ],   v_n = h_n after the reset
        w_n = λ_w w_{n-1} + a h_n + b s_n

    Rates are drawn from 10 to 250 per second (λ_m) and 2.5 to 10 per second (λ_w), for steps of 4 ms. Source: Fabre et
    al. 2025, arXiv 2506.06374. Their code has a soft reset whose spike carries gradient (with reset="soft" it carries
    none here), the surrogate "boxcar", random initial states (0 here), and w one step later, which is equivalent from
    zero states.
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
        """Compute one step: (s, h, next state)."""
        h = p.lam_m * state.v + (1 - p.lam_m) * (x - state.w)
        s, v = p.fire(h)
        return s, h, {"v": v, "w": p.lam_w * state.w + (p.a * h + p.b * s)}
