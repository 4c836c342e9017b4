"""Synaptic operations: the number of times an input that is not 0 meets a weight that is not 0.

This is the field's measure of a network's work on event-driven hardware: the effective operations of NeuroBench (Yik et
al. 2025, doi 10.1038/s41467-025-56739-4). Events that share channel and step are one input. Every table that says
"synaptic operations", for decisions, streams, energy or images, counts them by the fan-outs of this module.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from snn.conv import EventConv, Pooling
from snn.inputs import SparseCounts
from snn.ops.sparse_conv import Geometry

if TYPE_CHECKING:
    from snn.network import Linear, Network

EXACT_BELOW = 2**24  # up to here float32 holds every whole number


def fan_out(weight: Tensor, shape: Geometry | None = None) -> Tensor:
    """Count the weights other than 0 that each input meets: float64, (C,), or (C, H, W) of a convolution of `shape`."""
    is_there = (weight.detach() != 0).double()
    if shape is None:
        return is_there.sum(0)
    outputs = is_there.new_ones(1, len(weight), shape.out_height, shape.out_width)
    inputs = (1, weight.shape[1], shape.height, shape.width)
    return nn.grad.conv2d_input(inputs, is_there, outputs, shape.stride, shape.kernel // 2)[0]


class SynapticOperations:
    """A counter for a network whose weights no longer change."""

    def __init__(self, network: "Network"):
        self.of_inputs = [of_inputs(layer.linear, layer is network.layers[0]) for layer in network.layers]
        loops = (layer.neurons.V for layer in network.layers)
        self.of_loops = [None if V is None else of_loop(V) for V in loops]

    def per_step(self, x_TBC: SparseCounts | Tensor, layers: tuple[Tensor, ...]) -> Tensor:
        """Return (T, B) float64: operations of the incoming events and of the spikes of all layers, the output last."""
        total_TB = torch.zeros(x_TBC.shape[:2], dtype=torch.float64, device=layers[0].device)
        for of_input_C, x in zip(self.of_inputs, (x_TBC, *layers[:-1]), strict=True):
            if of_input_C is not None:
                total_TB += _added_up(x, of_input_C)
        for of_spike_N, s_TBN in zip(self.of_loops, layers, strict=True):
            if of_spike_N is not None:  # a layer's own spikes come back one step later
                total_TB[1:] += _added_up(s_TBN[:-1], of_spike_N)
        return total_TB


def of_inputs(linear: "Linear", channels_first: bool = False) -> Tensor | None:
    """Return the fan-outs of a layer's inputs, shortened to (1,) if all are equal; None for a pool, without weights.

    Those of an image are in the order of `Activity.layers`, or with `channels_first` in that of the network's input.
    """
    if isinstance(linear, Pooling):
        return None
    if not isinstance(linear, EventConv):
        return _short(fan_out(linear.weight).view(-1, linear.in_features).sum(0))  # an input may arrive several times
    fan_out_CHW = fan_out(linear.weight, linear.geometry)
    return _short((fan_out_CHW if channels_first else fan_out_CHW.movedim(0, -1)).flatten())


def of_loop(V_NN: Tensor) -> Tensor:
    """Return the fan-outs of a layer's own spikes, shortened to (1,) if all are equal."""
    return _short(fan_out(V_NN))


def _short(fan_out_C: Tensor) -> Tensor:
    """Return the fan-outs on the CPU, shortened to (1,) if all are equal."""
    fan_out_C = fan_out_C.cpu()
    return fan_out_C[:1] if (fan_out_C == fan_out_C[0]).all() else fan_out_C


def _added_up(x_TBC: SparseCounts | Tensor, fan_out_C: Tensor) -> Tensor:
    """Return (T, B) float64: the sum of the fan-outs of the inputs that are not 0."""
    if len(fan_out_C) == 1:
        number_TB = x_TBC.entries_per_step() if isinstance(x_TBC, SparseCounts) else x_TBC.count_nonzero(2).double()
        return number_TB * fan_out_C.item()
    if isinstance(x_TBC, SparseCounts):
        return x_TBC.entries_per_step(fan_out_C.to(x_TBC.channels.device))
    unit = np.gcd.reduce(fan_out_C.numpy().astype(np.int64)).item()  # lets most sums do without 64 bits
    exact = torch.float32 if fan_out_C.sum() < unit * EXACT_BELOW else torch.float64
    return unit * ((x_TBC != 0).to(exact) @ (fan_out_C / unit).to(x_TBC.device, exact)).double()
