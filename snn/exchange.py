"""Export of trained networks: as a graph of the Neuromorphic Intermediate Representation (NIR), or as one step.

NIR (Pedersen et al. 2024, doi 10.1038/s41467-024-52259-9) describes neurons by differential equations. Its CubaLIF is

    τ_syn dI/dt = -I + w_in S,   τ_mem dv/dt = -v + r I,   a spike and v = 0 above v_threshold.

The simulators that read it (snnTorch, SpikingJelly, Norse) take forward Euler steps and use the new current at once:

    I_m = (1 - dt/τ_syn) I_{m-1} + (dt/τ_syn) w_in S_m,   h_m = (1 - dt/τ_mem) v_{m-1} + (dt/τ_mem) r I_m.

So τ = dt / (1 - λ), w_in = τ_syn / dt and r = τ_mem / dt give our decays, and the factor 1 - λ_m of our drive goes into
the weights. The simulators are a step ahead in every layer that has a current, since ours enters one step late:

- their output at step m is ours at step m + latency;
- layer k begins in the state that it has in our network when the first input reaches it (its bias acted before);
- a recurrent layer's spikes must come back later, so copies of its neurons repeat each spike a step later.
"""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snn.conv import EventConv, Pooling
from snn.errors import InputError
from snn.linear import EventLinear
from snn.network import Network
from snn.neurons import SpikingNeuron
from snn.ops import reference
from snn.ops.reference import Dynamics

if TYPE_CHECKING:
    import nir


class Layer(NamedTuple):
    """A linear map or pool and its neurons, with the shapes before and after it: (C, H, W) or (N,)."""

    name: str
    linear: EventLinear | EventConv | Pooling
    neurons: SpikingNeuron
    before: tuple[int, ...]
    after: tuple[int, ...]


class Beginning(NamedTuple):
    """The state of a layer when the first input reaches it: its current, and its membrane after the pending step."""

    i: Tensor
    v: Tensor


def layers_of(network: Network, shape: tuple[int, ...]) -> list[Layer]:
    """List all layers, from the input of this shape to the output. Without convolutions, pixels are plain inputs."""
    shape = shape if network.image else (math.prod(shape),)
    layers = []
    for k, layer in enumerate(network.layers, 1):
        name, linear, neurons = f"layer_{k}", layer.linear, layer.neurons
        if isinstance(linear, EventLinear):
            after: tuple[int, ...] = (linear.out_features,)
        elif isinstance(linear, EventConv):
            after = (len(linear.weight), linear.geometry.out_height, linear.geometry.out_width)
        else:
            after = (shape[0], linear.height // linear.kernel, linear.width // linear.kernel)
        layers.append(Layer(name, linear, neurons, shape, after))
        shape = after
    return layers


def unsaid_by_nir(network: Network) -> list[str]:
    """List in words the features of this network that NIR's neurons lack."""
    found: dict[str, None] = {}  # a dict keeps the order of the layers, and each feature once
    for neurons in _neurons(network):
        kind, values = type(neurons).__name__, neurons.values()
        if neurons.CUBA is None:
            found[f"the neuron {kind}"] = None
        elif any(values[name].any() for name in neurons.CUBA.zeroed):
            found[f"the adaptation of {kind} ({', '.join(neurons.CUBA.zeroed)})"] = None
        if neurons.dynamics.reset == "soft":
            found["the soft reset"] = None
    return list(found)


def _neurons(network: Network) -> list[SpikingNeuron]:
    return [module for module in network.modules() if isinstance(module, SpikingNeuron)]


def _refuse_delays(network: Network) -> None:
    if network.delays():
        raise InputError(
            "a network with learned delays cannot be exported to NIR or ONNX: NIR's simulators know no delays, and the "
            "step of ONNX knows no steps before it; --format c takes it unless it has convolutions"
        )


def approximated(network: Network) -> Network:
    """Return a folded copy that is as close to NIR as possible: values that NIR lacks are 0, and resets are hard."""
    network = network.folded()
    for neurons in _neurons(network):
        neurons.dynamics = replace(neurons.dynamics, reset="hard")
        for name in neurons.CUBA.zeroed if neurons.CUBA else ():
            nn.init.zeros_(neurons.get_parameter(name))
    return network


@torch.no_grad()
def nir_graph(network: Network, shape: tuple[int, ...], dt_s: float) -> nir.NIRGraph:
    """Return the network as a graph for a simulator with steps of dt_s. InputError if NIR cannot express it.

    The graph has the metadata `latency_steps`; its layers have `i_initial` and `v_initial`, their initial state.
    """
    _refuse_delays(network)
    network = network.folded()
    if unsaid := unsaid_by_nir(network):
        can_leave_out = all(neurons.CUBA for neurons in _neurons(network))
        cure = "--approximate leaves it out" if can_leave_out else "--format onnx takes any neuron"
        raise InputError(f"NIR cannot express {' and '.join(unsaid)}; {cure}")
    layers = layers_of(network, shape)
    beginnings, latency = _beginnings(network, layers)

    graph = _Graph(layers[0].before, dt_s)
    copies = 0  # neurons that only repeat spikes, at the end of the layer before
    for layer, beginning in zip(layers, beginnings, strict=True):
        lam_m, lam_s = _decays(layer.neurons)
        gain_N = 1 - lam_m
        is_image = len(layer.after) == 3
        if isinstance(layer.linear, EventConv):
            conv = layer.linear
            weight = conv.weight * gain_N.view(-1, 1, 1, 1)
            graph.conv(f"{layer.name}_weights", weight, conv.bias, gain_N, conv.geometry.stride, layer.before)
        elif isinstance(layer.linear, Pooling):
            kernel = layer.linear.kernel
            graph.pool(f"{layer.name}_pool", kernel)
            if not layer.linear.is_average:
                if layer is layers[0]:
                    raise InputError("NIR cannot express a maximum pool over event counts, only one over spikes")
                # the maximum of spikes: a neuron without memory that fires if the average is not 0
                graph.neurons(f"{layer.name}_maximum", layer.after, *torch.tensor([0.0, 0.0, 0.5 / kernel**2]))
            identity = torch.eye(layer.after[0]) * gain_N
            graph.conv(f"{layer.name}_weights", identity[:, :, None, None], None, gain_N, 1, layer.after)
        else:
            weight = layer.linear.weight * gain_N.view(-1, 1)
            if len(layer.before) == 3:  # ours counts an image (y, x, channel), NIR (channel, y, x)
                C, H, W = layer.before
                weight = weight.view(-1, H, W, C).permute(0, 3, 1, 2).flatten(1)
                graph.flatten(f"{layer.name}_flatten")
            weight, copies = F.pad(weight, (0, copies)), 0
            bias = None if layer.linear.bias is None else layer.linear.bias * gain_N
            if layer.neurons.V is not None:
                copies = latency_of(layer.neurons) * layer.after[0]
                weight, bias = F.pad(weight, (0, 0, 0, copies)), None if bias is None else F.pad(bias, (0, copies))
            graph.affine(f"{layer.name}_weights", weight, bias)
        size = layer.after if is_image else (layer.after[0] + copies,)
        start = Beginning(gain_N.view(-1, *[1] * (len(layer.after) - 1)) * beginning.i, beginning.v)
        if copies:
            stages = 1 + latency_of(layer.neurons)
            lam_m, lam_s = (lam.expand(layer.after).repeat(stages) for lam in (lam_m, lam_s))
            start = Beginning(*(F.pad(state, (0, copies)) for state in start))
        graph.neurons(f"{layer.name}_neurons", size, lam_m, lam_s, torch.tensor(layer.neurons.threshold), start)
        if layer.neurons.V is not None:
            graph.recurrent(f"{layer.name}_recurrent", _repeating(layer.neurons, gain_N))
    return graph.finished({"latency_steps": latency, "dt": dt_s, "discretisation": "forward Euler"})


def _decays(neurons: SpikingNeuron) -> tuple[Tensor, Tensor]:
    """Return (λ_m, λ_s) as float64. λ_s is 0 for a neuron without a current, as if its current lasted one step."""
    values, cuba = neurons.values(), neurons.CUBA
    lam_s = torch.zeros(1) if cuba.lam_s is None else values[cuba.lam_s]
    return values[cuba.lam_m].double(), lam_s.double()


def latency_of(neurons: SpikingNeuron) -> int:
    """Return the number of steps from an input to the first spike it can cause."""
    return int(neurons.CUBA.current is not None) + int(neurons.dynamics.spike_first)


def _beginnings(network: Network, layers: list[Layer]) -> tuple[list[Beginning], int]:
    """Return each layer's state when the first input reaches it, and the steps until the output can answer."""
    latency = sum(latency_of(layer.neurons) for layer in layers)
    network.reset()
    empty = torch.zeros(1, 1, math.prod(layers[0].before))
    states, spikes = [[(torch.zeros(1), torch.zeros(1)) for _ in layers]], []
    for _ in range(latency):
        spikes.append([bool(s.any()) for s in network(empty).layers])
        states.append([_current_and_membrane(layer.neurons) for layer in layers])
        states[-1] = [(i.clone(), v.clone()) for i, v in states[-1]]
    network.reset()
    beginnings, reached = [], 0
    for k, layer in enumerate(layers):
        answers = reached + latency_of(layer.neurons)
        if (layer.neurons.V is not None or layer is layers[-1]) and any(row[k] for row in spikes[:answers]):
            raise InputError(
                f"{layer.name} fires by its bias before any input reaches it, which a graph cannot express"
            )
        i, v = states[reached][k][0], states[reached + int(layer.neurons.CUBA.current is not None)][k][1]
        beginnings.append(Beginning(*(_as_said(state, layer.after) for state in (i, v))))
        reached = answers
    return beginnings, latency


def _current_and_membrane(neurons: SpikingNeuron) -> tuple[Tensor, Tensor]:
    current = neurons.CUBA.current
    return torch.zeros(1) if current is None else getattr(neurons, current), getattr(neurons, neurons.CUBA.membrane)


def _as_said(state: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return one sample's state in NIR's order: (C, H, W) from our (H·W, C)."""
    if len(shape) == 3 and state.numel() > 1:
        C, H, W = shape
        return state.view(H, W, C).permute(2, 0, 1)
    return state.flatten().expand(shape) if len(shape) == 1 else state.expand(shape)


def _repeating(neurons: SpikingNeuron, gain_N: Tensor) -> Tensor:
    """Return recurrent weights for a layer and its copies; there is one copy of N neurons for each step of latency.

    A spike of copy k - 1 pushes copy k over θ (copy 0 is the layer itself). A step later copy k cancels the rest of the
    push, so that it repeats the spike only once. The last copy has V's weights to the neurons.
    """
    N, stages = len(neurons.V), latency_of(neurons)
    push = 2.0 ** math.ceil(math.log2(2 * neurons.threshold))
    lam_s = _decays(neurons)[1].expand(N)
    weight = torch.zeros(((1 + stages) * N, (1 + stages) * N), dtype=torch.float64)
    weight[:N, stages * N :] = neurons.V * gain_N.view(-1, 1)
    for k in range(1, 1 + stages):
        here = slice(k * N, (k + 1) * N)
        weight[here, (k - 1) * N : k * N] = push * torch.eye(N)
        weight[here, here] = torch.diag(-push * lam_s)
    return weight


class _Graph:
    """A chain of nodes, with loops around some of them."""

    def __init__(self, shape: tuple[int, ...], dt_s: float):
        import nir  # here, because only this format needs the package

        self.nir, self.dt_s = nir, dt_s
        self.nodes: dict[str, nir.NIRNode] = {"input": nir.Input({"input": np.array(shape)})}
        self.edges: list[tuple[str, str]] = []
        self.last, self.shape = "input", shape

    def _add(self, name: str, node: nir.NIRNode) -> None:
        self.nodes[name] = node
        self.edges.append((self.last, name))
        self.last = name

    def affine(self, name: str, weight: Tensor, bias: Tensor | None) -> None:
        self._add(
            name, self.nir.Linear(_array(weight)) if bias is None else self.nir.Affine(_array(weight), _array(bias))
        )
        self.shape = (len(weight),)

    def conv(
        self, name: str, weight: Tensor, bias: Tensor | None, gain_N: Tensor, stride: int, before: tuple[int, ...]
    ) -> None:
        N, pad = len(weight), weight.shape[-1] // 2
        bias_N = torch.zeros(N) if bias is None else bias * gain_N
        self._add(name, self.nir.Conv2d(before[1:], _array(weight), stride, pad, 1, 1, _array(bias_N)))
        self.shape = (N, *(-(-size // stride) for size in before[1:]))

    def pool(self, name: str, kernel: int) -> None:
        window = np.array([kernel, kernel])
        self._add(name, self.nir.AvgPool2d(window, window, np.array([0, 0])))
        self.shape = (self.shape[0], *(size // kernel for size in self.shape[1:]))

    def flatten(self, name: str) -> None:
        self._add(name, self.nir.Flatten({"input": np.array(self.shape)}, 0, -1))
        self.shape = (math.prod(self.shape),)

    def neurons(
        self,
        name: str,
        shape: tuple[int, ...],
        lam_m: Tensor,
        lam_s: Tensor,
        theta: Tensor,
        start: Beginning | None = None,
    ) -> None:
        """Add a CubaLIF node with these decays per step: one per neuron (per channel of an image) or one for all."""

        def tau(lam: Tensor) -> np.ndarray:  # float64, so that 1 - dt / τ is λ again, bit by bit
            value = self.dt_s / (1 - lam.double().view(-1, *[1] * (len(shape) - 1)))
            return value.expand(shape).numpy().copy()

        tau_mem, tau_syn, zeros = tau(lam_m), tau(lam_s), np.zeros(shape)
        self._add(
            name,
            self.nir.CubaLIF(
                tau_syn=tau_syn,
                tau_mem=tau_mem,
                r=tau_mem / self.dt_s,
                v_leak=zeros,
                v_threshold=np.full(shape, float(theta)),
                v_reset=zeros,
                w_in=tau_syn / self.dt_s,
                metadata={} if start is None else {"i_initial": _array(start.i), "v_initial": _array(start.v)},
            ),
        )

    def recurrent(self, name: str, weight: Tensor) -> None:
        """Add a loop around the last node."""
        self.nodes[name] = self.nir.Linear(_array(weight))
        self.edges += [(self.last, name), (name, self.last)]

    def finished(self, metadata: dict) -> nir.NIRGraph:
        self._add("output", self.nir.Output({"output": np.array(self.nodes[self.last].output_type["output"])}))
        return self.nir.NIRGraph(self.nodes, self.edges, metadata=metadata)


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().float().numpy().copy()


class Step(nn.Module):
    """One step of a network in plain torch operations that ONNX has; it takes the state and returns the next.

    It takes (x, *states), x (B, channels) as for `Network`, and returns (spikes, potentials, *states), the first two
    (B, classes). `state_names` and `state_shapes` list the states in their order. All states begin as zeros.
    """

    def __init__(self, network: Network, shape: tuple[int, ...]):
        super().__init__()
        _refuse_delays(network)
        self.network = copy.deepcopy(network.folded())
        self.layers = layers_of(self.network, shape)
        self.state_names, self.state_shapes = [], []
        for layer in self.layers:
            for name in layer.neurons.dynamics.carried(layer.neurons.V is not None):
                self.state_names.append(f"{layer.name}_{name}")
                self.state_shapes.append(layer.after)

    def forward(self, x_BC: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        x, left, after = x_BC.unflatten(1, self.layers[0].before), list(states), []
        for layer in self.layers:
            neurons, linear = layer.neurons, layer.linear
            if isinstance(linear, EventConv):
                x = F.conv2d(x, linear.weight, linear.bias, linear.geometry.stride, linear.geometry.kernel // 2)
            elif isinstance(linear, Pooling):
                x = (F.avg_pool2d if linear.is_average else F.max_pool2d)(x, linear.kernel)
            else:
                x = x.permute(0, 2, 3, 1).flatten(1) if x.dim() == 4 else x
                x = F.linear(x, linear.weight, linear.bias)
            feedback = neurons.feedback
            names = neurons.dynamics.carried(feedback is not None)
            state = {name: left.pop(0)[None] if name == "y" else left.pop(0) for name in names}
            per_channel = (-1, *[1] * (len(layer.after) - 1))
            values = {name: value.view(per_channel) for name, value in neurons.values().items()}
            s_1, h_1, state = reference.multi_step(
                x.unsqueeze(0), values, state, neurons.dynamics, feedback, spike_function=_spike
            )
            x, h = s_1[0], h_1[0]
            after += [state[name][0] if name == "y" else state[name] for name in names]
        return x, h, *after


def _spike(u: Tensor, neuron: Dynamics) -> Tensor:
    return ((u > 0) if neuron.spike_first else (u >= 0)).to(u.dtype)
