"""The library's public surface, one entry per call: as a notebook would make it, with arguments drawn at random."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datasets.augment import Change
from datasets.binning import Bins, batches, bin_dense, bin_events
from datasets.recordings import StoredRecordings, downsampled
from datasets.splits import hold_out
from snn import coding, config, conv, evaluation, settings
from snn.conv import EventConv, Pooling
from snn.inputs import SparseCounts, Spikes
from snn.linear import EventLinear
from snn.losses import objective
from snn.losses.firing_rate import firing_rate
from snn.losses.first_time import first_time, silent_target
from snn.losses.loss import spike_count
from snn.network import Network
from snn.neurons import NEURONS
from snn.ops import sparse, sparse_conv, winograd
from snn.ops.sparse_conv import Geometry
from snn.streaming import Stream
from snn.ttfs import evaluation as ttfs_evaluation
from snn.ttfs import functional, layers
from snn.ttfs.network import TTFSNetwork, silent_neurons_drive
from snn.ttfs.simulation import Simulation
from tests.draw import DTYPES, Draw

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
CPU = torch.device("cpu")
ENTRIES: list[Callable[[Draw], None]] = []


def entry(function: Callable[[Draw], None]) -> Callable[[Draw], None]:
    ENTRIES.append(function)
    return function


def same(found: Tensor, expected: Tensor) -> None:
    found, expected = found.double(), expected.double()
    overflows = ~(expected.abs() < 1e30)
    assert torch.allclose(found[~overflows], expected[~overflows], rtol=1e-3, atol=1e-3), "the numbers are wrong"


def backward(y: Tensor) -> None:
    if y.requires_grad:
        y.sum().backward()


def layer_input(draw: Draw, C: int):
    T, B = draw.size(), draw.size()
    which = draw.random.integers(3)
    if which == 0:
        return draw.events(T, B, C)
    x = draw.tensor(T, B, C)
    return Spikes(x, draw.tensor(B, C)) if which == 1 and isinstance(x, Tensor) else x


def autocast(draw: Draw) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=draw.wrong(0.1))


@entry
def linear(draw: Draw) -> None:
    C, N = draw.of([1, 5, 70]), draw.of([1, 3, 65])
    module = EventLinear(C, N, bias=draw.chance(0.3)).to(draw.of(DTYPES[:1] + DTYPES[5:7]) if draw.wrong() else None)
    x = layer_input(draw, C)
    with autocast(draw):
        y = module(x)
    dense = (x if isinstance(x, Tensor) else x.dense()).to(module.weight.dtype)
    same(y, F.linear(dense, module.weight, module.bias))
    backward(y)


@entry
def convolution(draw: Draw) -> None:
    C, N, H, W = draw.size(), draw.size(), draw.size(7), draw.size(7)
    kernel = draw.number(draw.of([1, 3, 5]))
    module = EventConv(draw.number(C), N, draw.number(H), draw.number(W), kernel, draw.number(draw.size(3)))
    T, B = draw.size(4), draw.size(3)
    x = draw.tensor(T, B * H * W, C)
    with autocast(draw):
        y = module(x)
    backward(y)
    module.dense_above = -1.0
    same(y, module(x))


@entry
def pooling(draw: Draw) -> None:
    H, W, C = draw.size(7), draw.size(7), draw.size()
    K, is_average = draw.number(draw.size(3)), draw.chance(0.4)
    x = draw.tensor(draw.size(4), draw.size(3) * H * W, C)
    y = Pooling(draw.number(H), draw.number(W), K, is_average)(x)
    if not is_average:
        x_FCHW = conv.as_frames(x.float(), H, W)
        same(y, conv.as_pixels(F.max_pool2d(x_FCHW, K), len(x)))
    backward(y)


SPIKING = settings.load(CONFIGS / "adlif_shd.yaml").network
# The others run in plain torch, because each is compiled, which takes longer than all calls together; tests.fuzz may
# add them. What checks the arguments of a kernel is the same for all.
COMPILED = ["AdLIF"]


def network_of(draw: Draw, neurons: Sequence[str] = tuple(NEURONS)) -> tuple[Network, int]:
    is_image = draw.chance(0.3)
    shape = (2, 6, 6) if is_image else (draw.of([3, 30]),)
    words = draw.of([("4C3", "P2", "5F"), ("P2", "4F"), ("3C3S2",)] if is_image else [("8F",), ("4F", "3R"), ()])
    chosen = SPIKING.model_copy(update={"layers": words, "neuron": draw.of(list(neurons))})
    backend = draw.of(["auto", "torch"]) if chosen.neuron in COMPILED else "torch"
    network = Network(chosen, shape, 3, backend).train(draw.chance(0.5))
    if draw.wrong(0.05):
        network.to(draw.of([torch.float64, torch.float16, torch.bfloat16]))
    return network, int(np.prod(shape))


@entry
def whole_network(draw: Draw) -> None:
    network, C = network_of(draw)
    T, B = draw.size(5), draw.size(4)
    x = draw.events(T, B, C) if draw.chance(0.4) else draw.tensor(T, B, C)
    with autocast(draw):
        activity = network(x)
    backward(activity.h_TBN)
    assert activity.h_TBN.isfinite().all()


@entry
def neurons(draw: Draw) -> None:
    N = draw.size(20)
    options = {"tau_mem_steps": 5.0, "tau_syn_steps": 5.0, "theta": 0.5, "recurrent": draw.chance(0.3)}
    name, backend = draw.of(list(NEURONS)), draw.of(["auto", "torch", "cpu"])
    module = NEURONS[name](N, **options, backend=backend if name in COMPILED else "torch")
    x = draw.tensor(draw.size(), draw.size(), N)
    if isinstance(x, Tensor) and x.layout == torch.strided:
        backward(module(x))


@entry
def events(draw: Draw) -> None:
    T, B, C = draw.size(), draw.size(), draw.size(20)
    x = draw.events(T, B, C)
    if x.counts.numel() and x.counts.double().abs().max() < 1e6:
        same(x.dense().sum(2), x.per_step())
    same(x.entries_per_step(torch.ones(C)), x.entries_per_step())
    x.to(CPU)


@entry
def products(draw: Draw) -> None:
    R, C, N = draw.of([1, 6, 70]), draw.of([1, 5, 70]), draw.of([1, 3, 65])
    x = draw.events(R, 1, C)
    dense = x.dense().flatten(0, 1).float()
    W, gy = torch.rand(N, dense.shape[1]), torch.rand(len(dense), N)
    if draw.chance(0.5):
        same(sparse.product(x.entries, W), dense @ W.T)
    else:
        same(sparse.weight_gradient(x.entries, gy, dense.shape[1]), gy.T @ dense)


@entry
def finding(draw: Draw) -> None:
    T, B, C = draw.size(), draw.size(), draw.of([1, 5, 70])
    x_TBC = draw.events(T, B, C).dense().float()
    mask = torch.rand(x_TBC.shape[1:]).round() if draw.chance(0.5) else None
    x = x_TBC.flatten(0, 1)
    entries = sparse.compress(x, sparse.find(x, mask))
    same(SparseCounts(*entries, tuple(x_TBC.shape)).dense(), x_TBC if mask is None else x_TBC * mask)


@entry
def convolution_products(draw: Draw) -> None:
    C, N, frames_ = draw.size(), draw.of([1, 5, 70]), draw.size(3)
    height, width = draw.size(), draw.size()
    x = draw.events(frames_, height * width, C)
    (frames_, pixels, C), entries = x.shape, x.entries
    width = 1 if pixels % width else width
    shape = Geometry(pixels // width, width, draw.of([1, 3]), draw.of([1, 2]))
    if draw.chance(0.3):
        gy_RN = torch.rand(frames_ * pixels, N)
        winograd.input_gradient(gy_RN, torch.rand(N, C, 3, 3), shape._replace(kernel=3, stride=1))
    elif draw.chance(0.5):
        sparse_conv.product(entries, torch.rand(N, C, shape.kernel, shape.kernel), shape, with_sums=draw.chance(0.5))
    else:
        constants = torch.rand(len(entries.counts)) if draw.chance(0.5) else None
        gy_RN = torch.rand(frames_ * shape.out_height * shape.out_width, N)
        sparse_conv.weight_gradient(entries, gy_RN, C, shape, constants)


@entry
def binning(draw: Draw) -> None:
    C = draw.of([1, 8, 700])
    recordings, bins = draw.recordings(C), draw.bins(C)
    index = draw.index(recordings)
    x = bin_events(recordings, index, bins)
    same(x.dense(), bin_dense(recordings, index, bins, CPU))


@entry
def framing(draw: Draw) -> None:
    C = draw.of([1, 8, 700])
    recordings = draw.recordings(C)
    bin_dense(recordings, draw.index(recordings), draw.bins(C), CPU)


@entry
def batching(draw: Draw) -> None:
    C = 2 * 4 * 4
    recordings, sensor = draw.recordings(C), config.Sensor(height=4, width=4, polarities=2, divide=2)
    recordings.load(draw.index(recordings))
    index, bins = draw.index(recordings), Bins(10.0, 5, 1, 8)
    amounts = {"stretch": 0.1, "time_jitter_ms": 1.0, "drop": 0.1, "shift": 1, "flip": True, "zoom": 0.1}
    amounts |= {"unit_jitter": 1, "blend": 0.5, "mask": 2, "mask_ms": 20.0}
    how = settings.check(config.Augment, {name: draw.number(value) for name, value in amounts.items()}, "augment")
    if draw.chance(0.5):  # as from a file that stays there
        held = recordings

        def read(numbers: np.ndarray, _: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            parts = [slice(*held.offsets[r : r + 2]) for r in numbers]
            lengths = np.array([part.stop - part.start for part in parts])
            return lengths, *(np.concatenate([of[part] for part in parts]) for of in (held.times, held.channels))

        recordings = StoredRecordings(held.offsets, 1.0, held.labels, None, "mine", None, read, held.first_times)
    change = None
    if draw.chance(0.5):
        change = Change(how, (draw.number(4), draw.number(2)), draw.number(7), draw.index(recordings))
    for x, _ in batches(downsampled(recordings, sensor), index, bins, draw.number(2), change=change):
        x.dense()
    hold_out(recordings, draw.number(0.3), 0)


@entry
def codes(draw: Draw) -> None:
    T, B, N = draw.size(20), draw.size(), draw.size()
    window = coding.Window.of(draw.number(T), draw.number(16.0), draw.number(200.0)) if draw.chance(0.7) else None
    s, h = draw.tensor(T, B, N, density=0.1), draw.tensor(T, B, N)
    t = coding.first_times(s, h, window)
    assert ((t >= 1) & (t <= T + N)).all()
    backward(t)
    coding.fs_decision(draw.tensor(B, N))
    coding.fr_decision(draw.tensor(B, N))


@entry
def losses(draw: Draw) -> None:
    T, B, N = draw.size(10), draw.size(), draw.size()
    target = draw.whole(B, 0, N)
    of = draw.random.integers(5)
    if of == 0:
        first_time(draw.tensor(B, N), target, draw.number(0.2))
    elif of == 1:
        silent_target(draw.tensor(B, N), target, draw.number(T), draw.number(0.1), draw.number(0.02))
    elif of == 2:
        firing_rate(draw.tensor(T, B, N), target, draw.number(20.0))
    elif of == 3:
        spike_count([draw.tensor(T, B, N), draw.tensor(T, B, 2, 3)][draw.wrong() :][:: draw.of([1, -1])], 1.0, 3.0)
    else:
        seen = Network(SPIKING.model_copy(update={"layers": ("4F",)}), (5,), N)(draw.tensor(T, B, 5))
        what = settings.load(CONFIGS / "adlif_shd.yaml").loss
        objective(seen, target, what, training=draw.chance(0.5)).backward()


@entry
def streaming(draw: Draw) -> None:
    network, C = network_of(draw, ["AdLIF"])  # each neuron is compiled; tests/test_streaming.py streams others
    if draw.chance(0.8):
        C = 30
        network = Network(SPIKING.model_copy(update={"layers": draw.of([("8F", "4R"), ()])}), (C,), 3)
    network = draw.of([None, "net", nn.Linear(2, 2)]) if draw.wrong(0.03) else network
    stream = Stream(network, draw.number(10.0), draw.number(10), draw.number(2), draw.number(1.0), draw.chance(0.7))
    for k in range(2):
        n = draw.size(12)
        times = np.sort(draw.random.uniform(0.07 * k, 0.07 * (k + 1), n)).astype(draw.of([np.float32, np.float64]))
        if draw.wrong(0.05):
            times = draw.of(
                [np.array(["a"]), [[1], [1, 2]], times.astype(np.float16), times.astype(np.longdouble), "x"]
            )
        stream.push(
            draw.array(times) if getattr(times, "dtype", None) in (np.float32, np.float64) else times,
            draw.array(draw.random.integers(0, C, n)),
        )
    stream.finish()
    stream.reset()


@entry
def evaluating(draw: Draw) -> None:
    network, C = network_of(draw)
    T, B = draw.size(5), draw.size(4)
    x = draw.events(T, B, C) if draw.chance(0.4) else draw.tensor(T, B, C)
    result = evaluation.evaluate(
        network, [(x, draw.whole(B, 0, 3))][draw.wrong() :], lambda seen, _: seen.h_TBN.mean(), CPU
    )
    result.metrics(10.0)
    result.details(10.0)
    result.anytime(10.0)


def spike_times(draw: Draw, *sizes: int):
    t = draw.tensor(*sizes, high=1.0, density=1.0)
    if isinstance(t, Tensor) and t.layout == torch.strided and t.is_floating_point() and t.numel():
        t = t.detach().masked_fill(torch.rand(t.shape) < 0.3, float("inf")).requires_grad_(draw.chance(0.5))
    return t


@entry
def ttfs_functions(draw: Draw) -> None:
    B, N, C, H = draw.size(), draw.size(70), draw.size(4), draw.size(8)
    T, of = draw.number(1.0), draw.random.integers(7)
    options = {"zero_drive_fires": draw.chance(0.3), "grad_clip": draw.number(1.0) if draw.chance(0.3) else None}
    image = spike_times(draw, B, C, H, H)
    if of == 0:
        out = functional.linear(spike_times(draw, B, N), draw.tensor(3, N, low=-1, density=1.0), T, **options)
    elif of == 1:
        W = draw.tensor(2, C, 3, 3, low=-1, density=1.0)
        out = functional.conv2d(image, W, T, stride=draw.number(draw.size(3)), **options)
    elif of == 2:
        out = functional.max_pool2d(image, draw.number(2))
    elif of == 3:
        out = functional.avg_pool2d(image, draw.number(2), T)
    elif of == 4:
        out = functional.readout(spike_times(draw, B, N), draw.tensor(3, N, low=-1, density=1.0), T)
    elif of == 5:
        out = functional.unit_encode(draw.tensor(B, C, H, H, high=1.0), T)
    else:
        out = functional.direct_encode(draw.tensor(B, C, H, H), T)
    if out.requires_grad:
        torch.where(out == float("inf"), 0, out).sum().backward()


TTFS = settings.load(CONFIGS / "ttfs_mnist_mlp.yaml").ttfs


@entry
def ttfs_network(draw: Draw) -> None:
    words = draw.of(["9F", "3C3 - P2 - 4F", "3C3 - AP2", "4C3S2 - 5F"])
    chosen = TTFS.model_copy(update={"layers": words, "encoder": draw.of(["unit", "direct"]), "bias": draw.chance(0.5)})
    network = TTFSNetwork(chosen, (2, 6, 6), 3)
    network.to(draw.of([torch.float64, torch.float16])) if draw.wrong(0.05) else None
    x, target = draw.tensor(draw.size(), 2, 6, 6, high=1.0), draw.whole(1, 0, 3)
    with autocast(draw):
        activity = network(x)
    (activity.V_BN.sum() + silent_neurons_drive(activity)).backward()
    if draw.chance(0.3):
        Simulation(network, draw.number(2)).run(x)
    ttfs_evaluation.evaluate_images(network, [(x[:1].detach(), target)][draw.wrong() :], CPU).metrics()


@entry
def ttfs_layers(draw: Draw) -> None:
    C, H, T = draw.size(4), draw.size(8), draw.number(1.0)
    image, of = spike_times(draw, draw.size(), C, H, H), draw.random.integers(5)
    if of == 0:
        options = {"bias": draw.chance(0.5), "standardised": draw.chance(0.5)}
        layers.Linear(draw.number(C * H * H), draw.number(3), T, **options)(image)
    elif of == 1:
        layers.Conv2d(draw.number(C), 3, draw.number(3), T, draw.number(1))(image)
    elif of == 2:
        layers.EarliestSpike(draw.number(2))(image)
    elif of == 3:
        layers.AverageLead(draw.number(2), T)(image)
    else:
        layers.Readout(draw.number(C * H * H), draw.number(3), T)(image)
