"""The neurons: the reference against hand-computed numbers and `gradcheck`, the CPU kernels against the reference."""

import itertools
import os
import subprocess
import sys
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.autograd.graph import saved_tensors_hooks

from snn import ops
from snn.errors import InputError
from snn.ops import Dynamics, State, Values, compiled, cpu, reference
from tests.conftest import REPOSITORY

# Largest difference of a gradient, relative to its largest entry. Spikes, h and states must be equal.
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-12}
TIE = 1e-5  # recurrent sums differ in order: so close to the threshold a spike may flip

THETA = 0.25
FAMILY = [
    Dynamics(current, adaptation, THETA, reset, spike_first)
    for current, adaptation, reset, spike_first in itertools.product(
        (False, True), (False, True), ("hard", "soft"), (False, True)
    )
]
LIF, CULIF, ADLIF, CUADLIF = (Dynamics(c, a, THETA) for a, c in itertools.product((False, True), repeat=2))


def name(neuron: Dynamics) -> str:
    kind = ("Cu" if neuron.current else "") + ("Ad" if neuron.adaptation else "") + "LIF"
    return f"{kind}-{neuron.reset}{'-first' if neuron.spike_first else ''}"


# Feedback is the same code for the whole family; each variant is compiled, so two kinds stand for the four.
RECURRENT = [neuron for neuron in FAMILY if neuron.current != neuron.adaptation]
over_family = pytest.mark.parametrize("neuron", FAMILY, ids=name)
over_recurrent = pytest.mark.parametrize("neuron", RECURRENT, ids=name)
over_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])


def make_values(neuron: Dynamics, N: int, dtype: torch.dtype) -> Values:
    def between(low: float, high: float) -> Tensor:
        return torch.empty(N, dtype=dtype).uniform_(low, high)

    lam_s = between(0.7, 0.95) if neuron.current else None
    return Values(
        between(0.7, 0.95), lam_s, *((between(0.9, 0.99), between(0, 0.5), between(0, 0.5)) * neuron.adaptation)
    )


def make_call(neuron: Dynamics, shape: tuple, dtype: torch.dtype, recurrent: bool = False) -> tuple:
    """Random (x, values, state, neuron, V), every tensor a leaf that asks for its gradient."""
    torch.manual_seed(0)
    T, B, N = shape
    x_TBN = torch.randn(T, B, N, dtype=dtype)
    state = State(**{field: torch.randn(B, N, dtype=dtype) for field in State.used(neuron, recurrent)})
    if recurrent:
        state = state._replace(y=(state.y > 0).to(dtype))
    V_NN = torch.randn(N, N, dtype=dtype) / N**0.5 if recurrent else None
    call = (x_TBN, make_values(neuron, N, dtype), state, neuron, V_NN)
    for leaf in leaves(call):
        leaf.requires_grad_()
    return call


def leaves(call: tuple) -> list[Tensor]:
    x_TBN, values, state, _, V_NN = call
    return [tensor for tensor in (x_TBN, *values, *state, V_NN) if tensor is not None]


def run(multi_step, call: tuple) -> tuple[list[Tensor], list[Tensor | None]]:
    """All outputs, and the gradients of all leaves that ask for one under random upstream gradients."""
    y_TBN, h_TBN, state = multi_step(*call)
    outputs = [tensor for tensor in (y_TBN, h_TBN, *state) if tensor is not None]
    random = torch.Generator().manual_seed(1)
    upstream = [torch.randn(o.shape, generator=random, dtype=o.dtype).to(o.device) for o in outputs]
    asking = [leaf for leaf in leaves(call) if leaf.requires_grad]
    product = sum((output * g).sum() for output, g in zip(outputs, upstream, strict=True))
    gradients = torch.autograd.grad(product, asking, allow_unused=True, materialize_grads=True)
    return outputs, list(gradients)


def tie_call(neuron: Dynamics, recurrent: bool) -> tuple:
    """With binary fractions every sum is exact in any order, and h meets the threshold exactly, often."""
    torch.manual_seed(0)
    x_TBN = torch.randint(-4, 9, (9, 4, 20)).double() / 4
    V_NN = torch.randint(-4, 5, (20, 20)).double() / 4 if recurrent else None
    values = make_values(neuron, 20, torch.float64)
    halves = Values(*(None if value is None else torch.full_like(value, 0.5).requires_grad_() for value in values))
    call = (x_TBN, halves, State(), neuron, V_NN)
    assert (reference.multi_step(*call)[1] == THETA).sum() > 5
    return call


def quiet_call() -> tuple:
    """Nothing in, for so long that the states leave the normal range of float32."""
    _, values, state, neuron, _ = make_call(CUADLIF, (1, 3, 20), torch.float32)
    quiet = values._replace(lam_w=values.lam_m)
    state = State(*(field if field is None else field.detach().abs() * 0.01 for field in state))
    call = (torch.zeros(900, 3, 20), quiet, state, neuron, None)
    with torch.no_grad():
        y_TBN, h_TBN, _ = reference.multi_step(*call)
    assert not y_TBN.any()
    assert ((h_TBN != 0) & (h_TBN.abs() < torch.finfo(torch.float32).tiny)).any()
    return call


def in_chunks(multi_step, sizes: list[int]):
    """The same in several calls, each of which begins with the state that the last one left."""

    def chunked(x_TBN, values, state, neuron, V_NN):
        ys, hs = [], []
        for chunk_TBN in x_TBN.split(sizes):
            y, h, state = multi_step(chunk_TBN, values, state, neuron, V_NN)
            ys.append(y)
            hs.append(h)
        return torch.cat(ys), torch.cat(hs), state

    return chunked


def assert_close_gradients(actual: list[Tensor], expected: list[Tensor]) -> None:
    for got, want in zip(actual, expected, strict=True):
        assert got.shape == want.shape
        torch.testing.assert_close(got, want, rtol=0, atol=TOLERANCE[want.dtype] * want.detach().abs().max().item())


@pytest.fixture
def poisoned():
    """Memory from torch.empty holds NaN: whoever reads what it has not written is found out."""
    assert torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def assert_equal_to_reference(multi_step, call: tuple) -> None:
    outputs, gradients = run(multi_step, call)
    expected_outputs, expected_gradients = run(reference.multi_step, call)
    for output, expected in zip(outputs, expected_outputs, strict=True):
        assert torch.equal(output, expected)
    assert_close_gradients(gradients, expected_gradients)


on_cpu = partial(ops.multi_step, backend="cpu")


# The reference


def test_culif_by_hand():
    decay = torch.tensor([-1 / 5], dtype=torch.float64).exp()
    x_TBN = torch.zeros(6, 1, 1, dtype=torch.float64)
    x_TBN[0] = 1
    y_TBN, h_TBN, _ = reference.multi_step(x_TBN, Values(decay, decay), State(), CULIF)
    assert y_TBN.flatten().tolist() == [0, 0, 1, 0, 0, 0]
    expected = [0, 0.181269, 0.296821, 0.121508, 0.198965, 0.244349]
    assert h_TBN.flatten().tolist() == pytest.approx(expected, abs=1e-6)


def test_adlif_by_hand():
    lam_m, lam_w = (torch.tensor([-1 / tau], dtype=torch.float64).exp() for tau in (5, 100))
    half = torch.tensor([0.5], dtype=torch.float64)
    state, spikes, potentials, adaptations = State(), [], [], []
    for x in (1, 1, 1, 0, 0, 0):
        x_TBN = torch.full((1, 1, 1), float(x), dtype=torch.float64)
        y_TBN, h_TBN, state = reference.multi_step(x_TBN, Values(lam_m, None, lam_w, half, half), state, ADLIF)
        spikes.append(y_TBN.item())
        potentials.append(h_TBN.item())
        adaptations.append(state.w.item())
    assert spikes == [0, 1, 0, 0, 0, 0]
    assert potentials == pytest.approx([0.181269, 0.329680, 0.164840, -0.001821, -0.151851, -0.273024], abs=1e-6)
    assert adaptations == pytest.approx([0, 0.090635, 0.754573, 0.829485, 0.820320, 0.736233], abs=1e-6)


def test_surrogate_by_hand():
    u = torch.tensor([-1.0, -0.2, 0.0, 0.2, 1.0], requires_grad=True)
    for strict, expected in ((False, [0, 0, 1, 1, 1]), (True, [0, 0, 0, 1, 1])):
        s = reference.spike(u, strict)
        assert s.tolist() == expected
        (gradient,) = torch.autograd.grad(s.sum(), u)
        assert gradient.tolist() == pytest.approx([1 / 36, 1 / 4, 1, 1 / 4, 1 / 36])


@pytest.mark.parametrize("recurrent", [False, True], ids=["feedforward", "recurrent"])
@over_family
def test_gradients_of_the_smooth_reference(neuron, recurrent):
    call = make_call(neuron, (4, 2, 3), torch.float64, recurrent)
    x_TBN, values, state, _, V_NN = call

    def outputs(*tensors):
        rest = iter(tensors)
        fill = [None if tensor is None else next(rest) for tensor in (x_TBN, *values, *state, V_NN)]
        filled = (fill[0], Values(*fill[1:6]), State(*fill[6:12]), neuron, fill[12])
        y, h, final = reference.multi_step(*filled, spike_function=reference.smooth_spike)
        return [tensor for tensor in (y, h, *final) if tensor is not None]

    assert gradcheck(outputs, leaves(call))


# The CPU kernels


@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 3, 5), (33, 5, 700), (100, 32, 129)], ids=str)
@over_dtypes
@over_family
def test_cpu_equals_reference(neuron, dtype, shape, poisoned):
    assert_equal_to_reference(on_cpu, make_call(neuron, shape, dtype))


@pytest.mark.parametrize(
    ("shape", "goes_past"),
    [((1, 4, 4), True), ((7, 4, 20), True), ((9, 8, 130), True)]
    + [(shape, False) for shape in ((7, 3, 5), (7, 3, 8), (1, 3, 5))],
    ids=str,
)
@pytest.mark.parametrize("is_aligned", [True, False], ids=["", "unaligned"])
@over_dtypes
@pytest.mark.parametrize("neuron", RECURRENT[::3], ids=name)
def test_large_results_go_past_the_caches(neuron, dtype, is_aligned, shape, goes_past, monkeypatch, poisoned):
    """Where they are whole cache lines; here all count as large."""
    passed = []
    for kernel in (cpu.forward_columns, cpu.backward_columns):
        spy = partial(lambda kernel, *arguments: passed.append(arguments[-4]) or kernel(*arguments), kernel)
        monkeypatch.setattr(cpu, kernel.__name__, spy)
    monkeypatch.setattr(cpu, "PAST_ABOVE_BYTES", 0)
    if not is_aligned:
        monkeypatch.setattr(torch, "empty_like", lambda x: x.new_empty(x.numel() + 1)[1:].view(x.shape))
    assert_equal_to_reference(on_cpu, make_call(neuron, shape, dtype))
    assert set(passed) == {goes_past and is_aligned}
    passed.clear()
    run(on_cpu, make_call(neuron, (5, 4, 4), dtype, recurrent=True))
    assert set(passed) == {False}  # what is fed back is read at once


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 2, 3), (33, 5, 130), (4, 2, 1100)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@over_recurrent
def test_recurrent_cpu_equals_reference(neuron, dtype, shape, poisoned):
    call = make_call(neuron, shape, dtype, recurrent=True)
    outputs, gradients = run(on_cpu, call)
    expected_outputs, expected_gradients = run(reference.multi_step, call)
    assert torch.equal(outputs[0], expected_outputs[0])  # spikes: no ties here
    assert_close_gradients([*outputs, *gradients], [*expected_outputs, *expected_gradients])


def test_recurrent_spikes_differ_only_at_ties():
    """In float32 the order of a sum may decide at the threshold, and only there."""
    call = make_call(ADLIF, (60, 16, 300), torch.float32, recurrent=True)
    with torch.no_grad():
        y_TBN, _, _ = on_cpu(*call)
        expected_TBN, h_TBN, _ = reference.multi_step(*call)
    differ_TB = (y_TBN != expected_TBN).any(-1)
    for b in range(differ_TB.shape[1]):
        steps = differ_TB[:, b].nonzero().flatten()
        if len(steps):
            t = steps[0]
            flipped_N = y_TBN[t, b] != expected_TBN[t, b]
            assert ((h_TBN[t, b] - THETA).abs()[flipped_N] < TIE).all()


@pytest.mark.parametrize("recurrent", [False, True], ids=["feedforward", "recurrent"])
@over_recurrent
def test_exact_ties(neuron, recurrent):
    assert_equal_to_reference(on_cpu, tie_call(neuron, recurrent))


@pytest.mark.parametrize("recurrent", [False, True], ids=["feedforward", "recurrent"])
def test_each_input_alone(recurrent, poisoned):
    neuron = Dynamics(not recurrent, recurrent, THETA, "soft", True)
    number = len(leaves(make_call(neuron, (7, 3, 5), torch.float64, recurrent)))
    for alone in range(number):
        call = make_call(neuron, (7, 3, 5), torch.float64, recurrent)
        for index, leaf in enumerate(leaves(call)):
            leaf.requires_grad_(index == alone)
        assert_close_gradients(run(on_cpu, call)[1], run(reference.multi_step, call)[1])


def test_one_value_for_the_layer_and_strided_input():
    x_TBN, values, state, neuron, _ = make_call(ADLIF, (20, 4, 600), torch.float32)
    single = Values(*(None if value is None else value[:1].detach().requires_grad_() for value in values))
    x_BTN = x_TBN.detach().transpose(0, 1).contiguous().requires_grad_()
    state = State(*(None if field is None else field.detach().T.contiguous().T.requires_grad_() for field in state))
    call = (x_BTN.transpose(0, 1), single, state, neuron, None)
    assert_equal_to_reference(on_cpu, call)


@pytest.mark.parametrize("recurrent", [False, True], ids=["feedforward", "recurrent"])
def test_gradient_of_a_transposed_final_state(recurrent):
    """It comes in columns, and the kernels work in rows."""
    call = make_call(CUADLIF, (7, 3, 5), torch.float64, recurrent)
    weights_NB = torch.randn(5, 3, dtype=torch.float64)

    def gradients(multi_step):
        *_, state = multi_step(*call)
        total = sum((field.T * weights_NB).sum() for field in (state.v, state.i, state.w, state.z))
        return torch.autograd.grad(total, leaves(call), allow_unused=True, materialize_grads=True)

    assert_close_gradients(gradients(on_cpu), gradients(reference.multi_step))


@pytest.mark.parametrize("neuron", [ADLIF, Dynamics(True, False, THETA, "soft", True)], ids=name)
def test_chunks_equal_the_whole(neuron):
    x_TBN, values, state, *_ = make_call(neuron, (33, 3, 40), torch.float64)
    assert_equal_to_reference(in_chunks(on_cpu, [10, 1, 22]), (x_TBN, values, state, neuron, None))


def test_silence_into_subnormal_numbers():
    """Still equal in every bit."""
    call = quiet_call()
    with torch.no_grad():
        assert torch.equal(on_cpu(*call)[1], reference.multi_step(*call)[1])


@pytest.mark.parametrize("past_above", [0, 1 << 40], ids=["past the caches", ""])
@pytest.mark.parametrize("openmp", [True, False], ids=["openmp", "python-threads"])
def test_threads_do_not_change_a_bit(openmp, past_above, monkeypatch):
    monkeypatch.setattr(cpu, "PAST_ABOVE_BYTES", past_above)
    if not openmp:
        monkeypatch.setattr(compiled, "_gomp_parallel", None)
    call = make_call(ADLIF, (100, 32, 129), torch.float32)
    threads = torch.get_num_threads()
    results = []
    for n in (1, 2, 3):
        torch.set_num_threads(n)
        results.append(run(on_cpu, call))
    torch.set_num_threads(threads)
    for outputs, gradients in results[1:]:
        for got, want in zip((*outputs, *gradients), (*results[0][0], *results[0][1]), strict=True):
            assert torch.equal(got, want)


def test_failure_in_a_thread_comes_out():
    def work():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compiled._on_threads(2, work)


@pytest.mark.parametrize("recurrent", [False, True], ids=["feedforward", "recurrent"])
def test_auto_runs_the_kernels(recurrent, monkeypatch):
    """With the reference out of reach, and each launch counted."""
    launched = []
    launch = cpu._run
    monkeypatch.setattr(cpu, "_run", lambda kernel, *rest: (launched.append(kernel), launch(kernel, *rest)))
    monkeypatch.setattr(reference, "single_step", None)
    run(ops.multi_step, make_call(ADLIF, (7, 3, 5), torch.float64, recurrent))
    assert launched == [cpu.forward_columns, cpu.backward_columns]
    assert all(kernel.nopython_signatures for kernel in launched)


def saved_sizes(call: tuple, want_h: bool = False) -> list[int]:
    sizes = []
    with saved_tensors_hooks(lambda tensor: (sizes.append(tensor.numel()), tensor)[1], lambda tensor: tensor):
        on_cpu(*call, want_h=want_h)
    return sizes


@pytest.mark.parametrize("recurrent", [False, True], ids=["feedforward", "recurrent"])
def test_memory(recurrent):
    call = make_call(ADLIF if recurrent else CULIF, (50, 4, 6), torch.float64, recurrent)
    assert sum(size == call[0].numel() for size in saved_sizes(call)) == 2
    fixed = Values(*(None if value is None else value.detach() for value in call[1]))
    assert sum(size == call[0].numel() for size in saved_sizes((call[0], fixed, *call[2:]))) == 1
    with torch.no_grad():
        assert saved_sizes(call) == []
    with torch.inference_mode():
        y_TBN, h_TBN, _ = on_cpu(*call, want_h=False)
    assert h_TBN is None
    assert torch.equal(y_TBN, reference.multi_step(*call)[0])


def test_gradient_without_h():
    call = make_call(ADLIF, (33, 5, 70), torch.float64)
    got, want = (
        torch.autograd.grad(step(*call)[0].square().sum(), call[0])
        for step in (partial(on_cpu, want_h=False), reference.multi_step)
    )
    assert_close_gradients(got, want)


def bad_calls():
    x_TBN, values, state, neuron, V_NN = make_call(CULIF, (4, 2, 3), torch.float32, recurrent=True)
    yield "steps, samples, neurons", (x_TBN[0], values, state, neuron, V_NN), {}
    yield "none of them zero", (x_TBN[:0], values, state, neuron, V_NN), {}
    yield "float32 or float64", (x_TBN.half(), values, state, neuron, V_NN), {}
    yield "lam_s is missing", (x_TBN, Values(values.lam_m), state, neuron, V_NN), {}
    yield "a is not a value", (x_TBN, values._replace(a=values.lam_m), state, neuron, V_NN), {}
    yield "lam_m must be", (x_TBN, values._replace(lam_m=torch.ones(2)), state, neuron, V_NN), {}
    yield "lam_m is torch.float64", (x_TBN, values._replace(lam_m=torch.ones(3).double()), state, neuron, V_NN), {}
    yield "state.v must be", (x_TBN, values, state._replace(v=torch.ones(3)), neuron, V_NN), {}
    yield "V must be", (x_TBN, values, state, neuron, torch.ones(3, 4)), {}
    yield "on meta, but x", (x_TBN, values, state, neuron, V_NN.to("meta")), {}
    yield "known are auto, torch, cpu, cupy", (x_TBN, values, state, neuron, V_NN), {"backend": "jax"}
    yield "runs on cuda", (x_TBN, values, state, neuron, V_NN), {"backend": "cupy"}


@pytest.mark.parametrize(("message", "call", "options"), list(bad_calls()))
def test_bad_calls(message, call, options):
    with pytest.raises(InputError, match=message):
        ops.multi_step(*call, **options)


def test_missing_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    for module in ("snn.ops.cpu", "snn.ops.compiled", "snn.compiling"):
        monkeypatch.delitem(sys.modules, module)
    with pytest.raises(InputError, match="pip install numba"):
        ops.multi_step(*make_call(LIF, (1, 1, 1), torch.float32), backend="cpu")


def test_compiles_once(tmp_path):
    """The first process says what it waits for; the second finds the kernel on disk and says nothing."""
    program = (
        "import torch; from snn.ops import *;"
        "multi_step(torch.zeros(2, 1, 3), Values(torch.ones(3)), State(), Dynamics(False, False, 1.0))"
    )
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(REPOSITORY)}
    first, second = (
        subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
        for _ in range(2)
    )
    assert first.stderr.count("compiling a CPU kernel (forward_columns)") == len(first.stderr.splitlines()) == 1
    assert second.stderr == ""


INLINED = "from snn.ops.compiled import inlined\n@inlined\ndef one():\n    return 1\n"
INTRINSIC = """from numba import types
from numba.extending import intrinsic
@intrinsic
def one(_):
    return types.int64(), lambda context, builder, *_: context.get_constant(types.int64, 1)
"""


@pytest.mark.parametrize("called", [INLINED, INTRINSIC], ids=["inlined", "intrinsic"])
def test_a_kernel_is_compiled_anew_with_what_it_calls_in_another_file(tmp_path, called):
    """numba alone would go on with the old one."""
    (tmp_path / "called.py").write_text(called)
    (tmp_path / "caller.py").write_text(
        "from called import one\nfrom snn.ops.compiled import inlined, kernel\n"
        "@inlined\ndef middle():\n    return one()\n@kernel\ndef number():\n    return middle()\n"
    )
    environment = os.environ | {"PYTHONPATH": f"{REPOSITORY}{os.pathsep}{tmp_path}"}
    command = [sys.executable, "-c", "import caller; print(caller.number())"]

    def run() -> subprocess.CompletedProcess:
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True)

    assert (run().stdout, run().stderr) == ("1\n", "")  # the second from disk
    (tmp_path / "called.py").write_text(
        (tmp_path / "called.py").read_text().replace("1\n", "2\n").replace("1)\n", "2)\n")
    )
    assert run().stdout == "2\n"


@pytest.mark.skipif(not compiled._gomp_parallel, reason="needs torch's GNU OpenMP")
def test_ctrl_c_is_not_lost_on_the_way_into_a_kernel(monkeypatch):
    """As ctypes does when Ctrl-C comes before the first line of its callback: this thread's share is left out."""
    monkeypatch.setattr(compiled, "_gomp_parallel", lambda *_: None)
    with pytest.raises(KeyboardInterrupt):
        compiled.in_parts(lambda begin, end: None, 8, 2)
    compiled.in_parts(lambda begin, end: None, 8, 1)
