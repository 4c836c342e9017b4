"""C against Python: decisions, their steps and the spikes of all layers, natively and as on a microcontroller."""

import copy
import ctypes
import re
import shutil
import subprocess
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from benchmarks import embedded as bench
from datasets.binning import Bins
from datasets.recordings import Recordings
from snn import checkpoint, embedded, ops
from snn.coding import first_times, fs_decision
from snn.config import NeuronParams
from snn.errors import InputError
from snn.network import Network
from snn.neurons import NEURONS, SpikingNeuron
from snn.ops import printer
from snn.ops.binning import step_of
from snn.quantise import quantised
from tests.conftest import assert_one_line
from tests.networks import build, read, small, small_conv
from tests.streams import DT_MS, T_EMPTY, VARIANTS, T, activity, make_stream, over_variants, recordings, trained

BINS = Bins(DT_MS, T, T_EMPTY, 30)
NAMES = ("zero", 'a "b"', "fünf??=", "\\")
WEIGHTS = pytest.mark.parametrize("int8", [False, True], ids=["float32", "int8"])
GCC = shutil.which("gcc")
needs_gcc = pytest.mark.skipif(GCC is None, reason="needs gcc: apt install gcc")


def crowded(n: int = 6) -> Recordings:
    """Make recordings whose events are mostly on few channels, so that a channel has many in a step."""
    random = np.random.default_rng(6)
    lengths = random.integers(500, 900, n)
    times = [np.sort(random.integers(0, 280_000, k)) for k in lengths]
    channels = (random.random(lengths.sum()) ** 3 * 30).astype(np.uint16)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    labels = np.zeros(n, np.int64)
    return Recordings(offsets, np.concatenate(times).astype(np.uint32), 1e6, channels, labels, None, "made up")


def code_of(network: Network, int8: bool = False, **changes) -> embedded.Code:
    return embedded.code(network, **({"dt_ms": DT_MS, "T": T, "T_empty": T_EMPTY, "int8": int8} | changes))


def lines_of(network: Network, data: Recordings) -> list[str]:
    """Return the spikes and decisions expected from the C, computed in batches by a folded network."""
    lines = []
    for row in range(len(data)):
        lines += bench.spikes(network, data, row, BINS)
        s_TBN, h_TBN, _ = activity(network, bench.bin_events(data, np.array([row]), BINS))
        t_BN = first_times(s_TBN, h_TBN)
        step, label = int(t_BN.amin()), int(fs_decision(t_BN))
        lines.append(f"decision 1 {label} {step}" if step <= T + T_EMPTY else f"decision 3 {label} 0")
    return lines


def run(tmp_path, network: Network, data: Recordings, int8: bool, *options: str) -> list[str]:
    """Run the C of a network and return its answers, with all its spikes."""
    bench.write_code(code_of(network, int8), tmp_path)
    bench.write_recordings(tmp_path, data, range(len(data)))
    size, *lines = bench.run_native(tmp_path, ["gcc", *options], "-DSPIKES")
    assert size == f"size {code_of(network, int8).state_bytes}"
    return lines


@needs_gcc
@WEIGHTS
@over_variants
def test_every_spike_and_decision_is_that_of_a_stream(changes, int8, tmp_path):
    network, data = trained(**changes), recordings()
    folded = (quantised if int8 else Network.folded)(network)
    lines = run(tmp_path, network, data, int8, *bench.SANITISED)
    expected = lines_of(folded, data)
    assert lines == expected
    assert [line for line in lines if line[0] == "d"] == bench.decisions(folded, data, range(len(data)), BINS)
    fired = {line.split()[2] for line in lines if line[0] == "s"}
    assert fired == {"0", "1", "2"}


@needs_gcc
@pytest.mark.parametrize("changes", [VARIANTS[0], VARIANTS[3], VARIANTS[4]], ids=str)
def test_many_events_of_a_channel_in_a_step(changes, tmp_path):
    network, data = trained(**changes), crowded()
    assert bench.bin_events(data, np.arange(len(data)), BINS).counts.max() > 9
    assert run(tmp_path, network, data, False, "-O3") == lines_of(network.folded(), data)


@torch.no_grad()
def mostly_zeros(network: Network, share: float = 0.75) -> Network:
    """Return a copy whose smallest weights are 0."""
    network = copy.deepcopy(network)
    for name, weight in network.named_parameters():
        if name.endswith(("linear.weight", ".V")):
            weight *= 1.5 * (weight.abs() > weight.abs().quantile(share))
    return network


def matrices(code: embedded.Code, kind: str) -> set[str]:
    """Return the numbers of the layers with such an array."""
    return set(re.findall(rf" {kind}_(\d)\[", code.files["weights.h"]))


@needs_gcc
@WEIGHTS
@pytest.mark.parametrize("changes", [VARIANTS[3], VARIANTS[4]], ids=str)
@pytest.mark.parametrize("data", [recordings(), crowded()], ids=["usual", "crowded"])
def test_weights_that_are_0_are_left_out(data, changes, int8, tmp_path):
    network = mostly_zeros(trained(**changes))
    code = code_of(network, int8)
    assert matrices(code, "starts") >= {"1", "2"}
    assert matrices(code, "recurrent_starts") == {"2"}
    assert "not 0 of 30 * 16" in code.files["weights.h"]
    lines = run(tmp_path, network, data, int8, *bench.SANITISED)
    assert lines == lines_of((quantised if int8 else Network.folded)(network), data)
    assert {line.split()[2] for line in lines if line[0] == "s"} >= {"0", "1"}


@needs_gcc
@WEIGHTS
def test_neurons_of_a_wide_layer_that_are_far_apart(int8, tmp_path):
    network = mostly_zeros(trained(layers=("600F", "520FDS3"), batch_norm=False), 0.995)
    with torch.no_grad():  # few weights, and still spikes
        network.layers[1].linear.weight *= 10
    code = code_of(network, int8)
    for k, inputs, neurons in ((1, 30, 600), (2, 600, 520)):
        stored = int(re.search(rf" weights_{k}\[(\d+)\]", code.files["weights.h"])[1])
        others = int(re.search(rf"weights_{k}: the (\S+) that", code.files["weights.h"])[1].replace(",", ""))
        assert others < inputs * neurons * 0.006
        assert 0 < stored - others <= inputs * (neurons // 255)
    lines = run(tmp_path, network, crowded(), int8, *bench.SANITISED)
    assert lines == lines_of((quantised if int8 else Network.folded)(network), crowded())
    assert {line.split()[2] for line in lines if line[0] == "s"} >= {"0", "1"}


def test_weights_are_stored_in_the_way_that_takes_less():
    network = trained(pruned=False, layers=("16F",), batch_norm=False)
    weight_NC = network.layers[0].linear.weight
    sizes, sparse = {}, {}
    for zeros in (0, 108, 109):  # of 480 weights of 4 bytes; without zeros 5 bytes each, and 31 starts of 2 bytes
        with torch.no_grad():
            weight_NC.fill_(0.5)
            weight_NC.view(-1)[:zeros] = 0
        code = code_of(network)
        sizes[zeros], sparse[zeros] = code.constants_bytes, matrices(code, "starts")
    assert sizes[0] - sizes[108] == 0
    assert sizes[0] - sizes[109] == 480 * 4 - (371 * 5 + 31 * 2)
    assert sparse == {0: set(), 108: set(), 109: {"1"}}
    with torch.no_grad():
        weight_NC.fill_(0)
    assert matrices(code_of(network), "starts") == set()  # C has no empty array


def test_memory_of_delays():
    cfg = read("adlif_digits")
    network = build(cfg).eval()
    code = embedded.code(network, cfg.data.dt_ms, cfg.data.T, int8=True)
    assert code.state_bytes < 14_000
    assert re.search(r"uint8_t late_counts_1\[2\d\]\[140\]", code.files["network.h"])


@needs_gcc
@pytest.mark.parametrize(("delay", "times_ms", "fires"), [(1, (0, 0, 15), True), (0, (10, 10, 15), False)])
def test_what_arrives_at_once_is_summed_after_what_was_sent_earlier(delay, times_ms, fires, tmp_path):
    """Two late inputs cancel each other, and one beside which they are huge arrives at once in the same step."""
    network = trained(layers=("16F+D5",), batch_norm=False)
    linear = network.layers[0].linear
    with torch.no_grad():
        linear.weight.zero_()
        linear.weight[:, 30], linear.weight[:, 31], linear.weight[:, 2] = 2.0**31, -(2.0**31), 64.0
        linear.delays.steps.fill_(delay)
    times = np.array(times_ms, np.uint32) * 1000
    data = Recordings(np.array([0, 3]), times, 1e6, np.array([0, 1, 2], np.uint16), np.zeros(1, np.int64), None, "x")
    lines = run(tmp_path, network, data, False, "-O3")
    assert lines == lines_of(network.folded(), data)
    assert any(line.startswith("s") for line in lines) == fires


def test_inputs_that_arrive_twice_have_room():
    def network(channels: int, *layers: str) -> Network:
        return Network(small(layers=layers).network, (channels,), 4).eval()

    header = embedded.code(network(200, "40F+D2", "16F+D1"), 10.0, 100, int8=True, most_late=2**16 - 1).files[
        "network.h"
    ]
    assert "channels[400], counts[400]" in header
    assert "arrived[80]" in header
    assert f"NETWORK_MOST_EVENTS {(2**31 - 1) // (127 * 400)} " in header  # their sum fits 32 bits
    with pytest.raises(InputError, match="16 bits, but a layer has 80,000"):
        code_of(network(40_000, "1F+D1"))


@needs_gcc
def test_an_output_layer_alone(tmp_path):
    network, data = trained(layers=(), output_delay="+D3"), recordings(4)
    assert run(tmp_path, network, data, False, "-O3") == lines_of(network.folded(), data)


@needs_gcc
@pytest.mark.parametrize("name", NEURONS)
@pytest.mark.parametrize("reset", ["hard", "soft"])
def test_each_neuron(name, reset, tmp_path):
    params = NeuronParams(tau_mem_steps=5.0, tau_syn_steps=5.0, theta=0.005 if name == "BRF" else 0.05)
    changes = {"neuron": name, "output_neuron": name, "reset": reset, "neuron1": params, "neuron2": params}
    network, data = trained(**changes), recordings(6)
    folded = network.folded()
    for module in folded.modules():
        if isinstance(module, SpikingNeuron):
            module.backend = "torch"  # the definition itself
    lines = run(tmp_path, network, data, False, "-O3")
    assert lines == lines_of(folded, data)
    assert {line.split()[2] for line in lines if line[0] == "s"} >= {"0", "1"}


SUMS = """
#include "network.c"
#include <math.h>
#include <stdlib.h>
int differing(int number)
{
    int found = 0;
    for (int k = 0; k < number; k++) {
        const float count = (float)(3 + rand() % 65533), sum = ldexpf((float)rand() / RAND_MAX - 0.5f, rand() % 30);
        const float weight = ldexpf((float)rand() / RAND_MAX - 0.5f, rand() % 60 - 40);
        found += add_product(sum, count, weight) != fmaf(count, weight, sum);
    }
    return found;
}
float once(float sum, float count, float weight) { return add_product(sum, count, weight); }
"""


def library(tmp_path, *sources: str, options: tuple[str, ...] = ()) -> ctypes.CDLL:
    bench.ran(["gcc", "-std=c99", "-O2", "-shared", "-fPIC", "-I.", *sources, *options, "-o", "lib.so"], tmp_path)
    return ctypes.CDLL(str(tmp_path / "lib.so"))


@needs_gcc
def test_a_count_times_a_weight_is_added_with_one_rounding(tmp_path):
    bench.write_code(code_of(trained()), tmp_path)
    (tmp_path / "sums.c").write_text(SUMS)
    sums = library(tmp_path, "sums.c", options=("-lm",))
    assert sums.differing(1_000_000) == 0
    sums.once.restype, sums.once.argtypes = ctypes.c_float, [ctypes.c_float] * 3
    weight = (2**24 - 2**12 + 1) / 2**30  # 4097 of it are 64 + 2^-30: in double 2^30 + 64, halfway between two floats
    assert sums.once(2**30, 4097, weight) == 2**30 + 128
    assert sums.once(-(2**30), 4097, -weight) == -(2**30) - 128


class Machine:
    """A network in C, called from here."""

    def __init__(self, tmp_path, network: Network, **changes):
        code = code_of(network, **changes)
        bench.write_code(code, tmp_path)
        self.compiled = library(tmp_path, "network.c")
        self.net = ctypes.create_string_buffer(code.state_bytes)
        self.call("reset")

    def call(self, name: str, *numbers: int) -> int:
        return getattr(self.compiled, f"network_{name}")(self.net, *map(ctypes.c_uint32, numbers))

    def number(self, offset: int) -> int:
        return int.from_bytes(self.net.raw[offset : offset + 4], "little")

    @property
    def steps(self) -> int:
        return self.number(0)


def silent(network: Network) -> Network:
    network = copy.deepcopy(network)
    network.output.neurons.theta.fill_(1e6)
    return network


RUNNING, DECIDED, PAST, BY_POTENTIAL, BACK, NO_CHANNEL, TOO_MANY, NO_EVENTS = 0, 1, 2, 3, -1, -2, -3, -4
END_US = int(1000 * DT_MS) * T


@needs_gcc
def test_answers_to_inputs_that_do_not_fit(tmp_path):
    machine = Machine(tmp_path, silent(trained()))
    assert machine.call("finish") == NO_EVENTS
    assert machine.call("push", 15_000, 29) == RUNNING
    before = machine.net.raw
    assert machine.call("push", 15_000, 30) == NO_CHANNEL
    assert machine.call("push", 14_999, 0) == BACK
    assert machine.call("push", 2**32 - 1, 2**32 - 1) == NO_CHANNEL
    assert machine.call("advance", 14_999) == BACK
    assert machine.net.raw == before
    for _ in range(65_534):
        assert machine.call("push", 15_000, 29) == RUNNING
    before = machine.net.raw
    assert machine.call("push", 16_000, 29) == TOO_MANY
    assert machine.net.raw == before
    assert machine.call("push", 20_000, 29) == RUNNING  # in the next step there is room
    assert machine.call("push", END_US, 0) == PAST
    assert machine.steps == T
    assert machine.call("push", 2**32 - 1, 0) == PAST
    assert machine.call("finish") == BY_POTENTIAL
    assert machine.steps == T + T_EMPTY
    assert machine.call("push", 2**32 - 1, 0) == PAST
    machine.call("reset")
    assert machine.net.raw == bytes(len(machine.net.raw))
    assert machine.call("push", 0, 0) == RUNNING
    assert machine.call("finish") == BY_POTENTIAL
    assert machine.call("push", 0, 0) == PAST  # that step has run


@needs_gcc
@pytest.mark.parametrize("most", [255, 300])
def test_counts_that_wait_have_a_limit(most, tmp_path):
    network = silent(trained(**VARIANTS[3]))
    machine = Machine(tmp_path, network, **({} if most == 255 else {"most_late": most}))
    for _ in range(most):
        assert machine.call("push", 15_000, 29) == RUNNING
    before = machine.net.raw
    assert machine.call("push", 15_000, 29) == TOO_MANY
    assert machine.net.raw == before
    assert machine.call("push", 15_000, 28) == RUNNING
    assert machine.call("finish") == BY_POTENTIAL
    stream = make_stream(network)
    stream.push(np.full(most + 1, 15_000), np.array([29] * most + [28]))
    header = (tmp_path / "network.h").read_text()
    assert f"NETWORK_MOST_EVENTS {most} " in header
    assert int.from_bytes(machine.net.raw[8:10], "little") == stream.finish().label


@needs_gcc
def test_potentials_equal_those_of_a_batch_in_every_bit(tmp_path):
    layers, widest = ("40F", "32FD3"), 40
    network, data = trained(layers=layers, output_delay="D2", variant="superspike"), crowded(1)
    machine = Machine(tmp_path, network)
    machine.net[10] = 1  # runs_on
    at = -(-(12 + 2 * 3 + 2 * 3 * widest) // 4) * 4
    _, h_TBN, _ = activity(network.folded(), bench.bin_events(data, np.array([0]), BINS))
    for step in range(T):
        is_now = data.times // 10_000 == step
        for time, channel in zip(data.times[is_now].tolist(), data.channels[is_now].tolist(), strict=True):
            machine.call("push", time, channel)
        machine.call("advance", 10_000 * (step + 1))
        assert machine.net.raw[at : at + 16] == h_TBN[step, 0].numpy().tobytes()


@needs_gcc
def test_a_clock_in_place_of_events_and_going_on_after_the_decision(tmp_path):
    network = trained()
    with torch.no_grad():  # its bias alone fires an output neuron
        network.output.linear.weight.abs_()
        network.layers[1].norm.bias += 100
    machine = Machine(tmp_path, network)
    assert machine.call("push", 0, 3) == RUNNING
    assert machine.call("advance", 9_999) == RUNNING
    assert machine.steps == 0
    assert machine.call("advance", 10_000) in (RUNNING, DECIDED)
    assert machine.steps == 1
    assert machine.call("advance", 2**32 - 1) == DECIDED
    decided = machine.steps
    assert 1 <= decided < T
    assert machine.number(4) == decided
    assert machine.call("push", 2**32 - 1, 3) == DECIDED
    assert machine.call("finish") == DECIDED
    assert machine.steps == decided
    machine.call("reset")
    machine.net[10] = 1  # runs_on
    assert machine.call("push", END_US - 1, 3) == DECIDED
    assert machine.steps == T - 1
    assert machine.number(4) == decided


@needs_gcc
def test_the_program_that_comes_with_it(tmp_path):
    network = silent(trained())
    bench.write_code(code_of(network, class_names=NAMES), tmp_path)
    bench.ran(["make", "-s", "CC=gcc -Werror"], tmp_path)
    (tmp_path / "good.txt").write_text("0 1\n1000 29\n90000 4\n")

    def said(*names: str) -> subprocess.CompletedProcess:
        return subprocess.run(["./network", *names], cwd=tmp_path, capture_output=True, text=True)

    stream = make_stream(network)
    stream.push(np.array([0, 1000, 90_000]), np.array([1, 29, 4]))
    assert said("good.txt").stdout == f"good.txt: {NAMES[stream.finish().label]} by potential\n"
    for text, words in {
        "0 1\n0 30\n": "bad.txt, event 2: no such channel",
        "5 1\n4 2\n": "bad.txt, event 2: its time is earlier than that of the previous event",
        "0 1\nx\n": "bad.txt, event 2: not a time in microseconds and a channel",
        "0 1\n99999999999 1\n": "bad.txt, event 2: not a time in microseconds and a channel",
    }.items():
        (tmp_path / "bad.txt").write_text(text)
        result = said("bad.txt")
        assert (result.returncode, result.stderr) == (2, words + "\n")
    (tmp_path / "none.txt").write_text("")
    assert said("none.txt").stdout == "none.txt: no event within the window, no decision\n"
    assert said("away.txt").returncode == said().returncode == 2


@pytest.mark.skipif(find_spec("ziglang") is None, reason="needs zig: pip install ziglang")
def test_zig_compiles_each_network_and_not_that_of_another_folder(tmp_path):
    for layers in (("16F",), ("16FD5",)):
        code, folder = code_of(trained(layers=layers)), tmp_path / layers[0]
        folder.mkdir()
        bench.write_code(code, folder)
        bench.write_recordings(folder, recordings(), range(1))
        assert bench.run_native(folder, [*bench.ZIG, "-O1"])[0] == f"size {code.state_bytes}"


def test_times_in_seconds_fall_into_the_same_steps_as_in_microseconds():
    random = np.random.default_rng(0)
    seconds = (random.integers(0, 100, 10_000) * 0.01 + random.integers(-1, 2, 10_000) * 1e-7).clip(0)
    times = np.sort(seconds).astype(np.float32)
    data = Recordings(np.array([0, 10_000]), times, 1.0, np.zeros(10_000, int), np.zeros(1, int), None, "made up")
    steps = np.array([step_of(time, 1.0, 10.0, 100) for time in data.times])
    assert (bench.microseconds(data, slice(None)) // 10_000 == steps).all()


@pytest.mark.skipif(bool(bench.missing_for_arm()), reason=bench.missing_for_arm() or "all is there")
@WEIGHTS
@pytest.mark.parametrize("board", bench.BOARDS, ids=lambda board: board.name)
def test_decisions_on_a_microcontroller(board, int8, tmp_path):
    network, data = trained(**VARIANTS[1]), recordings(20)
    bench.write_code(code_of(network, int8), tmp_path)
    bench.write_recordings(tmp_path, data, range(20))
    lines = [line.split() for line in bench.run_on(board, tmp_path)[1:]]
    expected = bench.decisions((quantised if int8 else Network.folded)(network), data, range(20), BINS)
    assert [" ".join(words[:4]) for words in lines] == expected
    for *_, step, to_decision, to_end in lines:
        assert 0 < int(to_decision) <= int(to_end) * 1.01
        if 0 < int(step) < T / 2:
            assert int(to_decision) < 0.7 * int(to_end)


def test_networks_that_c_cannot_say():
    with pytest.raises(InputError, match="convolutions or pools"):
        code_of(build(small_conv()))
    with pytest.raises(InputError, match=r"dt_ms 0\.0005 is not a whole number"):
        code_of(trained(), dt_ms=0.0005)
    with pytest.raises(InputError, match="take float32 networks"):
        code_of(trained().double())
    with pytest.raises(InputError, match="microseconds in 32 bits"):
        code_of(trained(), T=10**6)


def test_a_neuron_whose_output_is_no_spike_cannot_be_said():
    def step(x, state, p):
        s = p.spike(state.v - p.theta)
        return 2 * s, state.v, {"v": x + p.weights * state.v}

    graded = ops.Dynamics("Graded", step, ("v",), ("theta", "weights"))
    with pytest.raises(InputError, match="Graded: its output is not a spike of size 1"):
        printer.c(graded)


def test_export_writes_a_folder_once(program, tmp_path):
    cfg = small()
    checkpoint.save(tmp_path / "net.pt", cfg, build(cfg), epoch=1)
    result = program("export.py --load_pt_file net.pt --format c")
    assert result.returncode == 0, result.stderr
    assert sorted(path.name for path in (tmp_path / "net_c").iterdir()) == sorted([*embedded.FILES, "weights.h"])
    assert result.stdout.startswith("net_c: C for ")
    assert_one_line(program("export.py --load_pt_file net.pt --format c"), "net_c", "already", "--out")
    assert program("export.py --load_pt_file net.pt --format c --quantise int8 --out small").returncode == 0
    assert "int8_t" in (tmp_path / "small" / "weights.h").read_text()
    assert_one_line(program("export.py --load_pt_file net.pt --format nir --quantise int8"), "--format c")
    assert_one_line(program("export.py --load_pt_file net.pt --format c --out no/where"), "cannot be written")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
