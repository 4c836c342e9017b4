"""Sums over the rows of a matrix, and a linear term added to all of them, on the CPU, in one pass each."""

import numpy as np
import torch
from torch import Tensor

from snn.ops.compiled import in_parts, kernel

SECTION = 512  # rows that are summed together, for any number of threads, so that the bits do not depend on it


@kernel
def _sums(x, sums, begin, end):
    """Compute Σ d and Σ d² of d = x - x[first row], for each of the sections begin ... end."""
    R, N = x.shape
    for k in range(begin, end):
        first, total, squares = x[k * SECTION], sums[k, 0], sums[k, 1]
        total[:] = 0
        squares[:] = 0
        for r in range(k * SECTION + 1, min((k + 1) * SECTION, R)):
            row = x[r]
            for n in range(N):
                d = row[n] - first[n]
                total[n] += d
                squares[n] += d * d


def moments(x_RN: Tensor) -> tuple[Tensor, Tensor]:
    """Return (mean, variance) over the rows, float64."""
    x = x_RN.detach().contiguous().numpy()
    R, N = x.shape
    K = -(-R // SECTION)
    sums = np.empty((K, 2, N), x.dtype)
    in_parts(_sums, (x, sums), K)
    n = np.full((K, 1), SECTION)
    n[-1] = R - (K - 1) * SECTION
    total, squares = sums[:, 0].astype(np.float64), sums[:, 1].astype(np.float64)
    means = x[::SECTION] + total / n
    mean = (n * means).sum(0) / R
    variance = (squares - total**2 / n + n * (means - mean) ** 2).sum(0).clip(0) / R
    return torch.from_numpy(mean), torch.from_numpy(variance)


@kernel
def _add_linear(g, x, slope, rest, begin, end):
    for r in range(begin, end):
        to, row = g[r], x[r]
        for n in range(len(slope)):
            to[n] += slope[n] * row[n] + rest[n]


def add_linear_(g_RN: Tensor, x_RN: Tensor, slope_N: Tensor, rest_N: Tensor) -> None:
    """Add slope · x + rest to g, in place."""
    tensors = (g_RN, x_RN.detach().contiguous(), *(each.to(g_RN.dtype) for each in (slope_N, rest_N)))
    arguments = [tensor.numpy() for tensor in tensors]
    in_parts(_add_linear, arguments, len(g_RN))
