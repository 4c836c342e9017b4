"""Counts of operations against the counters of SpikingJelly and NeuroBench."""

import json

import pytest
import torch
from spikingjelly.activation_based import neuron, op_counter
from torch import nn

from snn import config, energy, hardware
from snn.network import Network
from snn.operations import SynapticOperations
from tests.conftest import REPOSITORY, TINY

T, B = 12, 3


def make_network(layers: list[str], shape: tuple[int, ...]) -> Network:
    torch.manual_seed(0)
    constants = config.NeuronParams(tau_mem_steps=5, tau_syn_steps=5, theta=0.1)
    section = config.Network(layers=layers, neuron="CuLIF", neuron1=constants, neuron2=constants)
    return Network(section, shape, 4).eval()


def events(shape: tuple[int, ...], most: int) -> torch.Tensor:
    counts = torch.poisson(torch.full((T, B, *shape), 0.5), generator=torch.Generator().manual_seed(1))
    return counts.clamp(max=most).flatten(2)


def values(network: Network, x_TBC: torch.Tensor) -> dict[str, float]:
    with energy.Meter(network) as meter, torch.no_grad():
        network.reset()
        network(x_TBC)
    return {name: entry["value"] for name, entry in meter.result().items()}


def inputs_of(network: Network, x_TBC: torch.Tensor) -> list[torch.Tensor]:
    """Return the input of each linear map."""
    network.reset()
    with torch.no_grad():
        return [x_TBC, *network(x_TBC).layers[:-1]]


@pytest.mark.parametrize("most", [1, 3])
def test_counts_equal_spikingjellys(most):
    """Compare on plain linear layers with the same inputs. For counts, SpikingJelly counts every operation."""
    network = make_network(["20F", "10F"], (15,))
    x_TBC = events((15,), most)
    ours = values(network, x_TBC)
    twin = nn.ModuleList(nn.Linear(m.in_features, m.out_features, bias=False) for m in energy.Meter(network).linears)
    synops, macs = op_counter.SynOpCounter(), op_counter.MACCounter()
    memory = op_counter.NeuromorphicMemoryAccessCounter()
    # one after the other: within both modes at once SpikingJelly 2.0 counts an operation twice
    for mode in (op_counter.ModuleCounterMode([memory], model=twin), op_counter.DispatchCounterMode([synops, macs])):
        inputs = inputs_of(network, x_TBC)
        with mode:
            for linear, x in zip(twin, inputs, strict=True):
                linear(x)
    if most == 1:
        assert pytest.approx(ours["synaptic_operations"] * B) == synops.get_total() > 0
        assert ours["effective_macs"] == 0 == macs.get_total()
        weight_bytes = memory.get_counts()["Global"]["weight_read_bytes"] / B
    else:
        assert pytest.approx(ours["effective_acs"] * B) == synops.get_total() > 0
        assert macs.get_total() == T * B * 15 * 20
        assert ours["effective_macs"] * B == pytest.approx(int((x_TBC > 0).sum()) * 20)
        weight_bytes = 4 * ours["synaptic_operations"]
    neuron_bytes = 4 * T * (20 + 10)  # a bias each
    neuron_bytes += 4 * T * 2 * 2 * (20 + 10 + 4)  # v and i of each, read and written
    assert ours["memory_traffic"] == pytest.approx(weight_bytes + neuron_bytes)
    assert ours["energy_compute"] == pytest.approx(1e-6 * (4.6 * ours["effective_macs"] + 0.9 * ours["effective_acs"]))
    assert ours["energy"] == pytest.approx(ours["energy_compute"] + 1e-6 * 24.96 * ours["memory_traffic"])
    assert ours["baseline_energy_compute"] == pytest.approx(4.6e-6 * T * (15 * 20 + 20 * 10 + 10 * 4))


def test_inputs_that_arrive_twice_meet_the_weights_of_both():
    network = make_network(["20F+D5", "10F+D3"], (15,))
    with torch.no_grad():
        for layer in network.layers:
            layer.linear.weight[torch.rand_like(layer.linear.weight) < 0.3] = 0
    x_TBC = events((15,), 1)
    first, second = (layer.linear.weight.count_nonzero(0).view(2, -1).sum(0) for layer in network.layers[:2])
    last = network.output.linear.weight.count_nonzero(0)
    with torch.no_grad():
        activity = network.eval().run(x_TBC)
    met = [
        (x.double() @ w.double()).sum() for x, w in zip((x_TBC, *activity.layers), (first, second, last), strict=False)
    ]
    assert all(met)
    ours = values(network, x_TBC)
    assert ours["synaptic_operations"] * B == pytest.approx(float(sum(met)))
    assert float(SynapticOperations(network).per_step(x_TBC, activity.layers).sum()) == sum(met)
    assert ours["dense_operations"] == T * (30 * 20 + 40 * 10 + 10 * 4)


@pytest.mark.parametrize(("layers", "shape"), [(["20F", "10R"], (15,)), (["4C3", "A2", "6F"], (2, 9, 7))])
def test_a_folded_network_costs_the_same(layers, shape):
    network, x_TBC = make_network(layers, shape), events(shape, 1)
    for layer in network.layers:
        if layer.norm is not None:
            torch.nn.init.uniform_(layer.norm.bias, -0.1, 0.1)
    plain, folded = values(network, x_TBC), values(network.folded(), x_TBC)
    assert plain["activation_sparsity"] < 1
    assert folded == pytest.approx(plain)


def test_convolutions_equal_spikingjellys():
    """Spikes at an edge meet fewer weights."""
    network = make_network(["6C3S2"], (2, 9, 7))
    x_TBC = events((2, 9, 7), 1)
    ours = values(network, x_TBC)
    conv, linear = nn.Conv2d(2, 6, 3, 2, 1, bias=False), nn.Linear(6 * 5 * 4, 4, bias=False)
    synops = op_counter.SynOpCounter()
    _, spikes = inputs_of(network, x_TBC)
    with op_counter.DispatchCounterMode([synops]):
        conv(x_TBC.view(T * B, 2, 9, 7))
        linear(spikes)
    assert pytest.approx(ours["synaptic_operations"] * B) == synops.get_total() > 0
    whole = values(network, torch.ones(T, B, 2 * 9 * 7))
    assert whole["dense_operations"] == ours["dense_operations"]
    assert ours["dense_operations"] / T == whole_frame(conv) + 6 * 5 * 4 * 4


def whole_frame(conv: nn.Conv2d) -> int:
    """Count the operations of a frame without a zero, one by one."""
    counter = op_counter.SynOpCounter()
    with op_counter.DispatchCounterMode([counter]):
        conv(torch.ones(1, 2, 9, 7))
    return counter.get_total()


def test_recurrent_spikes_meet_their_weights():
    network = make_network(["20R"], (15,))
    x_TBC = events((15,), 1)
    ours = values(network, x_TBC)
    _, spikes = inputs_of(network, x_TBC)
    expected = int(x_TBC.sum()) * 20 + int(spikes.sum()) * 4 + int(spikes[:-1].sum()) * 20
    assert ours["synaptic_operations"] * B == expected
    assert ours["dense_operations"] == T * (15 * 20 + 20 * 20 + 20 * 4)


def test_counts_equal_neurobenchs():
    """Run its own metrics on a model of plain layers with our spikes; a tenth of the weights is 0."""
    pytest.importorskip("neurobench")
    from neurobench.metrics.static import ConnectionSparsity
    from neurobench.metrics.utils.layers import single_layer_MACs
    from neurobench.models import TorchModel

    network = make_network(["20F", "10F"], (15,))
    with torch.no_grad():
        for linear in energy.Meter(network).linears:
            linear.weight[torch.rand_like(linear.weight) < 0.1] = 0
    x_TBC = events((15,), 3)
    ours = values(network, x_TBC)
    plain = [nn.Linear(m.in_features, m.out_features, bias=False) for m in energy.Meter(network).linears]
    macs = acs = dense = 0
    for linear, module, x in zip(plain, energy.Meter(network).linears, inputs_of(network, x_TBC), strict=True):
        linear.weight.data = module.weight.data
        operations, spiking = single_layer_MACs(x, linear)
        acs, macs = acs + operations * spiking, macs + operations * (not spiking)
        dense += single_layer_MACs(x, linear, total=True)[0]
    assert (ours["effective_macs"] * B, ours["effective_acs"] * B) == pytest.approx((macs, acs))
    assert ours["dense_operations"] * B == dense
    sparsity = ConnectionSparsity()(TorchModel(nn.Sequential(*plain)))
    assert ours["connection_sparsity"] == pytest.approx(sparsity, abs=1e-4)
    spikes = network_spikes(network, x_TBC)
    assert ours["activation_sparsity"] == pytest.approx(1 - spikes / (T * B * (20 + 10 + 4)))


def network_spikes(network: Network, x_TBC: torch.Tensor) -> int:
    network.reset()
    with torch.no_grad():
        return sum(int(s.sum()) for s in network(x_TBC).layers)


@pytest.mark.usefixtures("shd_folder")
def test_test_py_prints_and_writes_it(program, tmp_path):
    words = f"--path_to_yaml {REPOSITORY}/configs/adlif_shd.yaml --path_to_dataset shd --dataset_name shd {TINY}"
    assert program(f"train.py {words} --epochs 1 --save_name run").returncode == 0
    assert program("test.py --load_pt_file run").returncode == 0
    path = tmp_path / "runs" / "run" / "test" / "metrics.json"
    without = json.loads(path.read_text())
    tested = program("test.py --load_pt_file run --energy")
    assert tested.returncode == 0, tested.stderr
    metrics = json.loads(path.read_text())
    assert "Horowitz" in tested.stdout
    assert metrics["energy"]["energy"]["unit"] == "µJ"
    assert 0 < metrics["energy"]["energy"]["value"] < metrics["energy"]["baseline_energy"]["value"]
    differ = {name for name in metrics if metrics[name] != without.get(name)}
    assert differ - {"tested"} == {"energy", "command"}


@pytest.mark.parametrize("kind", ["full", "conv"])
@torch.no_grad()
def test_lemaire_equals_spikingjellys(kind):
    """Its own profiler on its own layers and neurons, which spike by themselves; and on real-valued frames."""
    torch.manual_seed(0)
    if kind == "conv":
        first, second, x = nn.Conv2d(2, 6, 3, 2, 1), nn.Linear(6 * 5 * 4, 4, bias=False), torch.rand(T, 1, 2, 9, 7)
    else:
        first, second, x = nn.Linear(15, 20), nn.Linear(20, 4, bias=False), torch.rand(T, 1, 15)
    x = (x < 0.4).float()
    height, width = x.shape[3:] or (1, 1)
    model = nn.ModuleList([first, neuron.LIFNode(v_threshold=0.1), second, neuron.LIFNode(v_threshold=0.02)])
    profiler = op_counter.LemaireEnergyProfiler()
    profiler.bind_model(model)
    spikes = [0.0, 0.0, 0.0]
    with profiler:
        for x_n in x:
            spikes[0] += float(x_n.sum())
            s = model[1](model[0](x_n)).flatten(1)
            spikes[1] += float(s.sum())
            out = model[3](model[2](s))
            spikes[2] += float(out.sum())
    assert min(spikes) > 0
    first_conv, second_conv = hardware.as_conv(first.weight, 1 + (kind == "conv")), hardware.as_conv(second.weight)
    synapses = [
        hardware.Synapses(first_conv, height, width, kind == "full", True, spikes[0], False),
        hardware.Synapses(second_conv, 1, 1, True, False, spikes[1], False),
    ]
    neurons = [hardware.Neurons(s.numel(), 1, spikes[1]), hardware.Neurons(4, 1, spikes[2])]
    assert hardware.lemaire(synapses, neurons, T) == pytest.approx(profiler.get_report().total_pj)

    dense = 0.0
    for layer, frame in ((first, x[0] + 0.5), (second, s + 0.5)):
        dense += op_counter.estimate_lemaire_energy(nn.Sequential(layer), frame).total_pj
    assert hardware.lemaire_baseline(synapses, T) == pytest.approx(T * dense)


@torch.no_grad()
def test_spikesim_and_neuromc_are_spikingjellys():
    """On a copy of the network made of its layers, fed with what ours was fed. All inputs are 0 or 1."""
    network = make_network(["6C3S2", "10R"], (2, 9, 7))
    x_TBC = events((2, 9, 7), 1)
    with energy.Meter(network) as meter:
        network.reset()
        conv_spikes, full_spikes, _ = network(x_TBC).layers
    ours = {name: entry["value"] for name, entry in meter.result().items()}
    image = x_TBC.view(T * B, 2, 9, 7)
    inputs = [image, *(s.reshape(-1, s.shape[2], 1, 1) for s in (conv_spikes, full_spikes, full_spikes[:-1]))]
    copies = [nn.Conv2d(2, 6, 3, 2, 1), nn.Conv2d(120, 10, 1), nn.Conv2d(10, 4, 1), nn.Conv2d(10, 10, 1)]
    for mode, name in (("event", "energy_spikesim"), ("dense", "energy_spikesim_published")):
        expected = 0.0
        for conv, x in zip(copies, inputs, strict=True):
            if mode == "dense" and conv is copies[-1]:
                x = full_spikes.reshape(-1, 10, 1, 1)  # all steps
            settings = op_counter.SpikeSimEnergyConfig(activity_mode=mode)
            report = op_counter.estimate_spikesim_energy(conv.eval(), x, config=settings)
            expected += report.energy_total_pj / B
        assert ours[name] == pytest.approx(1e-6 * expected), mode
    assert 0 < ours["energy_spikesim"] < ours["energy_spikesim_published"]

    expected = expected_baseline = 0.0
    zeros = [torch.zeros(T, *x.shape[1:]) for x in inputs]
    full = [nn.Conv2d(2, 6, 3, 2, 1, bias=False), *(nn.Linear(c.in_channels, len(c.weight), False) for c in copies[1:])]
    for layer, x in zip(full, zeros, strict=True):
        x = x if layer is full[0] else x.flatten(1)
        expected += op_counter.estimate_neuromc_runtime_energy(layer, x).energy_total_pj
        expected_baseline += op_counter.estimate_neuromc_runtime_energy(layer, x + 0.5).energy_total_pj
    for size in (120, 10, 4):
        expected += op_counter.estimate_neuromc_runtime_energy(neuron.LIFNode(), torch.zeros(T, size)).energy_total_pj
    assert ours["energy_neuromc"] == pytest.approx(1e-6 * expected)
    assert ours["baseline_energy_neuromc"] == pytest.approx(1e-6 * expected_baseline)
    assert ours["energy_neuromc"] < ours["baseline_energy_neuromc"]


def test_models_take_counts_bias_and_states_into_account():
    """Count by hand for one neuron with two states behind one weight and a bias: two frames, with counts of 1 and 3."""
    network = make_network(["1F"], (1,))
    x_TBC = torch.tensor([1.0, 3.0]).view(2, 1, 1)
    with energy.Meter(network) as meter, torch.no_grad():
        network.reset()
        network(x_TBC)
    synapses, neurons = meter._for_models(begins_with_pool=False)
    assert (synapses[0].events, synapses[0].has_bias, synapses[0].are_counts) == (4, True, True)
    assert [(layer.size, layer.states) for layer in neurons] == [(1, 2), (4, 2)]
    hidden = hardware.lemaire(synapses[:1], [hardware.Neurons(1, 2, 0)], 2)
    add, mac = 0.1, 3.2
    queue, one_word, two_words = (hardware.LEMAIRE.cost_config.memory_cost_pj(4 * n) for n in (1000, 1, 2))
    by_hand = (4 + 2) * add + 4 * add + 2 * 2 * mac  # of weights and bias, addresses, decays of two states
    by_hand += 4 * 4 * queue + 4 * (4 + 2) * two_words + 4 * 2 * 4 * one_word + 2 * 4 * 2 * 2 * one_word
    assert hidden == pytest.approx(by_hand)
