"""Exported networks give the same spikes in the simulators that read them."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from snn import checkpoint, config, exchange, settings
from snn.errors import InputError
from snn.network import Network
from snn.ttfs.network import TTFSNetwork
from tests.conftest import REPOSITORY, assert_one_line

nir = pytest.importorskip("nir")

from benchmarks import exchange as simulators  # noqa: E402  it imports nir

T = 30


def make_network(neuron: str, layers: list[str], shape: tuple[int, ...], **more) -> Network:
    """Make a network with random weights, constants and BatchNorm statistics, so that biases and thresholds matter."""
    torch.manual_seed(1)
    section = config.Network(
        layers=layers,
        neuron=neuron,
        neuron1=config.NeuronParams(tau_mem_steps=5, tau_syn_steps=5, theta=0.3),
        neuron2=config.NeuronParams(tau_mem_steps=10, tau_syn_steps=8, theta=0.3),
        **more,
    )
    network = Network(section, shape, 4).eval()
    for name, value in network.state_dict().items():
        if "p_lam" in name or "norm.bias" in name or name.endswith("running_mean"):
            value += 0.3 * torch.randn_like(value)
        elif name.endswith("lam_m") or name.endswith("lam_s"):  # raw decays of the superspike variant
            value -= 0.2 * torch.rand_like(value)
        elif name.endswith("running_var"):
            value *= 0.3
        elif name == f"layers.{len(layers)}.linear.weight":
            value *= 4
    return network


def events(shape: tuple[int, ...]) -> torch.Tensor:
    """(T, *shape)"""
    return torch.poisson(torch.full((T, *shape), 0.3), generator=torch.Generator().manual_seed(2))


IMAGE = (2, 12, 10)
CASES = {  # simulators that can express the case -> network
    "plain": (("snntorch", "spikingjelly", "norse"), "CuLIF", ["20F", "20F"], (30,), {}),
    "own constants": (("snntorch", "norse"), "PCuLIF", ["20F", "20F"], (30,), {"output_neuron": "PCuLIF"}),
    "one constant a layer": (("snntorch", "spikingjelly"), "PCuLIF", ["20F"], (30,), {"values": "layer"}),
    "recurrent": (("spikingjelly", "norse"), "CuLIF", ["20R", "20R"], (30,), {}),
    "spike first": (("spikingjelly", "norse"), "CuLIF", ["20R"], (30,), {"variant": "superspike"}),
    "published": (
        ("norse",),
        "PCuLIF",
        ["20R", "20R"],
        (30,),
        {"variant": "superspike", "batch_norm": False, "dropout": 0.0},
    ),
    "convolutions": (("snntorch", "spikingjelly", "norse"), "CuLIF", ["6C3S2", "5C3"], IMAGE, {}),
    "average pool": (("snntorch", "spikingjelly"), "CuLIF", ["6C3", "A2", "12F"], IMAGE, {}),
    "a camera without convolutions": (("snntorch", "spikingjelly", "norse"), "CuLIF", ["20F"], IMAGE, {}),
    "maximum pool": (("snntorch", "spikingjelly"), "CuLIF", ["6C3", "P2", "12F"], IMAGE, {}),
}


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_other_simulators_give_the_same_spikes(case, tmp_path):
    """Import the file by their own importers; compare every layer's spikes, `latency` steps earlier, not all silent."""
    able, neuron, layers, shape, more = CASES[case]
    network = make_network(neuron, layers, shape, **more)
    graph = exchange.nir_graph(network, shape, simulators.DT_S)
    nir.write(tmp_path / "graph.nir", graph)
    latency = graph.metadata["latency_steps"]
    x = events(shape)
    ours_TN = network.folded()(x.flatten(1).unsqueeze(1)).s_TBN[:, 0]
    assert 0 < ours_TN.sum() < ours_TN.numel()
    assert ours_TN[:latency].sum() == 0
    ran = 0
    for name in able:
        if find_spec(name) is None:
            continue
        run = simulators.SIMULATORS[name](tmp_path / "graph.nir")
        theirs_TN, _ = run(x if network.image else x.flatten(1))
        assert torch.equal(theirs_TN[: T - latency], ours_TN[latency:]), name
        ran += 1
    if not ran:
        pytest.skip(f"none of {', '.join(able)} is installed")


@torch.no_grad()
def test_without_the_initial_states_the_spikes_differ(tmp_path):
    """The states in the metadata are needed, so the test above can fail."""
    pytest.importorskip("snntorch")
    network = make_network("CuLIF", ["20F", "20F"], (30,))
    graph = exchange.nir_graph(network, (30,), simulators.DT_S)
    for node in graph.nodes.values():
        node.metadata = {name: 0 * value for name, value in node.metadata.items()}
    nir.write(tmp_path / "graph.nir", graph)
    x = events((30,))
    ours_TN = network.folded()(x.unsqueeze(1)).s_TBN[:, 0]
    theirs_TN, _ = simulators.in_snntorch(tmp_path / "graph.nir")(x)
    assert not torch.equal(theirs_TN[:-3], ours_TN[3:])


def test_decays_come_back_bit_by_bit():
    network = make_network("PCuLIF", ["20F"], (30,))
    node = exchange.nir_graph(network, (30,), 1e-4).nodes["layer_1_neurons"]
    values = network.layers[0].neurons.values()
    for tau, lam in ((node.tau_mem, values["lam_m"]), (node.tau_syn, values["lam_s"])):
        assert torch.equal(torch.from_numpy(1 - 1e-4 / tau).float(), lam)


@pytest.mark.parametrize(
    ("neuron", "more", "words"),
    [
        ("AdLIF", {}, "adaptation.*--approximate leaves it out"),
        ("CuAdLIF", {}, "adaptation"),
        ("CuLIF", {"reset": "soft"}, "soft reset"),
    ],
)
@torch.no_grad()
def test_what_nir_cannot_say_is_an_error_or_left_out(neuron, more, words, tmp_path):
    network = make_network(neuron, ["20F"], (30,), **more)
    with pytest.raises(InputError, match=words):
        exchange.nir_graph(network, (30,), 1e-4)
    pytest.importorskip("snntorch")
    without = exchange.approximated(network)
    graph = exchange.nir_graph(without, (30,), 1e-4)
    nir.write(tmp_path / "graph.nir", graph)
    x = events((30,))
    ours_TN = without(x.unsqueeze(1)).s_TBN[:, 0]
    theirs_TN, _ = simulators.in_snntorch(tmp_path / "graph.nir")(x)
    latency = graph.metadata["latency_steps"]
    assert ours_TN.sum() > 0
    assert torch.equal(theirs_TN[: T - latency], ours_TN[latency:])


def test_neurons_without_a_form_in_nir_are_sent_to_onnx():
    network = exchange.approximated(make_network("SEAdLIF", ["20F"], (30,)))
    with pytest.raises(InputError, match="the neuron SEAdLIF; --format onnx takes any neuron"):
        exchange.nir_graph(network, (30,), 1e-4)


def test_a_maximum_of_counts_cannot_be_said():
    with pytest.raises(InputError, match="maximum pool over event counts"):
        exchange.nir_graph(make_network("CuLIF", ["P2", "6C3"], IMAGE), IMAGE, 1e-4)


@pytest.mark.parametrize(
    ("neuron", "layers", "shape", "more"),
    [
        ("AdLIF", ["20F", "20F"], (30,), {}),
        ("CuAdLIF", ["20R"], (30,), {"reset": "soft"}),
        ("PCuLIF", ["20R"], (30,), {"variant": "superspike"}),
        ("CuLIF", ["6C3S2", "P2", "5C3", "A2", "12F"], IMAGE, {}),
        ("CuLIF", ["20F"], IMAGE, {}),
    ],
)
@torch.no_grad()
def test_a_step_is_a_step_of_the_network(neuron, layers, shape, more):
    network = make_network(neuron, layers, shape, **more)
    step = exchange.Step(network, shape)
    x_TBC = torch.stack([events(shape).flatten(1)] * 2, 1)
    states, spikes = [torch.zeros(2, *shape_of_state) for shape_of_state in step.state_shapes], []
    for x_BC in x_TBC:
        s_BN, _, *states = step(x_BC, *states)
        spikes.append(s_BN)
    ours_TBN = network.folded()(x_TBC).s_TBN
    assert ours_TBN.sum() > 0
    assert torch.equal(torch.stack(spikes), ours_TBN)


def save(path: Path, network_section: dict, shape_section: dict) -> tuple[config.Config, Network]:
    """A checkpoint of an untrained network."""
    values = settings.read_yaml(REPOSITORY / "configs" / "adlif_shd.yaml")
    values["network"] |= network_section
    values["data"] |= shape_section
    cfg = settings.build(values, "test")
    torch.manual_seed(0)
    network = Network(cfg.network, cfg.data.shape, cfg.data.num_classes)
    checkpoint.save(path, cfg, network, epoch=1, validation={})
    return cfg, network.eval()


SMALL = {"channels": 30, "num_classes": 4}
EAGER = {"tau_mem_steps": 5, "tau_syn_steps": 5, "theta": 0.2}


@torch.no_grad()
def test_the_first_difference_is_found():
    """Flip two spikes: the earlier one is found, although layer 1 is one step ahead and layer 2 two steps."""
    network, latencies = make_network("CuLIF", ["20F"], (30,)).folded(), [1, 2]
    ran = simulators.spikes_and_potentials(network, events((30,)).unsqueeze(1))
    theirs = {k: s_TN[latencies[k] :].clone() for k, (s_TN, _) in enumerate(ran)}
    assert simulators.first_difference(network, ran, theirs, latencies) is None
    for k, n, j in ((0, 9, 3), (1, 8, 2)):
        theirs[k][n, j] = 1 - theirs[k][n, j]
    first = simulators.first_difference(network, ran, theirs, latencies)
    assert first[:3] == (8 + 2, 1, 2)
    h, theta = float(ran[1][1][10, 2]), network.output.neurons.threshold
    assert first.away == pytest.approx((h - theta) / (2**-25))  # the last place of 0.3 as float32


@pytest.mark.slow  # torch.onnx.export takes its time; what it exports is tested above
@torch.no_grad()
def test_onnx_gives_the_same_spikes(program, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    cfg, network = save(tmp_path / "net.pt", {"layers": ["20R"], "neuron2": EAGER}, SMALL)
    result = program("export.py --load_pt_file net.pt --format onnx")
    assert result.returncode == 0, result.stderr
    run = simulators.in_onnxruntime(tmp_path / "net.onnx", exchange.Step(network, cfg.data.shape))
    x_TBC = torch.stack([events((30,)), events((30,)).flip(0), events((30,)).flip(1)], 1)
    ours_TBN = network.folded()(x_TBC).s_TBN
    assert ours_TBN.sum() > 0
    assert torch.equal(run(x_TBC), ours_TBN)
    potentials = simulators.potentials_in_onnxruntime(tmp_path / "net.onnx", exchange.Step(network, cfg.data.shape))
    ours = simulators.spikes_and_potentials(network.folded(), x_TBC[:, :1])
    for away_TBN, (_, h_TN), module in zip(potentials(x_TBC), ours, simulators.neurons_of(network), strict=True):
        torch.testing.assert_close(away_TBN[:, 0], h_TN - module.threshold, atol=1e-5, rtol=0)


def test_program_writes_a_graph_or_one_line(program, tmp_path):
    save(tmp_path / "culif.pt", {"neuron": "CuLIF", "layers": ["8F"]}, SMALL)
    save(tmp_path / "adlif.pt", {"layers": ["8F"]}, SMALL)
    result = program("export.py --load_pt_file culif.pt --format nir --out there.nir --dt 1e-3")
    assert result.returncode == 0, result.stderr
    graph = nir.read(tmp_path / "there.nir")
    assert (graph.metadata["latency_steps"], graph.metadata["dt"], graph.metadata["data_T"]) == (2, 1e-3, 100)

    assert_one_line(program("export.py --load_pt_file adlif.pt --format nir"), "adaptation", "--approximate")
    nowhere = program("export.py --load_pt_file culif.pt --format nir --out nowhere/there.nir")
    assert_one_line(nowhere, "nowhere/there.nir", "cannot be written")
    assert_one_line(program("export.py --load_pt_file culif.pt --format nir --dt 0"), "--dt")
    assert_one_line(program("export.py --load_pt_file culif.pt --format caffe"), "--format")
    for words in ("--approximate", "--dt 1e-3", "--dt 0", "--path_to_dataset shd"):
        ignored = program(f"export.py --load_pt_file adlif.pt --format c {words}")
        assert_one_line(ignored, words.split()[0], "is for --format nir")
    ignored = program("export.py --load_pt_file adlif.pt --format nir --path_to_dataset shd")
    assert_one_line(ignored, "--path_to_dataset is for the count of --approximate")
    ignored = program("export.py --load_pt_file culif.pt --format nir --approximate")
    assert_one_line(ignored, "culif.pt: NIR expresses all of this network; leave --approximate out")
    assert_one_line(program("export.py --load_pt_file culif.pt --format nir --out /"), "/: cannot be written")
    itself = program("export.py --load_pt_file culif.pt --format nir --out culif.pt")
    assert_one_line(itself, "culif.pt: is the name of a checkpoint; choose another --out")
    (tmp_path / "text.pt").write_text("no checkpoint")
    assert_one_line(program("export.py --load_pt_file text.pt --format nir"), "text.pt")
    assert {path.name for path in tmp_path.iterdir()} == {"culif.pt", "adlif.pt", "there.nir", "text.pt"}


@pytest.mark.usefixtures("shd_folder")
def test_an_approximation_counts_the_decisions_that_differ(program, tmp_path):
    save(tmp_path / "adlif.pt", {"layers": ["8F"]}, {"channels": 40, "num_classes": 3, "dataset_name": "shd"})
    result = program("export.py --load_pt_file adlif.pt --format nir --approximate --path_to_dataset shd")
    assert result.returncode == 0, result.stderr
    assert "of 6 held-out decisions differ" in result.stdout
    assert nir.read(tmp_path / "adlif.nir").metadata["left_out"].startswith("the adaptation of AdLIF")
    without_data = "export.py --load_pt_file adlif.pt --format nir --approximate --path_to_dataset nowhere --out a.nir"
    assert_one_line(program(without_data), "nowhere")
    assert not (tmp_path / "a.nir").exists()


def test_ttfs_networks_are_refused(program, tmp_path):
    cfg = settings.load(REPOSITORY / "configs" / "ttfs_mnist_mlp.yaml")
    network = TTFSNetwork(cfg.ttfs, cfg.data.shape, cfg.data.num_classes)
    checkpoint.save(tmp_path / "ttfs.pt", cfg, network, epoch=1, validation={})
    assert_one_line(program("export.py --load_pt_file ttfs.pt --format nir"), "TTFS")
