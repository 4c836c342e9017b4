"""Tests on a GPU: the cupy backend against the reference on the CPU, and networks on one device against the other.

They are skipped without a GPU, as in CI. Other tests of programs also run on a GPU if there is one, because
`train.device` is auto.
"""

import copy
from collections.abc import Iterable
from functools import partial

import pytest
import torch
from torch import Tensor

from snn import config, ops
from snn.conv import EventConv, Pooling
from snn.delays import DelayedLinear
from snn.errors import InputError
from snn.inputs import SparseCounts
from snn.linear import EventLinear
from snn.losses import objective
from snn.network import Network
from snn.ops import reference, sparse
from snn.replay import Loss, Replayed
from snn.ttfs import functional, kernels, products
from snn.ttfs.network import TTFSNetwork, silent_neurons_drive
from snn.ttfs.simulation import Simulation
from tests.make import (
    ADLIF,
    LATE_SOFT,
    WINDOWS,
    assert_close_gradients,
    in_chunks,
    leaves,
    make_call,
    over_dtypes,
    over_neurons,
    over_recurrent,
    quiet_call,
    random_times,
    random_weights,
    rebuilt,
    run,
    tie_call,
)
from tests.networks import read, small

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

GPU = torch.device("cuda")
on_gpu = partial(ops.multi_step, backend="cupy")


@pytest.fixture(autouse=True)
def deterministic_products(monkeypatch):
    """Give cuBLAS the setting that `poisoned` needs."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def to_gpu(call: tuple) -> tuple:
    """Return the same call with every tensor as a new leaf on the GPU."""

    return rebuilt(call, [leaf.detach().to(GPU).requires_grad_(leaf.requires_grad) for leaf in leaves(call)])


def on_cpu(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.cpu() for tensor in tensors]


def assert_equal_on_both(call: tuple, multi_step=on_gpu) -> None:
    """Check that the outputs are equal in every bit, and the gradients up to the order of sums."""
    outputs, gradients = run_on_gpu(multi_step, call)
    expected_outputs, expected_gradients = run(reference.multi_step, call)
    for output, expected in zip(outputs, expected_outputs, strict=True):
        assert torch.equal(output, expected)
    assert_close_gradients(gradients, expected_gradients)


def run_on_gpu(multi_step, call: tuple) -> tuple[list[Tensor], list[Tensor]]:
    """Do as `run` on the GPU, and bring the results back."""
    outputs, gradients = run(multi_step, to_gpu(call))
    return on_cpu(outputs), on_cpu(gradients)


@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 3, 5), (33, 5, 700), (100, 32, 129)], ids=str)
@over_dtypes
@over_neurons
def test_equals_reference(neuron, dtype, shape, poisoned):
    assert_equal_on_both(make_call(neuron, shape, dtype))


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 2, 3), (33, 5, 130)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("longest", [0, 3], ids=["", "delayed"])
@over_recurrent
def test_recurrent_equals_reference(neuron, longest, dtype, shape, poisoned):
    call = make_call(neuron, shape, dtype, True, longest)
    outputs, gradients = run_on_gpu(on_gpu, call)
    expected_outputs, expected_gradients = run(reference.multi_step, call)
    assert torch.equal(outputs[0], expected_outputs[0])
    assert_close_gradients([*outputs, *gradients], [*expected_outputs, *expected_gradients])


@pytest.mark.parametrize("recurrent", [False, True], ids=["feedforward", "recurrent"])
@over_recurrent
def test_exact_ties(neuron, recurrent):
    assert_equal_on_both(tie_call(neuron, recurrent))


@pytest.mark.parametrize("recurrent", [False, True], ids=["feedforward", "recurrent"])
def test_each_input_alone(recurrent, poisoned):
    neuron = ADLIF if recurrent else LATE_SOFT
    for alone in range(len(leaves(make_call(neuron, (7, 3, 5), torch.float64, recurrent)))):
        call = make_call(neuron, (7, 3, 5), torch.float64, recurrent)
        for index, leaf in enumerate(leaves(call)):
            leaf.requires_grad_(index == alone)
        assert_close_gradients(run_on_gpu(on_gpu, call)[1], run(reference.multi_step, call)[1])


def test_chunks_equal_the_whole():
    x_TBN, values, state, *_ = make_call(ADLIF, (33, 3, 40), torch.float64)
    assert_equal_on_both((x_TBN, values, state, ADLIF, None), in_chunks(on_gpu, [10, 1, 22]))


def test_silence_into_subnormal_numbers():
    """cupy's own way of compiling would flush these to zero."""
    call = quiet_call()
    with torch.no_grad():
        assert torch.equal(on_gpu(*to_gpu(call))[1].cpu(), reference.multi_step(*call)[1])


def test_kernels_run_in_torch_s_stream():
    """Input that is still being computed, on a stream of its own, when the kernels are launched."""
    call = make_call(ADLIF, (50, 16, 300), torch.float32)
    x_TBN, *rest = to_gpu(call)
    expected_TBN = reference.multi_step(*call)[0]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), torch.no_grad():
        for _ in range(5):
            late_TBN = torch.zeros_like(x_TBN)
            torch.cuda._sleep(20_000_000)
            late_TBN.copy_(x_TBN)
            y_TBN, _, _ = on_gpu(late_TBN, *rest)
            assert torch.equal(y_TBN.cpu(), expected_TBN)


@pytest.mark.parametrize("recurrent", [False, True], ids=["feedforward", "recurrent"])
def test_auto_runs_the_kernels(recurrent, monkeypatch):
    from snn.ops import cuda

    launched = []
    launch = cuda.launch
    monkeypatch.setattr(
        cuda, "launch", lambda source, name, *rest: (launched.append(name), launch(source, name, *rest))
    )
    monkeypatch.setattr(reference, "multi_step", None)
    run_on_gpu(ops.multi_step, make_call(ADLIF, (7, 3, 5), torch.float64, recurrent))
    assert set(launched) == {"forward", "backward"}


def test_memory():
    """A layer keeps x, y, h and gy, gx with its gradients, and no more than sums beside them."""
    x_TBN, *rest = to_gpu(make_call(ADLIF, (100, 32, 256), torch.float32))
    size = x_TBN.nbytes
    on_gpu(x_TBN[:1], *rest, want_h=False)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    y_TBN, h_TBN, _ = on_gpu(x_TBN, *rest, want_h=False)
    assert h_TBN is None
    assert torch.cuda.memory_allocated() - before < 2.2 * size  # y and h
    torch.autograd.grad(y_TBN, x_TBN, torch.ones_like(y_TBN))
    assert torch.cuda.max_memory_allocated() - before < 4.5 * size  # and gy and gx


def events(T: int, B: int, C: int) -> SparseCounts:
    rate_RC = torch.full((T * B, C), 0.2, dtype=torch.float64)
    counts_RC = torch.poisson(rate_RC, generator=torch.Generator().manual_seed(3))
    return SparseCounts(*sparse.compress(counts_RC, sparse.find(counts_RC)), (T, B, C))


def test_events_travel_and_are_laid_out_there():
    x_TBC = events(20, 5, 30)
    assert torch.equal(x_TBC.to(GPU).dense().cpu(), x_TBC.dense())
    assert torch.equal(x_TBC.to(GPU).per_step().cpu(), x_TBC.per_step())


def assert_same_on_both(module: torch.nn.Module, given, objective) -> None:
    """Value, and gradients of all parameters, in float64."""
    results = []
    for device in (torch.device("cpu"), GPU):
        there = copy.deepcopy(module).to(device)
        value = objective(there, given.to(device))
        value.backward()
        results.append([value.detach().cpu(), *(p.grad.cpu() for p in there.parameters() if p.grad is not None)])
    assert len(results[0]) == len(results[1]) > 1
    assert results[0][0].isfinite()
    assert_close_gradients(results[1], results[0])


def test_linear_layers():
    torch.manual_seed(0)
    assert_same_on_both(EventLinear(30, 9).double(), events(20, 5, 30), lambda layer, x: layer(x).square().sum())


@pytest.mark.parametrize("per", ["input", "synapse"])
def test_delays(per):
    torch.manual_seed(0)
    layer = DelayedLinear(30, 20, per, 9).double()

    def value(layer, x):
        layer.reset()
        return layer(x).square().sum()

    assert_same_on_both(layer, events(25, 6, 30), value)


def test_convolutions_and_pools():
    torch.manual_seed(0)
    layers = torch.nn.Sequential(EventConv(3, 6, 8, 10, 3, 2), Pooling(4, 5, 2, False), Pooling(2, 2, 2, True))
    x_TPC = torch.poisson(torch.full((7, 2 * 8 * 10, 3), 0.3, dtype=torch.float64))
    assert_same_on_both(layers.double(), x_TPC, lambda layers, x: layers(x).square().sum())


@pytest.mark.parametrize("mode", ["first_time", "firing_rate"])
@pytest.mark.parametrize(
    "network",
    [
        {"layers": ("16F", "12F")},
        {"layers": ("16R", "12F"), "neuron": "CuAdLIF"},
        {"layers": ("16R",), "neuron": "PCuLIF", "output_neuron": "PCuLIF", "variant": "superspike"},
    ],
    ids=["AdLIF", "recurrent", "superspike"],
)
def test_loss_and_gradients_of_a_network(network, mode):
    cfg = small(dropout=0.0, **network)
    loss = cfg.loss.model_copy(update={"mode": mode})
    torch.manual_seed(0)
    net = Network(cfg.network, cfg.data.shape, cfg.data.num_classes).double().train()

    def value(net, x):
        net.reset()
        target_B = torch.arange(6, device=net.output.linear.weight.device) % 4
        return objective(net(x), target_B, loss, training=True)

    assert_same_on_both(net, events(25, 6, 30), value)


def test_a_convolutional_network():
    cfg = read("culif_dvsgesture")
    torch.manual_seed(0)
    net = Network(cfg.network.model_copy(update={"dropout": 0.0}), (2, 16, 16), 11).double().train()

    def value(net, x):
        net.reset()
        target_B = torch.arange(3, device=net.output.linear.weight.device)
        return objective(net(x), target_B, cfg.loss, training=True)

    assert_same_on_both(net, events(12, 3, 512), value)


def batch(seed: int, B: int) -> tuple[SparseCounts, Tensor]:
    counts_RC = torch.poisson(torch.full((25 * B, 30), 0.3), generator=torch.Generator().manual_seed(seed))
    return SparseCounts(*sparse.compress(counts_RC, sparse.find(counts_RC)), (25, B, 30)), torch.arange(B) % 4


def learned(net: torch.nn.Module, step: Loss, batches: Iterable[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """Train on the batches, with dropout that is the same in each call; return losses, weights and statistics."""
    optimizer = torch.optim.Adam(net.parameters(), 1e-3, fused=True)
    losses = []
    for seed, (x, target_B) in enumerate(batches):
        optimizer.zero_grad(set_to_none=True)
        torch.cuda.manual_seed(seed)
        value = step(x, target_B, 0.5)
        value.backward()
        optimizer.step()
        losses.append(value.detach().clone())
    return [torch.stack(losses), *net.state_dict().values()]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("layers", [("16F", "12F"), ("16R",), ("16FD9", "12FDS4"), ("16F+D9",)], ids=str)
def test_replayed_steps_are_those_of_python(layers, dropout):
    """Compare losses, weights and statistics over batches of several sizes and equal dropout; then use another loss."""
    cfg = small(dropout=dropout, layers=layers)
    results = []
    for replays in (False, True):
        torch.manual_seed(0)
        net = Network(cfg.network, cfg.data.shape, cfg.data.num_classes).to(GPU).train()
        goal = {"D": 16.0}

        def loss(x, target_B, weight, net=net, goal=goal):
            net.reset()
            narrowed = cfg.loss.model_copy(update={"fs": cfg.loss.fs.model_copy(update=goal)})
            return weight * objective(net(x), target_B, narrowed, training=True)

        step = Replayed(net, loss) if replays else loss

        def batches(goal=goal, step=step):
            for seed, B in enumerate((6, 6, 4, 6, 8, 6, 8)):
                if seed == 5:
                    goal["D"] = 8.0
                    if isinstance(step, Replayed):
                        step.forget()
                x, target_B = batch(seed, B)
                yield x.to(GPU).dense(), target_B.to(GPU)

        results.append(learned(net, step, batches()))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_a_step_that_is_replayed_runs_no_layer(monkeypatch):
    net = Network(small().network, (30,), 4).to(GPU).train()

    def loss(x, target_B, weight):
        net.reset()
        return objective(net(x), target_B, small().loss, training=True)

    step = Replayed(net, loss)
    for seed in range(3):
        x, target_B = batch(seed, 6)
        step(x.to(GPU).dense(), target_B.to(GPU), 1.0).backward()
        monkeypatch.setattr(net, "forward", None)
    assert all(parameter.grad.isfinite().all() for parameter in net.parameters())


@pytest.mark.parametrize("pool", ["P2", "P3", "A2"])
def test_ttfs_network(pool):
    ttfs = config.TTFS(layers=f"8C5 - {pool} - 12C3S2 - 20F", standardised=True)
    torch.manual_seed(0)
    net = TTFSNetwork(ttfs, (1, 14, 14), 5).double()
    x_BCHW = torch.rand(6, 1, 14, 14, dtype=torch.float64)

    def value(net, x):
        activity = net(x)
        target_B = torch.arange(6, device=x.device) % 5
        return torch.nn.functional.cross_entropy(activity.V_BN, target_B) + silent_neurons_drive(activity)

    assert_same_on_both(net, x_BCHW, value)
    V_BN, _ = Simulation(net.to(GPU)).run(x_BCHW.to(GPU))
    torch.testing.assert_close(V_BN, net(x_BCHW.to(GPU)).V_BN.detach(), rtol=1e-9, atol=1e-9)


def test_replayed_steps_of_a_ttfs_network():
    """Compare losses and weights over batches of two sizes; one neuron of each layer starts with hardly any drive."""
    ttfs = config.TTFS(layers="8C5 - P2 - 12C3S2 - 20F", standardised=True)
    generator = torch.Generator().manual_seed(0)
    batches = [
        (torch.rand(B, 1, 14, 14, generator=generator).to(GPU), torch.arange(B, device=GPU) % 5) for B in (6, 6, 4, 6)
    ]
    results = []
    for replays in (False, True):
        torch.manual_seed(0)
        net = TTFSNetwork(ttfs, (1, 14, 14), 5).to(GPU).train()
        with torch.no_grad():
            for layer in (net.layers[0], net.layers[2], net.layers[3]):
                layer.gain[1] = -1e-3

        def loss(x, target_B, weight, net=net):
            activity = net(x)
            return weight * torch.nn.functional.cross_entropy(activity.V_BN, target_B) + silent_neurons_drive(activity)

        results.append(learned(net, Replayed(net, loss) if replays else loss, batches))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("T", WINDOWS)
def test_ttfs_formula(T):
    t_BN, W_ON = random_times((40, 30), T, 0), random_weights((50, 30), 0)
    expected = functional.linear(t_BN, W_ON, T)
    actual = functional.linear(t_BN.to(GPU), W_ON.to(GPU), T).cpu()
    assert torch.equal(actual == float("inf"), expected == float("inf"))
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@over_dtypes
@pytest.mark.parametrize("clip", [float("inf"), 0.6])
def test_ttfs_kernels_equal_plain_torch(dtype, clip, monkeypatch):
    x, t, g = (torch.randn(n, 3, 400).to(GPU, dtype) for n in (2, 1, 1))
    t = torch.where(t > 0.5, torch.inf, t.abs())
    results = []
    for fits in (kernels.fits, lambda *_: False):
        monkeypatch.setattr(kernels, "fits", fits)
        fired = functional._fire(x, 1.0, False)
        results.append([products.split(t, 1.0), *fired, functional._spread(g, *fired, 1.0, clip)])
        results[-1].append(functional._by_time(g.clone(), t))
    for got, expected in zip(*results, strict=True):
        assert torch.equal(got, expected)


def test_named_backends_are_contracts():
    call = make_call(ADLIF, (2, 2, 3), torch.float32)
    with pytest.raises(InputError, match="runs on cpu"):
        ops.multi_step(*to_gpu(call), backend="cpu")
