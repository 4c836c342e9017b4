"""Learned delays: layers against the equation, gradients by every input, chunks, threads, rounding, bad input."""

import json
import re

import numpy as np
import pytest
import torch

from snn import architecture, checkpoint, config, exchange, settings
from snn.delays import DelayedLinear
from snn.errors import InputError
from snn.inputs import Spikes
from snn.network import Network
from snn.ops import taps
from tests.make import as_events, assert_close, random_counts
from tests.networks import build, small
from tests.programs import TRAIN

SHAPES = [(1, 1, 1), (7, 3, 5), (33, 18, 40)]  # of inputs (T, B, C): groups of samples are filled, or are not
OUTPUTS = {1: 1, 5: 4, 40: 70}  # of C
MAX_STEPS = 9  # more than some windows have


def make_layer(per: str, C: int, dtype: torch.dtype, sigma_steps: float = 0.0, bias: bool = False) -> DelayedLinear:
    torch.manual_seed(1)
    per, extra = ("input", True) if per == "extra" else (per, False)
    layer = DelayedLinear(C, OUTPUTS[C], per, MAX_STEPS, bias=bias, extra=extra).to(dtype)
    layer.dense_above = 1.0
    layer.delays.sigma_steps = sigma_steps
    with torch.no_grad():  # the shortest, a whole number and the longest among them
        for place, steps in zip((0, 1, -1), (0.0, 3.0, float(MAX_STEPS)), strict=True):
            layer.delays.steps.view(-1)[place % layer.delays.steps.numel()] = steps
    return layer


def expected(layer: DelayedLinear, x_TBC: torch.Tensor) -> torch.Tensor:
    W_NC = layer.weight[:, -x_TBC.shape[2] :]
    y_TBN = taps.product(x_TBC, W_NC, layer.delays.steps, MAX_STEPS, layer.delays.sigma_steps)
    if layer.extra:
        y_TBN = y_TBN + x_TBC @ layer.weight[:, : x_TBC.shape[2]].T
    return y_TBN if layer.bias is None else y_TBN + layer.bias


def by_hand(x_TBC: np.ndarray, W_NC: np.ndarray, d_NC: np.ndarray, sigma_steps: float) -> np.ndarray:
    """Event by event, step by step, as the equation is written."""
    T, B, _ = x_TBC.shape
    y_TBN = np.zeros((T, B, len(W_NC)))
    s = 1 + sigma_steps
    for t, b, c in zip(*np.nonzero(x_TBC), strict=True):
        for n in range(len(W_NC)):
            for k in range(T - t):
                y_TBN[t + k, b, n] += max(0, s - abs(k - d_NC[n, c])) / s**2 * W_NC[n, c] * x_TBC[t, b, c]
    return y_TBN


@pytest.mark.parametrize("per", ["input", "synapse"])
@pytest.mark.parametrize("sigma_steps", [0.0, 1.6])
def test_the_definition_says_what_the_equation_says(per, sigma_steps):
    x_TBC, layer = random_counts((7, 3, 5), 0.3, torch.float64), make_layer(per, 5, torch.float64, sigma_steps)
    d_NC = layer.delays.steps.detach().expand(4, 5).numpy()
    hand = by_hand(x_TBC.numpy(), layer.weight.detach().numpy(), d_NC, sigma_steps)
    np.testing.assert_allclose(expected(layer, x_TBC).detach().numpy(), hand, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.float64, marks=pytest.mark.slow)], ids=["f32", "f64"]
)
@pytest.mark.parametrize("per", ["input", "synapse", "extra"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("as_what", ["events", "spikes", "dropped", "dense product"])
@pytest.mark.parametrize("sigma_steps", [0.0, 1.6])
@pytest.mark.parametrize("share", [0.0, 0.3])
def test_equals_the_definition(dtype, per, shape, as_what, sigma_steps, share):
    """Output and all gradients, under random upstream gradients; a share of 0 is silent."""
    x_TBC = random_counts(shape, share, dtype)
    layer = make_layer(per, shape[-1], dtype, sigma_steps, bias=True)
    if as_what == "dense product":
        layer.dense_above = -1.0
    mask_BC = (torch.rand(shape[1:]) < 0.7).to(dtype) / 0.7 if as_what == "dropped" else torch.ones(shape[1:]).to(dtype)
    s_TBC = x_TBC.clone().requires_grad_()
    y_TBN = expected(layer, s_TBC * mask_BC)
    upstream = torch.randn_like(y_TBN)
    values = [*layer.parameters(), s_TBC]
    grads = torch.autograd.grad(y_TBN, values, upstream)

    given = x_TBC.clone().requires_grad_()
    actual = layer({"events": as_events(x_TBC), "dropped": Spikes(given, mask_BC)}.get(as_what, given))
    assert layer.is_event_driven == (as_what != "dense product")
    assert_close(actual, y_TBN)
    of = [*layer.parameters(), given][: -1 if as_what == "events" else None]
    for grad, other in zip(torch.autograd.grad(actual, of, upstream), grads, strict=False):
        assert_close(grad, other)


@pytest.mark.parametrize("per", ["input", "synapse"])
@pytest.mark.parametrize("event_driven", [True, False], ids=["events", "dense"])
def test_the_derivative_of_a_whole_delay_is_that_from_the_right(per, event_driven):
    layer = DelayedLinear(1, 1, per, 5, (2.0, 2.0)).double()
    layer.dense_above = 1.0 if event_driven else -1.0
    x_T11 = torch.tensor([1.0, 0, 0, 0, 0]).double().view(-1, 1, 1)
    upstream = torch.tensor([0.0, 0, 10, 3, 0]).double().view(-1, 1, 1)
    (grad,) = torch.autograd.grad(layer(x_T11), layer.delays.steps, upstream)
    assert grad.item() == pytest.approx((3 - 10) * layer.weight.item())


def test_spikes_after_events():
    x_TBC = random_counts((33, 3, 40), 0.1, torch.float32)
    layer = make_layer("input", 40, torch.float32)
    whole = layer(x_TBC)
    layer.reset()
    assert_close(torch.cat([layer(as_events(x_TBC[:20])), layer(Spikes(x_TBC[20:]))]), whole)


@pytest.mark.parametrize("per", ["input", "synapse", "extra"])
@pytest.mark.parametrize("is_training", [True, False], ids=["real", "rounded"])
@pytest.mark.parametrize("as_what", ["events", "spikes", "dropped"])
@pytest.mark.parametrize("lengths", [(20, 13), (1,) * 33, (2, 1, 30)], ids=str)
def test_chunks_are_one_call(per, is_training, as_what, lengths):
    """Compare every bit, also with chunks shorter than delays, and the gradients that lead from chunk to chunk."""
    x_TBC = random_counts((33, 3, 40), 0.1, torch.float32)
    mask_BC = (torch.rand(3, 40) < 0.7) / 0.7
    layer = make_layer(per, 40, torch.float32).train(is_training)

    def run(lengths: tuple[int, ...]) -> list[torch.Tensor]:
        layer.reset()
        given = x_TBC.clone().requires_grad_()
        whats = {"events": lambda x: as_events(x.detach()), "dropped": lambda x: Spikes(x, mask_BC)}
        y_TBN = torch.cat([layer(whats.get(as_what, lambda x: x)(x)) for x in given.split(lengths)])
        of = [layer.weight] if as_what == "events" else [layer.weight, given]
        return [y_TBN, *torch.autograd.grad(y_TBN, of, torch.ones_like(y_TBN))]

    whole, chunks = run((33,)), run(lengths)
    assert torch.equal(whole[0], chunks[0])
    for one, other in zip(whole[1:], chunks[1:], strict=True):
        assert_close(other, one)


@pytest.mark.parametrize("per", ["input", "synapse", "extra"])
def test_results_depend_neither_on_threads_nor_on_old_memory(per):
    x_TBC = random_counts((25, 40, 40), 0.1, torch.float32)
    layer = make_layer(per, 40, torch.float32)

    def run(threads: int) -> list[torch.Tensor]:
        layer.reset()
        torch.set_num_threads(threads)
        given = x_TBC.clone().requires_grad_()
        y_TBN = layer(given)
        return [y_TBN, *torch.autograd.grad(y_TBN, [given, *layer.parameters()], torch.cos(y_TBN.detach()))]

    before = torch.get_num_threads()
    try:
        one = run(1)
        torch.use_deterministic_algorithms(True)  # `torch.empty` holds NaN
        two = run(3)
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_evaluation_and_folding_round():
    layer = make_layer("input", 5, torch.float32)
    with torch.no_grad():
        layer.delays.steps.copy_(torch.tensor([0.0, 0.49, 0.5, 1.5, 8.6]))
    x_TBC = random_counts((12, 2, 5), 0.5, torch.float32)
    rounded = layer.eval()(x_TBC)
    layer.reset()
    layer.delays.round()
    assert layer.delays.steps.tolist() == [0, 0, 1, 2, 9]
    assert torch.equal(layer(x_TBC), rounded)
    layer.reset()
    assert_close(layer.train()(x_TBC), rounded)


def test_clamped_and_checked():
    layer = make_layer("synapse", 5, torch.float32)
    with torch.no_grad():
        layer.delays.steps[0, :2] = torch.tensor([-1.0, 50.0])
    with pytest.raises(InputError, match="here, delays: a learned delay is -1 steps, outside 0 to 9"):
        layer.delays.check_values("here, delays")
    layer.delays.clamp_values()
    assert layer.delays.steps[0, :2].tolist() == [0, MAX_STEPS]
    layer.delays.check_values("here")


def test_words():
    parsed = architecture.parse(["16FD25", "16FDS3", "16RDR4", "16RDS3DR4", "16F+D25"])
    late, synapses, extra = ("input", 25, False), ("synapse", 3, False), ("input", 25, True)
    assert [layer.delay for layer in parsed] == [late, synapses, None, synapses, extra]
    assert [layer.recurrent_delay_max_steps for layer in parsed] == [None, None, 4, 4, None]
    assert architecture.resized(["16FD25", "8RDS3DR4"], [5, 6, 7]) == ["5FD25", "6RDS3DR4", "7RDS3DR4"]
    assert architecture.resized(["16F+D25"], [5]) == ["5F+D25"]
    for word in ("16FD", "16FD0", "16FSD3", "16D25F", "8C3D2", "16RDR4D2", "16F+", "16F+F"):
        with pytest.raises(InputError, match=re.escape(f"layer '{word}' is not known")):
            architecture.parse([word])
    with pytest.raises(InputError, match="'16FDR4': DR4 delays the spikes of a recurrent layer; write 16R"):
        architecture.parse(["16FDR4"])
    with pytest.raises(InputError, match="'\\+DS4' is not a delay; write D25"):
        architecture.parse(["16F+DS4"])
    with pytest.raises(InputError, match="extra delays are delays of inputs"):
        DelayedLinear(6, 4, "synapse", 3, extra=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((6, 4, "axon", 3), "per 'axon' is not known; choose from input, synapse"),
        ((6, 4, "input", 0), "the longest delay must be a whole number"),
        ((6, 4, "input", 3, (1.0, 4.0)), "initial delays of (1.0, 4.0) steps: choose two numbers in 0 to 3"),
        ((6, 4, "input", 3, (2.0, 1.0)), "initial delays of (2.0, 1.0) steps"),
        ((0, 4, "input", 3), "the number of inputs must be a whole number"),
        ((6, 0, "synapse", 3), "the number of outputs must be a whole number"),
    ],
    ids=str,
)
def test_a_layer_refuses_what_it_cannot_be(arguments, message):
    with pytest.raises(InputError, match=re.escape(message)):
        DelayedLinear(*arguments)


def delayed(**changes) -> config.Config:
    return small(**({"layers": ("16FD9", "12FDS4"), "output_delay": "D3"} | changes))


def test_a_network_with_delays_learns_all_of_them_and_folds():
    network, x_TBC = build(delayed()), random_counts((25, 6, 30), 0.2, torch.float32)
    assert {name: module.steps.shape for name, module in network.delays().items()} == {
        "layers.0.linear.delays": (30,),
        "layers.1.linear.delays": (12, 16),
        "layers.2.linear.delays": (12,),
    }
    activity = network.train()(as_events(x_TBC))
    activity.h_TBN.sum().backward()
    for delays in network.delays().values():
        assert delays.steps.grad.isfinite().all()
        assert delays.steps.grad.any()
    network.reset()
    network.eval()
    with torch.no_grad():
        folded = network.folded()
        assert all(torch.equal(delays.steps, delays.steps.round()) for delays in folded.delays().values())
        assert_close(folded(x_TBC).h_TBN, network(x_TBC).h_TBN)


def test_the_same_network_without_delays_is_that_with_delays_of_zero():
    plain, delayed_ = build(small()), build(delayed(delay_init_ms=(0.0, 0.0)))
    missing = delayed_.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert {name.rpartition(".")[2] for name in missing} == {"steps"}
    x_TBC = as_events(random_counts((25, 6, 30), 0.2, torch.float32))
    with torch.no_grad():
        assert torch.equal(plain.eval()(x_TBC).h_TBN, delayed_.eval()(x_TBC).h_TBN)


def test_initial_delays_are_drawn_from_a_range_in_ms():
    cfg = delayed(delay_init_ms=(10.0, 30.0))
    torch.manual_seed(0)
    network = Network(cfg.network, (30,), 4, dt_ms=10.0)
    for delays in network.delays().values():
        assert 1 <= delays.steps.min() < 1.5
        assert 2.5 < delays.steps.max() <= 3


def values(**network) -> dict:
    plain = small().model_dump(mode="json")
    plain["network"] |= {"layers": ["16FD9"]} | network
    return plain


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"layers": ["16FD100"]},
            "network.layers: layer '16FD100': a delay of 100 steps is longer than the window of 100",
        ),
        ({"layers": ["16RDR100"]}, "network.layers: layer '16RDR100', DR100: a delay of 100 steps is longer"),
        ({"output_delay": "DS200"}, "network.output_delay: a delay of 200 steps is longer than the window of 100"),
        ({"output_delay": "25"}, "network.output_delay: '25' is not a delay; write D25"),
        ({"delay_init_ms": [30.0, 10.0]}, "delay_init_ms: .* is not a range"),
        ({"delay_init_ms": [-1.0, 10.0]}, "delay_init_ms.* = -1.0: input should be greater than or equal to 0"),
        (
            {"delay_init_ms": [0.0, 91.0]},
            "network.delay_init_ms: 91 ms exceeds the 90 ms of network.layers: layer '16F",
        ),
        ({"delay_sigma_steps": -1.0}, "network.delay_sigma_steps = -1.0"),
    ],
)
def test_bad_fields_are_named(changes, message):
    with pytest.raises(InputError, match=message) as error:
        settings.build(values(**changes), "x.yaml")
    assert "\n" not in str(error.value)


def test_what_cannot_carry_delays_refuses():
    network = build(delayed()).eval()
    for export in (lambda: exchange.nir_graph(network, (30,), 0.01), lambda: exchange.Step(network, (30,))):
        with pytest.raises(InputError, match=r"learned delays cannot be exported to NIR or ONNX.*--format c"):
            export()


@pytest.mark.usefixtures("shd_folder")
def test_train_resume_and_test(program, tmp_path):
    """Delays move within their range at their own rate; a run resumes to the same bits; rounding is counted."""
    fields = ("layers=[16FD8,16FDS8]", "output_delay=D4", "delay_init_ms=[0.0,30.0]")
    train = " ".join([TRAIN.replace("--hidden_size 16 16 ", ""), *(f"--set network.{field}" for field in fields)])
    for words in ("2 --save_name whole", "1 --save_name halves", "2 --save_name halves --resume"):
        done = program(f"{train} --epochs {words}")
        assert done.returncode == 0, done.stderr
        if words.startswith("1"):
            _, content = checkpoint.load(tmp_path / "runs/halves/last.pt")
            learned = [value for name, value in content["network"].items() if name.endswith("delays.steps")]
            assert len(learned) == 3
            # from 0 to 3 at first, by 0.1 a step of the optimiser
            assert all(0.05 < (value.max() - 3.0).abs() < 1.5 for value in learned)
    contents = [torch.load(tmp_path / "runs" / name / "last.pt", weights_only=True) for name in ("whole", "halves")]
    assert all(torch.equal(contents[0]["network"][name], value) for name, value in contents[1]["network"].items())

    narrows = "--epochs 3 --save_name narrows --lr_decay --set network.delay_sigma_steps=2.0"
    assert program(f"{train} {narrows}").returncode == 0
    groups = torch.load(tmp_path / "runs/narrows/last.pt", weights_only=True)["optimizer"]["param_groups"]
    assert groups[1]["lr"] == pytest.approx(100 * groups[0]["lr"])
    assert groups[0]["lr"] < 1e-3
    assert groups[1]["weight_decay"] == 0
    for name, value in contents[0]["network"].items():
        if name.endswith("delays.steps"):
            assert value.min() >= 0
            assert value.max() <= 8
            assert torch.equal(value, value.round())  # in the last fifth of the epochs

    tested = program("test.py --load_pt_file runs/whole/best.pt --energy")
    assert tested.returncode == 0, tested.stderr
    metrics = json.loads((tmp_path / "runs/whole/test/metrics.json").read_text())
    assert 0 <= metrics["moved_by_rounding"] <= metrics["samples"]
    assert "decisions changed by rounding the delays" in tested.stdout
    page = (tmp_path / "runs/whole/test/report.html").read_text()
    assert "delay of each input (ms)" in page
    row = json.loads((tmp_path / "runs/whole/metrics.jsonl").read_text().splitlines()[-1])
    assert "learned/layers.1/delay_synapse" in row
    streamed = program("test.py --load_pt_file runs/whole/best.pt --streaming")
    assert streamed.returncode == 0, streamed.stderr
    assert re.search(r"^decisions that differ from those in batches +0 of 24$", streamed.stdout, re.MULTILINE)


@pytest.mark.parametrize("per", ["input", "synapse"])
@pytest.mark.parametrize("as_what", [as_events, torch.clone])
def test_another_number_of_samples_asks_for_a_reset(per, as_what):
    layer = DelayedLinear(6, 4, per, 3)
    counts = random_counts((5, 4, 6), 0.3, torch.float32)
    layer(as_what(counts))
    with pytest.raises(InputError, match=r"remembers 4 samples and is given 2: call reset\(\)"):
        layer(as_what(counts[:, :2]))
    layer.reset()
    layer(as_what(counts[:, :2]))
