"""A real-valued delay as shares of whole steps, and the product with delayed inputs, computed by its equation.

An event of size x that reaches a synapse of weight w and delay d (steps) at step t adds w h(k) x to step t + k, where

    h(k) = max(0, s - |k - d|) / s²,  s = 1 + σ,  k = 0, 1, 2, ...

σ = 0 is linear interpolation between the two steps next to d. A larger σ spreads the event over more steps (the
triangle of DelRec), so that the gradient of d reaches further; training lets σ fall to 0. h has a corner at each whole
|k - d| and at s: there the derivative by d is that from the right, which says what a longer delay would do.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def share(k: Tensor | int, d_steps: Tensor, sigma_steps: float = 0.0) -> Tensor:
    """Return h(k) for delays d_steps, with the derivative from the right."""
    s, past = 1 + sigma_steps, k - d_steps
    steep = ((past > -s) & (past <= s)).to(past.dtype) / s**2
    return s * steep + torch.where(past > 0, -steep, steep) * past


def num_taps(sigma_steps: float) -> int:
    """Return K, the number of adjacent whole steps at which h may not be zero."""
    return 2 * math.ceil(1 + sigma_steps)


def taps(d_steps: Tensor, sigma_steps: float = 0.0) -> tuple[Tensor, Tensor]:
    """Return (first, h_K): h_K has a new first axis, the shares of the whole delays first ... first + K - 1 (int64)."""
    K = num_taps(sigma_steps)
    first = (d_steps.detach().floor() - (K // 2 - 1)).clamp(min=0)
    j = torch.arange(K, device=d_steps.device).view(-1, *[1] * d_steps.ndim)
    return first.long(), share(first + j, d_steps, sigma_steps)


def rounded(d_steps: Tensor) -> Tensor:
    """Round to the nearest whole steps, halves up, without a gradient."""
    return (d_steps.detach() + 0.5).floor()


def reach(max_steps: int, sigma_steps: float = 0.0) -> int:
    """Return the largest k at which h may not be zero, for delays up to max_steps."""
    return max_steps + num_taps(sigma_steps) // 2


def product(x_TBC: Tensor, W_NC: Tensor, d_steps: Tensor, max_steps: int, sigma_steps: float = 0.0) -> Tensor:
    """Return Σ_k h(k) W x_{t-k}, (T, B, N), for a delay of each input, (C,), or of each synapse, (N, C).

    This is the definition. It is differentiable in all three, and takes time in proportion to max_steps, the longest
    delay.
    """
    T = len(x_TBC)
    y_TBN = x_TBC.new_zeros(*x_TBC.shape[:2], len(W_NC))
    for k in range(min(reach(max_steps, sigma_steps), T - 1) + 1):
        y_TBN = y_TBN + F.pad(F.linear(x_TBC[: T - k], W_NC * share(k, d_steps, sigma_steps)), (0, 0, 0, 0, k, 0))
    return y_TBN


def shifted(x_TBC: Tensor, first_C: Tensor, h_KC: Tensor) -> Tensor:
    """Return x_TBC with each input delayed by its taps, (T, B, C), ready for an ordinary product."""
    t_T1 = torch.arange(len(x_TBC), device=x_TBC.device)[:, None]
    z_TBC = torch.zeros_like(x_TBC)
    for j, h_C in enumerate(h_KC):
        source_T1C = (t_T1 - (first_C + j)).unsqueeze(1)
        moved = x_TBC.gather(0, source_T1C.clamp(min=0).expand_as(x_TBC))
        z_TBC = z_TBC + torch.where(source_T1C >= 0, moved, 0) * h_C
    return z_TBC
