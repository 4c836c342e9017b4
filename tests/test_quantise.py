"""Weights in int8: their rounding, the networks that have them, and the test of these networks."""

import copy
import json

import numpy as np
import pytest
import torch

from snn import checkpoint
from snn.quantise import as_int8, quantised
from tests.networks import build, small
from tests.streams import trained


def test_weights_as_bytes():
    generator = torch.Generator().manual_seed(0)
    weight_NC = torch.randn(50, 40, generator=generator) * torch.logspace(-6, 6, 50)[:, None]
    weight_NC[3], weight_NC[4], weight_NC[5, :] = 0, 0, 2.0**-7 * 127
    weight_NC[4, 0] = 2.0**-7
    whole_NC, scale_N = as_int8(weight_NC)
    assert whole_NC.dtype == torch.int8
    largest_N = whole_NC.abs().amax(1)
    assert largest_N[3] == 0
    assert ((largest_N >= 64) | (weight_NC.abs().amax(1) == 0)).all()
    assert (torch.frexp(scale_N).mantissa == 0.5).all()  # powers of two
    rounded_NC = whole_NC * scale_N[:, None]
    assert ((rounded_NC - weight_NC).abs() <= scale_N[:, None] / 2).all()
    again_NC, again_N = as_int8(rounded_NC)
    assert (again_NC == whole_NC).all()
    assert (again_N == scale_N).all()


def test_a_quantised_network_is_a_network_whose_sums_do_not_depend_on_their_order():
    network = trained(pruned=False, layers=("16R", "12FDS3"), batch_norm=True)
    small_one = quantised(network)
    assert network.layers[0].norm is not None  # a copy
    for weight_NC in (small_one.layers[0].linear.weight, small_one.layers[0].neurons.V, small_one.output.linear.weight):
        whole_NC, scale_N = as_int8(weight_NC)
        assert (whole_NC * scale_N[:, None] == weight_NC).all()
    assert not (small_one.output.linear.weight == network.output.linear.weight).any()
    shuffled = copy.deepcopy(small_one)
    order = torch.randperm(12)
    with torch.no_grad():
        x_RC = torch.poisson(torch.full((50, 12), 3.0))
        expected = x_RC.double() @ small_one.output.linear.weight.double().T
        assert (x_RC[:, order] @ shuffled.output.linear.weight[:, order].T == expected.float()).all()


def test_a_quantised_network_is_tested_like_any_other(program, shd_folder):
    cfg = small()
    cfg = cfg.model_copy(update={"data": cfg.data.model_copy(update={"channels": 40, "num_classes": 3, "T": 20})})
    network, run_folder = build(cfg).eval(), shd_folder.parent / "runs" / "run"
    run_folder.mkdir(parents=True)
    with torch.no_grad():  # a weight beside which all others of its neuron are rounded to 0
        network.layers[0].linear.weight[:8, 0] = 1000
    checkpoint.save(run_folder / "best.pt", cfg, network, epoch=1)
    words = "test.py --load_pt_file run --path_to_dataset shd --set train.device="
    for more in ("cpu", "cuda --quantise int8"):  # a rounded network runs on the CPU, wherever it was trained
        result = program(words + more)
        assert result.returncode == 0, result.stderr
    exact, rounded = (json.loads((run_folder / name / "metrics.json").read_text()) for name in ("test", "test_int8"))
    labels = [np.load(run_folder / name / "samples.npz")["fs_label"] for name in ("test", "test_int8")]
    assert rounded["moved_by_quantising"] == (labels[0] != labels[1]).sum() > 0
    assert rounded["fs_accuracy_before_quantising"] == pytest.approx(exact["fs_accuracy"])
    assert rounded["weight_bytes"] == 40 * 16 + 16 * 12 + 12 * 3 + 4 * (16 + 12 + 3)
    assert "moved_by_quantising" not in exact
    assert "decisions changed by rounding the weights" in result.stdout
