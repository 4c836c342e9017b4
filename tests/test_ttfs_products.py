"""The products of layers of neurons that spike once, dense and over events, against autograd of the plain formula."""

import math

import pytest
import torch

from snn.errors import InputError
from snn.ops import sparse_conv
from snn.ttfs import functional, products
from tests.make import INF, WINDOWS, finite, random_times, random_weights, spike_times


def reference_layer(t, W, T, stride=None, zero_drive_fires=False, bias=0.0):
    def sum_inputs(x):
        return x @ W.T if stride is None else torch.nn.functional.conv2d(x, W, None, stride, W.shape[2] // 2)

    m, a = products.masks_and_leads(t, T)
    return spike_times(sum_inputs(m) + bias, sum_inputs(a), T, zero_drive_fires)


LAYERS = [  # input, weights, stride
    ((30, 20), (40, 20), None),
    ((4, 3, 9, 7), (6, 3, 3, 3), 1),
    ((70, 65, 2, 3), (66, 65, 3, 3), 1),
    ((4, 3, 9, 7), (6, 3, 5, 5), 2),
    ((2, 1, 6, 6), (3, 1, 2, 2), 1),
]


def by_events(monkeypatch, chosen: bool) -> list:
    """Have convolutions take the products over events, or the dense ones; return the calls of the former."""
    calls = []
    monkeypatch.setattr(products, "DENSE_ABOVE", math.inf if chosen else -1)
    monkeypatch.setattr(products, "DENSE_GRADIENT_ABOVE", math.inf if chosen else -1)
    for name in ("product", "weight_gradient"):
        run = getattr(sparse_conv, name)
        monkeypatch.setattr(
            sparse_conv, name, lambda *given, name=name, run=run, **more: calls.append(name) or run(*given, **more)
        )
    return calls


def run_layer(t, W, T, stride, **options):
    if stride is None:
        return functional.linear(t, W, T, **options)
    return functional.conv2d(t, W, T, stride=stride, **options)


@pytest.mark.parametrize("zero_drive_fires", [False, True])
@pytest.mark.parametrize("T", WINDOWS)
@pytest.mark.parametrize(("shape", "weights", "stride"), LAYERS)
@pytest.mark.parametrize("are_events", [False, True])
def test_layers_equal_autograd_of_the_plain_formula(
    monkeypatch, shape, weights, stride, T, zero_drive_fires, are_events
):
    """Times and both gradients, under a random upstream gradient, to 1e-12 in float64."""
    calls = by_events(monkeypatch, are_events)
    t, W = random_times(shape, T, 3, 0.5).requires_grad_(), random_weights(weights, 4).requires_grad_()
    t.data[0] = INF  # a sample without any spike
    expected = reference_layer(t, W, T, stride, zero_drive_fires)
    out = run_layer(t, W, T, stride, zero_drive_fires=zero_drive_fires)
    assert torch.equal(out == INF, expected == INF)
    torch.testing.assert_close(finite(out), finite(expected), rtol=1e-12, atol=1e-12)
    g = torch.randn_like(out)
    for name, ours, plain in zip(
        ("t", "W"), torch.autograd.grad(out, (t, W), g), torch.autograd.grad(expected, (t, W), g), strict=True
    ):
        assert ours.isfinite().all()
        assert plain.isfinite().all()
        torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12 * float(plain.abs().max()), msg=name)
    forward, backward = ["product"], ["product", "weight_gradient"]
    can_be = [] if len(weights) == 2 or weights[2] % 2 == 0 else forward + backward * (stride == 1)
    assert calls == (can_be if are_events else [])


@pytest.mark.parametrize("upstream", ["ones", "few", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_over_events_equal_the_dense_ones(monkeypatch, dtype, upstream):
    """Any layout in memory gives the same bits, and so does any number of threads; ties and silent images included."""
    t = random_times((66, 40, 5, 6), 2.0, 30, 0.4).mul(4).ceil().div(4).to(dtype)
    t[3], t[4, 7] = INF, 2.0  # without a spike; with a lead of 0
    W = (random_weights((70, 40, 3, 3), 31) / 8).to(dtype).requires_grad_()
    g = torch.ones(66, 70, 5, 6, dtype=dtype)
    if upstream != "ones":
        g *= torch.randn_like(g) * (torch.rand_like(g) < (0.1 if upstream == "few" else 0))

    def run(are_events, t, threads=2):
        with pytest.MonkeyPatch.context() as patch:
            calls = by_events(patch, are_events)
            patch.setattr(torch, "get_num_threads", lambda: threads)
            t = t.detach().requires_grad_()
            out = functional.conv2d(t, W, 2.0)
            results = out.detach(), *torch.autograd.grad(out, (t, W), g)
        assert calls == ["product", "product", "weight_gradient"] * are_events
        return results

    dense, events = run(False, t), run(True, t)
    assert (dense[0] == INF).any()
    assert ((dense[0] > 0) & (dense[0] < INF)).any()
    for one, other in zip(dense, events, strict=True):
        assert not one.isnan().any()
        assert not other.isnan().any()
        rounding = (1e-4 if dtype == torch.float32 else 1e-12) * float(finite(one).abs().max())
        assert ((one == INF) != (other == INF)).float().mean() < 1e-3
        both = (one < INF) & (other < INF)
        torch.testing.assert_close(one[both], other[both], rtol=0, atol=rounding)
    last = t.contiguous(memory_format=torch.channels_last)
    strided = torch.stack([t, t], -1)[..., 0]
    for again in (run(True, last), run(True, strided), run(True, t, threads=1)):
        assert all(map(torch.equal, events, again))


def test_gradients_of_leads_that_are_all_ones(monkeypatch):
    """The gradients of the masks are still read, not taken as ones."""
    t, W = random_times((2, 3, 4, 5), 1.0, 32, 0.5), random_weights((6, 3, 3, 3), 33)
    g_A = (torch.rand(2, 6, 4, 5) < 0.3).double()
    gx = torch.cat([g_A * torch.randn(2, 6, 4, 5), g_A])
    results = []
    for are_events in (True, False):
        calls = by_events(monkeypatch, are_events)
        results.append(products.gradients(gx, t, W, 1.0, 1, True, True))
        assert bool(calls) is are_events
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("channels", "filled"), [(64, 1), (96, 0.75), (16, 0.25)])
def test_the_rule_goes_by_the_shares_and_by_filled_lanes(monkeypatch, channels, filled):
    calls, shares = [], {"product": products.DENSE_ABOVE, "weight_gradient": products.DENSE_GRADIENT_ABOVE}
    for name in shares:
        run = getattr(sparse_conv, name)
        monkeypatch.setattr(sparse_conv, name, lambda *x, name=name, run=run, **y: calls.append(name) or run(*x, **y))
    W, place = torch.randn(channels, channels, 3, 3), torch.rand(2, channels, 12, 12)
    for factor in (0.9, 1.1):
        calls.clear()
        products.sums(torch.where(place < factor * filled * shares["product"], 0.5, INF), W, 1.0, 1)
        g = (place < factor * filled * shares["weight_gradient"]).float().repeat(2, 1, 1, 1)
        products.gradients(g, place, W, 1.0, 1, False, True)
        assert calls == ["product", "weight_gradient"] * (factor < 1)


def test_a_time_outside_the_window_is_refused_event_by_event(monkeypatch):
    by_events(monkeypatch, True)
    monkeypatch.setattr(products, "split", None)  # that of the dense way
    t = torch.full((1, 1, 3, 3), INF)
    t[0, 0, 1, 1] = 1.5
    with pytest.raises(InputError, match=r"a spike time is 1.5; times lie in 0 to T = 1"):
        functional.conv2d(t, torch.ones(1, 1, 3, 3), 1.0)


@pytest.mark.parametrize(("shape", "weights", "stride"), LAYERS[:3])
def test_a_bias_is_a_synapse_of_a_clock_that_fires_at_T(monkeypatch, shape, weights, stride):
    """Times and gradients are those of the plain formula, and those of a further input at T for a dense layer."""
    by_events(monkeypatch, True)
    T, (t, W) = 2.0, (random_times(shape, 2.0, 40).requires_grad_(), random_weights(weights, 41).requires_grad_())
    b = random_weights((len(W),), 42).requires_grad_()
    out = run_layer(t, W, T, stride, bias_O=b)
    expected = reference_layer(t, W, T, stride, bias=b.view(-1, *[1] * (t.dim() - 2)))
    if stride is None:
        clock = torch.full_like(t[:, :1], T)
        further = functional.linear(torch.cat([t, clock], 1), torch.cat([W, b[:, None]], 1), T)
        torch.testing.assert_close(finite(further), finite(expected))
    assert torch.equal(out == INF, expected == INF)
    torch.testing.assert_close(finite(out), finite(expected), rtol=1e-12, atol=1e-12)
    g = torch.randn_like(out)
    for ours, plain in zip(
        torch.autograd.grad(out, (t, W, b), g), torch.autograd.grad(expected, (t, W, b), g), strict=True
    ):
        torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12 * float(plain.abs().max()))


@pytest.mark.parametrize("bias", [torch.zeros(3), torch.zeros(4).double(), [0.0] * 4])
def test_a_bias_that_does_not_fit(bias):
    with pytest.raises(InputError, match="the bias"):
        functional.linear(torch.zeros(2, 5), torch.ones(4, 5), 1.0, bias_O=bias)
