"""Closed-form spike times against a scan over time, the published gradients, autograd and central differences."""

import math

import pytest
import torch
from torch.autograd import gradcheck

from snn.errors import InputError
from snn.ttfs import functional, kernels, products
from tests.make import INF, WINDOWS, finite, random_times, random_weights, spike_times

GRID_STEPS = 4096


def scan(t_BN: torch.Tensor, W_ON: torch.Tensor, T: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (t, V - θ at 2T): T + t is the first point of a grid over [T, 2T] with V >= θ. No closed form is used."""
    times = torch.linspace(T, 2 * T, GRID_STEPS + 1, dtype=torch.float64)
    since_BNG = (times - t_BN.unsqueeze(-1)).clamp(min=0)  # K(s); -inf for silent inputs, so 0
    distance_BOG = torch.einsum("on,bng->bog", W_ON, since_BNG) - (2 * T - times)
    crossed_BOG = distance_BOG >= 0
    first_BO = crossed_BOG.to(torch.uint8).argmax(-1)
    return torch.where(crossed_BOG.any(-1), times[first_BO] - T, INF), distance_BOG[..., -1]


@pytest.mark.parametrize("T", WINDOWS)
@pytest.mark.parametrize(("seed", "scale"), [(0, 1.0), (1, 0.2), (2, 4.0)])
def test_forward_is_what_a_scan_over_time_finds(T, seed, scale):
    t_BN, W_ON = random_times((40, 30), T, seed), random_weights((50, 30), seed, scale)
    t_BO = functional.linear(t_BN, W_ON, T)
    scanned_BO, last_distance_BO = scan(t_BN, W_ON, T)
    decided_BO = last_distance_BO.abs() > 1e-9  # otherwise it is within rounding of the end of the window
    assert torch.equal((t_BO == INF) & decided_BO, (scanned_BO == INF) & decided_BO)
    fired_BO = t_BO < INF
    assert ((scanned_BO - t_BO)[fired_BO & decided_BO].abs() <= T / GRID_STEPS + 1e-12).all()
    assert ((t_BO[fired_BO] >= 0) & (t_BO[fired_BO] <= T)).all()
    # the draw has all kinds: early, interior, silent, and 1 + S <= 0
    S_BO = torch.isfinite(t_BN).to(t_BN) @ W_ON.T
    assert (t_BO == 0).any() == (scale > 0.2)
    assert ((t_BO > 0) & fired_BO).any()
    assert (~fired_BO).any()
    assert (S_BO <= -1).any() == (scale > 0.2)


@pytest.mark.parametrize("T", WINDOWS)
def test_forward_by_hand(T):
    """Two inputs; t_out = (2T + I) / (1 + S) - T of the paper."""
    cases = [  # times / T, weights, output / T
        ((0.0, INF), (0.5, 9.0), (2 + 0) / 1.5 - 1),
        ((0.5, 0.25), (0.5, 0.5), (2 + 0.375) / 2 - 1),
        ((0.0, 0.0), (0.75, 0.75), 0.0),  # early: A = 1.5 T
        ((0.0, 0.0), (0.5, 0.5), 0.0),  # A = T, to the point
        ((0.5, 0.5), (-0.5, -0.25), INF),  # negative drive
        ((0.0, 1.0), (1.0, -2.0), 0.0),  # S = -1, I = -2T: 0 / 0 in t*
        ((0.0, 1.0), (2.0, -5.0), 0.0),  # S < -1, early all the same
        ((0.5, 1.0), (1.0, -2.5), INF),  # S < -1
        ((1.0, 1.0), (0.5, 0.5), 0.5),  # the latest inputs there are: A = 0
        ((0.0, 1.0), (0.5, -1.0), 1.0),  # V meets θ at 2T
        ((INF, INF), (3.0, 3.0), INF),  # zero drive
    ]
    for times, weights, expected in cases:
        t_1N = T * torch.tensor([times], dtype=torch.float64)
        got = functional.linear(t_1N, torch.tensor([weights], dtype=torch.float64), T).item()
        assert got == pytest.approx(T * expected, rel=1e-15), (times, weights)


@pytest.mark.parametrize("T", WINDOWS)
def test_zero_drive(T):
    """Without an input spike a neuron is silent or, as published, fires at T with slope 1, in both paths."""
    S, A = torch.zeros(2, 1, 5, dtype=torch.float64).unbind()
    t_1N, W_ON = torch.full((1, 3), INF), torch.randn(5, 3)
    assert (functional.linear(t_1N, W_ON, T) == INF).all()
    assert (spike_times(S, A, T) == INF).all()
    assert (functional.linear(t_1N, W_ON, T, zero_drive_fires=True) == T).all()
    assert (spike_times(S, A, T, zero_drive_fires=True) == T).all()
    # weights of 0 are no drive either
    assert (functional.linear(torch.zeros(1, 3), torch.zeros(5, 3), T) == INF).all()


def published_gradients(t_BN, W_ON, T, g_BO, clip=INF):
    """Return the gradients of Wei et al. 2023, event by event: loops over sample and neuron, term by term."""
    g_t, g_W = torch.zeros_like(t_BN), torch.zeros_like(W_ON)
    for b in range(len(t_BN)):
        m_N = torch.isfinite(t_BN[b]).to(t_BN)
        z_N = finite(t_BN[b])
        for o in range(len(W_ON)):
            d, num = 1 + W_ON[o] @ m_N, 2 * T + W_ON[o] @ z_N
            if T * d >= num or 2 * T * d < num:
                continue  # early, or silent
            g_I = min(1 / d, clip)
            g_S = max(-(num / d) / d, -clip)
            g_t[b] += g_BO[b, o] * g_I * W_ON[o] * m_N
            g_W[o] += g_BO[b, o] * (g_I * z_N + g_S * m_N)
    return g_t, g_W


@pytest.mark.parametrize("clip", [None, 1.0, 0.3])
@pytest.mark.parametrize("T", WINDOWS)
def test_gradients_are_the_published_ones(T, clip):
    t, W = random_times((12, 15), T, 5).requires_grad_(), random_weights((20, 15), 6).requires_grad_()
    out = functional.linear(t, W, T, grad_clip=clip)
    g = torch.randn_like(out)
    with torch.no_grad():
        expected = published_gradients(t, W, T, g, INF if clip is None else clip)
    for ours, published in zip(torch.autograd.grad(out, (t, W), g), expected, strict=True):
        torch.testing.assert_close(ours, published, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("T", WINDOWS)
def test_gradients_are_central_differences(T):
    """Compare slopes of a random projection of the times, on each coordinate whose step keeps the spike pattern."""
    t, W = random_times((5, 8), T, 7), random_weights((9, 8), 8)
    projection = torch.randn(5, 9, dtype=torch.float64)

    def run(t, W):
        out = functional.linear(t, W, T)
        return (finite(out) * projection).sum(), (out == 0, out == INF)

    leaves = [t.clone().requires_grad_(), W.clone().requires_grad_()]
    run(*leaves)[0].backward()
    checked = 0
    for which, leaf in enumerate(leaves):
        flat = [t, W][which].view(-1)
        for k in range(flat.numel()):
            step, value = 1e-5 * T, flat[k].item()
            if value == INF or (which == 0 and not step < value < T - step):
                continue
            sums, patterns = [], []
            for moved in (value + step, value - step):
                flat[k] = moved
                result, pattern = run(t, W)
                sums.append(result)
                patterns.append(pattern)
            flat[k] = value
            if all(torch.equal(one, other) for one, other in zip(*patterns, strict=True)):
                checked += 1
                slope = ((sums[0] - sums[1]) / (2 * step)).item()
                assert slope == pytest.approx(leaf.grad.view(-1)[k].item(), rel=1e-6, abs=1e-8)
    assert checked > 80


def test_gradcheck_of_a_deep_network():
    """Run torch's own check through convolution, pool, dense layer and readout, with steps that keep the pattern."""
    T = 1.0
    t = random_times((2, 2, 6, 6), T, 9, 0.2)
    firing = t < INF
    W1, W2, W3 = random_weights((4, 2, 3, 3), 10), random_weights((10, 36), 11), random_weights((3, 10), 12)

    def network(times, W1, W2, W3):
        t_in = torch.full_like(t, INF).masked_scatter(firing, times)
        t1 = functional.max_pool2d(functional.conv2d(t_in, W1, T), 2)
        return functional.readout(functional.linear(t1.flatten(1), W2, T), W3, T)

    inputs = [x.requires_grad_() for x in (t[firing], W1, W2, W3)]
    assert gradcheck(network, inputs, eps=1e-7, atol=1e-5)


def test_silent_and_early_neurons_have_exact_zeros():
    """They pass no gradient back, whatever comes in, and a silent input gets none."""
    T = 1.0
    t = torch.tensor([[0.0, 0.25, INF]], dtype=torch.float64, requires_grad=True)
    # early, silent, interior, silent with S = -1
    W = torch.tensor([[2.0, 2, 1], [-1, -1, 1], [0.3, 0.3, 1], [4, -5, 7]], dtype=torch.float64, requires_grad=True)
    out = functional.linear(t, W, T)
    assert out[0, 0] == 0
    assert out[0, 1] == out[0, 3] == INF
    out.backward(torch.full_like(out, 1e30))
    assert (W.grad[[0, 1, 3]] == 0).all()
    assert (W.grad[2, :2] != 0).all()
    assert W.grad[2, 2] == 0  # its input is silent
    assert t.grad[0, 2] == 0
    assert (t.grad[0, :2] != 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("T", WINDOWS)
def test_finite_at_zero_by_zero(T, dtype):
    """S = -1, I = -2T: the published t* is 0 / 0."""
    t = torch.tensor([[0.0, T]], dtype=dtype, requires_grad=True)
    W = torch.tensor([[1.0, -2.0]], dtype=dtype, requires_grad=True)
    m, a = products.masks_and_leads(t, T)
    for out in (functional.linear(t, W, T), spike_times(m @ W.T, a @ W.T, T)):
        assert out.item() == 0
        for g in torch.autograd.grad(out, (t, W), torch.ones_like(out)):
            assert (g == 0).all()


def test_not_a_number_is_not_hidden():
    """A NaN, in a time or in a weight, comes out as NaN, not as silence."""
    W = torch.ones(2, 2) / 4
    W[1, 0] = math.nan
    for fits in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            if not fits:
                patch.setattr(kernels, "fits", lambda *_: False)
            assert functional.linear(torch.tensor([[0.5, 0.5]]), W, 1.0)[0, 1].isnan()
            assert functional.linear(torch.tensor([[math.nan, 0.5]]), W, 1.0).isnan().all()


@pytest.mark.parametrize("k", [0.5, 3.0, 1e3])
def test_scaling_time_scales_all_times(k):
    """Scaling t and T by k scales times, potentials and weight gradients by k, but not the gradients of times."""
    t, W, V = random_times((20, 15), 1.0, 13), random_weights((10, 15), 14), random_weights((4, 10), 15)
    results = []
    for scale in (1.0, k):
        t_s, W_s = (scale * t).requires_grad_(), W.clone().requires_grad_()
        out = functional.linear(t_s, W_s, scale)
        potential = functional.readout(out, V, scale)
        g_t, g_W = torch.autograd.grad(potential.sum(), (t_s, W_s))
        results.append((out / scale, potential / scale, g_t, g_W / scale))
    assert torch.equal(results[0][0] == INF, results[1][0] == INF)
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(finite(one), finite(other), rtol=1e-11, atol=1e-11)


def test_single_and_double_precision_agree_off_the_boundaries():
    T = 1.0
    t, W = random_times((200, 100), T, 16), random_weights((80, 100), 17)
    t, W = t.float().double(), W.float().double()
    wide, narrow = functional.linear(t, W, T), functional.linear(t.float(), W.float(), T)
    m, a = products.masks_and_leads(t, T)
    S, A = m @ W.T, a @ W.T
    off = ((T * S + A).abs() > 1e-5) & ((A - T).abs() > 1e-5)
    assert off.float().mean() > 0.999
    assert torch.equal((wide == INF)[off], (narrow == INF)[off])
    assert torch.equal((wide == 0)[off], (narrow == 0)[off])
    torch.testing.assert_close(finite(narrow).double()[off], finite(wide)[off], rtol=0, atol=3e-5)


@pytest.mark.parametrize("clip", [None, 0.7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(7, 5), (64, 700)])
def test_compiled_kernels_equal_torch_in_every_bit(monkeypatch, shape, dtype, clip):
    """Small inputs run on one thread and large ones on two; uninitialised memory is filled with NaN."""
    empty_like, empty = torch.empty_like, torch.empty
    monkeypatch.setattr(torch, "empty_like", lambda x: empty_like(x).fill_(math.nan))
    monkeypatch.setattr(torch, "empty", lambda *sizes, **of: empty(*sizes, **of).fill_(math.nan))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    used = []
    fits = kernels.fits
    results = []
    for compiled in (True, False):
        monkeypatch.setattr(kernels, "fits", lambda *x, c=compiled: used.append(c and fits(*x)) or (c and fits(*x)))
        t = random_times(shape, 3.0, 18, 0.5).to(dtype).requires_grad_()
        W = random_weights((700, shape[1]), 19).to(dtype).requires_grad_()
        out = functional.linear(t, W, 3.0, grad_clip=clip)
        torch.manual_seed(0)
        results.append((out, *torch.autograd.grad(out, (t, W), torch.randn_like(out))))
        assert used[-1] is compiled
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("kernel", [2, 3])
def test_earliest_spike(kernel):
    """Compare with unfold and min; the gradient goes to the earliest spike of each patch."""
    t = random_times((3, 2, 8, 8), 1.0, 20, 0.7).requires_grad_()
    out = functional.max_pool2d(t, kernel)
    patches = t.unfold(2, kernel, kernel).unfold(3, kernel, kernel).flatten(4)
    expected = patches.amin(-1)
    assert torch.equal(out, expected)
    assert (out == INF).any()
    g = torch.randn_like(out).masked_fill(out == INF, 0)
    (ours,) = torch.autograd.grad(out, t, g)
    (plain,) = torch.autograd.grad(expected, t, g)
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(2, 3, 9, 7), (3, 20, 46, 48)])
def test_compiled_pool_equals_torch_in_every_bit(monkeypatch, shape, dtype):
    """Equal times, silence and NaN are included; lines that fill no patch have no gradient."""
    t = (4 * random_times(shape, 1.0, 22, 0.5)).ceil().div(4).to(dtype)
    t[torch.rand(shape, generator=torch.Generator().manual_seed(23)) < 0.1] = math.nan
    new_empty, fits = torch.Tensor.new_empty, kernels.fits

    def poisoned(x: torch.Tensor, size: tuple[int, ...], **of) -> torch.Tensor:
        made = new_empty(x, size, **of)
        return made.fill_(math.nan if made.is_floating_point() else 255)

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    results = []
    for compiled in (True, False):
        monkeypatch.setattr(kernels, "fits", lambda *x, c=compiled: c and fits(*x))
        t_in = t.clone().requires_grad_()
        out = functional.max_pool2d(t_in, 2)
        assert out.grad_fn.name().startswith("Permute") is compiled
        g = torch.arange(out.numel(), dtype=dtype).view_as(out)
        results.append((out.detach().nan_to_num(-1), *torch.autograd.grad(out, t_in, g)))
    assert (results[0][0] == -1).any()
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_average_pool():
    """It averages T - t, with 0 for silent inputs, and is silent only if all of them are."""
    t = torch.tensor([[[[0.5, INF, INF, INF], [1.0, 2.0, INF, INF]]]], dtype=torch.float64, requires_grad=True)
    out = functional.avg_pool2d(t, 2, T=2.0)
    assert out[0, 0, 0, 0] == 2 - (1.5 + 0 + 1 + 0) / 4
    assert out[0, 0, 0, 1] == INF
    out[0, 0, 0, 0].backward()
    assert t.grad[0, 0].tolist() == [[0.25, 0, 0, 0], [0.25, 0.25, 0, 0]]


def test_readout_by_hand():
    t = torch.tensor([[0.5, INF, 2.0]], dtype=torch.float64, requires_grad=True)
    W = torch.tensor([[1.0, 5.0, -2.0], [0.0, 1.0, 1.0]], dtype=torch.float64, requires_grad=True)
    V = functional.readout(t, W, T=2.0)
    assert V.tolist() == [[3.5 - 2 * 2, 2.0]]
    V[0, 0].backward()
    assert t.grad.tolist() == [[-1.0, 0.0, 2.0]]
    assert W.grad.tolist() == [[3.5, 0.0, 2.0], [0.0, 0.0, 0.0]]


def test_encoders():
    x = torch.tensor([0.0, 0.25, 1.0])
    assert functional.unit_encode(x, 2.0).tolist() == [INF, 1.5, 0.0]
    y = torch.tensor([-3.0, 0.25, 7.0], requires_grad=True)
    t = functional.direct_encode(y, 2.0)
    assert t.tolist() == [INF, 1.5, 0.0]
    t[1].backward()
    assert y.grad.tolist() == [0, -2, 0]


@pytest.mark.parametrize("bad", [-0.1, 1.1, math.nan, INF])
def test_pixels_outside_zero_to_one(bad):
    with pytest.raises(InputError, match="pixels must lie in 0 to 1"):
        functional.unit_encode(torch.tensor([0.5, bad]), 1.0)


@pytest.mark.parametrize("T", [0, -1, math.nan, INF])
def test_bad_window(T):
    t, W = torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
    for call in (
        lambda: functional.linear(t.flatten(1), W.flatten(1), T),
        lambda: functional.conv2d(t, W, T),
        lambda: functional.avg_pool2d(t, 1, T),
        lambda: functional.readout(t.flatten(1), W.flatten(1), T),
        lambda: functional.unit_encode(t, T),
        lambda: functional.direct_encode(t, T),
    ):
        with pytest.raises(InputError, match="the window T"):
            call()


def test_what_is_kept_for_the_backward_pass():
    """A layer keeps two tensors of its output's size and shares one with the next; a clamp network keeps as many."""

    def kept(run) -> int:
        storages = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x: storages.setdefault(x.untyped_storage().data_ptr(), x) is None or x, lambda x: x
        ):
            alive = run()
        del alive
        return sum(x.untyped_storage().nbytes() for x in storages.values())

    t = random_times((64, 100), 1.0, 21).float()
    weights = [random_weights((100, 100), seed).float().requires_grad_() for seed in range(4)]

    def ours():
        x = t
        for W in weights:
            x = functional.linear(x, W, 1.0)
        return x

    def clipped():
        x = t
        for W in weights:
            x = (x @ W.T).clamp(0, 1)
        return x

    assert kept(ours) <= 1.3 * kept(clipped)
