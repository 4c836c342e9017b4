"""TTFS networks in C against `snn.ttfs.events`, bit by bit, and against the network's own decisions."""

import ctypes
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import embedded as bench
from snn import checkpoint, settings
from snn.embedded import ttfs
from snn.errors import InputError
from snn.quantise import as_int8, quantised
from snn.ttfs.events import EventDriven
from snn.ttfs.kernels import channels_last
from snn.ttfs.layers import SpikingLayer
from snn.ttfs.network import TTFSNetwork
from tests.conftest import REPOSITORY, assert_one_line, toy_images
from tests.networks import build_ttfs, random_images, trained_ttfs

needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc: apt install gcc")
WEIGHTS = pytest.mark.parametrize("int8", [False, True], ids=["float32", "int8"])
VARIANTS = [
    {},
    {"words": "20F - 15F", "T": 3.0, "zero_drive_fires": True},
    {"words": "A2 - 6C5S2 - 9C3 - P2 - 12F", "standardised": True, "T": 0.3},
    {"bias": True, "T": 0.5},
]


def bits(value: float) -> str:
    return f"{np.float32(value).view(np.uint32):x}"


def expected(network: TTFSNetwork, pixels: np.ndarray) -> list[str]:
    """Return the lines of benchmarks/mps2/images.c: times of all layers, pools included, and decisions."""
    events, lines = EventDriven(network), []
    for x in torch.from_numpy(pixels) / 255:
        outcome = events.run(x)
        t, t_layers = events.encoder(x[None]), iter(outcome.t_layers)
        for module in network.layers:
            t = next(t_layers)[None] if isinstance(module, SpikingLayer) else module(t)
            lines.append(" ".join(["layer", *map(bits, channels_last(t[0]).flatten())]))
        time = (outcome.windows - len(outcome.t_layers)) * events.T
        lines.append(f"decision {outcome.label} {bits(time)} {sum(outcome.operations)}")
    return lines


def run(folder: Path, network: TTFSNetwork, int8: bool, pixels: np.ndarray, *options: str) -> list[str]:
    code = ttfs.code(network, None, int8)
    bench.write_code(code, folder)
    pixels.tofile(folder / "images.bin")
    size, *lines = bench.run_native(folder, ["gcc", *options], "-DSPIKES", sources=[bench.IMAGES])
    assert size == f"size {code.state_bytes}"
    return lines


@needs_gcc
@WEIGHTS
@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_every_spike_time_and_decision_in_every_bit(options, int8, tmp_path):
    network = build_ttfs(**options).eval()
    pixels = (255 * random_images(12)).to(torch.uint8).numpy()
    pixels[0], pixels[1, :, :6] = 0, 255
    lines = run(tmp_path, network, int8, pixels, *bench.SANITISED)
    same = expected((quantised if int8 else TTFSNetwork.folded)(network), pixels)
    assert [line for line in lines if line[0] == "d"] == [line for line in same if line[0] == "d"]
    assert lines == same


@needs_gcc
@WEIGHTS
@pytest.mark.parametrize("words", ["30F", "6C3 - P2 - 8C3 - A2 - 20F"])
def test_decisions_of_a_trained_network_are_its_own(words, int8, tmp_path):
    network, (pixels, labels) = trained_ttfs(words), toy_images(60, 1)
    lines = [line.split() for line in run(tmp_path, network, int8, pixels, "-O3") if line[0] == "d"]
    rounded = (quantised if int8 else TTFSNetwork.folded)(network)
    decisions = rounded(torch.from_numpy(pixels)[:, None] / 255).V_BN.argmax(1)
    assert [int(line[1]) for line in lines] == decisions.tolist()
    assert (decisions == torch.from_numpy(labels)).float().mean() > 0.9


@needs_gcc
def test_spikes_pushed_in_any_order_and_inputs_that_do_not_fit(tmp_path):
    network, (pixels, _) = trained_ttfs("6C3 - 20F"), toy_images(4, 1)
    bench.write_code(ttfs.code(network), tmp_path)
    bench.ran(["gcc", "-std=c99", "-O2", "-shared", "-fPIC", "network.c", "-o", "lib.so"], tmp_path)
    compiled = ctypes.CDLL(str(tmp_path / "lib.so"))
    net = ctypes.create_string_buffer(ttfs.code(network).state_bytes)

    def push(time: float, number: int) -> int:
        return compiled.network_push(net, ctypes.c_float(time), ctypes.c_uint32(number))

    for image in pixels:
        by_pixels = compiled.network_decide(net, image.ctypes.data_as(ctypes.c_void_p)), net.raw[:12]
        compiled.network_reset(net)
        for number in np.random.default_rng(0).permutation(144):
            if image.flat[number]:
                assert push(1 - np.float32(image.flat[number]) / np.float32(255), int(number)) == 0
        assert (compiled.network_finish(net), net.raw[:12]) == by_pixels
    compiled.network_reset(net)
    assert push(0.25, 143) == 0
    before = net.raw
    assert push(0.25, 144) == push(0.25, 2**32 - 1) == -1
    assert push(-1e-6, 0) == push(1.001, 0) == push(float("nan"), 0) == push(float("inf"), 0) == -2
    assert push(0.5, 143) == -3
    assert net.raw == before
    assert push(1.0, 0) == push(0.0, 1) == 0


@needs_gcc
def test_the_program_that_comes_with_it(tmp_path):
    network, (pixels, _) = trained_ttfs("20F"), toy_images(3, 1)
    bench.write_code(ttfs.code(network, ("one", 'a "b"', "fünf??=")), tmp_path)
    bench.ran(["make", "-s", "CC=gcc -Werror"], tmp_path)
    pixels.tofile(tmp_path / "good.bin")
    (tmp_path / "bad.bin").write_bytes(bytes(145))

    def said(*names: str) -> subprocess.CompletedProcess:
        return subprocess.run(["./network", *names], cwd=tmp_path, capture_output=True, text=True)

    outcomes = [EventDriven(network).run(x) for x in torch.from_numpy(pixels)[:, None] / 255]
    names = ("one", 'a "b"', "fünf??=")
    assert said("good.bin").stdout.splitlines() == [
        f"good.bin, image {k}: {names[outcome.label]}, certain after {outcome.windows:.4f} windows"
        for k, outcome in enumerate(outcomes)
    ]
    result = said("bad.bin")
    assert (result.returncode, result.stderr) == (
        2,
        "bad.bin: its size is not a multiple of 144 bytes, those of an image\n",
    )
    assert said("away.bin").returncode == said().returncode == 2


@pytest.mark.skipif(bool(bench.missing_for_arm()), reason=bench.missing_for_arm() or "all is there")
@WEIGHTS
@pytest.mark.parametrize("board", bench.BOARDS, ids=lambda board: board.name)
def test_decisions_on_a_microcontroller(board, int8, tmp_path):
    network, (pixels, _) = trained_ttfs("6C3 - P2 - 20F"), toy_images(6, 1)
    bench.write_code(ttfs.code(network, None, int8), tmp_path)
    pixels.tofile(tmp_path / "images.bin")
    lines = bench.run_on(board, tmp_path, [bench.IMAGES])[1:]
    same = [
        line
        for line in expected((quantised if int8 else TTFSNetwork.folded)(network), pixels[:, None])
        if line[0] == "d"
    ]
    assert [line.rpartition(" ")[0] for line in lines] == same
    assert all(int(line.split()[-1]) > 0 for line in lines)


def test_a_quantised_network_has_weights_of_a_byte():
    network = build_ttfs(standardised=True)
    rounded = quantised(network)
    assert network.layers[0].gain is not None  # a copy
    for weight in rounded.parameters():
        whole, scale_O = as_int8(weight.detach().flatten(1))
        assert (whole * scale_O[:, None] == weight.flatten(1)).all()
    assert not torch.equal(rounded.layers[0].weight, network.folded().layers[0].weight)


def test_rounded_synapses_of_standardised_neurons_sum_up_to_less_than_0():
    """In an area of one colour, neurons stay silent as they did before rounding."""
    network = build_ttfs("40C3 - 60C3 - 30F", standardised=True)
    with torch.no_grad():
        network.layers[0].gain.data[3] = 0  # no synapse
    folded, rounded = network.folded(), quantised(network)
    for layer, before in zip(rounded.layers, folded.layers, strict=True):
        weight_NC, before_NC = layer.weight.flatten(1), before.weight.flatten(1)
        whole_NC, scale_N = as_int8(before_NC)
        assert (whole_NC.sum(1) >= 0).sum() > 5  # rounding alone would not do
        assert (weight_NC.double().sum(1) < 0).all()
        assert ((weight_NC - before_NC).abs() <= 1.5 * scale_N[:, None]).all()
    assert torch.equal(quantised(rounded).layers[1].weight, rounded.layers[1].weight)
    passage = rounded(torch.full((1, 2, 12, 10), 0.7)).passages[0]
    assert (passage.t_out[:, :, 1:-1, 1:-1] == torch.inf).all()


def test_networks_that_c_cannot_say():
    with pytest.raises(InputError, match=r"ttfs\.encoder: unit"):
        ttfs.code(build_ttfs(encoder="direct"))
    with pytest.raises(InputError, match="float32 networks"):
        ttfs.code(build_ttfs().double())
    with pytest.raises(InputError, match="with 16 bits, but one has 65,792"):
        ttfs.code(build_ttfs("257C1 - P2 - 3F", (1, 16, 16)))
    network = build_ttfs()
    with torch.no_grad():
        network.readout.weight[0, 0] = float("nan")
    with pytest.raises(InputError, match="not a finite number"):
        ttfs.code(network)


def test_export_writes_a_folder(program, tmp_path):
    cfg = settings.load(REPOSITORY / "configs" / "ttfs_mnist_mlp.yaml")
    network = TTFSNetwork(cfg.ttfs, cfg.data.shape, cfg.data.num_classes)
    checkpoint.save(tmp_path / "net.pt", cfg, network, epoch=1)
    result = program("export.py --load_pt_file net.pt --format c --quantise int8")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("net_c: C for 204,")
    names = ["Makefile", "README.md", "main.c", "network.c", "network.h", "weights.h"]
    assert sorted(path.name for path in (tmp_path / "net_c").iterdir()) == names
    assert_one_line(program("export.py --load_pt_file net.pt --format c"), "net_c", "already", "--out")
    assert_one_line(program("export.py --load_pt_file net.pt --format html"), "TTFS", "--format c")


@pytest.mark.usefixtures("toy_file")
def test_a_quantised_network_is_tested_like_any_other(program, tmp_path):
    cfg = settings.load(REPOSITORY / "configs" / "ttfs_mnist_mlp.yaml")
    data = cfg.data.model_copy(
        update={"dataset_name": "toy", "layout": "npz", "path": "data", "shape": (1, 12, 12), "num_classes": 3}
    )
    network, run_folder = trained_ttfs("30F", standardised=True), tmp_path / "runs" / "x"
    with torch.no_grad():  # the same weight for all classes, beside which all others are rounded to 0
        network.readout.weight[:, 0] = 1000
    ttfs_fields = cfg.ttfs.model_copy(update={"layers": "30F", "standardised": True})
    run_folder.mkdir(parents=True)
    checkpoint.save(
        run_folder / "best.pt", cfg.model_copy(update={"data": data, "ttfs": ttfs_fields}), network, epoch=1
    )
    for words in ("", " --quantise int8"):
        result = program(f"test.py --load_pt_file x --set train.device=cpu{words}")
        assert result.returncode == 0, result.stderr
    exact, rounded = (json.loads((run_folder / name / "metrics.json").read_text()) for name in ("test", "test_int8"))
    labels = [np.load(run_folder / name / "samples.npz")["label"] for name in ("test", "test_int8")]
    assert rounded["moved_by_quantising"] == (labels[0] != labels[1]).sum() > 0
    assert rounded["weight_bytes"] == 144 * 30 + 30 * 3 + 4 * (30 + 3)
    assert rounded["loss"] != exact["loss"]
    assert "moved_by_quantising" not in exact
    assert "decisions changed by rounding the weights" in result.stdout
