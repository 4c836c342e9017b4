"""Networks of the closed form: sizes, words, torch's functions for modules, and the simulation over time."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from snn.errors import InputError
from snn.ttfs import layers
from snn.ttfs.evaluation import TTFSEvaluation, examine_images
from snn.ttfs.network import _lack, _lack_by_mask, silent_neurons_drive
from snn.ttfs.simulation import Simulation
from tests.networks import SMALL_TTFS as SMALL
from tests.networks import build_ttfs as build
from tests.networks import random_images as images


@pytest.mark.parametrize(
    ("words", "shape", "values"),
    [
        ("vgg7", (3, 32, 32), 4_581_056),
        ("vgg11", (3, 32, 32), 10_112_384),
        ("256F", (1, 28, 28), 784 * 256 + 256 * 10),
        ("64C3 - 128C3 - P2 - 512F", (1, 28, 28), 64 * 9 + 128 * 64 * 9 + 512 * 128 * 196 + 512 * 10),
    ],
)
def test_numbers_of_weights(words, shape, values):
    assert sum(p.numel() for p in build(words, shape, 10).parameters()) == values


@pytest.mark.parametrize("words", [SMALL, "6C3-P2-8C3S2-A2-20F", "6C3, P2, 8C3S2, A2, 20F", " 6C3 P2 8C3S2 A2 20F "])
def test_words_may_be_separated_in_any_way(words):
    shapes = [tuple(t_out.shape) for _, _, t_out in build(words)(images(3)).passages]
    assert shapes == [(3, 6, 12, 10), (3, 8, 3, 3), (3, 20)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("64C3 - X9", "layer 'X9' is not known"),
        ("64C3 - 10R", "layer '10R': a neuron that spikes once has no recurrent layer"),
        ("10F - 64C3", "only fully connected layers can follow"),
        ("P8 - P8", "layer 'P8' is too large a pool for the 1x1 that reach it"),
        ("vgg9", "layer 'vgg9' is not known"),
    ],
)
def test_bad_words(words, message):
    with pytest.raises(InputError, match=message):
        build(words)


def test_direct_encoder_needs_weights():
    with pytest.raises(InputError, match="needs a first layer with weights"):
        build("P2 - 10F", encoder="direct")


def test_a_direct_encoder_adds_its_bias():
    network, x = build("4C3 - 5F", encoder="direct", bias=True), images(2)
    layer = network.encoder.layer
    y = F.conv2d(x, layer.weight, padding=1) + layer.bias.view(-1, 1, 1)
    assert torch.equal(network.encoder(x), layers.functional.direct_encode(y, layer.T))


def test_initial_weights():
    network = build("400F", (1, 20, 20), 10)
    for weight in network.parameters():
        assert weight.std().item() == pytest.approx(math.sqrt(2 / weight[0].numel()), rel=0.05)


@pytest.mark.parametrize("options", [{}, {"encoder": "direct", "bias": True}, {"standardised": True}, {"bias": True}])
@pytest.mark.parametrize("T", [0.5, 3.0])
def test_a_simulation_over_time_finds_the_same(options, T):
    """Compare spike times and potentials for all kinds of layers, with steps as coarse as a quarter of a window."""
    network = build(T=T, **options).double()
    x = images().double()
    V_BN, passages, _ = network(x)
    for steps in (4, 7):
        simulated_V_BN, spikes = Simulation(network, steps).run(x)
        torch.testing.assert_close(simulated_V_BN, V_BN, rtol=1e-9, atol=1e-9)
        for (_, _, t), simulated in zip(passages, spikes, strict=True):
            assert torch.equal(t == math.inf, simulated == math.inf)
            fired = t < math.inf
            assert 0.05 < fired.double().mean() < 1
            torch.testing.assert_close(t[fired], simulated[fired], rtol=1e-9, atol=1e-9)


def test_standardised_weights_fold_into_plain_ones():
    network = build(standardised=True, bias=True)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("gain"):
                parameter.uniform_(0.5, 2)
    x = images()
    folded = network.folded()
    assert torch.equal(network(x).V_BN, folded(x).V_BN)
    assert set(folded.state_dict()) == set(build(bias=True).state_dict())
    weight = network.layers[0].synapses().detach().flatten(1)
    assert (weight.sum(1) + layers.LEAST_SUM).abs().max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("brightness", [0.25, 1.0])
def test_an_area_of_one_colour_leaves_standardised_neurons_silent(brightness, dtype):
    """Their weights would sum up to 0 but for rounding, which must not decide what fires."""
    torch.manual_seed(0)
    network = build(standardised=True).to(dtype)
    first = network(torch.full((1, *network.input_shape), brightness, dtype=dtype)).passages[0]
    K = first.layer.weight.shape[-1] // 2  # the border sees silent padding
    assert (first.t_out[..., K:-K, K:-K] == math.inf).all()
    assert (first.t_out < math.inf).any()


def test_state_dict_and_optimisers():
    """One step of each lowers the loss; weights go through a state_dict."""
    x, target_B = images(64), torch.arange(64) % 4
    for optimiser in (torch.optim.AdamW, torch.optim.SGD):
        network = build()
        steps = optimiser(network.parameters(), 1e-3)
        losses = []
        for _ in range(5):
            steps.zero_grad()
            loss = F.cross_entropy(network(x).V_BN, target_B)
            loss.backward()
            assert all(p.grad.isfinite().all() for p in network.parameters())
            steps.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0]
        other = build("6C3 - P2 - 8C3S2 - A2 - 20F")
        other.load_state_dict(network.state_dict())
        assert torch.equal(other(x).V_BN, network(x).V_BN)


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiles_whole(backend):
    """torch.compile takes the network without a break, and its values and gradients are the same."""
    network, x = build("4C3 - P2 - 10F"), images(8)
    target_B = torch.arange(8) % 4
    torch._dynamo.reset()
    compiled = torch.compile(network, backend=backend, fullgraph=True)
    results = []
    for run in (network, compiled):
        network.zero_grad()
        V_BN = run(x).V_BN
        F.cross_entropy(V_BN, target_B).backward()
        results.append((V_BN, *(p.grad.clone() for p in network.parameters())))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_data_parallel(tmp_path):
    """torch's DistributedDataParallel, of one process: it hooks into every gradient."""
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        network, x = build(), images(8)
        parallel = torch.nn.parallel.DistributedDataParallel(copy.deepcopy(network))
        for run in (network, parallel):
            run(x).V_BN.logsumexp(1).sum().backward()
        for one, other in zip(network.parameters(), parallel.module.parameters(), strict=True):
            assert torch.equal(one.grad, other.grad)
    finally:
        torch.distributed.destroy_process_group()


def test_silent_neurons_drive():
    """It is zero while every neuron fires for some image; otherwise its gradient raises only silent neurons' drive."""
    network = build("8F - 5F", (1, 4, 4))
    x = images(10, (1, 4, 4))
    with torch.no_grad():
        network.layers[0].weight.abs_()
        network.layers[1].weight.abs_()
    assert silent_neurons_drive(network(x)).item() == 0
    with torch.no_grad():
        network.layers[0].weight[3] = -0.5
    activity = network(x)
    term = silent_neurons_drive(activity)
    t_in, t_out = activity.passages[0].t_in, activity.passages[0].t_out
    assert (t_out[:, 3] == math.inf).all()
    lead = torch.where(t_in == math.inf, 0, 1 + (1 - t_in)).flatten(1)  # T m + a
    assert term.item() == pytest.approx(0.5 * lead.sum(1).mean().item(), rel=1e-6)
    term.backward()
    grad = network.layers[0].weight.grad
    assert (grad[3] < 0).any()
    assert (grad[torch.arange(8) != 3] == 0).all()


def test_the_lack_of_drive_by_mask_is_that_of_the_silent_neurons():
    """A GPU computes it in the second way. Compare values and gradients, with some, all and no neurons silent."""
    network, x = build("6C3 - 5F", (2, 6, 6), bias=True, T=0.5).double(), images(4, (2, 6, 6)).double()
    for layer, inputs in zip(network.layers, (x[:1], torch.rand(1, 6, 6, 6, dtype=torch.float64)), strict=True):
        O = len(layer.weight)
        for is_silent_O in (torch.arange(O) % 2 == 0, torch.ones(O, dtype=torch.bool)):
            results = []
            for lack in (_lack, _lack_by_mask):
                value = lack(layer, inputs, is_silent_O)
                results.append((value, *torch.autograd.grad(value, (layer.weight, layer.bias))))
            assert results[0][0] > 0
            drive = layer.sums(inputs, layer.weight) + 0.5 * layer.bias_like_sums()  # V(2T), with b from T to 2T
            torch.testing.assert_close(results[0][0], (-drive[:, is_silent_O]).clamp(min=0).mean())
            torch.testing.assert_close(*results)
        assert _lack_by_mask(layer, inputs, torch.zeros(O, dtype=torch.bool)) == 0


def test_silent_channels_of_a_convolution_are_woken():
    """A channel that is silent everywhere fires after some steps down the term."""
    network, x = build("4C3", (1, 6, 6)), images(10, (1, 6, 6))
    with torch.no_grad():
        network.layers[0].weight[2] = -0.1
    optimiser = torch.optim.SGD(network.parameters(), 0.05)
    fired = []
    for _ in range(20):
        activity = network(x)
        fired.append(bool((activity.passages[0].t_out[:, 2] < math.inf).any()))
        if fired[-1]:
            break
        optimiser.zero_grad()
        silent_neurons_drive(activity).backward()
        optimiser.step()
    assert not fired[0]
    assert fired[-1]


def test_evaluation_by_hand():
    """Two images, two inputs, one hidden layer of two neurons."""
    network = build("2F", (1, 1, 2), 2)
    with torch.no_grad():
        network.layers[0].weight.copy_(torch.tensor([[0.5, 0.0], [-1.0, 1.0]]))
        network.readout.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    # image 0: only input 0, at 0: neuron 0 at 0.5 / 1.5, neuron 1 silent; image 1: both at 0: neuron 0 the same,
    # neuron 1 has no drive, so silent
    x = torch.tensor([[1.0, 0.0], [1.0, 1.0]]).view(2, 1, 1, 2)
    result = TTFSEvaluation()
    examine_images(network, x, torch.tensor([0, 1]), torch.device("cpu"), result, Simulation(network).run)
    metrics = result.metrics()
    assert result.details()["confusion"] == [[1, 0], [1, 0]]
    low, high = result.details()["accuracy_interval"]
    assert low < 50 < high
    assert metrics["accuracy"] == 50
    assert metrics["spikes_per_neuron_by_layer"] == [0.5]
    # synapses of 0 are none. Image 0: 1 spike at 2 synapses, then 1 at 1; image 1: 1 at 2 and 1 at 1, then 1 at 1
    assert metrics["synaptic_operations_by_layer"] == [2.5, 1]
    assert metrics["synapses"] == 5
    assert metrics["latency_windows"] == 3
    assert metrics["disagreements_with_simulation"] == 0
    histogram = result.histograms[0].tolist()
    assert sum(histogram) == 2
    assert histogram[6] == 2  # (T - A) / (1 + S) = 0.5 / 1.5


def test_synapses_of_a_convolution_by_convolving():
    """Compare fan_out with the summed output of a one-hot input through weights of 1, or 0 where a weight is 0."""
    for kernel, stride in ((3, 1), (3, 2), (5, 2)):
        layer = layers.Conv2d(2, 3, kernel, 1.0, stride)
        layer.weight.data[layer.weight > 0.4] = 0
        ones = (layer.weight != 0).float()
        assert 0 < ones.mean() < 1
        fan_out = layer.fan_out((2, 6, 5))
        for c, y, x in ((0, 0, 0), (1, 3, 2), (0, 5, 4)):
            one = torch.zeros(1, 2, 6, 5)
            one[0, c, y, x] = 1
            assert fan_out[c, y, x] == layer.sums(one, ones).sum()
