"""The modules: golden values through them, state carried between calls, step modes, parametrisations."""

import math

import pytest
import torch

from snn.errors import InputError
from snn.neurons import NEURONS, RAW_DECAY_RANGE, AdLIF, CuLIF, PCuLIF

CONSTANTS = {"tau_mem_steps": 5.0, "tau_syn_steps": 4.0, "theta": 0.3}


def make(name: str, N: int = 6, **more):
    torch.manual_seed(0)
    return NEURONS[name](N, **CONSTANTS, return_potential=True, backend="torch", **more).double()


def inputs(T: int = 30, B: int = 4, N: int = 6):
    return torch.randn(T, B, N, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


VARIANTS = [
    {},
    {"reset": "soft"},
    {"per": "layer"},
    {"recurrent": True},
    {"spike_first": True, "decay": "raw"},
    {"spike_first": True, "recurrent": True, "reset": "soft"},
]


def test_golden_culif():
    neuron = CuLIF(1, tau_mem_steps=5, tau_syn_steps=5, theta=0.25, return_potential=True, backend="torch")
    x_TBN = torch.zeros(6, 1, 1)
    x_TBN[0] = 1
    s, h = neuron(x_TBN)
    expected = [0, 0.181269, 0.296821, 0.121508, 0.198965, 0.244349]
    torch.testing.assert_close(h.flatten(), torch.tensor(expected), atol=1e-6, rtol=0)
    assert s.flatten().tolist() == [0, 0, 1, 0, 0, 0]


def test_golden_adlif():
    neuron = AdLIF(1, tau_mem_steps=5, tau_syn_steps=5, theta=0.25, return_potential=True, backend="torch")
    with torch.no_grad():
        neuron.a.fill_(0.5)
        neuron.b.fill_(0.5)
    potentials, spikes, adaptation = [], [], []
    for n in range(6):  # step by step, to see w
        s, h = neuron(torch.full((1, 1, 1), float(n < 3)))
        potentials.append(h.item())
        spikes.append(s.item())
        adaptation.append(neuron.w.item())
    assert potentials == pytest.approx([0.181269, 0.329680, 0.164840, -0.001821, -0.151851, -0.273024], abs=1e-6)
    assert adaptation == pytest.approx([0, 0.090635, 0.754573, 0.829485, 0.820320, 0.736233], abs=1e-6)
    assert spikes == [0, 1, 0, 0, 0, 0]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("name", NEURONS)
def test_chunks_and_single_steps_equal_one_sequence(name, variant):
    neuron, x_TBN = make(name, **variant), inputs()
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


def test_spike_first_is_one_step_late_and_strict():
    late, prompt = make("CuLIF", spike_first=True), make("CuLIF")
    x_TBN = inputs()
    s_late, h_late = late(x_TBN)
    s, h = prompt(x_TBN)
    assert torch.equal(s_late[1:], s[:-1])
    assert torch.equal(h_late[1:], h[:-1])
    assert not s_late[0].any()
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
def test_initial_decays_and_ranges(name, decay):
    neuron = make(name, decay=decay)
    values = neuron.values()
    expected = {"lam_m": 5, "lam_s": 4 if neuron.current else None, "lam_w": 100 if neuron.adaptation else None}
    for field, tau in expected.items():
        value = getattr(values, field)
        assert (value is None) == (tau is None)
        if tau is not None:
            torch.testing.assert_close(value, torch.full_like(value, math.exp(-1 / tau)), atol=1e-6, rtol=0)
    with torch.no_grad():
        for p in neuron.parameters():
            p.fill_(7.0)
    neuron.clamp_values()
    if neuron.adaptation:
        assert neuron.a.max() == neuron.b.max() == 1
    if neuron.learned_decays and decay == "raw":
        assert neuron.lam_m.max().item() == pytest.approx(RAW_DECAY_RANGE[1])


def test_conv_shapes_with_values_per_layer():
    neuron = PCuLIF(None, **CONSTANTS, per="layer")
    x = torch.randn(5, 2, 3, 4, 4)
    assert neuron(x).shape == x.shape
    flat = PCuLIF(None, **CONSTANTS, per="layer")
    assert torch.equal(flat(x.flatten(2)), neuron.__class__(None, **CONSTANTS, per="layer")(x).flatten(2))


def test_what_needs_the_number_of_neurons_says_so():
    for more in ({}, {"per": "layer", "recurrent": True}):
        with pytest.raises(InputError, match="AdLIF needs num_neurons"):
            AdLIF(None, **CONSTANTS, **more)
