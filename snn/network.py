"""Networks built from the configuration: hidden blocks and an output layer."""

import math
from itertools import pairwise
from typing import NamedTuple

from spikingjelly.activation_based import layer
from spikingjelly.activation_based.base import MemoryModule
from torch import Tensor, nn

from snn import config
from snn.events import Events
from snn.linear import EventLinear
from snn.neurons import NEURONS, SpikingNeuron


class Activity(NamedTuple):
    """What a network did: output spikes and potentials, and the spikes of all layers, the output last."""

    s_TBN: Tensor
    h_TBN: Tensor
    layers: tuple[Tensor, ...]


class Block(nn.Module):
    """A hidden layer: Linear, BatchNorm over T·B, neurons, dropout with one mask a sequence (Liu et al. 2023)."""

    def __init__(self, inputs: int, neurons: SpikingNeuron, outputs: int, batch_norm: bool, dropout: float):
        super().__init__()
        self.linear = EventLinear(inputs, outputs)
        self.norm = layer.BatchNorm1d(outputs, step_mode="m") if batch_norm else None
        self.neurons = neurons
        self.dropout = layer.Dropout(dropout, step_mode="m") if dropout else None

    def forward(self, x_TBC: Tensor | Events) -> tuple[Tensor, Tensor]:
        """(spikes after dropout for the next layer, spikes as they were fired)."""
        x_TBN = self.linear(x_TBC)
        if self.norm is not None:
            x_TBN = self.norm(x_TBN)
        s_TBN = self.neurons(x_TBN)
        return (s_TBN if self.dropout is None else self.dropout(s_TBN)), s_TBN


class Network(nn.Module):
    """Hidden blocks and an output layer of one neuron a class. No bias; Xavier uniform weights.

    The input is (T, B, channels), dense or as `Events`. The state stays until `reset()`: a long sequence may come in
    chunks.
    """

    def __init__(self, network: config.Network, shape: tuple[int, ...], num_classes: int, backend: str = "auto"):
        super().__init__()
        sizes = (math.prod(shape), *network.hidden_size)
        self.blocks = nn.ModuleList(
            Block(
                inputs,
                _neurons(network, network.neuron, network.neuron1, outputs, network.recurrent, False, backend),
                outputs,
                network.batch_norm,
                network.dropout,
            )
            for inputs, outputs in pairwise(sizes)
        )
        self.readout = EventLinear(sizes[-1], num_classes)
        self.output = _neurons(network, network.output_neuron, network.neuron2, num_classes, False, True, backend)

    def forward(self, x_TBC: Tensor | Events) -> Activity:
        """Run all steps of x from the state as it stands."""
        layers = []
        for block in self.blocks:
            x_TBC, s_TBN = block(x_TBC)
            layers.append(s_TBN)
        s_TBN, h_TBN = self.output(self.readout(x_TBC))
        return Activity(s_TBN, h_TBN, (*layers, s_TBN))

    def reset(self) -> None:
        """Forget all states and dropout masks: the next input starts a new sequence."""
        for module in self.modules():
            if isinstance(module, MemoryModule):
                module.reset()

    def clamp_values(self) -> None:
        """Bring the neurons' learned values back into their ranges; call it after each step of the optimiser."""
        for module in self.modules():
            if isinstance(module, SpikingNeuron):
                module.clamp_values()

    def check_values(self, where: str) -> None:
        """InputError if a neuron's learned value is outside its range."""
        for name, module in self.named_modules():
            if isinstance(module, SpikingNeuron):
                module.check_values(f"{where}, {name}")

    def num_trainable(self) -> int:
        return sum(p.numel() for p in self.parameters() if p.requires_grad)


def _neurons(
    network: config.Network,
    name: str,
    params: config.NeuronParams,
    size: int,
    recurrent: bool,
    return_potential: bool,
    backend: str,
) -> SpikingNeuron:
    superspike = network.variant == "superspike"
    return NEURONS[name](
        size,
        tau_mem_steps=params.tau_mem_steps,
        tau_syn_steps=params.tau_syn_steps,
        tau_ada_steps=network.tau_ada_steps,
        theta=params.theta,
        reset=network.reset,
        per=network.values,
        spike_first=superspike,
        decay="raw" if superspike else "sigmoid",
        recurrent=recurrent,
        return_potential=return_potential,
        backend=backend,
    )
