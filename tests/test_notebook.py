"""The library's classes in a user's own script: input that does not fit is an InputError, whatever it holds."""

import copy
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from datasets.binning import Bins, bin_dense, bin_events
from datasets.recordings import Recordings
from snn import settings
from snn.conv import EventConv, Pooling
from snn.errors import InputError
from snn.evaluation import evaluate
from snn.inputs import Entries, SparseCounts, Spikes
from snn.linear import EventLinear
from snn.losses.firing_rate import firing_rate
from snn.losses.first_time import first_time, silent_target
from snn.network import Network
from snn.ops import sparse_conv
from snn.ops.sparse_conv import Geometry
from snn.streaming import Stream
from snn.ttfs import functional
from tests.conftest import REPOSITORY, make_events, write_shd

CPU = torch.device("cpu")
DENSITIES = [0.05, 0.1, 0.5]  # the first two take the event-driven product, the last the dense one
CHANNELS = 30


def network_of(layers: tuple[str, ...] = ("32F", "16R"), shape: tuple[int, ...] = (CHANNELS,)) -> Network:
    torch.manual_seed(0)
    chosen = settings.load(REPOSITORY / "configs" / "adlif_shd.yaml").network
    return Network(chosen.model_copy(update={"layers": layers}), shape, 4).eval()


def frames_of(density: float, *shape: int) -> Tensor:
    torch.manual_seed(1)
    return 8.0 * (torch.rand(shape) < density)


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("channels", [1, 20, 29, 31, 60, 700, 5000])
def test_another_number_of_channels(density, channels):
    x_TBC = frames_of(density, 20, 5, channels)
    with pytest.raises(InputError, match=rf"\(steps, samples, 30\).*\(20, 5, {channels}\)"):
        network_of()(x_TBC)
    with pytest.raises(InputError, match=r"\(steps, samples, 30\)"):
        EventLinear(CHANNELS, 8)(x_TBC)
    with pytest.raises(InputError, match="must have the shape"):
        EventLinear(CHANNELS, 8)(Spikes(x_TBC, torch.ones(5, channels)))


def test_a_training_step_on_more_channels():
    """It once corrupted the heap of the process."""
    network = network_of().train()
    with pytest.raises(InputError, match="shape"):
        network(frames_of(0.1, 20, 5, 701)).h_TBN.sum().backward()


@pytest.mark.parametrize(
    "shape", [(20, 30), (20,), (0, 5, 30), (20, 0, 30), (20, 5, 0), (20, 5, 30, 1), (20, 5, 1, 5, 6)]
)
def test_another_shape(shape):
    with pytest.raises(InputError, match="shape"):
        network_of()(torch.zeros(shape))


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_a_nested_tensor(layout):
    nested = torch.nested.nested_tensor([torch.zeros(20, 30), torch.zeros(10, 30)], layout=layout)
    with pytest.raises(InputError, match="must be a dense torch tensor, but is a nested tensor"):
        network_of()(nested)


@pytest.mark.parametrize("shape", [(5, 2, 2 * 34 * 34), (5, 2, 2, 12, 12), (5, 2, 12 * 12)])
def test_another_image(shape):
    with pytest.raises(InputError, match="288"):
        network_of(("8C3", "P2"), (2, 12, 12))(frames_of(0.05, *shape))
    with pytest.raises(InputError, match="not a whole number of images"):
        EventConv(2, 4, 12, 12, 3, 1)(frames_of(0.05, 5, 143, 2))
    with pytest.raises(InputError, match="not a whole number of images"):
        Pooling(12, 12, 2, False)(frames_of(0.05, 5, 143, 2))


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.uint16, torch.float64, torch.float16])
def test_any_real_numbers_are_taken_as_the_weights_are(density, dtype):
    x_TBC = frames_of(density, 20, 5, CHANNELS).to(dtype)
    network = network_of()
    network.reset()
    expected = network(x_TBC.float())
    network.reset()
    seen = network(x_TBC)
    assert seen.h_TBN.dtype == torch.float32
    assert all(map(torch.equal, (seen.h_TBN, *seen.layers), (expected.h_TBN, *expected.layers)))
    image = frames_of(density, 5, 2 * 36, 2).to(dtype)
    for layer in (EventConv(2, 4, 6, 6, 3, 1), Pooling(6, 6, 2, False), Pooling(6, 6, 2, True)):
        assert torch.equal(layer(image), layer(image.float()))


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(density, dtype):
    """Under autocast the network computes as without; as the type of its weights it is refused by name."""
    x_TBC = frames_of(density, 20, 5, CHANNELS)
    for network, x in ((network_of(), x_TBC), (network_of(("4C3", "P2", "8F"), (1, 6, 5)), x_TBC)):
        network.reset()
        expected = network(x)
        network.reset()
        with torch.autocast("cpu", dtype):
            seen = network(x)
            assert torch.equal(seen.h_TBN, expected.h_TBN)
            network.reset()
            network.train()(x).h_TBN.sum().backward()
        assert all(p.grad.dtype == torch.float32 for p in network.parameters() if p.grad is not None)
        name = str(dtype).removeprefix("torch.")
        with pytest.raises(InputError, match=rf"{name}.*\.float\(\)"):
            network.to(dtype)(x.to(dtype))
    assert network_of().double()(x_TBC).h_TBN.dtype == torch.float64


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite(density, value):
    x_TBC = frames_of(density, 20, 5, CHANNELS)
    x_TBC[3, 2, 1] = value
    with pytest.raises(InputError, match=r"\[3, 2, 1\]"):
        network_of()(x_TBC)
    with pytest.raises(InputError, match="finite"):
        network_of(("4C3",), (1, 6, 5))(x_TBC)
    with pytest.raises(InputError, match="finite"):
        network_of(("P2",), (1, 6, 5))(x_TBC)
    with pytest.raises(InputError, match="finite"):
        EventLinear(CHANNELS, 8)(Spikes(x_TBC, torch.zeros(5, CHANNELS)))


def test_batch_norm_on_one_number():
    with pytest.raises(InputError, match="BatchNorm"):
        network_of().train()(torch.ones(1, 1, CHANNELS))
    network_of()(torch.ones(1, 1, CHANNELS))


@pytest.mark.parametrize("training", [False, True])
def test_a_copy_after_a_forward_pass(training):
    network, x_TBC = network_of().train(training), frames_of(0.3, 20, 5, CHANNELS)
    network(x_TBC)
    copied = copy.deepcopy(network)
    for each in (network, copied):
        torch.manual_seed(0)
        each.h_TBN = each(x_TBC).h_TBN
    assert torch.equal(network.h_TBN, copied.h_TBN)  # it continues from the same state


EVENTS = {"offsets": torch.tensor([0, 2, 3]), "channels": torch.tensor([1, 5, 2]), "counts": torch.ones(3)}


@pytest.mark.parametrize(
    "wrong",
    [
        {"channels": torch.tensor([1, 30, 2])},
        {"channels": torch.tensor([1, 500_000, 2], dtype=torch.int32)},
        {"channels": torch.tensor([1, -1, 2])},
        {"channels": torch.tensor([1, 2**32, 2])},
        {"channels": torch.tensor([1.0, 2.0, 2.0])},
        {"channels": torch.tensor([1, 2])},
        {"offsets": torch.tensor([0, 2, 4])},
        {"offsets": torch.tensor([0, 10**12, 3])},
        {"offsets": torch.tensor([0, -1, 3])},
        {"offsets": torch.tensor([1, 2, 3])},
        {"offsets": torch.tensor([0, 3])},
        {"offsets": torch.tensor([0, 2, 3], dtype=torch.int32)},
        {"counts": torch.tensor([1.0, float("nan"), 1.0])},
        {"counts": torch.ones(2)},
        {"counts": torch.ones(3, dtype=torch.complex64)},
        {"shape": (2, 1, 0)},
        {"shape": (2, 30)},
        {"shape": (2, 1, 2.5)},
        {"shape": (2, 2, 30)},
    ],
    ids=str,
)
def test_events_that_do_not_fit(wrong):
    with pytest.raises(InputError):
        SparseCounts(**{**EVENTS, "shape": (2, 1, CHANNELS), **wrong})


def test_events_that_fit_another_network():
    events = SparseCounts(**EVENTS, shape=(2, 1, 700))
    for network in (network_of(), network_of(("4C3",), (1, 6, 5))):
        with pytest.raises(InputError, match="700"):
            network(events)
    x_TBC = SparseCounts(**EVENTS, shape=(2, 1, CHANNELS))  # int64 channels
    assert torch.equal(network_of()(x_TBC).h_TBN, network_of()(x_TBC.dense()).h_TBN)


def test_channels_that_stand_many_times_in_a_row():
    """A window may get more entries than it has inputs: they once overran the memory reserved for them."""
    torch.manual_seed(0)
    shape, C, N = Geometry(2, 2, 3, 1), 2, 5
    offsets, channels = torch.tensor([0, 50, 60, 60, 61]), torch.randint(0, C, (61,), dtype=torch.int32)
    W = torch.randn(N, C, 3, 3, requires_grad=True)
    entries = Entries(offsets, channels, torch.rand(61))
    x_FCHW = SparseCounts(*entries, (1, 4, C)).dense().view(1, 2, 2, C).permute(0, 3, 1, 2)
    expected = F.conv2d(x_FCHW, W, padding=1)
    y_RN = sparse_conv.product(entries, W, shape)
    torch.testing.assert_close(y_RN, expected.detach().permute(0, 2, 3, 1).reshape(-1, N))
    gy_RN = torch.randn(4, N)
    expected.backward(gy_RN.view(1, 2, 2, N).permute(0, 3, 1, 2))
    found = sparse_conv.weight_gradient(entries, gy_RN, C, shape)
    torch.testing.assert_close(found, W.grad, rtol=1e-4, atol=1e-4)


def recordings_of(channels: np.ndarray | None = None, times: np.ndarray | None = None, **others) -> Recordings:
    random = np.random.default_rng(0)
    n, k = 6, 200
    fields = {
        "offsets": np.arange(0, n * k + 1, k),
        "times": np.sort(random.uniform(0, 1, (n, k)), 1).astype(np.float32).ravel() if times is None else times,
        "ticks_per_second": 1.0,
        "channels": random.integers(0, 700, n * k).astype(np.uint16) if channels is None else channels,
        "labels": np.zeros(n, np.int64),
        "speakers": None,
        "where": "mine",
    }
    return Recordings(**{**fields, **others})


BAD_TIMES = [
    np.linspace(-50, 1, 1200),
    np.full(1200, np.nan),
    np.append(np.zeros(1199), np.inf),
    -np.ones(1200, np.int32),
]


@pytest.mark.parametrize("binned", [bin_events, partial(bin_dense, device=CPU)], ids=["counts", "frames"])
def test_recordings_that_cannot_be_binned(binned):
    index, bins = np.arange(6), Bins(10.0, 100, 0, 700)
    with pytest.raises(InputError, match=r"channel \d+; .* 0 to 63"):
        binned(recordings_of(), index, Bins(10.0, 100, 0, 64))
    for times in BAD_TIMES:
        with pytest.raises(InputError, match="time"):
            binned(recordings_of(times=times.astype(np.float32) if times.dtype == np.float64 else times), index, bins)
    signed = np.random.default_rng(0).integers(-128, 127, 1200).astype(np.int8)
    with pytest.raises(InputError, match="channel -"):
        binned(recordings_of(signed), index, bins)
    for wrong in (np.array([0, 99]), np.array([-1]), np.array([0.0]), [0, 1], np.array([], np.int64)):
        with pytest.raises(InputError):
            binned(recordings_of(), wrong, bins)


@pytest.mark.parametrize(
    "wrong",
    [
        {"offsets": np.array([0, 200, 100, 600, 800, 1000, 1200])},
        {"offsets": np.array([0, 200, 400, 600, 800, 1000, 1201])},
        {"offsets": np.array([-200, 200, 400, 600, 800, 1000, 1200])},
        {"offsets": np.array([0, 200, 400, 600, 800, 1000, -(2**63)])},  # whose difference wraps
        {"offsets": np.array([0, 1200])},
        {"times": np.zeros(1200, np.float16)},
        {"times": np.zeros(1199, np.float32)},
        {"times": np.zeros((1200, 1), np.float32)},
        {"times": [0.0] * 1200},
        {"channels": np.zeros(1200, np.float32)},
        {"channels": np.zeros(1200, np.dtype(np.uint16).newbyteorder())},
        {"labels": None},
        {"speakers": np.zeros(5)},
        {"ticks_per_second": 0},
        {"ticks_per_second": float("nan")},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_recordings_that_do_not_fit(wrong):
    with pytest.raises(InputError):
        recordings_of(**wrong)


@pytest.mark.parametrize(
    "wrong", [(0.0, 10, 0, 7), (float("nan"), 10, 0, 7), (1.0, 0, 0, 7), (1.0, 10, -1, 7), (1.0, 10, 0, 0)]
)
def test_bins_that_are_none(wrong):
    with pytest.raises(InputError):
        Bins(*wrong)


@pytest.mark.parametrize(
    "labels", [[0, 1, 2, 3], [0, 1, 2, -1], [0, 1, 2, -100], [0, 1, 2], [0.0, 1.0, 2.0, 0.0]], ids=str
)
def test_labels_outside_the_classes(labels):
    t_BN, s_TBN, target_B = torch.rand(4, 3), torch.rand(5, 4, 3), torch.tensor(labels)
    with pytest.raises(InputError, match="labels"):
        first_time(t_BN, target_B, 0.1)
    with pytest.raises(InputError, match="labels"):
        silent_target(t_BN, target_B, 5, 0.1, 0.1)
    with pytest.raises(InputError, match="labels"):
        firing_rate(s_TBN, target_B, 20.0)
    of_four_classes = torch.where(target_B == 3, 4, target_B)
    with pytest.raises(InputError, match="labels"):
        evaluate(network_of(), [(frames_of(0.1, 5, 4, CHANNELS), of_four_classes)], lambda *_: 0.0, CPU)


def test_a_stream_that_is_none():
    network = network_of()
    for wrong in (
        {"dt_ms": 0},
        {"dt_ms": float("nan")},
        {"T": 0},
        {"T": 2.5},
        {"T_empty": -1},
        {"ticks_per_second": 0.0},
    ):
        with pytest.raises(InputError, match=next(iter(wrong))):
            Stream(network, **{"dt_ms": 10, "T": 100, **wrong})
    with pytest.raises(InputError, match="Network"):
        Stream(network.output.linear, 10, 100)
    stream = Stream(network, 10, 100)
    for times in (np.zeros(1, np.float16), np.zeros(1, np.longdouble), np.zeros(1, ">f4"), [0], torch.zeros(1)):
        stream.push(times, [0])  # all numbers are taken
    for times in ([[1], [1, 2]], ["a"], [None]):
        with pytest.raises(InputError):
            stream.push(times, [0])


def test_times_of_neurons_that_spike_once():
    W = torch.randn(3, 5)
    for value in (-0.1, 1.1):
        with pytest.raises(InputError, match="0 to T = 1"):
            functional.linear(torch.full((2, 5), value), W, 1.0)
    for wrong in (torch.zeros(2, 4), torch.zeros(5), torch.zeros(0, 5)):
        with pytest.raises(InputError, match="shape"):
            functional.linear(wrong, W, 1.0)
    with pytest.raises(InputError, match="the kernel of a pool must be a whole number, 1 to 2"):
        functional.max_pool2d(torch.zeros(1, 1, 2, 2), 3)


NOTEBOOK = """
import sys; sys.path.insert(0, {repository!r})
import numpy as np, torch
from datasets import readers
from datasets.binning import Bins, batches
from snn import settings
from snn.losses import objective
from snn.network import Network
from snn.streaming import Stream

cfg = settings.load({repository!r} + "/configs/adlif_shd.yaml")
recordings = readers.read("shd", "{name}_train.h5", "train", cfg.data.channels, {classes})
network = Network(cfg.network, cfg.data.shape, {classes})
optimizer = torch.optim.Adam(network.parameters())
bins = Bins(cfg.data.dt_ms, cfg.data.T, cfg.data.T_empty, cfg.data.channels)
for x_TBC, target_B in batches(recordings, np.arange(len(recordings))[:32], bins, 16):
    network.reset()
    optimizer.zero_grad()
    objective(network(x_TBC), target_B, cfg.loss, training=True).backward()
    optimizer.step()
    network.clamp_values()
network.reset()
stream = Stream(network, cfg.data.dt_ms, cfg.data.T)
events = slice(*recordings.offsets[:2])
print(stream.push(recordings.times[events], recordings.channels[events]) or stream.finish())
"""


def test_a_script_in_another_folder(tmp_path):
    """Use the events of ../shared if they are there, otherwise made-up ones; only the repository's folder is known."""
    expand = REPOSITORY.parent / "shared" / "data" / "expand.py"
    name, classes = "fsdd", 10
    if expand.exists():
        subprocess.run([sys.executable, expand, name, tmp_path], check=True, capture_output=True)
    else:
        write_shd(tmp_path / f"{name}_train.h5", **make_events(40, classes, 700, 0))
    (tmp_path / "notebook.py").write_text(NOTEBOOK.format(repository=str(REPOSITORY), name=name, classes=classes))
    done = subprocess.run([sys.executable, "notebook.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Decision(label=" in done.stdout
