"""BatchNorm whose scale and shift the neurons compute, against one that computes them itself."""

from functools import partial

import pytest
import torch
from spikingjelly.activation_based.layer import BatchNorm1d

from snn import ops
from snn.errors import InputError
from snn.network import Network
from snn.norm import LazyNorm, Normed
from snn.ops import reference, rows
from tests.make import DYNAMICS, assert_close_gradients, assert_equal_to_reference, leaves, make_call
from tests.networks import events, small


def pair(N: int, dtype: torch.dtype = torch.float64) -> tuple[LazyNorm, BatchNorm1d]:
    torch.manual_seed(0)
    norms = LazyNorm(N, step_mode="m").to(dtype), BatchNorm1d(N, step_mode="m").to(dtype)
    with torch.no_grad():
        for parameter, other in zip(*(norm.parameters() for norm in norms), strict=True):
            parameter.normal_()
            other.copy_(parameter)
    return norms


@pytest.mark.parametrize("shape", [(2, 1, 1), (7, 3, 5), (57, 9, 33), (300, 4, 70)], ids=str)
def test_it_is_batch_norm(shape, poisoned):
    """Outputs, all gradients, and the statistics that are kept for evaluation."""
    lazy, plain = pair(shape[2])
    x_TBN = (5 + 2 * torch.randn(shape, dtype=torch.float64)).requires_grad_()
    out = lazy(x_TBN)
    assert isinstance(out, Normed)
    outputs = out.dense(), plain(x_TBN)
    torch.testing.assert_close(*outputs, rtol=1e-10, atol=1e-10)
    upstream = torch.randn_like(x_TBN)
    gradients = [
        torch.autograd.grad(y_TBN, [x_TBN, *norm.parameters()], upstream)
        for y_TBN, norm in zip(outputs, (lazy, plain), strict=True)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(dict(lazy.named_buffers()), dict(plain.named_buffers()))
    lazy.load_state_dict(plain.state_dict())
    assert torch.equal(lazy.eval()(x_TBN), plain.eval()(x_TBN))


def test_the_bits_do_not_go_by_the_number_of_threads():
    lazy, _ = pair(33, torch.float32)
    x_TBN, before, results = torch.randn(300, 8, 33, requires_grad=True), torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        out = lazy(x_TBN)
        results.append([*out, *torch.autograd.grad(out.dense().square().sum(), x_TBN)])
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(other, results[0], strict=True))


def test_moments_far_from_zero():
    """Use float32, in which a mean of squares would lose them."""
    x_RN = 1000 + torch.randn(2000, 3)
    mean_N, var_N = rows.moments(x_RN)
    torch.testing.assert_close(mean_N, x_RN.double().mean(0), rtol=1e-7, atol=0)
    torch.testing.assert_close(var_N, x_RN.double().var(0, correction=0), rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", ["AdLIF", pytest.param("BRF", marks=pytest.mark.slow)])
def test_neurons_behind_it_equal_the_reference(name, poisoned):
    x_TBN, values, state, neuron, _ = make_call(DYNAMICS[name], (20, 4, 37), torch.float64)
    norm = {key: torch.randn(37, dtype=torch.float64).requires_grad_() for key in reference.NORM}
    call = (x_TBN, values | norm, state, neuron.behind_norm(), None)
    assert_equal_to_reference(partial(ops.multi_step, backend="cpu"), call)

    def gradients(*call):
        y_TBN, h_TBN, _ = ops.multi_step(*call, backend="torch")
        return torch.autograd.grad(y_TBN.sum() + h_TBN.square().sum(), leaves((*call[:-2], neuron, None)))

    expected = gradients(norm["scale"] * x_TBN + norm["shift"], values, state, neuron, None)[1:]
    assert_close_gradients(gradients(*call)[1 : 1 + len(values)], expected[: len(values)])


def test_a_recurrent_layer_takes_no_norm():
    x_TBN, values, state, neuron, feedback = make_call(DYNAMICS["LIF"], (3, 2, 4), torch.float64, recurrent=True)
    norm = {key: torch.ones(4, dtype=torch.float64) for key in reference.NORM}
    with pytest.raises(InputError, match="takes its input unchanged"):
        ops.multi_step(x_TBN, values | norm, state, neuron.behind_norm(), feedback)


@pytest.mark.slow
@pytest.mark.parametrize("layers", [("16F", "12F"), ("16R", "12R")], ids=str)
def test_a_network_trains_as_with_plain_batch_norm(layers, monkeypatch):
    results = []
    for forward in (LazyNorm.forward, BatchNorm1d.forward):
        monkeypatch.setattr(LazyNorm, "forward", forward)
        torch.manual_seed(3)
        cfg = small(dropout=0.4, layers=layers)
        network = Network(cfg.network, cfg.data.shape, cfg.data.num_classes).double().train()
        activity = network(events().double())
        (activity.h_TBN.square().sum() + sum(s.sum() for s in activity.layers)).backward()
        results.append(([*activity.layers], {name: p.grad for name, p in network.named_parameters()}))
    (spikes, gradients), (expected_spikes, expected_gradients) = results
    assert all(torch.equal(a, b) for a, b in zip(spikes, expected_spikes, strict=True))
    torch.testing.assert_close(gradients, expected_gradients)
