"""A neuron's step as source text: numba for the CPU, CUDA for GPUs, C. `python -m snn.ops.show AdLIF` shows it.

The text of one neuron is a few short functions (a step, its derivative, loads and stores of states and values; in C the
step alone). The code that all neurons share is in a frame around it: `kernels/neuron.py`, `kernels/neuron.cu` and
`snn/embedded/network.c`.
"""

import keyword
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from snn.errors import InputError
from snn.ops.reference import Dynamics
from snn.ops.trace import COMPARISONS, Step, Symbol, trace


@cache
def file(name: str) -> str:
    """Return the text of a file in `kernels/`."""
    return (Path(__file__).parent / "kernels" / name).read_text(encoding="utf-8")


@dataclass(frozen=True)
class Language:
    """The way in which one language writes the operations; braces stand for the operands."""

    operations: dict[str, str]
    number: str
    assignment: str  # to a name, of an expression, with its `kind`
    kind: str  # of numbers
    zero: str
    taken: frozenset[str]  # names that mean something else in the frame


_INFIX = {op: f"{{0}} {op} {{1}}" for op in ("+", "-", "*", "/", *COMPARISONS)}
NUMBA = Language(
    _INFIX
    | {"negative": "-{0}", "abs": "abs({0})", "exp": "exponential({0})", "detach": "{0}"}
    | {"where": "where({0}, {1}, {2})", "where of numbers": "where({0}, {1}, zeros(r, LINE) + {2})"}
    | {"minimum": "where({1} < {0}, {1}, {0})", "maximum": "where({1} > {0}, {1}, {0})"}
    | {"spike": "where({0} {fires} 0, 1, zeros(r, LINE))"},
    "{}",
    "{} = {}",
    "",
    "zeros(r, LINE)",
    frozenset("r at P LINE STRIDE load_rows where zeros exponential abs state values recalled gradients".split()),
)
CUDA = Language(
    _INFIX
    | {"negative": "-{0}", "abs": "magnitude({0})", "exp": "exp({0})", "detach": "{0}"}
    | {"where": "{0} ? {1} : {2}", "where of numbers": "{0} ? {1} : {2}"}
    | {"minimum": "{1} < {0} ? {1} : {0}", "maximum": "{1} > {0} ? {1} : {0}"}
    | {"spike": "{0} {fires} real(0) ? real(1) : real(0)"},
    "real({})",
    "const {kind} {} = {};",
    "real",
    "real(0)",
    frozenset(
        "real State Values state values gstate kept stride sums potential n N m M magnitude exp abs".split()
        # keywords of C++ that Python does not have
        + "alignas alignof and_eq asm auto bitand bitor bool case catch char compl const consteval constexpr".split()
        + "constinit decltype default delete do double dynamic_cast enum explicit export extern false float".split()
        + "friend goto inline int long mutable namespace new noexcept not_eq nullptr operator or_eq private".split()
        + "protected public register reinterpret_cast requires restrict short signed sizeof static".split()
        + "static_assert static_cast struct switch template this thread_local throw true typedef typeid".split()
        + "typename union unsigned using virtual void volatile wchar_t xor xor_eq".split()
    ),
)
C = replace(
    CUDA,
    operations=CUDA.operations | {"abs": "{0} < 0.0f ? -{0} : {0}", "spike": "{0} {fires} 0.0f ? 1.0f : 0.0f"},
    number="{}f",
    kind="float",
)


class Text:
    """Names for the symbols of a step, and their expressions in one language."""

    def __init__(self, step: Step, language: Language):
        self.step, self.language = step, language
        self.x = step.symbols[0]
        self.values = [s for s in step.symbols if s.op == "value"]
        self.states = [s for s in step.symbols if s.op == "state"]
        self.recalled = [s for s in self.states if s.name in step.recalled]
        self.upstream = [s for s in step.symbols if s.op == "gradient"]
        self.fixed = self._fixed()
        self.names = self._names()

    def _fixed(self) -> list[Symbol]:
        """Return numbers that depend on values alone but are used by others: computed once, not in each step."""
        of_values, used = set(self.values), set()
        for symbol in self.step.symbols:
            operands = [a for a in symbol.arguments if isinstance(a, Symbol)]
            if operands and of_values.issuperset(operands) and symbol.op != "spike":
                of_values.add(symbol)
            else:
                used.update(of_values.intersection(operands))
        outputs = (*self.step.after, self.step.spike, self.step.potential, *self.step.gradients)
        used |= of_values.intersection(outputs)
        return [s for s in self.step.symbols if s in used and s.op != "value"]

    def _names(self) -> dict[Symbol, str]:
        """Return names from the definition; where one name means two numbers, the later number gets another name."""
        names, taken = {}, set(self.language.taken) | set(keyword.kwlist)
        after = dict(zip(self.step.after, self.step.neuron.states, strict=True))
        given = [s for s in self.step.symbols if not s.arguments]
        for symbol in [*given, *(s for s in self.step.symbols if s.arguments)]:
            name = symbol.name or (f"{after[symbol]}_next" if symbol in after else None)
            if name is None and symbol in self.fixed:
                name = f"fixed_{self.fixed.index(symbol) + 1}"
            if name is None:
                continue
            if name in taken and symbol in after:
                name = f"{after[symbol]}_next"
            while name in taken:
                name += "_"
            taken.add(name)
            names[symbol] = name
        return names

    def named(self, *symbols: Symbol) -> list[str]:
        """Return the names of symbols that have one."""
        return [self.names[symbol] for symbol in symbols]

    def fixed_lines(self) -> list[str]:
        """Return statements for the numbers that depend on values alone."""
        return self.lines(self.fixed, known=self.values)

    def lines(self, outputs: Sequence[Symbol | None], known: Iterable[Symbol] | None = None) -> list[str]:
        """Return statements after which all outputs have names."""
        known = {*self.values, *self.fixed} if known is None else set(known)
        order = [s for s in self.step.needed(outputs, known) if s not in known and s.arguments]
        uses = Counter([*(argument for symbol in order for argument in symbol.arguments), *outputs])
        result = []
        for symbol in order:
            if symbol in self.names or uses[symbol] > 1 or symbol in outputs:
                is_truth = symbol.op in COMPARISONS
                if symbol not in self.names:
                    self.names[symbol] = f"{'c' if is_truth else 't'}{len(self.names)}"
                kind = "bool" if is_truth else self.language.kind
                result.append(self.language.assignment.format(self.names[symbol], self._written(symbol), kind=kind))
        return result

    def _written(self, symbol: Symbol) -> str:
        fires = ">" if self.step.neuron.spike_first else ">="
        op = symbol.op
        if op == "where" and not any(isinstance(a, Symbol) for a in symbol.arguments[1:]):
            op = "where of numbers"
        return self.language.operations[op].format(*map(self.operand, symbol.arguments), fires=fires)

    def operand(self, argument: Any) -> str:
        """Return a name, a number, or an expression that is used only here."""
        if not isinstance(argument, Symbol):
            return self.language.number.format(repr(float(argument)))
        return self.names.get(argument) or f"({self._written(argument)})"

    def result(self, symbol: Symbol | None) -> str:
        """Return the name of an output of `lines`; None is a gradient that is 0."""
        return self.language.zero if symbol is None else self.names[symbol]


HEADER = """import numpy as np

from snn.ops.compiled import inlined, kernel
from snn.ops.cpu import STEPS, STRIDE, TILE, add_rows, copy, delayed, spread
from snn.ops.lanes import (
    LINE, exponential, fence, load_part, load_rows, prefetch, store_part, store_past, store_rows, where, word, zeros
)"""


def segment(neuron: Dynamics) -> int:
    """Return the steps between two marks: the states of all marks take at most a fifth of the memory of the input."""
    return -(-5 * len(neuron.states) // 8) * 8


def _tuple(words: Iterable[str]) -> str:
    """Return the text of a tuple, which may have one word or none."""
    words = tuple(words)
    return f"({', '.join(words)}{',' if len(words) == 1 else ''})"


def _body(lines: Iterable[str]) -> str:
    """Return the text of a function's statements."""
    return "\n".join(f"    {line}" for line in lines)


def _unpacked(names: Sequence[str], source: str) -> list[str]:
    """Return a statement that gives the parts of a tuple their names; there may be none."""
    return [f"{_tuple(names)[1:-1]} = {source}"] if names else []


def numba(neuron: Dynamics, learned: frozenset[str]) -> str:
    """Return the text of a module for `snn.ops.compiled.printed`: the neuron's functions and the frame around them."""
    step = trace(neuron, learned)
    text = Text(step, NUMBA)
    values, states = text.named(*text.values, *text.fixed), text.named(*text.states)
    kept = text.named(text.x, *text.recalled)
    sums = [f"sum_{name}" for name in step.g_values]
    gradients = [*text.named(*text.upstream[2:]), *sums]

    forward = text.lines([step.spike, step.potential, step.near, *step.after])
    near = "None" if step.near is None else text.names[step.near]
    backward = text.lines(step.gradients)
    summed = [
        total if g is None else f"{total} + {text.names[g]}"
        for total, g in zip(sums, step.g_values.values(), strict=True)
    ]
    load_values = _unpacked(text.named(*text.values), "load_rows(r, at, STRIDE, P)") + text.fixed_lines()
    before = _unpacked(states, "state")
    given = [*_unpacked(kept, "recalled"), *_unpacked(values, "values"), *_unpacked(gradients, "gradients")]

    title = f"{neuron.name} for the CPU: printed from its definition, with the frame of snn/ops/kernels/neuron.py."
    return f'''"""{title}"""

{HEADER}

S, P, Q, R = {len(states)}, {len(text.values)}, {len(sums)}, {len(kept)}  # states, values, values learned, numbers kept
SEGMENT = {segment(neuron)}  # steps between two marks

@inlined
def load_values(r, at):
    """Load the values of a line of columns, and compute numbers that depend on them alone."""
{_body(load_values)}
    return {_tuple(values)}

@inlined
def step(r, {text.names[text.x]}, state, values):
    """Take one step: return spike, potential, whether it is near the threshold, and the states after it."""
{_body([*before, *_unpacked(values, "values"), *forward])}
    return {text.result(step.spike)}, {text.result(step.potential)}, {near}, {_tuple(map(text.result, step.after))}

@inlined
def kept({text.names[text.x]}, state):
    """Return what the derivative of a step reads."""
{_body(before)}
    return {_tuple(kept)}

@inlined
def backward_step(r, recalled, values, gs, gh, gradients):
    """Go back one step: return the gradient of x, and those of the states before it and of the values so far."""
{_body([*given, *backward])}
    return {text.result(step.g_x)}, {_tuple([*map(text.result, step.g_states), *summed])}

{file("neuron.py")}'''


def cuda(neuron: Dynamics, learned: frozenset[str]) -> str:
    """Return the text of a CUDA file: the neuron's functions, then `kernels/neuron.cu`."""
    step = trace(neuron, learned)
    text = Text(step, CUDA)
    values, states, recalled = [*text.values, *text.fixed], text.named(*text.states), text.named(*text.recalled)
    x = text.names[text.x]

    def struct(title: str, fields: Sequence[str]) -> str:
        return f"struct {title} {{ {'real ' + ', '.join(fields) + ';' if fields else ''} }};"

    def opened(symbols: Iterable[Symbol], source: str, lines: Iterable[str]) -> list[str]:
        """Unpack those fields of `source` that the lines read."""
        read = set(re.findall(r"\w+", " ".join(lines)))
        return [f"const real {name} = {source}.{name};" for name in text.named(*symbols) if name in read]

    forward, backward = text.lines([step.spike, step.potential, *step.after]), text.lines(step.gradients)
    load_values = [f"const real {name} = values_PN[{k} * N + n];" for k, name in enumerate(text.named(*text.values))]
    load_values += text.fixed_lines()
    after = [f"state.{name} = {text.result(s)};" for name, s in zip(states, step.after, strict=True)]
    summed = [f"sums[{k}] += {text.result(g)};" for k, g in enumerate(step.g_values.values())]
    g_after = [f"gstate.{name} = {text.result(g)};" for name, g in zip(states, step.g_states, strict=True)]
    potential, spike = text.result(step.potential), text.result(step.spike)
    read = [*forward, *after, potential, spike]

    def each(what: str) -> str:
        return _body(what.format(k=k, name=name) for k, name in enumerate(states))

    return f"""// {neuron.name} for GPUs: printed from its definition, with the frame of snn/ops/kernels/neuron.cu.
typedef REAL real;
__device__ inline real magnitude(real u) {{ return u < real(0) ? -u : u; }}
constexpr int S = {len(states)}, Q = {len(summed)}, R = {len(recalled)};  // states, values learned, states recalled
constexpr int SEGMENT = {segment(neuron)};  // steps between two marks

{struct("State", states)}
{struct("Values", text.named(*values))}

// states: (S, M) at column m.
__device__ inline State load_state(const real* states, long long M, long long m) {{
    State state;
{each("state.{name} = states[{k} * M + m];")}
    return state;
}}

__device__ inline void store_state(real* states, long long M, long long m, const State& state) {{
{each("states[{k} * M + m] = state.{name};")}
}}

// Load the values of neuron n, and compute numbers that depend on them alone.
__device__ inline Values load_values(const real* values_PN, long long N, int n) {{
{_body(load_values)}
    return {{{", ".join(text.named(*values))}}};
}}

// Keep the states before a step that its derivative reads.
__device__ inline void remember(real* kept, long long stride, const State& state) {{
{_body(f"kept[{k} * stride] = state.{name};" for k, name in enumerate(recalled))}
}}

// Take one step: return the spike; potential and states are written.
__device__ inline real step(real {x}, State& state, const Values& values, real& potential) {{
{_body([*opened(text.states, "state", read), *opened(values, "values", read), *forward, *after])}
    potential = {potential};
    return {spike};
}}

// Go back one step: return the gradient of x; gstate turns from after the step to before it.
__device__ inline real backward_step(
    real {x}, const real* kept, long long stride, const Values& values, real gs, real gh, State& gstate, real* sums) {{
{_body(f"const real {name} = kept[{k} * stride];" for k, name in enumerate(recalled))}
{_body(opened(values, "values", [*backward, *summed, *g_after]))}
{_body(f"const real {g} = gstate.{name};" for g, name in zip(text.named(*text.upstream[2:]), states, strict=True))}
{_body([*backward, *summed, *g_after])}
    return {text.result(step.g_x)};
}}

{file("neuron.cu")}"""


def c(neuron: Dynamics) -> tuple[str, str, list[str]]:
    """Return C, float32: (struct of the states, function of a step, values that it takes after x and the potential)."""
    step = trace(neuron)
    if step.spike.op != "spike":
        raise InputError(f"neuron {neuron.name}: its output is not a spike of size 1, which is all that C can say")
    text = Text(step, C)
    x, names = text.names[text.x], text.named(*text.states)
    lines = text.lines([step.spike, step.potential, *step.after], known=text.values)
    after = [f"state->{name} = {text.result(s)};" for name, s in zip(names, step.after, strict=True)]
    spike, potential = text.named(step.spike, step.potential)
    read = set(re.findall(r"\w+", " ".join([*lines, *after, spike, potential])))
    before = [f"const float {name} = state->{name};" for name in names if name in read]
    values = [s for s in text.values if text.names[s] in read]
    parameters = ", ".join(f"float {text.names[s]}" for s in values)
    body = [*before, *lines, *after, f"*potential = {potential};", f"return {spike} != 0.0f;"]
    return (
        f"typedef struct {{ float {', '.join(names)}; }} {neuron.name}_state;",
        "/* Take one step with the input x; return whether the neuron fires. The potential is that before a reset. */\n"
        f"static bool step_{neuron.name}({neuron.name}_state *state, float {x}, float *potential,\n"
        f"    {parameters})\n" + "{\n" + "".join(f"    {line}\n" for line in body) + "}",
        [s.name for s in values],
    )
