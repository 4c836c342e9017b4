"""A TTFS network event by event: one image at a time, spikes in the order of time, and an early decision.

A spike adds its column of weights to S, and the column times its lead to A (`snn.ttfs.functional`), so it costs only
its fan-out. A layer's neurons fire after all its inputs have arrived; their spikes are the events of the next layer.
Sums are in the order of events, as in the C of `snn.embedded.ttfs`, which gives the same bits.

The readout can stop before its window ends. At a time s, its potentials V(2T) = Σ w (2T - t) lack the inputs that have
not arrived. Let c be the class that leads. An input that has yet to arrive adds at most max(w_o - w_c, 0) (2T - s) to
V_o - V_c. So the decision is certain as soon as, for every other class o,

    V_c - V_o > (2T - s) Σ max(w_o - w_c, 0), summed over all inputs that have not arrived.

Spikes alone allow no better bound: inputs that all fire now, or stay silent, would reach it. It is weak, because silent
inputs, which are the most, count until the end. But when a layer begins to fire, the sign of each neuron's drive says
whether it will, though not when; a queue of events holds only those that do. With this known, an input that will
fire adds w T in any case, at once, and only w (T - t) is still open:

    V_c - V_o > (T - s) Σ max(w_o - w_c, 0), summed over inputs that will fire, where V includes their w T.

Each side that falls with s is followed in continuous time, so a decision may also come between two events.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from snn import checks
from snn.ops.compiled import kernel
from snn.ttfs import kernels
from snn.ttfs.layers import Conv2d, Readout, SpikingLayer
from snn.ttfs.network import TTFSNetwork


class Outcome(NamedTuple):
    """The decision on an image."""

    label: int
    windows: float  # from the start of the image's window to the decision, in windows T
    operations: list[int]  # of each layer of neurons, and of the readout up to the decision: events at synapses
    t_layers: list[Tensor]  # spike times of each layer of neurons, (C, H, W) or (N,)


class EventDriven:
    """A copy of a network, on the CPU, that runs event by event."""

    def __init__(self, network: TTFSNetwork):
        checks.kind("the network", network, TTFSNetwork)
        network = network.folded().cpu()
        self.input_shape, self.encoder, self.T = network.input_shape, network.encoder, network.readout.T
        self.layers = []
        with torch.inference_mode():
            t = self.encoder(network.readout.weight.new_zeros(1, *self.input_shape))  # only its shape counts
            for module in network.layers:
                self.layers.append(_Layer(module, t.shape[1:]) if isinstance(module, SpikingLayer) else module)
                t = module(t)
            self.readout = _Readout(network.readout, t.shape[1:])

    @torch.inference_mode()
    def run(self, x_CHW: Tensor, share: float = 1.0, fires_known: bool = True) -> Outcome:
        """Decide on an image as soon as the lead exceeds a share of the bound.

        With a share of 1 the decision is that of the whole window. Smaller shares decide earlier, and sometimes
        otherwise. `fires_known` takes the second bound above; without it spikes alone count.
        """
        checks.number("share", share, above=0)
        t, t_layers, operations = self.layer_times(x_CHW)
        label, time, added = self.readout.decide(t, share, fires_known)
        return Outcome(label, len(t_layers) + time / self.T, [*operations, added], t_layers)

    @torch.inference_mode()
    def layer_times(self, x_CHW: Tensor) -> tuple[Tensor, list[Tensor], list[int]]:
        """Return the times (1, ...) that reach the readout, those of each layer of neurons, and their operations."""
        x_CHW = checks.like_weights("the pixels", x_CHW, self.input_shape, torch.from_numpy(self.readout.W_NO))
        t = self.encoder(x_CHW[None])
        t_layers, operations = [], []
        for layer in self.layers:
            if isinstance(layer, _Layer):
                t, added = layer.receive(t)
                operations.append(added)
                t_layers.append(t[0])
            else:
                t = layer(t)
        return t, t_layers, operations


class _Layer:
    """A layer of neurons for inputs of a shape."""

    def __init__(self, layer: SpikingLayer, shape: torch.Size):
        self.T, self.zero_drive_fires = layer.T, layer.options["zero_drive_fires"]
        self.is_map = isinstance(layer, Conv2d)
        self.stride = layer.stride if isinstance(layer, Conv2d) else 1
        self.bias_O = layer.bias
        self.W_CKKO = columns(layer.weight, shape).numpy()
        kernel_size = self.W_CKKO.shape[1]
        places = shape[1:] if self.is_map else (1, 1)  # a fully connected layer is a convolution over a single place
        self.places = [(size + 2 * (kernel_size // 2) - kernel_size) // self.stride + 1 for size in places]

    def receive(self, t: Tensor) -> tuple[Tensor, int]:
        """Return the spike times (1, ...) for the times of one sample, and how many synapses its events met."""
        t_HWC = kernels.channels_last(t[0])
        if not self.is_map:
            t_HWC = t_HWC.view(1, 1, -1)
        order, fired = in_order(t_HWC.reshape(-1).numpy())
        SA_2HWO = t.new_zeros(2, *self.places, self.W_CKKO.shape[-1])
        S_HWO, A_HWO = SA_2HWO.numpy()
        T = A_HWO.dtype.type(self.T)
        added = _receive(order[:fired], t_HWC.numpy(), self.W_CKKO, S_HWO, A_HWO, T, self.stride)
        if self.bias_O is not None:
            SA_2HWO[0] += self.bias_O
        t_out = kernels.fire(SA_2HWO.permute(0, 3, 1, 2), self.T, self.zero_drive_fires)[0]
        return t_out if self.is_map else t_out.view(1, -1), added


class _Readout:
    """A readout for inputs of a shape."""

    def __init__(self, readout: Readout, shape: torch.Size):
        self.T, self.W_NO = readout.T, columns(readout.weight, shape)[:, 0, 0].numpy()
        self.rounding = rounding(readout.weight, readout.T)

    def decide(self, t: Tensor, share: float, fires_known: bool) -> tuple[int, float, int]:
        """Return (class, time of the decision in [0, T], operations up to it) for the times of one sample."""
        t_N = kernels.channels_last(t[0]).reshape(-1).numpy()
        order, fired = in_order(t_N)
        if fires_known:
            order = order[:fired]
        V_O = np.zeros_like(self.W_NO[0])
        constants = (V_O.dtype.type(constant) for constant in (self.T, share, self.rounding))
        label, time, events = _read_out(order, fired, fires_known, t_N, self.W_NO, V_O, *constants)
        return int(label), float(time), V_O.size * (events + (fired if fires_known else 0))


def rounding(W_ON: Tensor, T: float) -> float:
    """Return a bound on what rounding does to a lead and to what may change it: any order of sums decides the same.

    A sum of N products is off by at most N u Σ |w| 2T, with u = eps / 2. A decision compares at most eight such sums:
    potentials in the order of events and in that of the dense pass, and the sums over inputs that have not arrived.
    """
    return 8 * (W_ON.shape[1] + 4) * torch.finfo(W_ON.dtype).eps * T * float(W_ON.detach().abs().sum(1).max())


@torch.no_grad()
def columns(weight: Tensor, shape: torch.Size) -> Tensor:
    """Return the weights of a layer for inputs of this shape as (C, K, K, O), so that those of a spike are neighbours.

    A fully connected layer is a convolution over a single place. Its inputs are those of maps with channels last.
    """
    if weight.dim() == 4:
        return weight.permute(1, 2, 3, 0).contiguous()
    if len(shape) == 3:
        weight = weight.unflatten(1, shape).permute(0, 2, 3, 1).flatten(1)
    return weight.T[:, None, None].contiguous()


def in_order(t_N: np.ndarray) -> tuple[np.ndarray, int]:
    """Return the inputs in the order of their times, lower numbers first, silent ones last; and how many fire."""
    return np.argsort(t_N, kind="stable"), int((t_N < math.inf).sum())


@kernel
def _receive(order, t_HWC, W_CKKO, S_HWO, A_HWO, T, stride):
    """Add each event's column of weights to S, and the column times the event's lead to A."""
    _, width, channels = t_HWC.shape
    _, kernel_size, _, outputs = W_CKKO.shape
    padding = kernel_size // 2
    t = t_HWC.ravel()
    targets = 0
    for i in order:
        lead = T - t[i]
        c, x, y = i % channels, i // channels % width, i // channels // width
        for ky in range(kernel_size):
            row = (y + padding - ky) // stride
            if row < 0 or row >= S_HWO.shape[0] or row * stride + ky != y + padding:
                continue
            for kx in range(kernel_size):
                column = (x + padding - kx) // stride
                if column < 0 or column >= S_HWO.shape[1] or column * stride + kx != x + padding:
                    continue
                w, S, A = W_CKKO[c, ky, kx], S_HWO[row, column], A_HWO[row, column]
                for n in range(outputs):
                    S[n] += w[n]
                    A[n] += w[n] * lead
                targets += 1
    return targets * outputs


@kernel
def _read_out(order, fired, fires_known, t, W_NO, V, T, share, rounding):
    """Add events to V until the decision; return (class, its time, events taken). `order` holds all that may arrive."""
    most = T if fires_known else T + T  # what may come of an input at 0, times its weight
    if fires_known:
        for i in order:
            for n in range(V.size):
                V[n] += W_NO[i, n] * T
    reach = np.zeros_like(V)  # Σ max(w_n - w_leader, 0) over the inputs that have not arrived
    leader, now = -1, t.dtype.type(0)
    for k in range(fired + 1):
        best = np.argmax(V)
        if best != leader:
            leader = best
            reach[:] = 0
            for i in order[k:]:
                for n in range(V.size):
                    reach[n] += max(W_NO[i, n] - W_NO[i, leader], t.dtype.type(0))
        elif k > 0:
            for n in range(V.size):
                reach[n] -= max(W_NO[order[k - 1], n] - W_NO[order[k - 1], leader], t.dtype.type(0))
        certain = now  # the time from which on no other class can overtake the leader, unless an event comes before
        for n in range(V.size):
            lead = V[leader] - V[n] - rounding
            if n == leader:
                continue
            if lead <= 0:
                certain = T
            elif reach[n] > 0:
                certain = max(certain, most - lead / (share * reach[n]))
        until = t[order[k]] if k < fired else T
        if certain <= until or k == fired:
            break
        for n in range(V.size):
            V[n] += W_NO[order[k], n] * (most - until)
        now = until
    return leader, min(certain, T), k
