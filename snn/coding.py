"""First-spike (FS) and firing-rate (FR) code: from output spikes to times, counts and decisions.

Source: Liu et al. 2023, doi 10.3389/fnins.2023.1266003. Times are in steps and the first step is 1.
Shapes: T steps (including the empty ones), B samples, N output neurons.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from snn import checks


@dataclass(frozen=True)
class Window:
    """The Gaussian G(k) = exp(-k² / (2σ²)), |k| <= W, that spreads the gradient of a first-spike time over steps."""

    sigma_steps: int
    half_width_steps: int
    gain: float

    def __post_init__(self) -> None:
        checks.whole("sigma_steps", self.sigma_steps, 1)
        checks.whole("half_width_steps", self.half_width_steps, 0)
        checks.number("gain", self.gain)

    @classmethod
    def of(cls, T: int, D: float, A: float, norm: Literal["peak", "paper"] = "peak") -> "Window":
        """Return the window with σ = max(1, floor(T/D)) and 2W + 1 = min(6σ + 1, 2 floor(T/2) + 1).

        Its amplitude is A, or A / (2πσ) with norm "paper", as in the paper.
        """
        checks.whole("T", T, 1)
        checks.number("D", D, above=0)
        sigma = max(1, math.floor(T / D))
        half_width = min(3 * sigma, T // 2)
        return cls(sigma, half_width, A if norm == "peak" else A / (2 * math.pi * sigma))


def narrowed_D(D: float, D_final: float, progress: float) -> float:
    """Return D = D0 (D1 / D0)^progress, progress = epoch / epochs: the window narrows (Liu & Dragotti 2025)."""
    return D * (D_final / D) ** progress


@lru_cache(maxsize=4)  # tables of a long T are large, and one is in use at a time
def _window_table(T: int, window: Window, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return (T + 1, T): G(m - n) for the steps m = 1..T, n = 1..T; the last row is the sum over all m."""
    n = torch.arange(T, dtype=torch.float64)
    k_TT = n[:, None] - n
    gaussian_TT = torch.exp(-(k_TT**2) / (2 * window.sigma_steps**2)) * (k_TT.abs() <= window.half_width_steps)
    return torch.cat([gaussian_TT, gaussian_TT.sum(0, keepdim=True)]).to(device, dtype)


class _FirstTimes(torch.autograd.Function):
    @staticmethod
    def forward(ctx, s_TBN: Tensor, peak_BN: Tensor, window: Window | None) -> Tensor:
        T = s_TBN.shape[0]
        n_T11 = torch.arange(1, T + 1, device=s_TBN.device, dtype=torch.int32).view(T, 1, 1)
        first_BN = torch.where(s_TBN > 0, n_T11, T + 1).amin(0)
        silent_BN = first_BN > T
        # rank 1..N by descending peak potential, including firing neurons; equal peaks rank by index
        order_BN = peak_BN.argsort(dim=-1, descending=True, stable=True)
        rank_BN = order_BN.argsort(dim=-1) + 1
        ctx.save_for_backward(first_BN)
        ctx.T, ctx.window, ctx.dtype = T, window, s_TBN.dtype
        # half precision cannot tell step 257 from 258
        return torch.where(silent_BN, T + rank_BN, first_BN).to(torch.promote_types(s_TBN.dtype, torch.float32))

    @staticmethod
    def backward(ctx, grad_BN: Tensor):
        (first_BN,) = ctx.saved_tensors
        table = _window_table(ctx.T, ctx.window, grad_BN.dtype, grad_BN.device)
        weight_BNT = table[first_BN - 1]  # a silent neuron's first_BN is T + 1
        grad_BNT = weight_BNT.mul_((-ctx.window.gain * grad_BN).unsqueeze(-1))
        return grad_BNT.permute(2, 0, 1).to(ctx.dtype), None, None


def first_times(s_TBN: Tensor, h_TBN: Tensor, window: Window | None = None) -> Tensor:
    """Return first-spike times t^F in steps, (B, N), of the dtype of s but at least float32.

    s_TBN are output spikes, h_TBN the potentials before the reset. The time of a firing neuron is the step of its first
    spike, 1..T. The time of a silent neuron is T + r, where r is its rank 1..N in its sample by descending peak
    potential; ties rank by index. Without a window the times carry no gradient.

    Gradient (none reaches h): dL/ds_n = -A Σ_m G(m - n) g_m. The g of a firing neuron is at its first spike, that of a
    silent neuron at every step. Both sums are rows of a table, so that nothing is convolved.
    """
    checks.tensor("s", s_TBN, ("steps", "samples", "neurons"))
    checks.tensor("h", h_TBN, s_TBN.shape, device=s_TBN.device)
    return _FirstTimes.apply(s_TBN.detach() if window is None else s_TBN, h_TBN.detach().amax(0), window)


def fs_decision(t_BN: Tensor) -> Tensor:
    """Return the class whose neuron fires first, argmin t^F, (B,) int64; equal times go to the lower class number."""
    checks.tensor("t", t_BN, (..., "neurons"))
    checks.finite("t", t_BN)
    N = t_BN.shape[-1]
    return (t_BN.to(torch.int64) * N + torch.arange(N, device=t_BN.device)).argmin(-1)


def decide(s_TBN: Tensor, h_TBN: Tensor) -> tuple[Tensor, Tensor]:
    """Return (decision, step of the first output spike, 1..T, or more than T without a spike), (B,) int64 each."""
    t_BN = first_times(s_TBN, h_TBN)
    return fs_decision(t_BN), t_BN.amin(-1).long()


def fr_decision(counts_BN: Tensor) -> Tensor:
    """Return the class whose neuron fires most, int64; equal counts go to the lower number. Any leading shape."""
    checks.tensor("counts", counts_BN, (..., "neurons"))
    N = counts_BN.shape[-1]
    return (counts_BN.to(torch.int64) * N + torch.arange(N - 1, -1, -1, device=counts_BN.device)).argmax(-1)
