"""Networks: parameter counts of the paper, chunks, dropout over time, checkpoints."""

import math
import os

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from snn import checkpoint, config, health, linear, settings
from snn.errors import InputError
from snn.inputs import SparseCounts
from snn.linear import EventLinear
from snn.network import Network
from snn.neurons import NEURONS
from snn.operations import fan_out
from snn.ops import reference, sparse
from snn.replay import Replayed
from tests.conftest import REPOSITORY
from tests.networks import IMAGE, build, events, image_events, read, small, small_conv


@pytest.mark.parametrize(
    ("name", "trainable"),
    [
        ("adlif_shd", 252_928),
        ("adlif_ntidigits", 87_808),
        ("culif_shd", 250_368),
        ("culif_ntidigits", 216_832),
        ("culif_dvsgesture", 1_288_576),
        ("culif_dvsplane", 2_224_704),
    ],
)
def test_published_number_of_trainable_values(name, trainable):
    assert sum(p.numel() for p in build(read(name)).parameters() if p.requires_grad) == trainable


@pytest.mark.parametrize(
    "changes", [{}, {"layers": ("16R", "12R"), "variant": "superspike"}, {"neuron": "CuAdLIF"}], ids=str
)
def test_a_sequence_in_chunks_equals_one_call(changes):
    network, x_TBC = build(small(**changes)).eval(), events()
    whole = network(x_TBC)
    network.reset()
    chunks = [network(x_TBC[a:b]) for a, b in ((0, 1), (1, 9), (9, 25))]
    assert whole.s_TBN.any()
    assert torch.equal(torch.cat([chunk.s_TBN for chunk in chunks]), whole.s_TBN)
    assert len(whole.layers) == 3


def slow_culif(x_T: list[torch.Tensor], params: config.NeuronParams, V: torch.Tensor | None = None) -> tuple:
    """Run CuLIF on a list of steps of any shape; return (spikes, potentials)."""
    # the network was made in float32: so are its decays
    lam_m, lam_s = (float(np.float32(math.exp(-1 / tau))) for tau in (params.tau_mem_steps, params.tau_syn_steps))
    v = i = y = torch.zeros_like(x_T[0])
    spikes, potentials = [], []
    for x in x_T:
        h = lam_m * v + (1 - lam_m) * i
        i = lam_s * i + (x if V is None else x + y @ V.T)
        y = reference.spike(h - float(np.float32(params.theta)), NEURONS["CuLIF"].dynamics_of())
        v = h * (1 - y.detach())
        spikes.append(y)
        potentials.append(h)
    return spikes, potentials


def slow_conv_network(network: Network, cfg: config.Config, x_TBC: torch.Tensor) -> list:
    """Run the network of `conv_layers` in the usual layout (B, C, H, W), one step and one layer after the other."""
    one, two = cfg.network.neuron1, cfg.network.neuron2
    pool = F.avg_pool2d if cfg.network.layers[1][0] == "A" else F.max_pool2d
    conv1, _, conv2, full1, full2, output = network.layers
    x = [x_BC.view(-1, *IMAGE) for x_BC in x_TBC]
    first, _ = slow_culif([F.conv2d(x_BCHW, conv1.linear.weight, padding=1) for x_BCHW in x], one)
    second, _ = slow_culif([pool(s, 2) for s in first], one)
    third, _ = slow_culif([F.conv2d(s, conv2.linear.weight, padding=1) for s in second], one)
    rows = [s.movedim(1, -1).flatten(1) for s in third]
    fourth, _ = slow_culif([s @ full1.linear.weight.T for s in rows], two, full1.neurons.V)
    fifth, _ = slow_culif([s @ full2.linear.weight.T for s in fourth], two)
    last, potentials = slow_culif([s @ output.linear.weight.T for s in fifth], two)
    images = ([s.movedim(1, -1).flatten(1) for s in layer] for layer in (first, second, third))
    return [torch.stack(layer) for layer in (*images, fourth, fifth, last, potentials)]


@pytest.mark.parametrize("pool", ["P", "A"])
@pytest.mark.parametrize("backend", ["torch", "cpu"])
def test_a_convolutional_network_equals_the_slow_one(pool, backend):
    """Spikes of every layer, output potentials, and the gradient of every weight."""
    cfg = small_conv(pool)
    torch.manual_seed(0)
    network = Network(cfg.network, cfg.data.shape, cfg.data.num_classes, backend).double()
    x_TBC = image_events().double()
    activity = network(x_TBC)
    *slow_layers, slow_h = slow_conv_network(network, cfg, x_TBC)
    for k, (layer, slow) in enumerate(zip(activity.layers, slow_layers, strict=True)):
        assert torch.equal(layer, slow), k
        assert layer.any(), k
        assert not layer.all(), k
    torch.testing.assert_close(activity.h_TBN, slow_h)
    upstream = torch.randn_like(slow_h)
    weights = list(network.parameters())
    gradients = torch.autograd.grad((activity.h_TBN * upstream).sum() + activity.s_TBN.sum(), weights)
    slow_gradients = torch.autograd.grad((slow_h * upstream).sum() + slow_layers[-1].sum(), weights)
    for (name, _), gradient, slow in zip(network.named_parameters(), gradients, slow_gradients, strict=True):
        assert slow.any(), name
        torch.testing.assert_close(gradient, slow, rtol=1e-10, atol=1e-10 * float(slow.abs().max()), msg=name)


@pytest.mark.parametrize("variant", ["spkjelly", "superspike"])
@pytest.mark.parametrize(
    "neuron", [pytest.param(name, marks=[pytest.mark.slow] * (name not in ("AdLIF", "BRF"))) for name in NEURONS]
)
def test_convolutional_networks_of_all_neurons(neuron, variant):
    """Check shapes of all layers, chunks, events instead of dense counts, values per channel, and a falling loss."""
    cfg = small_conv("A", neuron=neuron, variant=variant, batch_norm=True)
    network, x_TBC = build(cfg).eval(), image_events() * (60 if neuron == "BRF" else 1)  # which takes a hundredth
    whole = network(x_TBC)
    assert [s.shape[2] for s in whole.layers] == [6 * 7 * 5, 6 * 3 * 2, 4 * 3 * 2, 9, 8, 4]
    network.reset()
    chunks = [network(x_TBC[a:b]) for a, b in ((0, 1), (1, 9), (9, 25))]
    for k, layer in enumerate(whole.layers):
        assert torch.equal(torch.cat([chunk.layers[k] for chunk in chunks]), layer)
    assert whole.layers[0].any()
    assert all(value.shape in ((1,), (6,)) for value in network.layers[0].neurons.values().values())
    assert network.layers[0].norm.num_features == 6
    assert network.layers[1].norm is None

    network.train()
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    target_B, losses = torch.arange(6) % 4, []
    for _ in range(12):
        network.reset()
        optimizer.zero_grad()
        losses.append(F.cross_entropy(20 * network(x_TBC).h_TBN.mean(0), target_B))
        losses[-1].backward()
        optimizer.step()
        network.clamp_values()
    if neuron not in ("SEAdLIF", "BRF"):  # which at these constants answer too strongly, or hardly at all
        assert losses[-1] < losses[0]
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


def test_events_are_the_same_to_a_convolution():
    network, x_TBC = build(small_conv()), image_events()
    x_RC = x_TBC.flatten(0, 1)
    events = SparseCounts(*sparse.compress(x_RC, sparse.find(x_RC)), tuple(x_TBC.shape))
    dense = network(x_TBC)
    network.reset()
    assert all(torch.equal(a, b) for a, b in zip(dense.layers, network(events).layers, strict=True))


def test_constants_of_fully_connected_layers():
    """They are those of neuron2 in a network with convolutions (Liu et al. 2023), otherwise those of neuron1."""
    cfg = small_conv()
    one, two = cfg.network.neuron1.theta, cfg.network.neuron2.theta
    network = build(cfg)
    assert [layer.neurons.threshold for layer in network.layers] == pytest.approx([one, one, one, two, two, two])
    assert [layer.neurons.threshold for layer in build(small()).layers] == pytest.approx([one, one, two])


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (["P8"], "network.layers: layer 'P8' is too large a pool for the 7x5 that reach it"),
        (["P2", "P2", "A2"], "network.layers: layer 'A2' is too large a pool for the 1x1"),
        (["8F", "4C3"], "network.layers: layer '4C3': only fully connected layers can follow"),
        (["4C2"], "network.layers: layer '4C2': the kernel of a convolution must be odd"),
    ],
)
def test_layers_that_do_not_fit(layers, message):
    values = small_conv().model_dump(mode="json")
    values["data"]["sensor"] = {"height": 7, "width": 5}
    values["network"]["layers"] = layers
    with pytest.raises(InputError) as refusal:
        settings.build(values, "x.yaml")
    assert str(refusal.value).startswith(f"x.yaml: {message}")


def test_a_camera_without_convolutions():
    cfg = small_conv(layers=("8F",))
    assert build(cfg)(image_events()).layers[0].shape == (25, 6, 8)


def test_dropout_is_one_mask_a_sequence():
    network = build(small(dropout=0.5)).train()
    network(events())
    mask = network.layers[0].dropout.mask
    assert mask.shape == (6, 16)
    network(events())
    assert network.layers[0].dropout.mask is mask
    network.reset()
    network(events())
    assert not torch.equal(network.layers[0].dropout.mask, mask)


def test_torch_compile_runs_the_network_as_it_is():
    network, x_TBC = build(small()).eval(), events()
    expected = network.run(x_TBC)
    compiled = torch.compile(network, backend="eager")(x_TBC)
    assert torch.equal(compiled.s_TBN, expected.s_TBN)
    assert torch.equal(compiled.h_TBN, expected.h_TBN)


@pytest.mark.parametrize("layers", [("16F", "12F"), ("16R", "12R")], ids=str)
def test_event_driven_training_is_that_with_dense_products(layers):
    """Spikes, and the gradients of all parameters, under the same masks of dropout."""
    results = []
    for dense_above in (1.0, -1.0):
        torch.manual_seed(3)
        network = build(small(dropout=0.4, layers=layers)).double().train()
        for module in network.modules():
            if isinstance(module, EventLinear):
                module.dense_above = dense_above
        activity = network(events().double())
        assert all(s.any() for s in activity.layers[:-1])
        (activity.h_TBN.square().sum() + activity.s_TBN.sum()).backward()
        results.append((activity.layers, [p.grad for p in network.parameters()]))
    (spikes, grads), (expected_spikes, expected_grads) = results
    for s_TBN, expected_TBN in zip(spikes, expected_spikes, strict=True):
        assert torch.equal(s_TBN, expected_TBN)
    torch.testing.assert_close(grads, expected_grads)


def test_every_parameter_learns():
    network = build(small(neuron="CuAdLIF", layers=("16R", "12R"))).train()
    activity = network(events())
    (activity.h_TBN.sum() + sum(s.sum() for s in activity.layers)).backward()
    for name, p in network.named_parameters():
        assert p.grad is not None, name
        assert p.grad.abs().sum() > 0, name


def test_pruned_weights_are_the_smallest_and_stay_zero():
    """Only hidden layers are pruned; an input then meets fewer weights, and pruning again changes nothing."""
    torch.manual_seed(0)
    network = build(small(layers=("9F", "8FD3"))).train()
    before = [layer.linear.weight.detach().clone() for layer in network.layers]
    network.prune(1.0)
    assert all(layer.linear.kept_NC is None for layer in network.layers)
    network.prune(0.3)
    for layer, W_NC in zip(network.layers[:-1], before[:-1], strict=True):
        stays = layer.linear.weight != 0
        assert stays.sum() == round(0.3 * W_NC.numel())
        assert W_NC.abs()[stays].min() > W_NC.abs()[~stays].max()
        assert torch.equal(layer.linear.weight[stays], W_NC[stays])
        assert fan_out(layer.linear.weight).sum() == stays.sum()
    assert torch.equal(network.output.linear.weight, before[-1])

    optimizer = torch.optim.Adam(network.parameters(), 0.1)
    places = [layer.linear.weight == 0 for layer in network.layers]
    for _ in range(2):
        network.run(events()).h_TBN.sum().backward()
        optimizer.step()
        network.clamp_values()
    assert all(
        torch.equal(layer.linear.weight == 0, place) for layer, place in zip(network.layers, places, strict=True)
    )
    trained = [layer.linear.weight.detach().clone() for layer in network.layers]
    network.prune(0.3)
    assert all(torch.equal(layer.linear.weight, W) for layer, W in zip(network.layers, trained, strict=True))


def test_blame_names_the_first_place():
    network, x_TBC, loss = build(small()), events(), torch.ones(())
    assert health.blame(network, x_TBC.log(), loss) == "the input"
    with torch.no_grad():
        network.layers[1].linear.weight[0, 0] = torch.nan
    assert health.blame(network, x_TBC, loss) == "the parameter layers.1.linear.weight"
    with torch.no_grad():
        network.layers[1].linear.weight[0, 0] = 1
        network.layers[1].norm.running_var.fill_(-1)
    network.eval()
    assert health.blame(network, x_TBC, loss) == "the output of layers.1.norm"
    network = build(small_conv(batch_norm=True)).eval()
    network.layers[2].norm.running_var.fill_(-1)
    assert health.blame(network, image_events(), loss) == "the output of layers.2.norm"


@pytest.mark.parametrize(
    ("cfg", "x_TBC"),
    [(small(neuron="CuAdLIF", layers=("16R", "12R")), events()), (small_conv(neuron="AdLIF"), image_events())],
    ids=["flat", "conv"],
)
def test_checkpoint_round_trip(tmp_path, cfg, x_TBC):
    network = build(cfg)
    checkpoint.save(tmp_path / "x.pt", cfg, network, epoch=3)
    cfg_read, content = checkpoint.load(tmp_path / "x.pt")
    assert cfg_read == cfg
    assert content["epoch"] == 3
    other = build(cfg_read)
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    checkpoint.load_weights(other, content["network"], tmp_path / "x.pt")
    layers = zip(network.eval()(x_TBC).layers, other.eval()(x_TBC).layers, strict=True)
    assert all(torch.equal(one, two) for one, two in layers)
    assert [path.name for path in tmp_path.iterdir()] == ["x.pt"]


def test_a_failed_save_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    cfg = small()
    path = tmp_path / "x.pt"
    checkpoint.save(path, cfg, build(cfg))
    before = path.read_bytes()

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(InputError, match="No space left on device"):
        checkpoint.save(path, cfg, build(cfg))
    assert path.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["x.pt"]


class Malicious:
    def __reduce__(self):
        return (print, ("code has run",))


@pytest.mark.parametrize(
    "kind", ["text", "empty", "truncated", "foreign", "pickle", "tensor", "version", "network", "config"]
)
def test_what_is_no_checkpoint(tmp_path, kind, capsys):
    path, cfg = tmp_path / "x.pt", small()
    checkpoint.save(path, cfg, build(cfg), epoch=1)
    content = torch.load(path, weights_only=True)
    if kind == "text":
        path.write_text("hello")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "truncated":
        path.write_bytes(path.read_bytes()[:-500])
    elif kind == "foreign":
        torch.save({"state_dict": {}}, path)
    elif kind == "pickle":
        torch.save({"format": Malicious()}, path)
    elif kind == "tensor":
        torch.save(torch.zeros(3), path)
    else:
        torch.save(
            content | {"version": 99} if kind == "version" else {k: v for k, v in content.items() if k != kind}, path
        )
    with pytest.raises(InputError) as refusal:
        checkpoint.load(path)
    assert str(path) in str(refusal.value)
    assert "code has run" not in capsys.readouterr().out


def test_weights_of_another_network(tmp_path):
    with pytest.raises(InputError, match="belongs to another network"):
        checkpoint.load_weights(build(small()), build(small(layers=("8F",))).state_dict(), tmp_path)


@pytest.mark.parametrize(("value", "name"), [(1.5, "a"), (-0.1, "b"), (math.nan, "a"), (1.0, "lam_m")])
def test_learned_values_out_of_range_are_refused(tmp_path, value, name):
    cfg = small(neuron="CuAdLIF", variant="superspike")
    weights = build(cfg).state_dict()
    weights[f"layers.0.neurons.{name}"][3] = value
    with pytest.raises(InputError, match=rf"layers\.0\.neurons: the learned value {name} is"):
        checkpoint.load_weights(build(cfg), weights, tmp_path)


def test_a_step_that_cannot_be_recorded(monkeypatch):
    """Torch's own message is raised without a GPU; tests/test_gpu.py records real steps."""

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", refuse)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda _: None)
    step = Replayed(torch.nn.Linear(3, 2), lambda x, target, weight: x.sum())
    with pytest.raises(InputError, match=r"cannot be recorded .* train.cuda_graphs=false"):
        step(torch.zeros(4, 2, 3), torch.zeros(2), 1.0)


def test_delays_that_are_kept_whole():
    torch.manual_seed(0)
    network = build(small(layers=("9FD8", "8FDS8"))).train()
    network.keep_delays_whole()
    delays = [each.steps for each in network.delays().values()]
    before = [steps.detach().clone() for steps in delays]
    optimizer = torch.optim.Adam(delays, 0.1)
    network.run(events()).h_TBN.sum().backward()
    optimizer.step()
    assert all((steps != steps.round()).any() for steps in delays)
    network.clamp_values()
    assert all(torch.equal(steps, whole) for steps, whole in zip(delays, before, strict=True))
    assert all((steps == steps.round()).all() for steps in delays)


def test_bits_of_our_kernels_do_not_go_by_threads(monkeypatch):
    """Torch's BatchNorm and oneDNN's convolutions are left out: their order of sums depends on the threads."""
    monkeypatch.setattr(linear, "dense_input_gradient", torch.matmul)
    values = settings.read_yaml(REPOSITORY / "configs" / "adlif_shd.yaml")
    values["network"]["batch_norm"] = False
    network = Network(settings.build(values, "test").network, (700,), 20)
    x_TBC = 8 * (torch.rand(30, 24, 700) < 0.1).float()
    threads, found = torch.get_num_threads(), []
    for number in (1, 2):
        torch.set_num_threads(number)
        torch.manual_seed(0)
        network.reset()
        network.zero_grad()
        activity = network(x_TBC)
        (activity.h_TBN.sum() + activity.s_TBN.sum()).backward()
        found.append([*(s.clone() for s in activity.layers), *(p.grad.clone() for p in network.parameters())])
    torch.set_num_threads(threads)
    assert all(s.any() for s in activity.layers[:-1])
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))
