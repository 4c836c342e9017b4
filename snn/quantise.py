"""Quantised networks: int8 weights, whole numbers from -127 to 127 times a power of two for each neuron.

In float32, sums of such weights are as exact as in integers, in any order, up to 2^24 times the power of two. So a
quantised network is an ordinary network, and integer sums in C, times the power of two, give the same bits.
"""

import math
from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import Tensor

from snn.network import Network
from snn.ttfs.network import TTFSNetwork

LARGEST = 127
Either = TypeVar("Either", Network, TTFSNetwork)


@torch.no_grad()
def quantised(network: Either) -> Either:
    """Return a copy for inference, `network.folded()`, with all weights, also the recurrent ones, rounded to int8."""
    network = network.folded()
    for weight in weights(network):
        whole_NC, scale_N = as_int8(weight.flatten(1))
        if isinstance(network, TTFSNetwork):
            whole_NC = _with_sums_below_0(whole_NC, weight.flatten(1) / scale_N[:, None])
        weight.copy_((whole_NC * scale_N[:, None]).view_as(weight))
    return network


def _with_sums_below_0(whole_NC: Tensor, exact_NC: Tensor) -> Tensor:
    """Lower by 1 what rounding raised most, until the sum of a neuron is below 0, if that of its exact numbers is.

    Synapses of standardised neurons sum up to just below 0 (`snn.ttfs.layers.LEAST_SUM`), so that no neuron fires in an
    area of one colour.
    """
    excess_N = whole_NC.sum(1, dtype=torch.int64) + 1
    excess_N = torch.where(exact_NC.sum(1, dtype=torch.float64) < 0, excess_N, 0)
    raised_NC = (whole_NC - exact_NC).masked_fill(whole_NC == -LARGEST, -math.inf)
    rank_NC = raised_NC.argsort(dim=1, descending=True, stable=True).argsort(1)
    return whole_NC - (rank_NC < excess_N[:, None]).to(torch.int8)


def weight_bytes(network: Network | TTFSNetwork) -> int:
    """Return the number of bytes of the weights of a quantised network, with a float32 power of two per neuron."""
    return sum(weight.numel() + 4 * len(weight) for weight in weights(network))


def weights(network: Network | TTFSNetwork) -> Iterator[Tensor]:
    """Yield all weights of a folded network, (N, ...) each: those of layers other than pools, and recurrent ones."""
    if isinstance(network, TTFSNetwork):
        yield from (parameter for parameter in network.parameters() if parameter.dim() > 1)  # others are biases
        return
    for layer in network.layers:
        for weight in (getattr(layer.linear, "weight", None), layer.neurons.V):
            if weight is not None:
                yield weight


@torch.no_grad()
def as_int8(weight_NC: Tensor) -> tuple[Tensor, Tensor]:
    """Return (whole numbers (N, C), int8; powers of two (N,)). The largest whole number of each neuron is 64 to 127.

    Weights that are already rounded do not change.
    """
    needed_N = weight_NC.abs().amax(1) / LARGEST
    mantissa_N = torch.frexp(needed_N).mantissa  # 0.5 <= mantissa < 1; 0.5 for a power of two
    scale_N = torch.where(mantissa_N == 0.5, needed_N, needed_N / mantissa_N)  # the power of two at or above
    scale_N = torch.where(needed_N > 0, scale_N, 1.0)
    return (weight_NC / scale_N[:, None]).round().to(torch.int8), scale_N
