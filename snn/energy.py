"""The cost of an inference on event-driven hardware: operations, memory traffic, and energy by published constants.

Counts are exact, per recording, from one pass over the data:

- synaptic operations, as in `snn.operations`: accumulates (ACs) where the inputs are 0 or 1, multiply-accumulates
  (MACs) where they are counts. Dense operations: every weight in every step.
- footprint, connection sparsity, activation sparsity (NeuroBench): bytes of parameters and constants; share of weights
  that are 0; share of neurons and steps without a spike.
- memory traffic (SpikingJelly 2.0, NeuromorphicMemoryAccessCounter): each effective operation reads its weight, and in
  every step each neuron reads its bias and reads and writes its states. Moving the events is not counted.
- energy (SpikingJelly 2.0, simple_energy): MACs, ACs and bytes times constants of Horowitz 2014. It ranks networks but
  measures none, because one constant per byte ignores the memory hierarchy.
- energy by models with a memory hierarchy, after Lemaire et al., SpikeSim and NeuroMC: see `snn.hardware`.

The baseline is a network of the same layers with real-valued neurons, which keep one value each, run densely on the
same frames. BatchNorm counts as folded into weights and biases. All numbers count as float32, also weights that
`--quantise int8` has rounded.
"""

import torch
from spikingjelly.activation_based.op_counter import SimpleEnergyCostConfig
from torch import Tensor, nn

from snn import hardware
from snn.conv import EventConv, Pooling, as_frames
from snn.inputs import SparseCounts, as_tensor
from snn.linear import EventLinear
from snn.network import Layer, Network
from snn.neurons import SpikingNeuron
from snn.operations import fan_out

NEUROBENCH = "NeuroBench, doi 10.1038/s41467-025-56739-4"
SPIKINGJELLY = "SpikingJelly 2.0, NeuromorphicMemoryAccessCounter"
HOROWITZ = "Horowitz 2014, 45 nm, 32 bit, doi 10.1109/ISSCC.2014.6757323"
COST = SimpleEnergyCostConfig.fp32()

Entry = dict[str, float | str]  # value, unit, source


class Meter:
    """A meter that counts while a network runs: `with Meter(network) as meter: ...`, then `meter.result()`."""

    def __init__(self, network: Network):
        self.network = network
        self.linears = [m for m in network.modules() if isinstance(m, EventConv | EventLinear)]
        self.neurons = [m for m in network.modules() if isinstance(m, SpikingNeuron)]
        self.convs: dict[nn.Module, nn.Conv2d] = {m: hardware.as_conv(m.weight, _geometry(m)[2]) for m in self.linears}
        self.convs |= {m: hardware.as_conv(m.V) for m in self.neurons if m.V is not None}
        self.samples = self.neuron_steps = self.steps = 0
        self.spikes: dict[SpikingNeuron, int] = {}  # of each layer of neurons
        self.events: dict[nn.Module, float] = {}  # that reach a linear map, or return to neurons
        self.spikesim_pj = 0.0
        self.active: dict[nn.Module, Tensor] = {}  # how often each input of a map was not 0
        self.fed_back: dict[SpikingNeuron, Tensor] = {}  # spikes fed back, per neuron of a layer
        self.sizes: dict[SpikingNeuron, int] = {}  # neurons per sample
        self.counts = False  # becomes true at an input above 1

    def __enter__(self) -> "Meter":
        self.hooks = [module.register_forward_pre_hook(self._linear) for module in self.linears]
        self.hooks += [module.register_forward_hook(self._neurons) for module in self.neurons]
        self.hooks.append(self.network.register_forward_pre_hook(self._input))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()

    def _input(self, _: nn.Module, inputs: tuple) -> None:
        (x_TBC,) = inputs
        T, self.batch, _ = x_TBC.shape
        self.samples += self.batch
        self.steps = T
        self.counts |= bool(((x_TBC.counts if isinstance(x_TBC, SparseCounts) else x_TBC) > 1).any())

    def _linear(self, module: nn.Module, inputs: tuple) -> None:
        x = as_tensor(inputs[0])
        if isinstance(module, EventLinear):  # an input may arrive several times, as an event each time
            x = x.repeat(1, 1, module.weight.shape[1] // module.in_features)
        height, width, _ = _geometry(module)
        active = (x != 0).reshape(-1, height * width, x.shape[-1])
        of_inputs = active.sum(0) if isinstance(module, EventConv) else active.sum((0, 1))
        self.active[module] = self.active.get(module, 0) + of_inputs.cpu().double()
        self._events(module, x, as_frames(active.to(x.dtype), height, width))

    def _events(self, module: nn.Module, x: Tensor, active_FCHW: Tensor) -> None:
        self.events[module] = self.events.get(module, 0.0) + float(x.sum(dtype=torch.float64))
        self.spikesim_pj += hardware.spikesim_events(self.convs[module], active_FCHW)

    def _neurons(self, module: SpikingNeuron, _: tuple, out: Tensor | tuple) -> None:
        s_TBN = out[0] if isinstance(out, tuple) else out
        self.spikes[module] = self.spikes.get(module, 0) + int(s_TBN.sum())
        self.neuron_steps += s_TBN.numel()
        self.sizes[module] = s_TBN[0].numel() // self.batch
        if module.V is not None:
            back_RN = s_TBN[:-1].flatten(0, 1)
            self.fed_back[module] = self.fed_back.get(module, 0) + back_RN.sum(0).cpu().double()
            self._events(module, back_RN, back_RN.view(*back_RN.shape, 1, 1))

    def result(self) -> dict[str, Entry]:
        """Return name -> value, unit, source; counts and energies are means per recording."""
        loops = [(m.V, spikes_N) for m, spikes_N in self.fed_back.items() if m.V is not None]
        weights = [m.weight for m in self.linears] + [V_NN for V_NN, _ in loops]
        operations = [float((self.active[m] * _fan_out(m)).sum()) / self.samples for m in self.linears]
        recurrent = sum(float(spikes_N @ fan_out(V_NN).cpu()) / self.samples for V_NN, spikes_N in loops)
        # counts meet the weights of the first layer, unless a pool comes first: its neurons give 0 or 1
        begins_with_pool = isinstance(self.network.layers[0].linear, Pooling)
        macs = operations[0] if self.counts and not begins_with_pool else 0.0
        acs = sum(operations) + recurrent - macs
        dense = self.steps * (
            sum(float(_fan_out(m, torch.ones_like(m.weight)).sum()) for m in self.linears)  # padding does not count
            + sum(V_NN.numel() for V_NN, _ in loops)
        )
        folded = self.network.folded()
        tensors = [*folded.parameters(), *folded.buffers()]
        biases = sum(self.sizes[layer.neurons] for layer in self.network.layers if _is_biased(layer))
        states = sum(size * len(m.dynamics.carried(m.V is not None)) for m, size in self.sizes.items())
        neurons = sum(self.sizes.values())
        weight_bytes = 4 * (macs + acs)
        traffic = weight_bytes + 4 * self.steps * (biases + 2 * states)
        dense_traffic = 4 * (dense + self.steps * (neurons + 2 * neurons))

        def energy(macs: float, acs: float, bytes_moved: float) -> tuple[float, float]:
            return (
                1e-6 * (macs * COST.e_mac_pj + acs * COST.e_ac_pj),
                1e-6 * bytes_moved * COST.e_memory_pj_per_byte,
            )

        synapses, layers = self._for_models(begins_with_pool)
        neuromc, neuromc_baseline = (hardware.neuromc(synapses, of, self.steps) for of in (layers, []))
        compute, memory = energy(macs, acs, traffic)
        dense_compute, dense_memory = energy(dense, 0, dense_traffic)
        constants = f"{COST.e_mac_pj} pJ a MAC, {COST.e_ac_pj} pJ an AC; {HOROWITZ}"
        a_byte = f"{COST.e_memory_pj_per_byte} pJ a byte, as in SpikingJelly 2.0, simple_energy"
        rows: list[tuple[str, float, str, str]] = [
            ("footprint", sum(t.numel() * t.element_size() for t in tensors), "bytes", NEUROBENCH),
            ("connection_sparsity", _share_of_zeros(weights), "share", NEUROBENCH),
            ("activation_sparsity", 1 - sum(self.spikes.values()) / self.neuron_steps, "share", NEUROBENCH),
            ("effective_macs", macs, "operations", NEUROBENCH),
            ("effective_acs", acs, "operations", NEUROBENCH),
            ("synaptic_operations", macs + acs, "operations", "MACs and ACs together"),
            ("dense_operations", dense, "operations", NEUROBENCH),
            ("neuron_updates", self.steps * neurons, "updates", "neurons times steps"),
            ("memory_traffic", traffic, "bytes", SPIKINGJELLY),
            ("energy_compute", compute, "µJ", constants),
            ("energy_memory", memory, "µJ", a_byte),
            ("energy", compute + memory, "µJ", "compute and memory"),
            ("baseline_memory_traffic", dense_traffic, "bytes", "same layers, real-valued, dense"),
            ("baseline_energy_compute", dense_compute, "µJ", constants),
            ("baseline_energy_memory", dense_memory, "µJ", a_byte),
            ("baseline_energy", dense_compute + dense_memory, "µJ", "compute and memory"),
            ("energy_lemaire", 1e-6 * hardware.lemaire(synapses, layers, self.steps), "µJ", hardware.LEMAIRE_SOURCE),
            (
                "baseline_energy_lemaire",
                1e-6 * hardware.lemaire_baseline(synapses, self.steps),
                "µJ",
                hardware.LEMAIRE_SOURCE,
            ),
            ("energy_spikesim", 1e-6 * self.spikesim_pj / self.samples, "µJ", hardware.SPIKESIM_SOURCE),
            (
                "energy_spikesim_published",
                1e-6 * hardware.spikesim_published(synapses, self.steps),
                "µJ",
                "the same, all crossbars in all steps",
            ),
            ("energy_neuromc", 1e-6 * neuromc.energy_total_pj, "µJ", hardware.neuromc_source(neuromc)),
            (
                "baseline_energy_neuromc",
                1e-6 * neuromc_baseline.energy_total_pj,
                "µJ",
                hardware.neuromc_source(neuromc_baseline),
            ),
        ]
        return {name: {"value": value, "unit": unit, "source": source} for name, value, unit, source in rows}

    def _for_models(self, begins_with_pool: bool) -> tuple[list[hardware.Synapses], list[hardware.Neurons]]:
        """Return the inputs of the weights and the spikes of the neurons, as means per recording."""
        biased = {layer.linear for layer in self.network.layers if _is_biased(layer)}
        synapses = []
        for module, conv in self.convs.items():
            height, width, _ = _geometry(module)
            is_first = module is self.linears[0] and not begins_with_pool
            synapses.append(
                hardware.Synapses(
                    conv,
                    height,
                    width,
                    is_full=not isinstance(module, EventConv),
                    has_bias=module in biased,
                    events=self.events[module] / self.samples,
                    are_counts=is_first and self.counts,
                )
            )
        layers = [
            hardware.Neurons(size, len(m.dynamics.carried(m.V is not None)), self.spikes[m] / self.samples)
            for m, size in self.sizes.items()
        ]
        return synapses, layers


def _is_biased(layer: Layer) -> bool:
    """Return whether a layer's neurons read a bias, now or once BatchNorm is folded; behind a pool, they have none."""
    return layer.norm is not None or getattr(layer.linear, "bias", None) is not None


def _geometry(module: nn.Module) -> tuple[int, int, int]:
    """Return (height, width, stride) of the image that a convolution slides over, or of one pixel for other maps."""
    return (*module.geometry[:2], module.geometry.stride) if isinstance(module, EventConv) else (1, 1, 1)


def _fan_out(module: EventConv | EventLinear, weight: Tensor | None = None) -> Tensor:
    """Return the fan-out of each input in a step, (C,) or (pixels, C), through these weights or the module's."""
    weight = module.weight if weight is None else weight
    if isinstance(module, EventLinear):
        return fan_out(weight).cpu()
    return fan_out(weight, module.geometry).flatten(1).T.cpu()


def _share_of_zeros(weights: list[Tensor]) -> float:
    return sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)
