"""Counts of operations against the counters of SpikingJelly and NeuroBench."""

import json

import pytest
import torch
from spikingjelly.activation_based import op_counter
from torch import nn

from snn import config, energy
from snn.network import Network
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
    """Of each linear map."""
    network.reset()
    with torch.no_grad():
        return [x_TBC, *network(x_TBC).layers[:-1]]


@pytest.mark.parametrize("most", [1, 3])
def test_counts_equal_spikingjellys(most):
    """On plain linear layers with the same inputs. Of counts, SpikingJelly takes all operations."""
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
    """Operations of a frame without a zero, one by one."""
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
    """Its own metrics on a model of plain layers with our spikes; a tenth of the weights is 0."""
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
