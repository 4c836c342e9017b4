"""The base class of all neurons, a SpikingJelly module. `snn.neurons` has the list, one file each."""

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, Literal, NamedTuple

import torch
from spikingjelly.activation_based.base import MemoryModule
from torch import Tensor, nn

from snn import checks, ops
from snn.errors import InputError
from snn.learned import Delays, Learned
from snn.neurons.values import Decay, Derived, Value
from snn.norm import Normed
from snn.ops.reference import NORM


class CubaLIF(NamedTuple):
    """The names of a neuron's values and states in NIR's current-based LIF; None if the neuron has no current."""

    lam_m: str = "lam_m"
    lam_s: str | None = None
    membrane: str = "v"
    current: str | None = None
    zeroed: tuple[str, ...] = ()  # values that must be 0, because NIR cannot express their effect


class SpikingNeuron(MemoryModule):
    """A layer of neurons with its state. A subclass defines a neuron by its states, its values, and its step.

        STATES   names of the states carried from step to step, all 0 at the start
        CUBA     the neuron in NIR's terms, or None
        VALUES   name -> `Value`, which `step` reads from p; every neuron also has θ
        step     a pure function (x, state, p) -> (s, h, {state: its next value}), in plain torch. p.fire(h) gives
                 (spike, membrane after the reset), p.spike(u) the spike of u = h - θ; h is what the report calls the
                 potential. See `snn.ops.reference`; `snn.ops.trace` says which operations every backend knows

    Args:
        num_neurons: N, needed if the layer learns values per neuron or is recurrent; otherwise it takes (T, B, ...) of
            any shape.
        tau_mem_steps, tau_syn_steps, tau_ada_steps: (initial) time constants of membrane, synaptic current and
            adaptation, in steps, as far as the neuron has them.
        theta: threshold.
        initial: other initial values, by name (a decay by its time constant in steps).
        reset: "hard" (to 0) or "soft" (by θ).
        per: learned values are one per "neuron" or one per "layer".
        spike_first: the variant of the published plain-autograd code, in which the output is one step late and the
            potential must exceed the threshold.
        decay: learned decays are sigmoid(p), or "raw" numbers that `clamp_values` keeps within [2/e, 0.995].
        surrogate, surrogate_slope: the derivative of the spike, see `snn.ops.surrogate`.
        recurrent: add V y_{n-1} to the input, where y is the layer's own output.
        max_delay_steps: the output of each neuron of a recurrent layer comes back later by a learned delay of 0 to this
            many steps, drawn evenly from `delay_steps` (by default this whole range). Delays are real numbers in
            training and rounded in evaluation.
        return_potential: return (spikes, potentials before the reset) instead of spikes.
        backend: "auto" or one of `snn.ops.BACKENDS`.

    Input and output are (T, B, N) (or (T, B, ...)) in step mode "m", and (B, N) in step mode "s". The state stays until
    `reset()`, so a long sequence may come in chunks.
    """

    STATES: ClassVar[tuple[str, ...]]
    VALUES: ClassVar[Mapping[str, Value]] = {}
    CUBA: ClassVar[CubaLIF | None] = None
    THETA: ClassVar[Value] = Value("threshold", "theta", learned=False)
    FAULT: ClassVar[str | None] = None  # says why no such layer can exist

    def __init__(
        self,
        num_neurons: int | None,
        *,
        theta: float,
        tau_mem_steps: float | None = None,
        tau_syn_steps: float | None = None,
        tau_ada_steps: float | None = 100.0,
        initial: Mapping[str, float] | None = None,
        reset: Literal["hard", "soft"] = "hard",
        per: Literal["neuron", "layer"] = "neuron",
        spike_first: bool = False,
        decay: Literal["sigmoid", "raw"] = "sigmoid",
        surrogate: str = "superspike",
        surrogate_slope: float = 0.0,
        recurrent: bool = False,
        max_delay_steps: int = 0,
        delay_steps: tuple[float, float] | None = None,
        return_potential: bool = False,
        backend: str = "auto",
        step_mode: Literal["s", "m"] = "m",
    ):
        super().__init__()
        kind = type(self).__name__
        if num_neurons is not None:
            checks.whole("the number of neurons", num_neurons, 1)
        checks.word("backend", backend, ("auto", *ops.BACKENDS))
        checks.word("reset", reset, ("hard", "soft"))
        self.dynamics = self.dynamics_of(reset, spike_first, ops.Surrogate(surrogate, surrogate_slope))
        self.return_potential = return_potential
        self.checks_states = True  # a network turns this off, as it finds numbers that are not finite itself
        self.says_near = False  # true if the next layer needs to know where u was near 0 in this layer's last output
        self.near_TW: Tensor | None = None  # see `ops.near_room`
        self.backend = backend
        self.step_mode = step_mode
        is_raw = decay == "raw"
        self._values = {
            name: replace(value, parametrisation="raw") if is_raw and type(value) is Decay else value
            for name, value in self.values_of().items()
        }
        taus = {"tau_mem_steps": tau_mem_steps, "tau_syn_steps": tau_syn_steps, "tau_ada_steps": tau_ada_steps}
        settings: dict[str, float | None] = {"theta": theta, **taus, **(initial or {})}
        if unknown := [name for name in initial or () if name not in self._values]:
            raise InputError(f"{unknown[0]} is not a value of {kind}; it has {', '.join(self._values)}")
        for name in initial or ():
            if name == "theta" or isinstance(self._values[name], Derived):
                other = "is a setting of its own" if name == "theta" else "follows from other values"
                raise InputError(f"initial: {name} {other}; leave it out")
        has_own = any(value.learned for value in self._values.values())
        if num_neurons is None and (recurrent or (per == "neuron" and has_own)):
            raise InputError(f"{kind} needs num_neurons: it is recurrent or has values per neuron")
        shape = (num_neurons,) if per == "neuron" and num_neurons is not None else (1,)
        for name, number in settings.items():
            if number is not None:
                checks.number(name, number)
        self._initial = {name: value.start(name, settings) for name, value in self._values.items()}
        for name, value in self._values.items():
            (low, high), number = value.allowed, self._initial[name]
            if number is not None and not low <= number <= high:
                unit = " steps" if isinstance(value, Decay) else ""
                raise InputError(f"the {value.title} of {kind} begins at {number:g}; choose {low:g} to {high:g}{unit}")
            value.add_to(self, name, shape, self._initial[name])
        self.V = nn.Parameter(nn.init.xavier_uniform_(torch.empty(num_neurons, num_neurons))) if recurrent else None
        self.delays = None
        if max_delay_steps and recurrent:
            self.delays = Delays((num_neurons,), max_delay_steps, delay_steps, "delay of a neuron's own spikes")
        for name in self.dynamics.carried(recurrent):
            self.register_memory(name, None)

    @classmethod
    def values_of(cls) -> dict[str, Value]:
        """Return all values, θ first."""
        return {"theta": cls.THETA, **cls.VALUES}

    @classmethod
    def dynamics_of(
        cls,
        reset: Literal["hard", "soft"] = "hard",
        spike_first: bool = False,
        surrogate: ops.Surrogate | None = None,
    ) -> ops.Dynamics:
        """Return the neuron's description, which needs no tensor: its firing, and the names of states and values."""
        if cls.FAULT:
            raise InputError(cls.FAULT)
        if not cls.STATES:
            raise InputError(f"{cls._place('class')}: a neuron needs a state, such as its potential, in STATES")
        if not callable(getattr(cls, "step", None)):
            raise InputError(f"{cls._place('class')}: a neuron needs its equations, a function step(x, state, p)")
        names = *cls.STATES, *cls.values_of()
        for name in names:
            if name in RESERVED or hasattr(cls, name) or not name.isidentifier():  # such as `float` of every module
                raise InputError(f"{cls._place(name)}: a state or value cannot be called {name}; rename it")
            if names.count(name) > 1:
                raise InputError(
                    f"{cls._place(name)}: {name} names two states, or both a state and a value; rename one of them"
                )
        for name, value in cls.values_of().items():
            if not isinstance(value, Value):
                raise InputError(f"{cls._place(name)}: {name} must be a Value or a Decay, but is {value!r:.40}")
            if not value.has_range:
                raise InputError(f"{cls._place(name)}: the value {name} has no range: give low and high, or draw")
        values = tuple(cls.values_of())
        return ops.Dynamics(
            cls.__name__, cls.step, tuple(cls.STATES), values, reset, spike_first, surrogate or ops.Surrogate()
        )

    @classmethod
    def _place(cls, name: str) -> str:
        """Name the neuron, its file and the first line that contains `name`, for error messages."""
        lines, first = inspect.getsourcelines(cls)
        line = next((k for k, text in enumerate(lines, first) if f'"{name}"' in text), first)
        return f"neuron {cls.__name__} ({inspect.getsourcefile(cls)}, line {line})"

    @property
    def threshold(self) -> float:
        """Return the threshold, or its mean if neurons differ."""
        return float(self.values()["theta"].mean())

    @property
    def feedback(self) -> ops.Feedback | None:
        """Return the weights and delays of a recurrent layer's feedback; delays are whole steps in evaluation."""
        if self.V is None:
            return None
        if self.delays is None:
            return ops.Feedback(self.V)
        delay_N, longest, _ = self.delays.present()
        return ops.Feedback(self.V, delay_N, longest)

    def _stored(self, name: str) -> Tensor | None:
        return self._parameters.get(self._values[name].stored_as(name))

    def values(self) -> dict[str, Tensor]:
        """Return the present values by name, each of shape (N,) or (1,)."""
        found: dict[str, Tensor] = {}
        for name, value in self._values.items():
            if isinstance(value, Derived):
                found[name] = value.function(found)
            else:
                stored = self._stored(name)
                found[name] = self._buffers[name] if stored is None else value.of(stored)
        return found

    @torch.no_grad()
    def learned(self, dt_ms: float) -> dict[str, Learned]:
        """Return the values that the layer learned, by name, in the units of a report."""
        found = {}
        for name, tensor in self.values().items():
            if (value := self._values[name]).learned:
                began = value.began(self._initial[name], dt_ms)
                found[value.word(name)] = Learned(value.title, value.unit, value.shown(tensor.detach(), dt_ms), began)
        if self.delays is not None:
            found["delay_recurrent"] = self.delays.learned(dt_ms)
        return found

    @torch.no_grad()
    def clamp_values(self) -> None:
        """Bring learned values back into their ranges; call it after each step of the optimiser."""
        for name, value in self._values.items():
            if (stored := self._stored(name)) is not None:
                value.clamp_(stored)

    def check_values(self, where: str) -> None:
        """Raise InputError if a learned value lies outside its range or is NaN."""
        for name, value in self.values().items():
            if not (fine := self._values[name].holds(value)).all():
                raise InputError(f"{where}: the learned value {name} is {value[~fine][0].item():g}, outside its range")

    def multi_step_functional_forward(
        self, inputs: tuple[Tensor], states: tuple[Tensor | None, ...]
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor | None, ...]]:
        """Run all T steps on explicit states (in the order of `named_memories`)."""
        (x,), values, dynamics = inputs, self.values(), self.dynamics
        if isinstance(x, Normed):
            x, *norm = x
            values, dynamics = values | dict(zip(NORM, norm, strict=True)), dynamics.behind_norm()
        x_TBN = x.flatten(2) if isinstance(x, Tensor) and x.dim() > 3 else x
        own = max(value.numel() for value in values.values())  # 1 if the layer has one value for all
        x_TBN = checks.like_weights("x", x_TBN, ("steps", "samples", own if own > 1 else "neurons"), values["theta"])
        with checks.without_autocast(x_TBN.device):
            says_near = self.says_near and torch.is_grad_enabled()
            self.near_TW = ops.near_room(x_TBN, dynamics, self.feedback, self.backend) if says_near else None
            y_TBN, h_TBN, state = ops.multi_step(
                x_TBN,
                values,
                dict(zip(self._memories, states, strict=True)),
                dynamics,
                self.feedback,
                want_h=self.return_potential,
                backend=self.backend,
                near_TW=self.near_TW,
            )
        if self.checks_states:  # a number that is not finite stays in the states
            for name in self.dynamics.states:
                checks.finite(f"after x, which must be finite, the state {name}", state[name])
        outputs = (y_TBN, h_TBN) if self.return_potential else (y_TBN,)
        return tuple(out.view(x.shape) for out in outputs), tuple(state[name] for name in self._memories)

    def single_step_functional_forward(
        self, inputs: tuple[Tensor], states: tuple[Tensor | None, ...]
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor | None, ...]]:
        """Run one step, T = 1, on explicit states."""
        checks.kind("x", inputs[0], Tensor)
        outputs, states = self.multi_step_functional_forward((inputs[0].unsqueeze(0),), states)
        return tuple(out.squeeze(0) for out in outputs), states

    def __getstate__(self) -> dict:
        """Return the state for copies, without its autograd graph, which torch does not copy."""
        memories = {k: v.detach() if isinstance(v, Tensor) else v for k, v in self._memories.items()}
        return {**self.__dict__, "_memories": memories}

    def extra_repr(self) -> str:
        return f"{self.dynamics}, recurrent={self.V is not None}, backend={self.backend}, {super().extra_repr()}"


# Reserved names: what a layer carries beside a neuron's states, and what a step, a kernel or a module uses otherwise.
RESERVED = {"h", "y", *NORM, "x", "s", "p", "V", "delays", "real", "state", "values", "kept", "training", "gs", "gh"}
