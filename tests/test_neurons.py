"""The modules: golden values through them, state carried between calls, step modes, parametrisations."""

import math
import os
import re
import subprocess
import sys

import pytest
import torch

from snn import ops
from snn.errors import InputError
from snn.neurons import NEURONS, AdLIF, CuLIF, PCuLIF
from snn.ops import reference
from tests.conftest import REPOSITORY

CONSTANTS = {"tau_mem_steps": 5.0, "tau_syn_steps": 4.0, "theta": 0.3}


def make(name: str, N: int = 6, **more):
    torch.manual_seed(0)
    return NEURONS[name](N, **CONSTANTS, return_potential=True, backend="torch", **more).double()


def inputs(T: int = 30, B: int = 4, N: int = 6):
    return 3 * torch.randn(T, B, N, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


VARIANTS = [
    {},
    {"reset": "soft"},
    {"per": "layer"},
    {"recurrent": True},
    {"spike_first": True, "decay": "raw"},
    {"spike_first": True, "recurrent": True, "reset": "soft"},
    {"recurrent": True, "max_delay_steps": 4},
]


E5, E60, E100 = (math.exp(-1 / tau) for tau in (5, 60, 100))
# Six steps by hand, in plain floats. Neuron -> values, firing, input, h, step of the only spike, states after each step
GOLDEN = {
    "CuLIF": (
        {"lam_m": E5, "lam_s": E5, "theta": 0.25},
        {},
        [1, 0, 0, 0, 0, 0],
        [0, 0.181269, 0.296821, 0.121508, 0.198965, 0.244349],
        3,
        {},
    ),
    "AdLIF": (
        {"lam_m": E5, "lam_w": E100, "a": 0.5, "b": 0.5, "theta": 0.25},
        {},
        [1, 1, 1, 0, 0, 0],
        [0.181269, 0.329680, 0.164840, -0.001821, -0.151851, -0.273024],
        2,
        {"w": [0, 0.090635, 0.754573, 0.829485, 0.820320, 0.736233]},
    ),
    "CuAdLIF": (
        {"lam_m": E5, "lam_s": E5, "lam_w": E100, "a": 0.5, "b": 0.5, "theta": 0.3},
        {},
        [1, 1, 0, 0, 0, 0],
        [0, 0.181269247, 0.478090661, 0.253489847, 0.278299029, 0.237072058],
        3,
        {
            "i": [1, 1.818730753, 1.489050799, 1.219131682, 0.998140600, 0.817208405],
            "w": [0, 0, 0.090634623, 0.828778124, 0.947276568, 1.077000523],
        },
    ),
    "LIF": (
        {"lam_m": E5, "theta": 0.5},
        {},
        [1.0, 1.2, 0.9, 0.8, -0.5, 1.0],
        [0.181269247, 0.365933803, 0.462743581, 0.523877798, -0.090634623, 0.107063893],
        4,
        {},
    ),
    "PLIF": (
        {"lam_m": 1 / (1 + math.exp(-0.5)), "theta": 0.7},
        {},
        [1.0, 0.8, 1.1, 0.9, -0.4, 0.6],
        [0.377540669, 0.537036247, 0.749577959, 0.339786602, 0.060487073, 0.264175145],
        3,
        {},
    ),
    "SEAdLIF": (
        {"lam_m": E5, "lam_w": E60, "a": 0.5, "b": 1.0, "q": 120.0, "theta": 1.0},
        {},
        [3.0, 4.0, 5.0, 6.0, 1.0, 2.0],
        [0.543807741, 1.072550408, 0.450669289, 0.927431541, 0.253449871, -0.151294971],
        2,
        {},
    ),
    "SiLIF": (
        {"lam_m": math.exp(-0.4), "lam_w": math.exp(-0.02), "a": 0.5, "b": 1.0, "theta": 1.0},
        {"reset": "soft"},
        [1.5, 1.9, 2.5, 1.0, 0.5, 1.0],
        [0.494519931, 0.876361881, 1.187280833, -0.290092572, -0.712348520, -0.699612624],
        3,
        {},
    ),
    "BRF": (
        {"omega": 25.0, "b": 2.0, "delta": 0.01, "gamma": 0.9, "p_omega": (-1 + 0.9375**0.5) / 0.01, "theta": 1.0},
        {},
        [40.0, 50.0, 45.0, 10.0, -20.0, 30.0],
        [0.4, 0.879298335, 1.258790985, 0.202393109, -0.123136283, 0.002000350],
        3,
        {},
    ),
}


@pytest.mark.parametrize("name", NEURONS)
def test_golden_values(name):
    if name == "PCuLIF":
        assert NEURONS[name].step is NEURONS["CuLIF"].step
        return
    assert name in GOLDEN, f"compute six steps of {name} by hand and add them to GOLDEN"
    values, firing, inputs, potentials, spike, states = GOLDEN[name]
    dynamics = NEURONS[name].dynamics_of(**firing)
    values = {key: torch.tensor([value], dtype=torch.float64) for key, value in values.items()}
    state, found = {}, {key: [] for key in ("s", "h", *dynamics.states)}
    for x in inputs:  # step by step, to see the states
        x_TBN = torch.tensor([[[float(x)]]], dtype=torch.float64)
        s, h, state = ops.multi_step(x_TBN, values, state, dynamics, backend="torch")
        for key, tensor in {"s": s, "h": h, **state}.items():
            found[key].append(tensor.item())
    assert found["s"] == [float(n == spike) for n in range(1, 7)]
    assert found["h"] == pytest.approx(potentials, abs=1e-6)
    for key, expected in states.items():
        assert found[key] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("name", NEURONS)
def test_chunks_and_single_steps_equal_one_sequence(name, variant):
    neuron, x_TBN = make(name, **variant), inputs() * (60 if name == "BRF" else 1)
    upstream = torch.randn(2, *x_TBN.shape, dtype=torch.float64)

    def run(chunks) -> tuple[list, list]:
        neuron.reset()
        neuron.zero_grad()
        x = x_TBN.clone().requires_grad_()
        outputs = [torch.cat(parts) for parts in zip(*(neuron(x[start:stop]) for start, stop in chunks), strict=True)]
        (outputs[0] * upstream[0] + outputs[1] * upstream[1]).sum().backward()
        return outputs, [x.grad, *(p.grad.clone() for p in neuron.parameters())]

    whole, whole_grads = run([(0, 30)])
    assert 0 < whole[0].mean() < 1
    for chunks in ([(0, 7), (7, 8), (8, 30)], [(n, n + 1) for n in range(30)]):
        outputs, grads = run(chunks)
        assert all(torch.equal(a, b) for a, b in zip(outputs, whole, strict=True))
        for a, b in zip(grads, whole_grads, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)

    neuron.reset()
    neuron.step_mode = "s"
    steps = [neuron(x) for x in x_TBN]
    assert torch.equal(torch.stack([s for s, _ in steps]), whole[0])


@pytest.mark.parametrize("name", NEURONS)
def test_reset_forgets(name):
    neuron, x_TBN = make(name, recurrent=True, spike_first=True), inputs()
    first = neuron(x_TBN)[0]
    assert not torch.equal(neuron(x_TBN)[0], first)
    neuron.reset()
    assert torch.equal(neuron(x_TBN)[0], first)


@pytest.mark.parametrize("name", NEURONS)
def test_spike_first_is_one_step_late(name):
    x_TBN = inputs() * (60 if name == "BRF" else 1)
    s_late, h_late = make(name, spike_first=True)(x_TBN)
    s, h = make(name)(x_TBN)
    assert s.any()
    assert torch.equal(s_late[1:], s[:-1])
    assert torch.equal(h_late[1:], h[:-1])
    assert not s_late[0].any()


def test_spike_first_is_strict():
    # exactly at the threshold: >= fires, > does not
    at_threshold = {"tau_mem_steps": 1 / math.log(2), "tau_syn_steps": 1 / math.log(2), "theta": 0.5}
    x = torch.zeros(4, 1, 1)
    x[0] = 1  # h_2 = (1 - 1/2) 1 = θ
    assert CuLIF(1, **at_threshold)(x).sum() == 1
    assert CuLIF(1, **at_threshold, spike_first=True)(x).sum() == 0


def test_superspike_equals_the_published_loop():
    """spike first, strict; mem and syn updated after it; recurrence from the spikes of the step before."""
    neuron, x_TBN = make("PCuLIF", spike_first=True, decay="raw", recurrent=True), inputs()
    alpha, beta, V = neuron.lam_s, neuron.lam_m, neuron.V
    mem = syn = out = torch.zeros(4, 6, dtype=torch.float64)
    outputs = []
    for x in x_TBN:
        current = x + out @ V.T
        out = (mem > 0.3).double()
        mem, syn = beta * mem * (1 - out) + (1 - beta) * syn, alpha * syn + current
        outputs.append(out)
    assert torch.equal(neuron(x_TBN)[0], torch.stack(outputs))


@pytest.mark.parametrize("name", NEURONS)
@pytest.mark.parametrize("decay", ["sigmoid", "raw"])
def test_initial_values_and_ranges(name, decay):
    """Time constants are as given or within the range they are drawn from, and clamped values are never refused."""
    neuron = make(name, N=200, decay=decay).float()
    given = {"lam_m": 5, "lam_s": 4, "lam_w": 100} if name not in ("SEAdLIF", "SiLIF") else {}
    for key, value in neuron.values().items():
        if key in given:
            torch.testing.assert_close(value, torch.full_like(value, math.exp(-1 / given[key])), atol=1e-6, rtol=0)
    for learned in neuron.learned(dt_ms=10.0).values():
        low, high = learned.began
        assert low * 0.999 <= learned.value.min() <= learned.value.max() <= high * 1.001
        assert low == high or learned.value.max() > learned.value.min()
    for sign in (-1, 1):
        with torch.no_grad():
            for p in neuron.parameters():
                p.fill_(sign * 1e9)
        neuron.clamp_values()
        neuron.check_values("here")
    if decay == "raw" and name in ("PCuLIF", "AdLIF", "CuAdLIF", "PLIF"):
        assert neuron.lam_m.max().item() == pytest.approx(0.995)


def test_initial_values_of_ones_own():
    neuron = NEURONS["SEAdLIF"](4, theta=1, initial={"q": 60, "a": 0.25, "lam_m": 15, "lam_w": 60})
    values = neuron.values()
    assert (values["q"].item(), values["a"][0].item()) == (60, 0.25)
    torch.testing.assert_close(-1 / values["lam_m"].log(), torch.full((4,), 15.0))
    with pytest.raises(InputError, match="tau is not a value of SEAdLIF; it has theta, lam_m, lam_w, a, b, q"):
        NEURONS["SEAdLIF"](4, theta=1, initial={"tau": 3})


@pytest.mark.parametrize(
    ("name", "initial", "said"),
    [
        ("AdLIF", {"lam_m": 0}, "begins at 0; choose 0.1 to inf steps"),
        ("SiLIF", {"lam_m": -1}, "begins at -1; choose"),
        ("AdLIF", {"a": 1e6}, "of AdLIF begins at 1e\\+06; choose"),
        ("SEAdLIF", {"lam_m": 100}, "begins at 100; choose 5 to 25 steps"),
        ("SEAdLIF", {"theta": 3}, "theta is a setting of its own"),
        ("BRF", {"p_omega": 3}, "p_omega follows from other values"),
    ],
)
def test_initial_values_out_of_range_are_refused(name, initial, said):
    with pytest.raises(InputError, match=said):
        NEURONS[name](4, theta=1, tau_mem_steps=5, tau_syn_steps=5, initial=initial)
    with pytest.raises(InputError, match="the value lam_m needs tau_mem_steps"):
        CuLIF(4, theta=1)


def test_delays_of_a_recurrent_layer():
    """Real in training, whole in evaluation, within their bounds, and drawn from the range that is asked for."""
    neuron = make("AdLIF", recurrent=True, max_delay_steps=5, delay_steps=(1, 3))
    assert neuron.delays.steps.min() >= 1
    assert neuron.delays.steps.max() <= 3
    x_TBN = inputs()
    real, _ = neuron(x_TBN)
    real.sum().backward()
    assert neuron.delays.steps.grad.abs().sum() > 0
    neuron.reset()
    neuron.eval()
    whole, _ = neuron(x_TBN)
    assert not torch.equal(real, whole)
    with torch.no_grad():
        neuron.delays.steps.round_()
    neuron.train()
    neuron.reset()
    assert torch.equal(neuron(x_TBN)[0], whole)
    with torch.no_grad():
        neuron.delays.steps.fill_(7)
    with pytest.raises(InputError, match="here: a learned delay is 7 steps, outside 0 to 5"):
        neuron.delays.check_values("here")
    neuron.delays.clamp_values()
    assert neuron.delays.steps.max() == 5


def test_what_comes_back_after_a_delay_between_two_steps():
    """By hand, because all backends share how a delay is split: 1.25 steps take 0.75 of one step back, 0.25 of two."""
    feedback = ops.Feedback(torch.eye(2), torch.tensor([1.25, 0.0]), longest=2)
    past_X1N = torch.tensor([[1.0, 1], [10, 10], [100, 100], [1000, 1000], [10000, 10000]])[:, None]
    expected = [[0.75 * 100 + 0.25 * 10, 1000], [0.75 * 1000 + 0.25 * 100, 10000]]
    assert reference.delayed(past_X1N, feedback)[:, 0].tolist() == expected


def test_conv_shapes_with_values_per_layer():
    neuron = PCuLIF(None, **CONSTANTS, per="layer")
    x = torch.randn(5, 2, 3, 4, 4)
    assert neuron(x).shape == x.shape
    flat = PCuLIF(None, **CONSTANTS, per="layer")
    assert torch.equal(flat(x.flatten(2)), neuron.__class__(None, **CONSTANTS, per="layer")(x).flatten(2))


@pytest.mark.parametrize("option", ["backend", "reset", "surrogate"])
def test_unknown_words_are_refused(option):
    with pytest.raises(InputError, match=f"{option} 'softly' is not known; choose from"):
        AdLIF(4, **CONSTANTS, **{option: "softly"})


def test_what_needs_the_number_of_neurons_says_so():
    for more in ({}, {"per": "layer", "recurrent": True}):
        with pytest.raises(InputError, match="AdLIF needs num_neurons"):
            AdLIF(None, **CONSTANTS, **more)


NEURON = """
from snn.neurons.module import SpikingNeuron
class {name}(SpikingNeuron):
    STATES, VALUES = ("v",), {{}}
    @staticmethod
    def step(x, state, p):
        return p.spike(x - p.theta), x, {{"v": x}}
"""


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"toy.py": 2 * NEURON.format(name="Toy")}, "neuron Toy is defined in .*toy.py and once more"),
        ({"toy.py": NEURON.format(name="LIF")}, "neuron LIF is defined in .*toy.py and .*lif.py"),
        ({"lif.py": NEURON.format(name="Toy")}, "warning: .*lif.py is ignored; .*lif.py has the same name"),
    ],
    ids=["in one file", "of another file", "hidden file"],
)
def test_two_neurons_of_one_name(tmp_path, files, message):
    """Otherwise the second would silently train in place of the first."""
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    name = re.search(r"class (\w+)", "".join(files.values()))[1]
    program = f"from snn.neurons import NEURONS\nNEURONS['{name}'](3, theta=1.0, tau_mem_steps=5.0)"
    environment = os.environ | {"FIRST_SPIKE_NEURONS": str(tmp_path), "PYTHONPATH": str(REPOSITORY)}
    result = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert result.returncode == 1
    assert re.search(message, result.stderr)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\ndef step(:\n", "line 2: SyntaxError: invalid syntax"),
        ("\nimport no_such_package\n", "line 2: ModuleNotFoundError: No module named 'no_such_package'"),
        (NEURON.format(name="Toy").replace("VALUES", "VALUES = nothing #"), "line 4: NameError: name 'nothing'"),
    ],
)
def test_a_mistake_in_a_file_of_ones_own_is_one_line(tmp_path, text, message):
    """It does not stop a training with other neurons."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "toy.py").write_text(text)
    environment = os.environ | {"FIRST_SPIKE_NEURONS": "own", "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", "from snn.neurons import NEURONS\nprint('Toy' in NEURONS, 'LIF' in NEURONS)"]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.stdout == "False True\n"
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"warning: own/toy.py, {message}")
    assert line.endswith("; its neurons are left out")
