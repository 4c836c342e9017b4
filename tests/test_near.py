"""The gradient of a layer's input, computed only where the surrogate before it passes any, equals the whole one."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from snn import linear, ops
from snn.inputs import Spikes
from snn.linear import EventLinear
from snn.network import Network
from snn.ops import Surrogate, sparse
from tests.make import DYNAMICS, TOLERANCE, assert_close_gradients, leaves, make_call
from tests.networks import events, small

WIDTHS = {"none": 1e6, "some": 1.0, "all": 1e-6}  # of the surrogate's reach: its slope


@pytest.fixture(autouse=True)
def _also_few_outputs(monkeypatch):
    monkeypatch.setattr(linear, "FEW_OUTPUTS", 1)


def gradients(call: tuple, dense_gradient_above: float, mask_BN: torch.Tensor | None) -> list:
    """Return the gradients of all leaves and of the next layer's weights, and that layer's share of entries near θ."""
    x_TBN, _, _, neuron, feedback = call
    near_TW = ops.near_room(x_TBN, neuron, feedback)
    assert near_TW is not None
    s_TBN, h_TBN, state = ops.multi_step(*call, near_TW=near_TW)
    torch.manual_seed(1)
    layer = EventLinear(x_TBN.shape[2], 37).to(x_TBN.dtype)
    layer.dense_above, layer.dense_gradient_above = 1.0, dense_gradient_above
    y_TBN = layer(Spikes(s_TBN, mask_BN, near_TW))
    # spikes and the final state are read by others, too
    total = sum((each * torch.randn_like(each)).sum() for each in (y_TBN, s_TBN, h_TBN, *state.values()))
    inputs = [*leaves(call), layer.weight]
    return [*torch.autograd.grad(total, inputs, allow_unused=True, materialize_grads=True), layer.near_share]


def assert_near_is_enough(call: tuple, dropped: bool, slope: float, monkeypatch) -> None:
    mask_BN = F.dropout(torch.ones_like(call[0][0]), 0.4) if dropped else None
    *expected, share = gradients(call, -1.0, mask_BN)
    calls, product = [], sparse.input_gradient
    monkeypatch.setattr(sparse, "input_gradient", lambda *arguments: calls.append(1) or product(*arguments))
    *actual, same_share = gradients(call, 1.0, mask_BN)
    assert len(calls) == 1
    assert share == same_share
    assert share == 0 if slope == WIDTHS["none"] else 0 < share <= 1
    assert_close_gradients(actual, expected)


@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 3, 5), (33, 5, 70)], ids=str)
@pytest.mark.parametrize("surrogate", ["triangle", pytest.param("boxcar", marks=pytest.mark.slow)])
@pytest.mark.parametrize("dropped", [False, True], ids=["", "dropped"])
def test_the_gradients_are_those_of_the_dense_product(shape, surrogate, dropped, monkeypatch, poisoned):
    slope = WIDTHS["some"]
    call = make_call(replace(DYNAMICS["AdLIF"], surrogate=Surrogate(surrogate, slope)), shape, torch.float64)
    assert_near_is_enough(call, dropped, slope, monkeypatch)


def assert_near_is_enough_of(name: str, width: str, monkeypatch) -> None:
    neuron = replace(DYNAMICS[name], surrogate=Surrogate("boxcar", WIDTHS[width]))
    assert_near_is_enough(make_call(neuron, (20, 4, 48), torch.float64), True, WIDTHS[width], monkeypatch)


@pytest.mark.parametrize("width", ["none", "some", pytest.param("all", marks=pytest.mark.slow)])
def test_of_every_width(width, monkeypatch, poisoned):
    assert_near_is_enough_of("AdLIF", width, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SEAdLIF", "CuAdLIF-soft"])
def test_of_other_neurons(name, monkeypatch, poisoned):
    """Two stand for all: the code of the bits is the same for all neurons, and each must be compiled."""
    assert_near_is_enough_of(name, "some", monkeypatch)


@pytest.mark.parametrize("longest", [0, pytest.param(3, marks=pytest.mark.slow)], ids=["recurrent", "delayed"])
def test_of_a_recurrent_layer(longest, monkeypatch, poisoned):
    neuron = replace(DYNAMICS["AdLIF"], surrogate=Surrogate("triangle", WIDTHS["some"]))
    call = make_call(neuron, (20, 4, 48), torch.float64, True, longest)
    assert_near_is_enough(call, True, WIDTHS["some"], monkeypatch)


@pytest.mark.parametrize(
    ("name", "surrogate", "shape", "recurrent"),
    [
        ("AdLIF", "superspike", (20, 4, 48), False),  # reaches everywhere
        ("AdLIF-late", "boxcar", (20, 4, 48), False),  # the output is the spike of the step before
        ("AdLIF", "boxcar", (20, 4, 50), True),  # its samples would share words
    ],
)
def test_neurons_that_cannot_say_what_is_near(name, surrogate, shape, recurrent):
    x_TBN, *_, neuron, feedback = make_call(DYNAMICS[name], shape, torch.float64, recurrent)
    assert ops.near_room(x_TBN, replace(neuron, surrogate=Surrogate(surrogate)), feedback) is None


def test_an_output_that_is_more_than_the_spike():
    def graded(x, state, p):
        s = p.spike(state.v - p.theta)
        return s * x, x, {"v": x}

    neuron = ops.Dynamics("Toy", graded, ("v",), ("theta",), surrogate=Surrogate("boxcar"))
    assert ops.near_room(torch.zeros(3, 2, 4), neuron, None) is None


@pytest.mark.parametrize("dtype", TOLERANCE, ids=["f32", "f64"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 5), (5, 4, 129), (6, 2, 64)], ids=str)
@pytest.mark.parametrize("outputs", [1, 20, 130])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_product_alone(dtype, shape, outputs, share, poisoned):
    """It equals the dense product where a bit is set there or in the other step of its pair, and is 0 elsewhere."""
    torch.manual_seed(0)
    T, B, C = shape
    near_TBC, mask_BC = torch.rand(shape) < share, F.dropout(torch.ones(B, C, dtype=dtype), 0.3)
    words = [sparse.find(near_BC.to(dtype).view(1, -1)).words.view("int64") for near_BC in near_TBC]
    near_TW = sparse.kept(torch.stack([*map(torch.from_numpy, words)]), mask_BC, shape)
    gy_RN, W_NC = torch.randn(T * B, outputs, dtype=dtype), torch.randn(outputs, C, dtype=dtype)
    actual_TBC = sparse.input_gradient(gy_RN, W_NC, near_TW, mask_BC).view(shape)
    expected_TBC = (gy_RN @ W_NC).view(shape) * mask_BC
    either_TBC = torch.cat([(a | b).expand_as(pair) for pair in near_TBC.split(2) for a, b in [(pair[:1], pair[-1:])]])
    assert_close_gradients([actual_TBC], [torch.where(either_TBC, expected_TBC, 0)])


@pytest.mark.parametrize(
    "layers", [("16F", "48F"), pytest.param(("16R", "48R"), marks=pytest.mark.slow), ("16F", "48FD5")], ids=str
)
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_a_network_trains_alike(layers, dropout, monkeypatch):
    calls, product, results = [], sparse.input_gradient, []
    monkeypatch.setattr(sparse, "input_gradient", lambda *arguments: calls.append(1) or product(*arguments))
    for above in (1.0, -1.0):
        torch.manual_seed(3)
        cfg = small(dropout=dropout, layers=layers, surrogate="boxcar", surrogate_slope=WIDTHS["some"])
        network = Network(cfg.network, cfg.data.shape, cfg.data.num_classes).double().train()
        for module in network.modules():
            if isinstance(module, EventLinear):
                module.dense_above, module.dense_gradient_above = 1.0, above
        activity = network(events().double())
        (activity.h_TBN.square().sum() + sum(s.sum() for s in activity.layers)).backward()
        results.append([p.grad for p in network.parameters()])
    assert len(calls) == (1 if "D" in layers[1] else 2)  # a layer with delays needs the gradient everywhere
    torch.testing.assert_close(*results)
