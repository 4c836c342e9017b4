"""Energy by models of hardware: SpikingJelly 2.0's energy models, applied to the counts of `snn.energy`.

- Lemaire et al. 2022: a digital core for each layer, 45 nm, 32-bit integers. A spike comes out of a queue and is added
  to every potential it reaches; the cost of an access depends on the size of the memory. An event is a spike, so a
  count of three is three spikes. Each state of a neuron has a memory and decays by one MAC per step (the published
  model has one state). The baseline is its formal network, in which a frame meets all weights.
- SpikeSim (Moitra et al. 2023): weights in RRAM crossbars of 64 x 64, read by inputs of 0 or 1. As published, all
  crossbars work in all steps, whatever the spikes. The second figure is SpikingJelly's, where rows and patches without
  an event rest. The model covers convolutions; a fully connected layer is one over a single pixel. It does not cover
  real-valued networks.
- NeuroMC (2026): a training chip of 32 nm with 16-bit values, used here for the forward pass only. Work does not depend
  on how many spikes there are, only on whether inputs are spikes (additions) or not (MACs: frames of counts, and the
  baseline). Neurons are its LIF. DRAM costs nothing.

Pools have no weights; in each model they cost only what their neurons cost. All results are in pJ per recording.
"""

import copy
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from spikingjelly.activation_based import neuron, op_counter
from torch import Tensor, nn

WORD = 4  # bytes
LEMAIRE = op_counter.LemaireEnergyConfig()
SPIKESIM = op_counter.SpikeSimEnergyConfig(activity_mode="event")

LEMAIRE_SOURCE = (
    f"Lemaire et al. 2022, arXiv 2210.13107, 45 nm, 32-bit integers: {LEMAIRE.cost_config.e_add_pj} pJ an addition, "
    f"{LEMAIRE.cost_config.e_mul_pj} pJ a multiplication; a word of memory "
    + ", ".join(f"{WORD * pj:g} pJ in {size / 1024:g} KiB" for size, pj in LEMAIRE.cost_config.memory_breakpoints[1:])
)
SPIKESIM_SOURCE = (
    f"SpikeSim, doi 10.1109/TCAD.2023.3274918, RRAM crossbars of {SPIKESIM.xbar_size} x {SPIKESIM.xbar_size}: "
    f"{SPIKESIM.patch_control_energy_pj:.4g} pJ to control a patch, "
    f"{SPIKESIM.xbar_row_energy_pj(SPIKESIM.xbar_size):.3g} pJ a row, {SPIKESIM.neuron_pj:.3g} pJ a neuron circuit"
)


class Synapses(NamedTuple):
    """The weights between two layers, and the mean input they receive in a recording."""

    conv: nn.Conv2d  # a torch convolution with these weights; over one pixel if fully connected
    height: int
    width: int
    is_full: bool
    has_bias: bool
    events: float
    are_counts: bool  # an input may be above 1

    @property
    def inputs(self) -> int:
        return self.conv.in_channels * self.height * self.width

    @property
    def sites(self) -> int:
        """Return the number of output pixels."""
        stride = self.conv.stride[0]
        return -(-self.height // stride) * -(-self.width // stride)


class Neurons(NamedTuple):
    """The number of neurons in a layer, of states per neuron, and of all their spikes in a recording (mean)."""

    size: int
    states: int
    spikes: float


def as_conv(weight: Tensor, stride: int = 1) -> nn.Conv2d:
    """Return a convolution that shares these weights; those of a fully connected layer are (N, C)."""
    weight = weight.detach().view(*weight.shape[:2], *(weight.shape[2:] or (1, 1)))
    N, C, K, _ = weight.shape
    conv = nn.Conv2d(C, N, K, stride, K // 2, bias=False, device="meta")
    conv.weight = nn.Parameter(weight, requires_grad=False)
    return conv.eval()


def lemaire(synapses: Sequence[Synapses], neurons: Sequence[Neurons], steps: int) -> float:
    """Return the energy of the spiking network by Lemaire et al.: additions, addresses and memory."""
    queue = LEMAIRE.snn_fifo_capacity_elements
    pj = 0.0
    for s in synapses:
        (K, _), (stride, _), N = s.conv.kernel_size, s.conv.stride, s.conv.out_channels
        reached = s.events * N * K * K
        outputs, biases = s.sites * N, s.has_bias * steps * s.sites * N
        pj += _work(s.events * N * math.ceil(K / stride) ** 2 + reached + biases, 0 if s.is_full else 2 * s.events)
        pj += _access(s.events, queue) + _access(reached + biases, s.conv.weight.numel() + s.has_bias * N)
        pj += _access(2 * reached, outputs)
    for layer in neurons:
        pj += _work(layer.spikes, steps * layer.size * layer.states)
        pj += layer.states * _access(2 * steps * layer.size, layer.size) + _access(layer.spikes, queue)
    return pj


def lemaire_baseline(synapses: Sequence[Synapses], steps: int) -> float:
    """Return the energy of the baseline by Lemaire et al., one frame per step: MACs, addresses and memory."""
    pj = 0.0
    for s in synapses:
        N, weights = s.conv.out_channels, s.conv.weight.numel()
        macs, outputs, biases = s.sites * weights, s.sites * N, s.has_bias * s.sites * N
        kernels = 0 if s.is_full else N * s.conv.kernel_size[0] ** 2
        pj += _work(biases + s.inputs + outputs + kernels, macs)
        pj += _access(s.inputs if s.is_full else macs, s.inputs) + _access(outputs, outputs)
        pj += _access(macs + biases, weights + s.has_bias * N)
    return steps * pj


def _work(additions: float, macs: float) -> float:
    cost = LEMAIRE.cost_config
    return additions * cost.e_add_pj + macs * (cost.e_mul_pj + cost.e_add_pj)


def _access(words: float, words_held: float) -> float:
    return WORD * words * LEMAIRE.cost_config.memory_cost_pj(WORD * words_held)


def spikesim_events(conv: nn.Conv2d, active_FCHW: Tensor) -> float:
    """Return the energy of all these frames of 0 and 1 together; crossbars and rows without an event rest."""
    with torch.inference_mode(False), torch.no_grad():  # inference mode hides the convolution from the profiler
        active_FCHW = active_FCHW.clone()
        with op_counter.SpikeSimEnergyProfiler(config=SPIKESIM) as profiler:
            conv(active_FCHW)
    return profiler.get_report().energy_total_pj


def spikesim_published(synapses: Sequence[Synapses], steps: int) -> float:
    """Return the energy if every crossbar works in every step."""
    pj = 0.0
    for s in synapses:
        crossbars = math.prod(math.ceil(n / SPIKESIM.xbar_size) for n in (s.conv.in_channels, s.conv.out_channels))
        pj += steps * s.sites * crossbars * SPIKESIM.pe_cycle_energy_for_kernel_pj(s.conv.kernel_size)
    return pj


def neuromc(
    synapses: Sequence[Synapses], neurons: Sequence[Neurons], steps: int
) -> op_counter.NeuroMCRuntimeEnergyReport:
    """Return SpikingJelly's report on a recording of these shapes; without neurons, inputs are real-valued.

    It runs on the CPU, because the profiler does not know the kernels that SpikingJelly's neurons use on a GPU.
    """
    layers = nn.ModuleList([*(copy.deepcopy(s.conv).cpu() for s in synapses), *(neuron.IFNode() for _ in neurons)])
    shapes = [(s.conv.in_channels, s.height, s.width) for s in synapses] + [(layer.size,) for layer in neurons]
    values = [2.0 if s.are_counts or not neurons else 0.0 for s in synapses] + [0.0] * len(neurons)
    frames = [torch.full((steps, *shape), value) for shape, value in zip(shapes, values, strict=True)]
    profiler = op_counter.NeuroMCEnergyProfiler()
    profiler.bind_model(layers)
    with torch.no_grad(), profiler, profiler.stage("forward"):
        for layer, x in zip(layers, frames, strict=True):
            layer(x)
    return profiler.get_report()


def neuromc_source(report: op_counter.NeuroMCRuntimeEnergyReport) -> str:
    """Cite the model, with the energy of an operation as the mean over all layers."""
    constant = report.energy_mac_pj / report.primitive_counts["totals"]["mac"]
    return (
        f"NeuroMC, doi 10.1038/s41467-026-70586-x, {report.model_info.technology_nm} nm, 16 bit: {constant:.3g} pJ an "
        "operation of a weight; SRAM and registers by their size"
    )
