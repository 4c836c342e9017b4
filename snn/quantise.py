"""Networks whose weights are bytes: whole numbers from -127 to 127 times a power of two for each neuron.

Sums of such weights are exact in float32 as in integers, up to 2^24 times the power of two, whatever their order. So a
quantised network is an ordinary `Network`, and integer sums in C, times the power of two, are its bits.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from snn.network import Network

LARGEST = 127


@torch.no_grad()
def quantised(network: Network) -> Network:
    """A copy for inference, `network.folded()`, with the weights of all layers and recurrences rounded to int8."""
    network = network.folded()
    for weight in _weights(network):
        whole_NC, scale_N = as_int8(weight.flatten(1))
        weight.copy_((whole_NC * scale_N[:, None]).view_as(weight))
    return network


def weight_bytes(network: Network) -> int:
    """Return how many bytes the weights of a quantised network take, with a float32 power of two for each neuron."""
    return sum(weight.numel() + 4 * len(weight) for weight in _weights(network))


def _weights(network: Network) -> Iterator[Tensor]:
    """Yield all weights, (N, ...) each: those of layers, of which pools have none, and of recurrences."""
    for layer in network.layers:
        for weight in (getattr(layer.linear, "weight", None), layer.neurons.V):
            if weight is not None:
                yield weight


@torch.no_grad()
def as_int8(weight_NC: Tensor) -> tuple[Tensor, Tensor]:
    """(whole numbers (N, C), int8; powers of two (N,)). The largest whole number of each neuron is 64 to 127.

    Weights that are rounded already stay as they are.
    """
    needed_N = weight_NC.abs().amax(1) / LARGEST
    mantissa_N = torch.frexp(needed_N).mantissa  # 0.5 <= mantissa < 1; of a power of two 0.5
    scale_N = torch.where(mantissa_N == 0.5, needed_N, needed_N / mantissa_N)  # the power of two at or above
    scale_N = torch.where(needed_N > 0, scale_N, 1.0)
    return (weight_NC / scale_N[:, None]).round().to(torch.int8), scale_N
