"""A neuron's step as a list of elementary operations, and its derivative; every compiled backend is printed from these.

`step` is called once with symbols in place of tensors. They record, in order, what is done to them. No operation is
reordered, contracted or rounded differently from plain torch, so that the bits stay the same. `_adjoint` then walks the
list backwards, with one rule for each operation (reverse mode).
"""

import inspect
import math
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from types import FrameType, SimpleNamespace
from typing import Any, NoReturn

import torch

from snn.errors import InputError
from snn.ops.reference import Dynamics, Parameters

ALLOWED = (
    "+, -, *, /, comparisons, torch.where, abs, minimum, maximum, square, .detach(), p.spike, p.fire; any other "
    "function of values alone makes a Derived value"
)


class Symbol:
    """A number of one neuron in one step, either given or computed."""

    def __init__(self, trace: "Trace", op: str, arguments: tuple = (), name: str = ""):
        self.trace, self.op, self.arguments, self.name = trace, op, arguments, name
        trace.symbols.append(self)

    def _new(self, op: str, *arguments: Any) -> "Symbol":
        for argument in arguments:
            if not isinstance(argument, Symbol | int | float):
                self.trace.fail(f"'{op}' of {type(argument).__name__}: an operand is neither a symbol nor a number")
        return Symbol(self.trace, op, arguments)

    def __truediv__(self, other: Any) -> "Symbol":
        if not isinstance(other, Symbol):  # GPUs multiply by the inverse, CPUs divide
            self.trace.fail(
                "a division by a number rounds differently from machine to machine; multiply by its inverse"
            )
        return self._new("/", self, other)

    def __neg__(self) -> "Symbol":
        return self._new("negative", self)

    def __abs__(self) -> "Symbol":
        return self._new("abs", self)

    def __bool__(self):
        self.trace.fail("a condition on a symbol; use torch.where")

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *arguments, **keywords: self.trace.call(name, (self, *arguments), keywords)

    @classmethod
    def __torch_function__(cls, function: Callable, _, arguments: tuple = (), keywords: Mapping | None = None):
        keywords = keywords or {}
        trace = next(operand.trace for operand in (*arguments, *keywords.values()) if isinstance(operand, cls))
        return trace.call(function.__name__, arguments, keywords)


def _operator(op: str, is_swapped: bool) -> Callable[[Symbol, Any], Symbol]:
    """Return a method that records an operation between a symbol and a symbol or a number."""
    return lambda self, other: self._new(op, *((other, self) if is_swapped else (self, other)))


for _name, _op in {"add": "+", "sub": "-", "mul": "*", "ge": ">=", "gt": ">", "le": "<=", "lt": "<"}.items():
    setattr(Symbol, f"__{_name}__", _operator(_op, False))
for _name, _op in {"radd": "+", "rsub": "-", "rmul": "*", "rtruediv": "/"}.items():
    setattr(Symbol, f"__{_name}__", _operator(_op, True))

COMPARISONS = (">=", ">", "<=", "<")  # their results are truths, through which no gradient flows
# Torch's names -> ours.
FUNCTIONS = {name: name for name in ("where", "abs", "minimum", "maximum", "exp", "detach", "negative", "square")}
FUNCTIONS |= {"absolute": "abs", "neg": "negative", "mul": "*", "add": "+", "sub": "-", "rsub": "rsub", "div": "/"}


class Trace:
    """A record of the operations of one step."""

    def __init__(self, neuron: Dynamics):
        self.neuron = neuron
        self.symbols: list[Symbol] = []
        self.in_surrogate = False

    def fail(self, message: str, line: int | None = None) -> NoReturn:
        """Raise InputError with the neuron and a line: the one given, the one that runs, or where its step begins."""
        step = self.neuron.step
        frame: FrameType | None = sys._getframe()
        file = inspect.getsourcefile(step)
        while frame and frame.f_code.co_filename != file:
            frame = frame.f_back
        line = line or (frame.f_lineno if frame else step.__code__.co_firstlineno)
        raise InputError(f"neuron {self.neuron.name} ({file}, line {line}): {message}; allowed are {ALLOWED}") from None

    def call(self, function: str, arguments: tuple, keywords: Mapping) -> Symbol:
        """Record an operation by torch's name."""
        op = FUNCTIONS.get(function)
        if op is None or (op == "exp" and not self.in_surrogate):
            self.fail(f"'{function}' is not known here")
        if keywords:
            self.fail(f"'{function}' with {', '.join(keywords)}: it takes only its operands, without their names")
        first = next(argument for argument in arguments if isinstance(argument, Symbol))
        if op == "square":
            return first * first
        if op == "rsub":
            return arguments[1] - first
        if op == "/":
            return arguments[0] / arguments[1]
        return first._new(op, *arguments)


@dataclass(frozen=True)
class Step:
    """One step of a neuron, and its derivative, as symbols in the order of their computation.

    The given gradients are named gs, gh and g_<state after the step>. The computed ones are those of x, of each state
    before the step, and what the step adds to the gradient of each value; None stands for a gradient that is 0.

    `near` tells whether u is within the surrogate's reach. Elsewhere the gradient of the output, which goes on to u
    alone, is multiplied by 0 and need not be computed. It is None if the gradient is needed everywhere.
    """

    neuron: Dynamics
    symbols: tuple[Symbol, ...]
    spike: Symbol
    potential: Symbol
    after: tuple[Symbol, ...]
    g_x: Symbol | None
    g_states: tuple[Symbol | None, ...]
    g_values: Mapping[str, Symbol | None]
    near: Symbol | None

    def needed(self, outputs: Iterable[Any], known: Iterable[Symbol] = ()) -> list[Symbol]:
        """Return the symbols that these depend on, in order, without those that only known symbols depend on."""
        seen, known, left = set(), set(known), [symbol for symbol in outputs if isinstance(symbol, Symbol)]
        while left:
            symbol = left.pop()
            if symbol not in seen:
                seen.add(symbol)
                if symbol not in known:
                    left += [argument for argument in symbol.arguments if isinstance(argument, Symbol)]
        return [symbol for symbol in self.symbols if symbol in seen]

    @property
    def gradients(self) -> list[Symbol]:
        """Return all that the derivative computes."""
        return [g for g in (self.g_x, *self.g_states, *self.g_values.values()) if g is not None]

    @property
    def recalled(self) -> tuple[str, ...]:
        """Return the names of the states before a step that its derivative reads."""
        names = {symbol.name for symbol in self.needed(self.gradients) if symbol.op == "state"}
        return tuple(name for name in self.neuron.states if name in names)


@cache
def trace(neuron: Dynamics, learned: frozenset[str] = frozenset()) -> Step:
    """Trace the step of a neuron, and its derivative with respect to x, the states and these values.

    Raises InputError for a step that compiled backends cannot run.
    """
    trace = Trace(neuron)

    def given(op: str, name: str) -> Symbol:
        return Symbol(trace, op, name=name)

    x = given("x", "x")
    states = {name: given("state", name) for name in neuron.states}
    values = {name: given("value", name) for name in neuron.values}

    def spike_of(u: Symbol) -> Symbol:
        u.name = u.name or "u"
        return u._new("spike", u)

    p = Parameters(neuron, values, spike_of)
    outputs, local = _run(trace, p.normed(x), SimpleNamespace(**states), p)
    spike, potential, after = _checked(trace, outputs)
    for name, symbol in local.items():
        if isinstance(symbol, Symbol) and not symbol.name:
            symbol.name = name
    count = len(trace.symbols)
    upstream = [given("gradient", name) for name in ("gs", "gh", *(f"g_{name}" for name in neuron.states))]
    seeds = list(zip((spike, potential, *after), upstream, strict=True))
    g = _adjoint(trace, trace.symbols[:count], seeds, {x, *states.values(), *(values[name] for name in learned)})
    for symbol, gradient in g.items():
        if symbol.name and not gradient.name:
            gradient.name = f"g_{symbol.name}{'_before' if symbol.op == 'state' else ''}"
    near = None
    if neuron.surrogate.reach < math.inf and spike.op == "spike" and not neuron.spike_first:
        near = abs(spike.arguments[0]) <= neuron.surrogate.reach
        near.name = "near"
    return Step(
        neuron,
        tuple(trace.symbols),
        spike,
        potential,
        after,
        g.get(x),
        tuple(g.get(symbol) for symbol in states.values()),
        {name: g.get(values[name]) for name in neuron.values if name in learned},
        near,
    )


def _run(trace: Trace, *arguments: Any) -> tuple[Any, dict[str, Any]]:
    """Return the result of `step` and its local variables by name."""
    neuron = trace.neuron
    local: dict[str, Any] = {}

    def watch(frame, event: str, _) -> None:
        if event == "return" and frame.f_code is neuron.step.__code__:
            local.update(frame.f_locals)

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        return neuron.step(*arguments), local
    except (AttributeError, TypeError) as error:  # an operator that no symbol has, a value or a state that is not there
        lines = [
            lineno for frame, lineno in traceback.walk_tb(error.__traceback__) if frame.f_code is neuron.step.__code__
        ]
        message = str(error)
        if isinstance(error, AttributeError) and isinstance(error.obj, SimpleNamespace):
            what, names = ("value", neuron.values) if isinstance(error.obj, Parameters) else ("state", neuron.states)
            message = f"{error.name} is not a {what}; {what}s are {', '.join(names)}"
        trace.fail(message, *lines)
    finally:
        sys.setprofile(before)


def _checked(trace: Trace, outputs: Any) -> tuple[Symbol, Symbol, tuple[Symbol, ...]]:
    """Return (spike, potential, states after the step) from the result of a step."""
    neuron = trace.neuron
    if not (isinstance(outputs, tuple) and len(outputs) == 3 and isinstance(outputs[2], dict)):
        trace.fail("a step returns (s, h, {state: its next value})")
    spike, potential, after = outputs
    if missing := [name for name in neuron.states if name not in after]:
        trace.fail(f"the state {missing[0]} is not returned")
    if unknown := [name for name in after if name not in neuron.states]:
        trace.fail(f"{unknown[0]} is returned, but is not a state; states are {', '.join(neuron.states)}")
    after = tuple(after[name] for name in neuron.states)
    for what, symbol in zip(("s", "h", *neuron.states), (spike, potential, *after), strict=True):
        if not isinstance(symbol, Symbol):
            trace.fail(f"{what} must depend on the input, a state or a value, but is {symbol!r}")
        if symbol.op in COMPARISONS:
            trace.fail(f"{what} is a comparison, not a number: write p.spike(a - b) or torch.where(a >= b, 1.0, 0.0)")
    if neuron.spike_first and not (spike.op == "spike" and _is_above_threshold(spike.arguments[0], potential)):
        trace.fail("with spike_first, s must be p.spike(h - p.theta) of the h that the step returns")
    return spike, potential, after


def _is_above_threshold(u: Symbol, potential: Symbol) -> bool:
    """Return whether u is h - θ."""
    return u.op == "-" and u.arguments[0] is potential and getattr(u.arguments[1], "name", None) == "theta"


def _adjoint(trace: Trace, symbols: list[Symbol], seeds: list, wanted: set[Symbol]) -> dict[Symbol, Symbol]:
    """Map symbols to their gradients, starting from the seeds, for all symbols on the way to the wanted ones."""
    active = set(wanted)
    for symbol in symbols:
        if symbol.op != "detach" and any(argument in active for argument in symbol.arguments if _is_number(argument)):
            active.add(symbol)
    g: dict[Symbol, Symbol] = {}

    def add(symbol: Any, contribution: Callable[[], Symbol]) -> None:
        if isinstance(symbol, Symbol) and symbol in active:
            g[symbol] = contribution() if symbol not in g else g[symbol] + contribution()

    for symbol, upstream in seeds:
        add(symbol, lambda upstream=upstream: upstream)
    for symbol in reversed(symbols):
        if symbol in g and symbol.arguments:
            for argument, contribution in _RULES[symbol.op](g[symbol], symbol, *symbol.arguments):
                add(argument, contribution)
    return g


def _is_number(argument: Any) -> bool:
    return isinstance(argument, Symbol) and argument.op not in COMPARISONS


def _slope(u: Symbol) -> Any:
    """Return the surrogate's derivative."""
    u.trace.in_surrogate = True
    slope = u.trace.neuron.surrogate.derivative(u)
    u.trace.in_surrogate = False
    return slope


def _of_quotient(g: Symbol, quotient: Symbol, a: Any, b: Any) -> list[tuple[Any, Callable[[], Symbol]]]:
    share = g / b
    return [(a, lambda: share), (b, lambda: -(share * quotient))]


def _if_larger(g: Symbol, a: Any, b: Any) -> Any:
    """Return g where a > b, half of it where both are equal, as in torch, and otherwise 0."""
    return torch.where(a > b, g, torch.where(a < b, 0.0, 0.5 * g))


# operation -> what its gradient g adds to that of each operand, from g, the result and the operands
_RULES: dict[str, Callable[..., list]] = {
    "+": lambda g, _, a, b: [(a, lambda: g), (b, lambda: g)],
    "-": lambda g, _, a, b: [(a, lambda: g), (b, lambda: -g)],
    "*": lambda g, _, a, b: [(a, lambda: b * g), (b, lambda: a * g)],
    "/": _of_quotient,
    "where": lambda g, _, c, a, b: [(a, lambda: torch.where(c, g, 0.0)), (b, lambda: torch.where(c, 0.0, g))],
    "maximum": lambda g, _, a, b: [(a, lambda: _if_larger(g, a, b)), (b, lambda: _if_larger(g, b, a))],
    "minimum": lambda g, _, a, b: [(a, lambda: _if_larger(g, b, a)), (b, lambda: _if_larger(g, a, b))],
    "spike": lambda g, _, u: [(u, lambda: g * _slope(u))],
    "negative": lambda g, _, a: [(a, lambda: -g)],
    "abs": lambda g, _, a: [(a, lambda: torch.where(a > 0, g, torch.where(a < 0, -g, 0.0)))],
    "detach": lambda *_: [],
}
