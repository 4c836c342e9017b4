"""Sparse events instead of dense counts: the same numbers, the same gradients, and the rule that chooses."""

import pytest
import torch
from torch.nn import functional as F

from snn import linear
from snn.inputs import SparseCounts, Spikes
from snn.linear import EventLinear
from snn.ops import sparse
from tests.make import TOLERANCE_OF_SUMS, as_events, assert_close, random_counts


@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 3, 5), (20, 4, 700)], ids=str)
@pytest.mark.parametrize("share", [0.0, 0.05, 1.0])
def test_events_and_dense_are_the_same_counts(shape, share):
    x_TBC = random_counts(shape, share, torch.float32)
    events = as_events(x_TBC)
    assert torch.equal(events.dense(), x_TBC)
    assert len(events.counts) == int((x_TBC != 0).sum())


def test_a_channel_may_stand_twice():
    events = SparseCounts(torch.tensor([0, 3]), torch.tensor([2, 0, 2], dtype=torch.int32), torch.ones(3), (1, 1, 4))
    assert events.dense().flatten().tolist() == [1, 0, 2, 0]
    layer = EventLinear(4, 3)
    with torch.no_grad():
        layer.weight.copy_(torch.arange(12.0).view(3, 4))
    linear_out = layer(events)
    assert_close(linear_out, F.linear(events.dense(), layer.weight))


@pytest.mark.parametrize("dtype", TOLERANCE_OF_SUMS, ids=["f32", "f64"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 3, 5), (13, 5, 700)], ids=str)
@pytest.mark.parametrize("outputs", [1, 20, 130])
@pytest.mark.parametrize("as_what", ["events", "dense"])
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
def test_equals_the_dense_product(monkeypatch, dtype, shape, outputs, as_what, bias):
    """Output, gradients of weight and bias, and the gradient of a dense input, under random upstream gradients."""
    calls = []
    product = sparse.product
    monkeypatch.setattr(sparse, "product", lambda *arguments: calls.append(1) or product(*arguments))
    x_TBC = random_counts(shape, 0.2, dtype)
    x_TBC[0, 0] = 1  # a full row; others may be empty
    layer = EventLinear(shape[-1], outputs, bias).to(dtype)
    layer.dense_above = 1.0  # always event-driven
    parameters = list(layer.parameters())
    dense = x_TBC.clone().requires_grad_()
    expected = F.linear(dense, *parameters)
    upstream = torch.randn_like(expected)
    expected_grads = torch.autograd.grad(expected, [dense, *parameters], upstream)

    given = as_events(x_TBC) if as_what == "events" else x_TBC.clone().requires_grad_()
    actual = layer(given)
    assert calls
    assert layer.is_event_driven
    assert layer.active_share == pytest.approx(float((x_TBC != 0).double().mean()))
    assert_close(actual, expected)
    if as_what == "events":
        expected_grads = expected_grads[1:]
    inputs = parameters if as_what == "events" else [given, *parameters]
    for grad, expected_grad in zip(torch.autograd.grad(actual, inputs, upstream), expected_grads, strict=True):
        assert_close(grad, expected_grad)


@pytest.mark.parametrize("dtype", TOLERANCE_OF_SUMS, ids=["f32", "f64"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 3, 5), (9, 4, 48), (50, 8, 200)], ids=str)
@pytest.mark.parametrize("dense_above", [1.0, -1.0], ids=["events", "dense"])
@pytest.mark.parametrize("spikes", [True, False], ids=["spikes", "counts"])
def test_what_is_dropped_is_the_product_with_its_mask(dtype, shape, dense_above, spikes):
    """The output is equal in every bit, the gradients up to the order of sums."""
    s_TBC = random_counts(shape, 0.3, dtype)
    s_TBC = (s_TBC != 0).to(dtype) if spikes else s_TBC
    mask_BC = F.dropout(torch.ones(shape[1:], dtype=dtype), 0.3)
    layer = EventLinear(shape[-1], 70).to(dtype)
    layer.dense_above = dense_above
    expected, actual = s_TBC.clone().requires_grad_(), s_TBC.clone().requires_grad_()
    expected_out, actual_out = layer(expected * mask_BC), layer(Spikes(actual, mask_BC))
    assert layer.active_share == pytest.approx(float((s_TBC * mask_BC != 0).double().mean()))
    assert torch.equal(actual_out, expected_out)
    upstream = torch.randn_like(expected_out)
    expected_grads = torch.autograd.grad(expected_out, [expected, layer.weight], upstream)
    for grad, expected_grad in zip(
        torch.autograd.grad(actual_out, [actual, layer.weight], upstream), expected_grads, strict=True
    ):
        assert_close(grad, expected_grad)


@pytest.mark.parametrize("section", [1, 7, 64])
def test_weight_gradient_in_sections(monkeypatch, section):
    monkeypatch.setattr(sparse, "SECTION", section)
    x_RC, gy_RN = random_counts((61, 30), 0.2, torch.float64), torch.randn(61, 70, dtype=torch.float64)
    gW_NC = sparse.weight_gradient(sparse.compress(x_RC, sparse.find(x_RC)), gy_RN, 30)
    assert_close(gW_NC, gy_RN.T @ x_RC)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("place", [0, 70_000, 139_999])
def test_one_number_among_ones_is_kept(place, threads):
    """It is found in the part of any thread."""
    x_RC = random_counts((700, 200), 0.1, torch.float32).sign()
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        assert sparse.find(x_RC).only_ones
        x_RC.view(-1)[place] = 2
        found = sparse.find(x_RC)
        entries = sparse.compress(x_RC, found)
    finally:
        torch.set_num_threads(before)
    assert not found.only_ones
    assert torch.equal(SparseCounts(*entries, (700, 1, 200)).dense()[:, 0], x_RC)


def test_results_do_not_depend_on_the_number_of_threads():
    x_TBC = random_counts((50, 8, 300), 0.05, torch.float32)
    layer, results = EventLinear(300, 130), []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            out = layer(as_events(x_TBC))
            (gW,) = torch.autograd.grad(out, layer.weight, torch.ones_like(out))
            results.append((out, gW))
    finally:
        torch.set_num_threads(before)
    for out, gW in results[1:]:
        assert torch.equal(out, results[0][0])
        assert torch.equal(gW, results[0][1])


@pytest.mark.parametrize("share", [0.5 * linear.DENSE_ABOVE, min(1.0, 2 * linear.DENSE_ABOVE)])
def test_the_rule_goes_by_activity(monkeypatch, share):
    calls = []
    product = sparse.product
    monkeypatch.setattr(sparse, "product", lambda *arguments: calls.append(1) or product(*arguments))
    x_TBC = random_counts((30, 4, 200), share, torch.float32)
    layer = EventLinear(200, 16)
    expected = F.linear(x_TBC, layer.weight)
    for given in (x_TBC, as_events(x_TBC)):
        calls.clear()
        assert_close(layer(given), expected)
        assert bool(calls) == layer.is_event_driven == (share < linear.DENSE_ABOVE)
