"""Networks built from the configuration: a list of layers, the last of which is the output."""

import copy
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from spikingjelly.activation_based.base import MemoryModule
from spikingjelly.activation_based.layer import BatchNorm1d, Dropout
from torch import Tensor, nn

from snn import architecture, checks, config
from snn.architecture import Conv, Full, Pool
from snn.conv import EventConv, Pooling, pixels_of
from snn.delays import DelayedLinear
from snn.errors import InputError
from snn.inputs import SparseCounts, Spikes, as_tensor
from snn.learned import Delays, Learned
from snn.linear import EventLinear
from snn.neurons import NEURONS, SpikingNeuron
from snn.norm import LazyNorm

Linear = EventLinear | EventConv | Pooling  # what a layer does with its input before its neurons


class Activity(NamedTuple):
    """The activity of a network: output spikes and potentials, and the spikes of all layers, the output last."""

    s_TBN: Tensor
    h_TBN: Tensor
    layers: tuple[Tensor, ...]


class LazyDropout(Dropout):
    """SpikingJelly's Dropout with one mask per sequence, which the next layer applies to the spikes it multiplies."""

    def multi_step_functional_forward(
        self, inputs: tuple[Tensor], states: tuple[Tensor | None], **_: object
    ) -> tuple[tuple[Tensor | Spikes], tuple[Tensor | None]]:
        (s_TBN,), (mask_BN,) = inputs, states
        if not self.training:
            return inputs, states
        mask_BN = self.create_mask(s_TBN[0]) if mask_BN is None else mask_BN
        return (Spikes(s_TBN, mask_BN),), (mask_BN,)


class Layer(nn.Module):
    """One layer: linear map or pool, BatchNorm over T·B, neurons, and dropout with one mask per sequence.

    As in Liu et al. 2023, pools have neurons too. The pixels of an image count as samples: (T, P, C), see `snn.conv`.
    """

    def __init__(
        self, linear: Linear, neurons: SpikingNeuron, norm_size: int | None = None, dropout: Dropout | None = None
    ):
        super().__init__()
        self.linear = linear
        Norm = LazyNorm if neurons.V is None else BatchNorm1d  # feedback joins the input behind it
        self.norm = Norm(norm_size, step_mode="m") if norm_size else None
        self.neurons = neurons
        self.dropout = dropout
        self.is_output = neurons.return_potential

    def forward(self, x_TBC: Tensor | SparseCounts | Spikes) -> tuple[Tensor | Spikes, Tensor] | tuple[Tensor, Tensor]:
        """Return (spikes after dropout, spikes as fired) for a hidden layer, (spikes, potentials) for the output."""
        x_TBN = self.linear(x_TBC)
        if self.norm is not None:
            if self.training and x_TBN.shape[0] * x_TBN.shape[1] == 1:
                raise InputError("BatchNorm cannot train on one step of one sample; use more steps or a larger batch")
            x_TBN = self.norm(x_TBN)
        if self.is_output:
            return self.neurons(x_TBN)
        s_TBN = self.neurons(x_TBN)
        passed = s_TBN if self.dropout is None else self.dropout(s_TBN)
        if self.neurons.near_TW is not None:
            passed = Spikes(s_TBN, passed.mask_BN if isinstance(passed, Spikes) else None, self.neurons.near_TW)
        return passed, s_TBN

    def learned(self, dt_ms: float) -> dict[str, Learned]:
        """Return the values that the layer learned besides weights, by name."""
        delays = self.linear.learned(dt_ms) if isinstance(self.linear, DelayedLinear) else {}
        return delays | self.neurons.learned(dt_ms)


class Network(nn.Module):
    """A list of layers; the last one, the output, has one neuron per class. No bias; Xavier uniform weights.

    The input is (T, B, channels), dense or as `SparseCounts`. For a convolution it holds an image of `shape`, whose
    channels are counted as (channel·H + y)·W + x. The state stays until `reset()`, so a long sequence may come in
    chunks. dt_ms is the length of a step; `network.delay_init_ms` needs it for the initial delays.
    """

    def __init__(
        self,
        network: config.Network,
        shape: tuple[int, ...],
        num_classes: int,
        backend: str = "auto",
        dt_ms: float = 1.0,
    ):
        super().__init__()
        checks.kind("network", network, config.Network)
        checks.sizes("the shape of the input", shape)
        checks.whole("the number of classes", num_classes, 1)
        words = architecture.parse(network.layers)
        shapes = [shape, *architecture.shapes(network.layers, shape)]
        self.num_channels = math.prod(shape)
        self.image = shape if len(shape) == 3 and words and not isinstance(words[0], Full) else None
        hidden = [
            _hidden(network, word, before, after, self.image is not None, backend, dt_ms)
            for word, (before, after) in zip(words, pairwise(shapes), strict=True)
        ]
        delay = architecture.parse_delay(network.output_delay) if network.output_delay else None
        linear = _linear(network, math.prod(shapes[-1]), num_classes, delay, dt_ms)
        neurons = _neurons(network, network.output_neuron, network.neuron2, num_classes, None, True, backend, dt_ms)
        self.layers: Sequence[Layer] = nn.ModuleList([*hidden, Layer(linear, neurons)])  # type: ignore[assignment]

    @property
    def output(self) -> Layer:
        """Return the last layer, which decides."""
        return self.layers[-1]

    @property
    def _weight(self) -> Tensor:
        return self.output.linear.weight  # type: ignore[return-value]  # no pool decides

    def forward(self, x_TBC: Tensor | SparseCounts) -> Activity:
        """Run all steps of x from the present state. A layer of an image is (T, B, H·W·C), its channels last.

        x may be any real numbers on the weights' device; they are converted to the type of the weights (float32 or
        float64), in which everything is computed, even under `torch.autocast`: half precision cannot tell a potential
        from a threshold. InputError if x does not fit, or holds a number on the CPU that is not finite.
        """
        if torch.compiler.is_compiling():  # it cannot trace compiled kernels, so the network runs as it is
            return torch.compiler.disable(self.forward)(x_TBC)  # as a decorator, it would take a second to import
        with checks.without_autocast(self._weight.device):
            return self._forward(x_TBC)

    def _forward(self, x_TBC: Tensor | SparseCounts) -> Activity:
        if not isinstance(x_TBC, SparseCounts):
            sizes = ("steps", "samples", self.num_channels)
            x_TBC = checks.like_weights("the network's input", x_TBC, sizes, self._weight)
        T, B, _ = x_TBC.shape
        spikes = []
        if self.image:
            x_TBC = pixels_of(x_TBC, self.image)
        for layer in self.layers:
            if isinstance(layer.linear, EventLinear) and self.image:  # lay the pixels side by side
                x_TBC = as_tensor(x_TBC).view(T, B, -1)
            if layer is self.output:
                s_TBN, h_TBN = layer(x_TBC)
            else:
                x_TBC, s_TBN = layer(x_TBC)
            spikes.append(s_TBN.view(T, B, -1))
        return Activity(s_TBN, h_TBN, tuple(spikes))

    def run(self, x_TBC: Tensor | SparseCounts) -> Activity:
        """Run whole sequences from a fresh state, and reset the state afterwards."""
        self.reset()
        try:
            return self(x_TBC)
        finally:
            self.reset()

    def reset(self) -> None:
        """Forget all states and dropout masks: the next input starts a new sequence."""
        for module in self.modules():
            if isinstance(module, MemoryModule):
                module.reset()

    @torch.no_grad()
    def folded(self) -> "Network":
        """Return a copy for inference on the CPU, with BatchNorm folded into weights and biases, and without dropout.

        All its products are event-driven, so that batches and `snn.streaming` sum in the same order.
        """
        folded = copy.deepcopy(self).cpu().eval()
        folded.reset()
        for layer in folded.layers:
            if layer.norm is not None and not isinstance(layer.linear, Pooling):  # a pool has none
                scale_N = layer.norm.weight / torch.sqrt(layer.norm.running_var + layer.norm.eps)
                layer.linear.weight *= scale_N.view(-1, *[1] * (layer.linear.weight.dim() - 1))
                layer.linear.bias = nn.Parameter(layer.norm.bias - layer.norm.running_mean * scale_N)
            layer.norm = layer.dropout = None
        for module in folded.modules():
            if isinstance(module, EventConv | EventLinear):
                module.dense_above = 1.0
            if isinstance(module, SpikingNeuron):
                module.backend = "cpu"
            if isinstance(module, Delays):
                module.round()
        return folded

    def delays(self) -> dict[str, Delays]:
        """Return the learned delays by the name of their module."""
        return {name: module for name, module in self.named_modules() if isinstance(module, Delays)}

    def narrow_delays(self, sigma_steps: float) -> None:
        """Set the σ of the triangle of all delays, for training."""
        for delays in self.delays().values():
            delays.sigma_steps = sigma_steps

    def keep_delays_whole(self) -> None:
        """Round all delays; they stay whole if `clamp_values` is called after each step of the optimiser."""
        for delays in self.delays().values():
            delays.keep_whole()

    def prune(self, density: float) -> None:
        """Set the smallest weights of each fully connected hidden layer to 0 so that this share stays."""
        for layer in self.layers[:-1]:
            if isinstance(layer.linear, EventLinear):
                layer.linear.prune(density)

    def clamp_values(self) -> None:
        """Bring all learned values back into their ranges; call this after each step of the optimiser."""
        for module in self.modules():
            if isinstance(module, Delays | SpikingNeuron | EventLinear):
                module.clamp_values()

    def check_values(self, where: str) -> None:
        """Raise InputError if a learned value is outside its range."""
        for name, module in self.named_modules():
            if isinstance(module, Delays | SpikingNeuron):
                module.check_values(f"{where}, {name}")

    def learned(self, dt_ms: float) -> dict[str, dict[str, Learned]]:
        """Return the values that each layer learned besides weights, by layer (the output last) and name."""
        return {f"layers.{k}": layer.learned(dt_ms) for k, layer in enumerate(self.layers)}


def _hidden(
    network: config.Network,
    word: Conv | Pool | Full,
    before: tuple[int, ...],
    after: tuple[int, ...],
    in_conv_net: bool,
    backend: str,
    dt_ms: float,
) -> Layer:
    """Build a hidden layer between two shapes."""
    full = word if isinstance(word, Full) else None
    if isinstance(word, Full):
        linear: Linear = _linear(network, math.prod(before), word.size, word.delay, dt_ms)
    else:
        channels, height, width = before
        if isinstance(word, Pool):
            linear = Pooling(height, width, word.kernel, word.is_average)
        else:
            linear = EventConv(channels, word.channels, height, width, word.kernel, word.stride)
    # in the published convolutional networks both fully connected layers have neurons of the second kind
    params = network.neuron2 if full and in_conv_net else network.neuron1
    neurons = _neurons(network, network.neuron, params, after[0], full, False, backend, dt_ms)
    neurons.says_near = not in_conv_net
    norm_size = after[0] if network.batch_norm and not isinstance(word, Pool) else None
    dropout = None
    if network.dropout:  # a convolution or flattening comes next, which cannot apply a mask
        dropout = (Dropout if in_conv_net else LazyDropout)(network.dropout, step_mode="m")
    return Layer(linear, neurons, norm_size, dropout)


def _linear(
    network: config.Network, inputs: int, outputs: int, delay: architecture.Delay | None, dt_ms: float
) -> EventLinear:
    """Build the map of a fully connected layer."""
    if delay is None:
        return EventLinear(inputs, outputs)
    per, max_steps, is_extra = delay
    # no word for a layer's input gives it delays per neuron
    return DelayedLinear(inputs, outputs, per, max_steps, _initial_steps(network, dt_ms), extra=is_extra)  # type: ignore[arg-type]


def _initial_steps(network: config.Network, dt_ms: float) -> tuple[float, float] | None:
    if network.delay_init_ms is None:
        return None
    shortest_ms, longest_ms = network.delay_init_ms
    return shortest_ms / dt_ms, longest_ms / dt_ms


def _neurons(
    network: config.Network,
    name: str,
    params: config.NeuronParams,
    size: int,
    layer: Full | None,
    return_potential: bool,
    backend: str,
    dt_ms: float,
) -> SpikingNeuron:
    superspike = network.variant == "superspike"
    neurons = NEURONS[name](
        size,
        **params.model_dump(),
        tau_ada_steps=network.tau_ada_steps,
        reset=network.reset,
        per=network.values,
        spike_first=superspike,
        decay="raw" if superspike else "sigmoid",
        surrogate=network.output_surrogate if return_potential else network.surrogate,
        surrogate_slope=0.0 if return_potential else network.surrogate_slope or 0.0,
        recurrent=layer is not None and layer.is_recurrent,
        max_delay_steps=(layer and layer.recurrent_delay_max_steps) or 0,
        delay_steps=_initial_steps(network, dt_ms),
        return_potential=return_potential,
        backend=backend,
    )
    neurons.checks_states = False
    return neurons
