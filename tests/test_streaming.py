"""Events as they come: decisions, times and counts are those of batches of the folded network, whatever the chunks."""

import copy

import numpy as np
import pytest
import torch

from datasets.binning import Bins, bin_events
from snn.coding import first_times, fs_decision
from snn.errors import InputError
from snn.network import Network
from snn.streaming import Stream, first_difference
from tests.networks import IMAGE, build, image_events, small, small_conv
from tests.streams import (
    DT_MS,
    N_RECORDINGS,
    T_EMPTY,
    VARIANTS,
    T,
    activity,
    decide,
    make_stream,
    over_all,
    over_rest,
    recordings,
    trained,
)

DENSE = [VARIANTS[0], pytest.param(VARIANTS[1], marks=pytest.mark.slow)]


@over_all
def test_decisions_times_and_spikes_are_those_of_batches(changes):
    assert_decisions_are_those_of_batches(trained(**changes))


@over_rest
def test_the_decisions_of_all_other_neurons_are_those_of_batches(changes):
    assert_decisions_are_those_of_batches(trained(**changes))


@pytest.mark.parametrize("changes", DENSE, ids=str)
def test_decisions_without_a_weight_of_0(changes):
    assert_decisions_are_those_of_batches(trained(pruned=False, **changes))


def assert_decisions_are_those_of_batches(network: Network) -> None:
    s_TBN, h_TBN, layers = activity(network.folded())
    t_BN = first_times(s_TBN, h_TBN)
    label_B, first_B = fs_decision(t_BN).tolist(), t_BN.amin(-1).long().tolist()
    fired = [first <= T + T_EMPTY for first in first_B]
    assert any(fired)
    assert len(set(first_B)) > 1
    stops, whole = make_stream(network), make_stream(network, stops=False)
    for r in range(N_RECORDINGS):
        for chunk in (1, 7, 1000):
            decision = decide(stops, r, chunk)
            assert decision.label == label_B[r]
            assert decision.step == (first_B[r] if fired[r] else None)
            assert decision.time_ms == (first_B[r] * DT_MS if fired[r] else None)
        data = recordings(num_channels=network.num_channels)
        whole.reset()
        early = whole.push(*(column[slice(*data.offsets[r : r + 2])] for column in (data.times, data.channels)))
        assert early in (None, decision)
        assert whole.finish() == decision
        assert whole.output_counts.tolist() == s_TBN[:, r].sum(0).tolist()
        assert whole.work.spikes == tuple(int(s[:, r].sum()) for s in layers)
        assert whole.work.steps == T + T_EMPTY


@pytest.mark.parametrize("changes", DENSE, ids=str)
def test_the_work_is_what_was_active_up_to_the_decision(changes):
    network = trained(pruned=False, **changes)
    folded = network.folded()
    bins = Bins(DT_MS, T, T_EMPTY, 30)
    for r in range(N_RECORDINGS):
        x_T1C = bin_events(recordings(), np.array([r]), bins)
        _, _, layers = activity(folded, x_T1C)
        stream = make_stream(network)
        decision = decide(stream, r, 10)
        steps = decision.step or T + T_EMPTY
        sizes = [s.shape[-1] for s in layers]
        inputs = [x_T1C.dense(), *layers[:-1]]
        expected = sum(int((x[:steps] != 0).sum()) * size for x, size in zip(inputs, sizes, strict=True))
        if "layers" in changes:
            expected += sum(int((s[: steps - 1] != 0).sum()) * s.shape[-1] for s in layers[:-1])
        assert stream.work.synaptic_operations == expected
        assert stream.work.neuron_updates == steps * sum(sizes)
        assert stream.work.steps == steps
        assert stream.work.events == int(x_T1C.per_step()[:steps].sum())


def test_folding_changes_nothing_but_rounding():
    network = trained()
    folded = network.folded()
    assert all(layer.norm is None and layer.linear.bias is not None for layer in folded.layers[:-1])
    assert all(layer.norm is not None for layer in network.layers[:-1])  # the network itself stays as it was
    x_TBC = bin_events(recordings(), np.arange(N_RECORDINGS), Bins(DT_MS, T, T_EMPTY, 30))
    layer, folded_layer = network.layers[0], folded.layers[0]
    with torch.no_grad():
        drive_TBN, folded_TBN = layer.norm(layer.linear(x_TBC)), folded_layer.linear(x_TBC)
    assert folded_layer.linear.is_event_driven
    torch.testing.assert_close(folded_TBN, drive_TBN, rtol=0, atol=1e-5 * float(drive_TBN.abs().max()))
    h_TBN, folded_h_TBN = activity(network).h_TBN, activity(folded).h_TBN
    same = (activity(network).layers[1] == activity(folded).layers[1]).all(0).all(-1)  # no spike moved by rounding
    assert same.any()
    torch.testing.assert_close(folded_h_TBN[:, same], h_TBN[:, same], rtol=0, atol=1e-5)


def test_folding_a_convolution():
    network, x_TBC = build(small_conv(batch_norm=True)).train(), image_events()
    with torch.no_grad():
        for layer in network.layers:
            if layer.norm is not None:
                layer.norm.weight.uniform_(0.5, 2)
                layer.norm.bias.uniform_(-0.2, 0.2)
        network(x_TBC)
    network.reset()
    network.eval()
    image_TPC = x_TBC.view(25, 6, *IMAGE).movedim(2, -1).reshape(25, -1, IMAGE[0])
    layer, folded_layer = network.layers[0], network.folded().layers[0]
    with torch.no_grad():
        drive_TPN, folded_TPN = layer.norm(layer.linear(image_TPC)), folded_layer.linear(image_TPC)
    assert folded_layer.linear.is_event_driven
    torch.testing.assert_close(folded_TPN, drive_TPN, rtol=0, atol=1e-5 * float(drive_TPN.abs().max()))


def test_where_two_networks_part():
    network = trained()
    other = network.folded()
    x_T1C = bin_events(recordings(), np.array([3]), Bins(DT_MS, T, T_EMPTY, 30))
    same = network.folded()
    assert first_difference(other, same, x_T1C) == "no spike differs"
    with torch.no_grad():
        other.layers[1].linear.bias[5] += 10  # neuron 5 of the second layer fires at once
    before, after = activity(same, x_T1C).layers[1], activity(other, x_T1C).layers[1]
    step = int((before != after).nonzero()[0, 0]) + 1
    words = first_difference(same, other, x_T1C)
    assert words.startswith(f"layer 2, step {step}, neuron 5: potential ")
    assert words.endswith("threshold 0.2")


@over_all
def test_an_output_that_never_fires_leaves_it_to_the_potential(changes):
    network = trained(**changes)
    silent = copy.deepcopy(network)
    silent.output.neurons.theta.fill_(1e6)
    s_TBN, h_TBN, _ = activity(silent.folded())
    assert not s_TBN.any()
    assert (h_TBN.amax(0).amax(-1) > 0).any()
    stream = make_stream(silent)
    for r, label in enumerate(fs_decision(first_times(s_TBN, h_TBN)).tolist()):
        assert decide(stream, r, 20) == (label, None, None)


def test_the_highest_of_negative_potentials():
    network = trained(pruned=False, neuron="AdLIF", output_neuron="AdLIF")
    network.output.neurons.theta.fill_(1e6)
    with torch.no_grad():
        network.output.linear.weight.copy_(-1 - torch.arange(4.0).flip(0).view(-1, 1).expand(4, 12))
        for layer in network.layers[:-1]:
            layer.norm.bias.fill_(50)  # all fire in the first step
        network.output.neurons.a.zero_()
        network.output.neurons.b.zero_()
    _, h_TBN, _ = activity(network.folded())
    assert (h_TBN < 0).all()
    assert {decide(make_stream(network), r, 20).label for r in range(N_RECORDINGS)} == {3}


def test_no_event_no_decision():
    stream = make_stream(trained())
    assert stream.push(np.array([], np.uint32), np.array([], np.uint16)) is None
    assert stream.finish() is None
    stream.reset()
    stream.push(np.array([T * 10_000]), np.array([3]))  # one, but past the window
    assert stream.finish() is None


def test_an_event_after_the_end_counts_no_more():
    stream = make_stream(trained(), stops=False)
    stream.push(np.array([10_000]), np.array([3]))
    decision, work = stream.finish(), stream.work
    assert work.events == 1
    stream.push(np.array([90_000]), np.array([5]))
    assert stream.work == work
    assert stream.finish() == decision


@pytest.mark.parametrize(
    ("times", "channels", "message"),
    [
        ([20_000, 30_000, 29_999], [0, 1, 2], "event 2 of this call has the time 29999, after 30000"),
        ([9_999], [0], "event 0 of this call has the time 9999, after 10000"),
        ([20_000.0, float("nan")], [0, 0], "event 1 of this call has the time nan"),
        ([20_000.0, float("inf")], [0, 0], "event 1 of this call has the time inf"),
        ([20_000, 20_000], [0, 30], "event 1 of this call: channel 30 is outside 0..29"),
        ([20_000], [-1], "channel -1 is outside 0..29"),
        ([20_000, 20_001], [1], "there must be a time for each channel"),
        ([20_000], [1.0], "not int64 and float64"),
    ],
)
def test_wrong_events_are_named_and_nothing_is_taken(times, channels, message):
    stream = make_stream(trained(), stops=False)
    stream.push(np.array([0, 10_000]), np.array([4, 4]))
    before = stream.work
    with pytest.raises(InputError, match=message):
        stream.push(np.array(times), np.array(channels))
    assert stream.work == before
    stream.push(np.array([10_000]), np.array([5]))
    assert stream.work.events == 3


def test_a_chunk_without_events_may_be_of_any_type():
    stream = Stream(build(small()), dt_ms=10, T=20)
    assert stream.push([], []) is None
    assert stream.work.events == 0
