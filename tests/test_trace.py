"""Definitions of neurons: what is printed from a step, and what is refused in a line."""

from dataclasses import replace
from functools import partial
from typing import ClassVar

import pytest
import torch

from snn import ops
from snn.errors import InputError
from snn.neurons import NEURONS, SpikingNeuron
from snn.neurons.values import Decay, RateDecay, Value
from snn.ops import printer
from snn.ops.trace import trace
from tests.conftest import assert_one_line
from tests.make import ADLIF, assert_equal_to_reference, leaves


def test_the_printed_source_reads_like_the_definition():
    text = printer.numba(ADLIF, frozenset(["a"]))
    assert "h = (lam_m * v) + (fixed_1 * (x - w))" in text
    text = printer.cuda(ADLIF, frozenset(["a"]))
    assert "const real h = (lam_m * v) + (fixed_1 * (x - w));" in text


def test_one_command_shows_the_source(program):
    for backend in ("cpu", "cuda"):
        result = program(f"-m snn.ops.show AdLIF --backend {backend}")
        assert result.returncode == 0, result.stderr
        assert "printed from its definition" in result.stdout
    assert_one_line(program("-m snn.ops.show Nobody"), "invalid choice: 'Nobody'")


def stepping(step):
    return ops.Dynamics("Toy", step, ("v",), ("theta", "lam"))


def bad_steps():
    yield "'exp' is not known here", lambda x, state, p: (p.spike(x), torch.exp(x), {"v": x})
    yield "'tanh' is not known here", lambda x, state, p: (p.spike(x), x.tanh(), {"v": x})
    yield "the state v is not returned", lambda x, state, p: (p.spike(x), x, {})
    yield "unsupported operand type", lambda x, state, p: (p.spike(x), x**2, {"v": x})
    yield "lam_x is not a value; values are theta, lam", lambda x, state, p: (p.spike(x), p.lam_x * x, {"v": x})
    yield "w is not a state; states are v", lambda x, state, p: (p.spike(x), state.w, {"v": x})
    yield "s is a comparison, not a number", lambda x, state, p: (x >= p.theta, x, {"v": x})
    yield "v is a comparison, not a number", lambda x, state, p: (p.spike(x), x, {"v": x > state.v})
    yield "u is returned, but is not a state", lambda x, state, p: (p.spike(x), x, {"v": x, "u": x})
    yield "a step returns", lambda x, state, p: (p.spike(x), x)
    yield "use torch.where", lambda x, state, p: (p.spike(x), x, {"v": x if x > 0 else -x})
    yield "multiply by its inverse", lambda x, state, p: (p.spike(x), x / 2, {"v": x})
    yield "multiply by its inverse", lambda x, state, p: (p.spike(x), x, {"v": torch.div(x.detach(), 3.0)})
    yield "'add' with alpha", lambda x, state, p: (p.spike(x), torch.add(x, state.v, alpha=2), {"v": x})
    yield "'sub' with alpha", lambda x, state, p: (p.spike(x), x.sub(state.v, alpha=2), {"v": x})
    yield "'minimum' with input, other", lambda x, state, p: (p.spike(x), torch.minimum(input=x, other=x), {"v": x})
    yield "v must depend", lambda x, state, p: (p.spike(x), x, {"v": 0.0})
    yield "neither a symbol nor a number", lambda x, state, p: (p.spike(x), x * torch.ones(2).tolist(), {"v": x})


@pytest.mark.parametrize(("message", "step"), list(bad_steps()), ids=lambda value: None if callable(value) else value)
def test_a_step_that_no_backend_knows(message, step):
    with pytest.raises(InputError, match=r"neuron Toy \(.*test_trace.py") as error:
        trace(stepping(step))
    assert message in str(error.value)
    assert "allowed are +, -, *" in str(error.value)


def test_a_late_spike_is_that_of_the_returned_potential():
    """The layer decides late spikes by [h > θ], so a threshold that moves must be in h."""

    def wrong(x, state, p):
        return p.spike(x - (p.theta + state.v)), x, {"v": x}

    def right(x, state, p):
        h = x - state.v
        return p.spike(h - p.theta), h, {"v": x}

    trace(stepping(wrong))
    trace(replace(stepping(right), spike_first=True))
    with pytest.raises(InputError, match=r"with spike_first, s must be p.spike\(h - p.theta\)"):
        trace(replace(stepping(wrong), spike_first=True))


def test_a_name_of_both_a_state_and_a_value():
    class Toy(NEURONS["LIF"]):
        VALUES: ClassVar = {"v": Value("gain", 1.0, learned=False)}

    with pytest.raises(InputError, match=r"neuron Toy \(.*test_trace.py, line \d+\): v names two states, or both"):
        Toy.dynamics_of()


@pytest.mark.parametrize(
    ("states", "message"),
    [
        ((), "a neuron needs a state"),
        (("gs",), "a state or value cannot be called gs"),
        (("double",), "a state or value cannot be called double; rename it"),
        (("v", "v"), "v names two states"),
    ],
)
def test_states_that_cannot_be(states, message):
    class Toy(NEURONS["LIF"]):
        STATES = states

    with pytest.raises(InputError, match=rf"neuron Toy \(.*test_trace.py, line \d+\): {message}"):
        Toy.dynamics_of()


def test_a_value_that_is_a_number():
    class Toy(NEURONS["LIF"]):
        VALUES: ClassVar = {"gain": 0.5}

    with pytest.raises(InputError, match=r"line \d+\): gain must be a Value or a Decay, but is 0.5$"):
        Toy.dynamics_of()


def test_a_neuron_without_values():
    class Toy(SpikingNeuron):
        STATES: ClassVar = ("v",)
        step = NEURONS["LIF"].step

    assert Toy.dynamics_of().values == ("theta",)


def test_a_neuron_without_a_step():
    class Toy(NEURONS["LIF"]):
        step = None

    with pytest.raises(InputError, match=r"neuron Toy \(.*test_trace.py, line \d+\): a neuron needs its equations"):
        Toy.dynamics_of()


def test_a_value_without_range():
    class Toy(NEURONS["LIF"]):
        VALUES: ClassVar = {"gain": Value("gain")}

    with pytest.raises(InputError, match=r"neuron Toy \(.*test_trace.py, line \d+\): the value gain has no range"):
        Toy.dynamics_of()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Decay("pace"), "the pace is a Decay"),
        (Value("gain", learned=False), "the value own is not learned"),
        (Value("gain", low=0), "the gain is drawn, but not between bounds"),
    ],
)
def test_a_value_that_begins_nowhere(value, message):
    class Toy(NEURONS["LIF"]):
        VALUES: ClassVar = {"own": value}

    with pytest.raises(InputError, match=message):
        Toy(2, theta=1.0)


def test_rates_without_bounds_are_those_of_1_to_100_steps():
    tau_N = -1 / torch.log(RateDecay("pace").of(RateDecay("pace").tensor(None, (1000,))))
    assert 1 <= tau_N.min() < 1.5
    assert 70 < tau_N.max() <= 100.001


def test_each_operation_equals_torch(poisoned):
    """Compare spikes, potentials and gradients, also at ties. One neuron has all operations: each would be compiled."""

    def two(v, x):
        smaller, larger = torch.minimum(v, x), torch.maximum(v, 0.5 * x)
        chosen = torch.where((x <= v), 0.5 * v, torch.where(x < 0.5, x, 1.0))
        others = torch.abs(x) + 2 * abs(v) - -x * 4 + (torch.square(x) - v)
        return smaller + 2 * larger + chosen + others + x * v.detach() + x / (1 + v * v)

    def step(x, state, p):
        h = two(state.v, x)
        return p.spike(h - p.theta), h, {"v": p.lam * h}

    call = (torch.randint(-2, 3, (9, 3, 20)).double() / 2, {}, {}, stepping(step), None)
    values = {"theta": torch.full((20,), 0.25).double(), "lam": torch.full((20,), 0.5).double()}
    call = (call[0], values, {"v": torch.randint(-1, 2, (3, 20)).double()}, *call[3:])
    for leaf in leaves(call):
        leaf.requires_grad_()
    assert_equal_to_reference(partial(ops.multi_step, backend="cpu"), call)
