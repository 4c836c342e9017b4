"""Streams of convolutions and pools: every spike of every layer is that of the batch."""

import numpy as np
import pytest
import torch

from datasets.binning import Bins, bin_events
from snn.coding import first_times, fs_decision
from snn.errors import InputError
from snn.network import Network
from snn.ops.stream import H, S
from tests.networks import small_conv
from tests.streams import DT_MS, EASY, N_RECORDINGS, T_EMPTY, T, activity, make_stream, recordings, used

# (image, layers): lines and columns that fill no window, kernels as large as the image, strides that skip its end,
# numbers of channels that fill no line of registers; all are one compiled stream
NETWORKS = [
    ((2, 7, 5), ("6C3", "P2", "4C3S2", "9R")),
    ((1, 9, 11), ("5C5S3", "A2", "17C1", "9R")),
    ((3, 5, 13), ("33C7S2", "P3", "4C3", "9R")),
    ((2, 6, 6), ("6C1", "A3", "3C5S2", "9R")),
    ((2, 1, 8), ("16C3S2", "P1", "2C3S4", "9R")),
]


def network_of(image: tuple[int, int, int], layers: tuple[str, ...], **changes) -> Network:
    torch.manual_seed(0)
    cfg = small_conv(**{"layers": layers, "batch_norm": True, "neuron": "AdLIF", "neuron1": EASY} | changes)
    return used(Network(cfg.network, image, 4, "torch"))


def assert_all_spikes_are_those_of_batches(network: Network, steps: int = T, empty: int = T_EMPTY) -> None:
    data = recordings(num_channels=network.num_channels)
    x_TBC = bin_events(data, np.arange(N_RECORDINGS), Bins(DT_MS, steps, empty, network.num_channels))
    s_TBN, h_TBN, layers = activity(network.folded(), x_TBC)
    stream = make_stream(network, T=steps, T_empty=empty, stops=False)
    for r in range(N_RECORDINGS):
        stream.reset()
        begin, end = data.offsets[r : r + 2]
        times, channels = data.times[begin:end], data.channels[begin:end]
        for n in range(len(s_TBN)):
            now = (times // 10_000 == n) & (n < steps)
            stream.push(times[now], channels[now])
            stream._advance(np.empty(0, np.int64), np.empty(0, np.int32), n + 1)
            for layer, s_TBM in zip(stream._layers, layers, strict=True):
                assert np.array_equal(layer.rows[S, 0], s_TBM[n, r])
            assert np.array_equal(stream._layers[-1].rows[H, 0], h_TBN[n, r])
        if decision := stream.finish():
            assert decision.label == fs_decision(first_times(s_TBN, h_TBN))[r]


@pytest.mark.parametrize(("image", "layers"), NETWORKS, ids=str)
def test_every_spike_and_output_potential(image, layers):
    network = network_of(image, layers)
    assert all(s_TBN.any() for s_TBN in activity(network.folded()).layers)
    assert_all_spikes_are_those_of_batches(network)


def test_one_step():
    assert_all_spikes_are_those_of_batches(network_of(*NETWORKS[0]), steps=1, empty=0)


@pytest.mark.slow
def test_a_soft_reset():
    assert_all_spikes_are_those_of_batches(network_of(*NETWORKS[1], reset="soft"))


@pytest.mark.slow
def test_the_other_variant():
    assert_all_spikes_are_those_of_batches(network_of(*NETWORKS[2], variant="superspike"))


@torch.no_grad()
def test_outputs_that_fire_together():
    network = network_of(*NETWORKS[0])
    network.output.linear.weight.copy_(network.output.linear.weight[:1].abs().expand(4, -1))
    s_TBN = activity(network.folded()).s_TBN
    assert (s_TBN.all(-1) == s_TBN.any(-1)).all()
    assert s_TBN.any()
    assert_all_spikes_are_those_of_batches(network)


@torch.no_grad()
def test_silent_layers():
    network = network_of(*NETWORKS[0])
    for layer in network.layers:
        layer.neurons.theta.fill_(1e6)
    assert_all_spikes_are_those_of_batches(network)


def test_a_pool_of_negative_numbers():
    """A window's largest number is 0 unless all of them are negative."""
    network = network_of((1, 4, 4), ("P2",), batch_norm=False)
    drive = network.layers[0].linear.drive(16)
    x_TPC = torch.tensor([[-1, -3, -1, -3, -2, -4, 0, -4, 0, 0, 5, 0, 0, 0, 0, -1.0]]).view(1, 16, 1)
    (places,) = np.flatnonzero(x_TPC.numpy().ravel())[None].astype(np.int32)
    out = np.full((1, 4), np.nan, np.float32)
    for _ in range(2):  # and again
        drive.step(out, 0, places, x_TPC.numpy().ravel()[places], len(places), *drive.arrays)
        assert np.array_equal(out[0], network.layers[0].linear(x_TPC).ravel())
        assert out[0, 0] == -1


def test_a_layer_that_does_not_say_how_it_streams():
    network = network_of((1, 4, 4), ("P2",))
    network.layers[0].linear = torch.nn.AvgPool2d(2)
    with pytest.raises(InputError, match=r"layer 1 \(AvgPool2d\) does not say how it streams"):
        make_stream(network)
