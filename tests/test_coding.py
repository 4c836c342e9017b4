"""First-spike code against an independent, slow and obviously correct version."""

import math

import pytest
import torch

from snn.coding import Window, first_times, fr_decision, fs_decision, narrowed_D


def slow_first_times(s, h):
    """Sample by sample, neuron by neuron."""
    T, B, N = s.shape
    t = torch.zeros(B, N, dtype=torch.float64)
    for b in range(B):
        peaks = [max(float(h[n, b, j]) for n in range(T)) for j in range(N)]
        for j in range(N):
            steps = [n + 1 for n in range(T) if s[n, b, j] > 0]
            rank = 1 + sum(peaks[k] > peaks[j] or (peaks[k] == peaks[j] and k < j) for k in range(N))
            t[b, j] = steps[0] if steps else T + rank
    return t


def slow_gradient(s, g, window):
    """dL/ds_n = -A Σ_m G(m - n) g_m, term by term."""
    T, B, N = s.shape
    grad = torch.zeros(T, B, N, dtype=torch.float64)
    for b in range(B):
        for j in range(N):
            steps = [n + 1 for n in range(T) if s[n, b, j] > 0]
            g_m = {steps[0]: float(g[b, j])} if steps else {m: float(g[b, j]) for m in range(1, T + 1)}
            for n in range(1, T + 1):
                for m, value in g_m.items():
                    if abs(m - n) <= window.half_width_steps:
                        G = math.exp(-((m - n) ** 2) / (2 * window.sigma_steps**2))
                        grad[n - 1, b, j] -= window.gain * G * value
    return grad


def spikes(T, B, N, rate, seed):
    return (torch.rand(T, B, N, generator=torch.Generator().manual_seed(seed)) < rate).double()


CASES = {
    "sparse": spikes(40, 4, 7, 0.03, 0),
    "dense": spikes(23, 3, 5, 0.6, 1),
    "all silent": torch.zeros(12, 2, 4).double(),
    "first step": torch.cat([torch.ones(1, 2, 3), torch.zeros(8, 2, 3)]).double(),
    "last step": torch.cat([torch.zeros(8, 2, 3), torch.ones(1, 2, 3)]).double(),
    "T = 1, silent": torch.zeros(1, 2, 3).double(),
    "T = 1, mixed": torch.tensor([[[0.0, 1.0, 0.0]]]).double(),
    "one neuron": spikes(9, 3, 1, 0.1, 2),
}


@pytest.mark.parametrize("D", [1.0, 2.5, 4.0, 16.0, 1000.0])
@pytest.mark.parametrize("name", CASES)
def test_equals_the_slow_version(name, D):
    s = CASES[name].clone().requires_grad_()
    h = torch.randn(s.shape, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        h[:, 0] = 0.5  # equal peaks: ranked by index
    window = Window.of(len(s), D, 200.0)
    t = first_times(s, h, window)
    assert torch.equal(t, slow_first_times(s.detach(), h.detach()))
    g = torch.randn_like(t)
    t.backward(g)
    torch.testing.assert_close(s.grad, slow_gradient(s.detach(), g, window), rtol=1e-12, atol=1e-12)
    assert h.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_times_are_exact_in_every_dtype(dtype):
    s = torch.cat([torch.zeros(500, 4, 7), CASES["sparse"]]).to(dtype).requires_grad_()  # beyond what bfloat16 counts
    h = torch.randn(540, 4, 7).to(dtype)
    t = first_times(s, h, Window.of(540, 16, 1.0))
    assert torch.equal(t.double(), slow_first_times(s.detach(), h))
    t.sum().backward()
    assert s.grad.dtype == dtype
    assert s.grad.isfinite().all()


def test_many_equal_peaks_rank_by_index():
    """Use more neurons than a sort treats as a short list."""
    s = torch.zeros(3, 2, 300)
    assert first_times(s, s).tolist() == [[3.0 + r for r in range(1, 301)]] * 2


def test_published_check():
    """T = 5: neuron 0 fires at 3 and 5 (peak 1.2), 1 is silent (peak 0.4), 2 is silent (peak 0.9): times 3, 8, 7."""
    s, h = torch.zeros(5, 1, 3), torch.zeros(5, 1, 3)
    s[2, 0, 0] = s[4, 0, 0] = 1
    h[2, 0] = torch.tensor([1.2, 0.4, 0.9])
    assert first_times(s, h, Window.of(5, 16, 1.0)).tolist() == [[3, 8, 7]]


@pytest.mark.parametrize(
    ("T", "D", "sigma", "length"), [(100, 16, 6, 37), (250, 16, 15, 91), (160, 4, 40, 161), (135, 8, 16, 97)]
)
def test_published_windows(T, D, sigma, length):
    window = Window.of(T, D, 200.0)
    assert (window.sigma_steps, 2 * window.half_width_steps + 1) == (sigma, length)


def test_window_norm_and_narrowing():
    assert Window.of(100, 16, 200.0, "paper").gain == pytest.approx(200 / (2 * math.pi * 6))
    assert [narrowed_D(2, 50, p) for p in (0, 0.5, 1)] == pytest.approx([2, 10, 50])
    assert Window.of(10, 100, 1.0).sigma_steps == 1  # D > T


def test_ties_go_to_the_lower_class():
    assert fs_decision(torch.tensor([[4.0, 3.0, 3.0], [2.0, 9.0, 2.0]])).tolist() == [1, 0]
    assert fr_decision(torch.tensor([[1.0, 5.0, 5.0], [0.0, 0.0, 0.0]])).tolist() == [1, 0]


def test_every_firing_neuron_beats_every_silent_one():
    s, h = torch.zeros(6, 1, 2), torch.zeros(6, 1, 2)
    s[5, 0, 1] = 1  # fires at the last step
    h[0, 0, 0] = 99.0  # silent with a high peak
    assert fs_decision(first_times(s, h, Window.of(6, 2, 1.0))).tolist() == [1]
