"""Simulation of a TTFS network step by step: it integrates potentials and watches thresholds, without closed form.

It checks a trained network and shows what an event-driven chip would do. Within a step every input counts from its own
time on, and a crossing is placed on the straight line between the step's ends, so the step may be coarse.
"""

import copy
import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from snn import checks
from snn.ttfs.layers import AverageLead, EarliestSpike, SpikingLayer
from snn.ttfs.network import TTFSNetwork


class Simulation:
    """A copy of a network in float64, run in `steps` steps per window."""

    def __init__(self, network: TTFSNetwork, steps: int = 8):
        checks.kind("the network", network, TTFSNetwork)
        checks.whole("steps", steps, 1)
        self.network = copy.deepcopy(network).double().folded()
        self.steps = steps

    @torch.inference_mode()
    def run(self, x_BCHW: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return (output potentials (B, N) at the end, spike times of each layer of neurons) for pixels."""
        network = self.network
        x_BCHW = checks.like_weights("the pixels", x_BCHW, ("images", *network.input_shape), network.readout.weight)
        t = network.encoder(x_BCHW)
        spikes = []
        for module in network.layers:
            if isinstance(module, SpikingLayer):
                sums = partial(module.sums, W=module.weight)
                t, _ = self._integrate(sums, module.bias_like_sums(), t, module.options["zero_drive_fires"])
                spikes.append(t)
            else:
                t = self._pool(module, t)
        _, V_BN = self._integrate(lambda x: x.flatten(1) @ network.readout.weight.T, 0, t, False)
        return V_BN, spikes

    def _integrate(
        self, sums: Callable[[Tensor], Tensor], bias: Tensor | float, t_in: Tensor, zero_drive_fires: bool
    ) -> tuple[Tensor, Tensor]:
        """Return (spike times on the next layer's clock, potentials at 2T) of neurons with these weighted sums."""
        T = self.network.readout.T
        dt = T / self.steps
        v = slope = sums(torch.zeros_like(t_in))
        fired = torch.full_like(v, math.inf)
        for n in range(2 * self.steps):
            start, end = n * dt, T if n + 1 == self.steps else (n + 1) * dt
            if n == self.steps:
                slope = slope + bias
            before, v = v, v + slope * dt
            if n < self.steps:
                # the last of these steps includes the spikes at T, which change V only after T
                arrives = (t_in >= start) & ((t_in < end) | ((n + 1 == self.steps) & (t_in == T)))
                if arrives.any():
                    v = v + sums(torch.where(arrives, end - t_in, 0))
                    slope = slope + sums(arrives.to(v.dtype))
                continue
            gap_before, gap = (2 * T - start) - before, (2 * T - end) - v  # from the potential to the threshold
            if n == self.steps:
                fired = torch.where(gap_before <= 0, 0, fired)
            crosses = (gap <= 0) & (fired == math.inf)
            if not zero_drive_fires:
                crosses &= (v != 0) | (slope != 0)
            fired = torch.where(crosses, start - T + dt * gap_before / (gap_before - gap), fired)
        return fired, v

    def _pool(self, module: EarliestSpike | AverageLead, t_BCHW: Tensor) -> Tensor:
        k = module.kernel
        height, width = (size // k * k for size in t_BCHW.shape[2:])
        patches = t_BCHW[:, :, :height, :width].unflatten(3, (-1, k)).unflatten(2, (-1, k))
        if isinstance(module, EarliestSpike):
            return patches.amin((3, 5))
        is_silent = patches == math.inf
        lead = torch.where(is_silent, 0, module.T - patches).mean((3, 5))
        return torch.where(is_silent.all(5).all(3), math.inf, module.T - lead)
