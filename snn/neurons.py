"""The neurons as SpikingJelly modules: thin layers of parameters and memories over `snn.ops.multi_step`.

To add a neuron of the family, write a subclass that names its `current`, `adaptation` and `learned_decays`, and enter
it in NEURONS. To change the mathematics, see `snn/ops/reference.py`.
"""

import math
from typing import ClassVar, Literal

import torch
from spikingjelly.activation_based.base import MemoryModule
from torch import Tensor, nn

from snn import ops
from snn.errors import InputError

RAW_DECAY_RANGE = (2 / math.e, 0.995)
COUPLING_RANGE = (0.0, 1.0)


class SpikingNeuron(MemoryModule):
    """A layer of neurons with its state.

    Args:
        num_neurons: N, which a layer that learns values per neuron or is recurrent needs; others take (T, B, ...) of
            any shape.
        tau_mem_steps, tau_syn_steps, tau_ada_steps: (initial) time constants of membrane, synaptic current and
            adaptation, in steps.
        theta: threshold.
        reset: "hard" (to 0) or "soft" (by θ).
        per: learned values are one per "neuron" or one per "layer".
        spike_first: the variant of the published plain-autograd code: the output is one step late and the threshold
            must be exceeded.
        decay: learned decays are sigmoid(p), or "raw" numbers that `clamp_values` keeps within [2/e, 0.995].
        recurrent: add V y_{n-1} to the input, y the layer's own output.
        return_potential: return (spikes, potentials before the reset) instead of spikes.
        backend: "auto" or one of `snn.ops.BACKENDS`.

    Input and output are (T, B, N) in step mode "m" (or (T, B, ...)), (B, N) in step mode "s". The state stays until
    `reset()`, so a long sequence may be given in chunks.
    """

    current: ClassVar[bool]
    adaptation: ClassVar[bool]
    learned_decays: ClassVar[bool]

    def __init__(
        self,
        num_neurons: int | None,
        *,
        tau_mem_steps: float,
        tau_syn_steps: float,
        theta: float,
        tau_ada_steps: float = 100.0,
        reset: Literal["hard", "soft"] = "hard",
        per: Literal["neuron", "layer"] = "neuron",
        spike_first: bool = False,
        decay: Literal["sigmoid", "raw"] = "sigmoid",
        recurrent: bool = False,
        return_potential: bool = False,
        backend: str = "auto",
        step_mode: Literal["s", "m"] = "m",
    ):
        super().__init__()
        self.dynamics = ops.Dynamics(self.current, self.adaptation, theta, reset, spike_first)
        self.raw_decays = decay == "raw"
        self.return_potential = return_potential
        self.backend = backend
        self.step_mode = step_mode
        if num_neurons is None and (recurrent or (per == "neuron" and (self.learned_decays or self.adaptation))):
            raise InputError(f"{type(self).__name__} needs num_neurons: it is recurrent or has values per neuron")
        shape = (num_neurons,) if per == "neuron" and num_neurons is not None else (1,)

        self._add_decay("lam_m", tau_mem_steps, shape)
        if self.current:
            self._add_decay("lam_s", tau_syn_steps, shape)
        if self.adaptation:
            self._add_decay("lam_w", tau_ada_steps, shape)
            self.a = nn.Parameter(torch.rand(shape))
            self.b = nn.Parameter(torch.rand(shape))
        self.V = nn.Parameter(nn.init.xavier_uniform_(torch.empty(num_neurons, num_neurons))) if recurrent else None
        for name in ops.State.used(self.dynamics, recurrent):
            self.register_memory(name, None)

    def _add_decay(self, name: str, tau_steps: float, shape: tuple[int, ...]) -> None:
        """Store λ = exp(-1/τ): a buffer, or what it is learned from, p with sigmoid(p) = λ, or λ itself."""
        if not self.learned_decays:
            self.register_buffer(name, torch.full((1,), math.exp(-1 / tau_steps)), persistent=False)
        elif self.raw_decays:
            self.register_parameter(name, nn.Parameter(torch.full(shape, math.exp(-1 / tau_steps))))
        else:
            self.register_parameter(f"p_{name}", nn.Parameter(torch.full(shape, -math.log(math.expm1(1 / tau_steps)))))

    def values(self) -> ops.Values:
        """The decays per step and the couplings a, b as they stand, each of shape (N,) or (1,)."""

        def decay(name: str) -> Tensor | None:
            p = getattr(self, f"p_{name}", None)
            return getattr(self, name, None) if p is None else torch.sigmoid(p)

        couplings = (self.a, self.b) if self.adaptation else (None, None)
        return ops.Values(decay("lam_m"), decay("lam_s"), decay("lam_w"), *couplings)

    @torch.no_grad()
    def clamp_values(self) -> None:
        """Bring a, b and raw decays back into their ranges; call it after each step of the optimiser."""
        if self.adaptation:
            self.a.clamp_(*COUPLING_RANGE)
            self.b.clamp_(*COUPLING_RANGE)
        if self.learned_decays and self.raw_decays:
            for name in ("lam_m", "lam_s", "lam_w"):
                if name in self._parameters:
                    self._parameters[name].clamp_(*RAW_DECAY_RANGE)

    def check_values(self, where: str) -> None:
        """InputError if a decay lies outside (0, 1) or a coupling outside [0, 1], or is no number."""
        for name, value in self.values()._asdict().items():
            if value is None:
                continue
            fine = ((value >= 0) & (value <= 1)) if name in ("a", "b") else ((value > 0) & (value < 1))
            if not fine.all():
                worst = value[~fine][0].item()
                raise InputError(f"{where}: the learned value {name} is {worst:g}, outside 0 to 1")

    def multi_step_functional_forward(
        self, inputs: tuple[Tensor], states: tuple[Tensor | None, ...]
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor | None, ...]]:
        """Run all T steps on explicit states (in the order of `named_memories`)."""
        (x,) = inputs
        x_TBN = x.flatten(2) if x.dim() > 3 else x
        y_TBN, h_TBN, state = ops.multi_step(
            x_TBN,
            self.values(),
            ops.State(**dict(zip(self._memories, states, strict=True))),
            self.dynamics,
            self.V,
            want_h=self.return_potential,
            backend=self.backend,
        )
        outputs = (y_TBN, h_TBN) if self.return_potential else (y_TBN,)
        return tuple(out.view(x.shape) for out in outputs), tuple(getattr(state, name) for name in self._memories)

    def single_step_functional_forward(
        self, inputs: tuple[Tensor], states: tuple[Tensor | None, ...]
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor | None, ...]]:
        """One step on explicit states: T = 1."""
        outputs, states = self.multi_step_functional_forward((inputs[0].unsqueeze(0),), states)
        return tuple(out.squeeze(0) for out in outputs), states

    def extra_repr(self) -> str:
        return f"{self.dynamics}, recurrent={self.V is not None}, backend={self.backend}, {super().extra_repr()}"


class CuLIF(SpikingNeuron):
    """Current-based leaky integrate-and-fire neuron (Liu et al. 2023). Nothing is learned."""

    current, adaptation, learned_decays = True, False, False


class PCuLIF(SpikingNeuron):
    """CuLIF with learned decays of membrane and current."""

    current, adaptation, learned_decays = True, False, True


class AdLIF(SpikingNeuron):
    """Adaptive LIF neuron: w couples to the potential (a) and to the spikes (b). Decays and couplings are learned."""

    current, adaptation, learned_decays = False, True, True


class CuAdLIF(SpikingNeuron):
    """AdLIF with a synaptic current (Liu & Dragotti 2025)."""

    current, adaptation, learned_decays = True, True, True


NEURONS: dict[str, type[SpikingNeuron]] = {cls.__name__: cls for cls in (CuLIF, PCuLIF, AdLIF, CuAdLIF)}
