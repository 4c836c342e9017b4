"""Networks of neurons that spike at most once, built from the configuration."""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from snn import architecture, checks, config
from snn.architecture import Conv, Full, Pool
from snn.errors import InputError
from snn.ttfs import layers

Layer = layers.SpikingLayer | layers.EarliestSpike | layers.AverageLead


class Passage(NamedTuple):
    """The incoming and outgoing times of one layer of neurons for a batch."""

    layer: layers.SpikingLayer
    t_in: Tensor
    t_out: Tensor


class TTFSActivity(NamedTuple):
    """The activity of a network for a batch: the output potentials, and the times of each layer in order."""

    V_BN: Tensor
    passages: tuple[Passage, ...]
    t_out: Tensor  # the times that reach the readout


class TTFSNetwork(nn.Module):
    """An encoder, layers of neurons and pools, and a readout. Weights are Normal(0, sqrt(2 / fan_in)) at the start.

    The input is (B, C, H, W) with values in [0, 1]. The direct encoder takes any values and includes the first layer.
    """

    def __init__(self, ttfs: config.TTFS, input_shape: tuple[int, int, int], num_classes: int):
        super().__init__()
        checks.kind("ttfs", ttfs, config.TTFS)
        checks.sizes("the shape of the input", input_shape)
        checks.whole("the number of classes", num_classes, 1)
        self.input_shape = tuple(input_shape)
        is_direct = ttfs.encoder == "direct"
        found = architecture.of_single_spikes(ttfs.layers, self.input_shape, is_direct)
        options = {
            "bias": ttfs.bias,
            "standardised": ttfs.standardised,
            "zero_drive_fires": ttfs.zero_drive_fires,
            "grad_clip": ttfs.grad_clip,
        }
        modules = [_layer(*each, ttfs.T, options) for each in found]
        self.encoder: layers.DirectEncoder | layers.UnitEncoder = layers.UnitEncoder(ttfs.T)
        if is_direct:
            first, *modules = modules
            self.encoder = layers.DirectEncoder(first)  # type: ignore[arg-type]  # it has weights, as was checked
        self.layers: Sequence[Layer] = nn.ModuleList(modules)  # type: ignore[assignment]
        self.readout = layers.Readout(math.prod(found[-1][-1]), num_classes, ttfs.T)

    def forward(self, x_BCHW: Tensor) -> TTFSActivity:
        """Run on pixels of any numeric type, converted to that of the weights. InputError if they do not fit."""
        x_BCHW = checks.like_weights("the pixels", x_BCHW, ("images", *self.input_shape), self.readout.weight)
        with checks.without_autocast(x_BCHW.device):
            return self._forward(x_BCHW)

    def _forward(self, x_BCHW: Tensor) -> TTFSActivity:
        t = self.encoder(x_BCHW)
        passages = []
        for module in self.layers:
            t_in, t = t, module(t)
            if isinstance(module, layers.SpikingLayer):
                passages.append(Passage(module, t_in, t))
        return TTFSActivity(self.readout(t), tuple(passages), t)

    def folded(self) -> "TTFSNetwork":
        """Return a copy for inference with plain weights: the same function without normalisation."""
        network = copy.deepcopy(self).eval()
        for module in network.modules():
            if isinstance(module, layers.SpikingLayer):
                module.fold()
        return network

    def check_values(self, where: str) -> None:
        """Raise InputError if a weight is not a finite number."""
        for name, parameter in self.named_parameters():
            if not parameter.isfinite().all():
                raise InputError(f"{where}: {name} holds a value that is not a finite number")


def _layer(
    layer: Conv | Pool | Full,
    before: tuple[int, ...],
    after: tuple[int, ...],
    T: float,
    options: dict[str, Any],
) -> Layer:
    """Build the module of a layer between two shapes."""
    if isinstance(layer, Conv):
        return layers.Conv2d(before[0], layer.channels, layer.kernel, T, layer.stride, **options)
    if isinstance(layer, Pool):
        return layers.AverageLead(layer.kernel, T) if layer.is_average else layers.EarliestSpike(layer.kernel)
    return layers.Linear(math.prod(before), after[0], T, **options)


def silent_neurons_drive(activity: TTFSActivity, mean: Callable[[Tensor], Tensor] = lambda x: x) -> Tensor:
    """Return a penalty on neurons that no sample made fire: how far their mean drive falls short of 0.

    It is a mean over these neurons, summed over layers. A silent neuron has no gradient; this term gives one to the
    weights and biases of neurons (or channels of a convolution) that were silent for the whole batch. It costs one
    sample's pass through these neurons, or on a GPU through all. `mean` turns the mean over this process's samples into
    the mean over the whole batch.
    """
    total = activity.V_BN.new_zeros(())
    on_gpu = total.device.type == "cuda"
    silent = []
    for *_, t_out in activity.passages:
        earliest_O = t_out.detach().amin([d for d in range(t_out.dim()) if d != 1])
        silent.append(mean((earliest_O != math.inf).to(t_out.dtype)) == 0)
    if not on_gpu and not torch.cat(silent).any():
        return total
    for (layer, t_in, _), is_silent_O in zip(activity.passages, silent, strict=True):
        if not on_gpu and not is_silent_O.any():
            continue
        # V(2T) of an input that fires is T + a; the sums are linear, so the mean input gives the mean drive
        t_in = t_in.detach()
        x = mean(torch.where(t_in == math.inf, 0, 2 * layer.T - t_in).mean(0, keepdim=True))
        total = total + (_lack_by_mask if on_gpu else _lack)(layer, x, is_silent_O) / layer.T
    return total


def _lack(layer: layers.SpikingLayer, x: Tensor, is_silent_O: Tensor) -> Tensor:
    """Return how far the drive of these neurons falls short of 0 for the input x, as their mean."""
    drive = layer.sums(x, layer.synapses()[is_silent_O]) + layer.T * layer.bias_like_sums()[is_silent_O]
    return (-drive).clamp(min=0).mean()


def _lack_by_mask(layer: layers.SpikingLayer, x: Tensor, is_silent_O: Tensor) -> Tensor:
    """Return the same, or 0 for no neuron, where a step is recorded: no size may depend on values."""
    drive = layer.sums(x, layer.synapses()) + layer.T * layer.bias_like_sums()
    lack_O = (-drive).clamp(min=0).view(len(is_silent_O), -1).mean(1)
    return lack_O.masked_fill(~is_silent_O, 0).sum() / is_silent_O.sum().clamp(min=1)
