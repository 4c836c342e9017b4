"""All neurons: the reference against `gradcheck`, and the CPU kernels against the reference, over one table."""

import os
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck
from torch.autograd.graph import saved_tensors_hooks

from snn import ops
from snn.errors import InputError
from snn.neurons import NEURONS
from snn.ops import Feedback, Surrogate, compiled, cpu, lanes, reference
from snn.ops.surrogate import SLOPES
from tests.conftest import REPOSITORY
from tests.make import (
    ADLIF,
    CULIF,
    LATE_SOFT,
    LIF,
    THETA,
    assert_close_gradients,
    assert_equal_to_reference,
    assert_recurrent_equals_reference,
    in_chunks,
    leaves,
    make_call,
    over_dtypes,
    over_neurons,
    over_neurons_and_dtypes,
    over_recurrent,
    quiet_call,
    rebuilt,
    run,
    tie_call,
)

TIE = 1e-5  # recurrent sums differ in order: this close to the threshold a spike may flip
on_cpu = partial(ops.multi_step, backend="cpu")


# The reference


def test_surrogate_by_hand():
    u = torch.tensor([-1.0, -0.2, 0.0, 0.2, 1.0], requires_grad=True)
    expected = {
        "superspike": [1 / 36, 1 / 4, 1, 1 / 4, 1 / 36],
        "arctan": [0.091999668, 0.716959, 1, 0.716959, 0.091999668],
        "triangle": [0, 0.8, 1, 0.8, 0],
        "boxcar": [0, 1, 1, 1, 0],
        "slayer": [0.006737947, 0.367879441, 1, 0.367879441, 0.006737947],
    }
    assert expected.keys() == SLOPES.keys()
    for name, derivative in expected.items():
        for first, spikes in ((False, [0, 0, 1, 1, 1]), (True, [0, 0, 0, 1, 1])):
            s = reference.spike(u, NEURONS["CuLIF"].dynamics_of(spike_first=first, surrogate=Surrogate(name)))
            assert s.tolist() == spikes
            (gradient,) = torch.autograd.grad(s.sum(), u)
            assert gradient.tolist() == pytest.approx(derivative, rel=1e-5)


@pytest.mark.parametrize("name", SLOPES)
def test_the_smooth_spike_has_the_derivative_of_the_surrogate(name):
    u = torch.linspace(-1.31, 1.3, 40, dtype=torch.float64, requires_grad=True)
    for surrogate in (Surrogate(name), Surrogate(name, 3.0)):
        (gradient,) = torch.autograd.grad(surrogate.smooth(u).sum(), u)
        torch.testing.assert_close(gradient, surrogate.derivative(u.detach()).double(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("longest", [None, 0, 2], ids=["feedforward", "recurrent", "delayed"])
@over_neurons
def test_gradients_of_the_smooth_reference(neuron, longest):
    call = make_call(neuron, (4, 2, 3), torch.float64, longest is not None, longest or 0)

    def smooth(u, neuron):
        return neuron.surrogate.smooth(u)

    def outputs(*tensors):
        y, h, final = reference.multi_step(*rebuilt(call, tensors), spike_function=smooth)
        return [y, h, *final.values()]

    assert gradcheck(outputs, leaves(call))


# The CPU kernels


@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 3, 5), (33, 5, 700), (100, 32, 129)], ids=str)
@over_neurons_and_dtypes
def test_cpu_equals_reference(neuron, dtype, shape, poisoned):
    assert_equal_to_reference(on_cpu, make_call(neuron, shape, dtype))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in ("arctan", "boxcar", "slayer"))) for name in SLOPES]
)
def test_each_surrogate_on_the_cpu(name, poisoned):
    neuron = NEURONS["CuLIF"].dynamics_of(surrogate=Surrogate(name, 4.0))
    assert_equal_to_reference(on_cpu, make_call(neuron, (33, 5, 70), torch.float32))


@pytest.mark.parametrize("shape", [(1, 4, 4), (17, 4, 20), (19, 8, 130), (7, 3, 5), (7, 3, 8)], ids=str)
@pytest.mark.parametrize("is_aligned", [True, False], ids=["", "unaligned"])
@over_dtypes
def test_large_results_go_past_the_caches(dtype, is_aligned, shape, monkeypatch, poisoned):
    """Stores go past the caches where they are whole cache lines; here all arrays count as large."""
    monkeypatch.setattr(cpu, "PAST_ABOVE_BYTES", 0)
    if not is_aligned:
        monkeypatch.setattr(torch, "empty_like", lambda x: x.new_empty(x.numel() + 1)[1:].view(x.shape))
    assert_equal_to_reference(on_cpu, make_call(ADLIF, shape, dtype))


@pytest.mark.parametrize("longest", [0, 3], ids=["", "delayed"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 2, 3), (33, 5, 130), (20, 2, 1100)], ids=str)
@over_recurrent
def test_recurrent_cpu_equals_reference(neuron, shape, longest, poisoned):
    assert_recurrent_equals_reference(on_cpu, make_call(neuron, shape, torch.float64, True, longest))


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


def test_recurrent_gradients_in_float32(poisoned):
    call = make_call(ADLIF, (20, 4, 70), torch.float32, recurrent=True)
    (outputs, gradients), (expected, expected_gradients) = run(on_cpu, call), run(reference.multi_step, call)
    assert torch.equal(outputs[0], expected[0])
    assert_close_gradients(gradients, expected_gradients)


def test_a_delay_of_whole_steps_is_a_later_output():
    """All outputs come back equally late: the layer sees at step n what it gave at step n - 3."""
    x_TBN, values, _, neuron, feedback = make_call(ADLIF, (30, 2, 4), torch.float64, recurrent=True)
    x_TBN = 3 * x_TBN
    late = Feedback(feedback.V_NN, torch.full((4,), 2.0, dtype=torch.float64), 4)
    y_TBN, _, _ = on_cpu(x_TBN, values, {}, neuron, late)
    outputs, state = [], {}
    for n, x_BN in enumerate(x_TBN):
        fed_BN = outputs[n - 3] @ feedback.V_NN.T if n >= 3 else 0
        y_1BN, _, state = reference.multi_step((x_BN + fed_BN)[None], values, state, neuron)
        outputs.append(y_1BN[0])
    assert torch.equal(y_TBN, torch.stack(outputs))
    assert y_TBN[:6].any()


@pytest.mark.parametrize("recurrent", [False, True], ids=["feedforward", "recurrent"])
@over_recurrent
def test_exact_ties(neuron, recurrent):
    assert_equal_to_reference(on_cpu, tie_call(neuron, recurrent))


@pytest.mark.parametrize("longest", [None, pytest.param(2, marks=pytest.mark.slow)], ids=["feedforward", "delayed"])
def test_each_input_alone(longest, poisoned):
    """Two of the values are tested, because each that is learned alone is compiled."""
    neuron = LATE_SOFT if longest is None else ADLIF
    arguments = (neuron, (17, 3, 5), torch.float64, longest is not None, longest or 0)
    last = len(neuron.values)  # x comes before the values, states after them
    for alone in (0, 1, *range(last, len(leaves(make_call(*arguments))))):
        call = make_call(*arguments)
        for index, leaf in enumerate(leaves(call)):
            leaf.requires_grad_(index == alone)
        assert_close_gradients(run(on_cpu, call)[1], run(reference.multi_step, call)[1])


def test_one_value_for_the_layer_and_strided_input():
    x_TBN, values, state, neuron, _ = make_call(ADLIF, (20, 4, 600), torch.float32)
    single = {name: value[:1].detach().requires_grad_() for name, value in values.items()}
    x_BTN = x_TBN.detach().transpose(0, 1).contiguous().requires_grad_()
    state = {name: field.detach().T.contiguous().T.requires_grad_() for name, field in state.items()}
    call = (x_BTN.transpose(0, 1), single, state, neuron, None)
    assert_equal_to_reference(on_cpu, call)


@pytest.mark.parametrize("recurrent", [False, True], ids=["feedforward", "recurrent"])
def test_gradient_of_a_transposed_final_state(recurrent):
    """The gradient comes in columns, while the kernels work in rows."""
    call = make_call(ADLIF, (7, 3, 5), torch.float64, recurrent)
    weights_NB = torch.randn(5, 3, dtype=torch.float64)

    def gradients(multi_step):
        *_, state = multi_step(*call)
        total = sum((state[name].T * weights_NB).sum() for name in ADLIF.states)
        return torch.autograd.grad(total, leaves(call), allow_unused=True, materialize_grads=True)

    assert_close_gradients(gradients(on_cpu), gradients(reference.multi_step))


@pytest.mark.parametrize("longest", [None, 0, 3], ids=["feedforward", "recurrent", "delayed"])
@over_recurrent
def test_chunks_equal_the_whole(neuron, longest):
    x_TBN, values, _, _, feedback = make_call(neuron, (33, 3, 40), torch.float64, longest is not None, longest or 0)
    call = (x_TBN, values, {}, neuron, feedback)
    for sizes in ([10, 1, 22], [1] * 33):
        chunked = run(in_chunks(on_cpu, sizes), call)
        whole = run(on_cpu, call)
        assert all(torch.equal(got, want) for got, want in zip(chunked[0], whole[0], strict=True))
        assert_close_gradients(chunked[1], whole[1])


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
        monkeypatch.setattr(compiled, "GOMP_PARALLEL", None)
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


@pytest.mark.parametrize("threads", [1, 2])
def test_kernel_without_memory_says_so(threads):
    @compiled.kernel
    def greedy(size, begin, end):
        np.empty(size)[begin:end] = 1

    compiled.in_parts(greedy, (16,), 16, threads)
    with pytest.raises(MemoryError):
        compiled.in_parts(greedy, (1 << 59,), 16, threads)


@pytest.mark.parametrize("openmp", [True, False], ids=["openmp", "python-threads"])
@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 1000])
def test_parts_cover_all_once(size, openmp, monkeypatch):
    @compiled.kernel
    def count(numbers, begin, end):
        for k in range(begin, end):
            numbers[k] += 1

    if not openmp:
        monkeypatch.setattr(compiled, "GOMP_PARALLEL", None)
    numbers = np.zeros(size + 2, int)
    for threads in (None, 1, 2, 3):
        compiled.in_parts(count, (numbers,), size, threads)
    compiled.in_parts(count, (numbers,), np.int32(size), 2)
    assert (numbers[:size] == 5).all()
    assert not numbers[size:].any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scratch_begins_on_a_cache_line(dtype):
    @compiled.kernel
    def places(like, starts, begin, end):
        for k in range(begin, end):
            room = lanes.scratch(like, k)
            starts[k, 0], starts[k, 1] = room.ctypes.data % lanes.CACHE_LINE_BYTES, len(room)

    starts = np.ones((50, 2), int)
    places(np.zeros(1, dtype), starts, 0, 50)
    assert (starts[:, 0] == 0).all()
    assert (starts[:, 1] == np.arange(50)).all()


def test_kernel_with_variables_from_around_it_is_refused():
    """Two of them would share one place in the cache."""
    step = 2

    def work(numbers, begin, end):
        numbers[begin:end] += step

    with pytest.raises(TypeError, match="must take what it needs as arguments"):
        compiled.kernel(work)


@pytest.mark.parametrize("recurrent", [False, True], ids=["feedforward", "recurrent"])
def test_auto_runs_the_kernels(recurrent, monkeypatch):
    """Remove the reference, and count each launch."""
    launched = []
    launch = cpu._run
    monkeypatch.setattr(cpu, "_run", lambda kernel, *rest: (launched.append(kernel), launch(kernel, *rest)))
    call = make_call(ADLIF, (7, 3, 5), torch.float64, recurrent)
    monkeypatch.setattr(reference, "Parameters", None)
    run(ops.multi_step, call)
    assert [kernel.__name__ for kernel in launched] == ["forward_columns", "backward_columns"]
    assert all(kernel.nopython_signatures for kernel in launched)


def saved_numbers(call: tuple, want_h: bool = False) -> int:
    saved = {}
    with saved_tensors_hooks(
        lambda tensor: (saved.update({tensor.data_ptr(): tensor.numel()}), tensor)[1], lambda tensor: tensor
    ):
        on_cpu(*call, want_h=want_h)
    return sum(saved.values())


@over_neurons
def test_memory_kept_for_backward(neuron, monkeypatch):
    """It is the input and at most a fifth of that; a recurrent layer also keeps its spikes. No kernel need run."""
    monkeypatch.setattr(cpu, "_run", lambda *_: None)
    T, B, N = 100, 8, 128
    small = 8 * B * N  # states and values at the start
    call = make_call(neuron, (T, B, N), torch.float64)
    assert saved_numbers(call) <= 1.2 * T * B * N + small
    recurrent = make_call(neuron, (T, B, N), torch.float64, recurrent=True)
    assert saved_numbers(recurrent) <= 2.2 * T * B * N + small + N * N
    with torch.no_grad():
        assert saved_numbers(call) == 0


def test_inference_without_h():
    call = make_call(CULIF, (50, 4, 6), torch.float64)
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
    x_TBN, values, state, neuron, feedback = make_call(CULIF, (4, 2, 3), torch.float32, recurrent=True)
    yield "steps, samples, neurons", (x_TBN[0], values, state, neuron, feedback), {}
    yield "none of them zero", (x_TBN[:0], values, state, neuron, feedback), {}
    yield "float32 or float64", (x_TBN.half(), values, state, neuron, feedback), {}
    yield "lam_s is missing", (x_TBN, {name: values[name] for name in ("theta", "lam_m")}, state, neuron, feedback), {}
    yield "a is not a value", (x_TBN, values | {"a": values["lam_m"]}, state, neuron, feedback), {}
    yield "w is not a state", (x_TBN, values, state | {"w": state["v"]}, neuron, feedback), {}
    yield "lam_m must be", (x_TBN, values | {"lam_m": torch.ones(2)}, state, neuron, feedback), {}
    yield "lam_m is torch.float64", (x_TBN, values | {"lam_m": torch.ones(3).double()}, state, neuron, feedback), {}
    yield "state.v must be", (x_TBN, values, state | {"v": torch.ones(3)}, neuron, feedback), {}
    yield "V must be", (x_TBN, values, state, neuron, Feedback(torch.ones(3, 4))), {}
    yield "delay must be", (x_TBN, values, {}, neuron, Feedback(torch.ones(3, 3), torch.ones(2), 1)), {}
    yield "outside 0 to 1", (x_TBN, values, {}, neuron, Feedback(torch.ones(3, 3), torch.full((3,), 1.5), 1)), {}
    yield "on meta, but x", (x_TBN, values, state, neuron, Feedback(feedback.V_NN.to("meta"))), {}
    yield "choose from auto, torch, cpu, cupy", (x_TBN, values, state, neuron, feedback), {"backend": "jax"}
    yield "runs on cuda", (x_TBN, values, state, neuron, feedback), {"backend": "cupy"}


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
        "import torch; from snn.ops import multi_step; from snn.neurons import LIF;"
        "values = {'lam_m': torch.ones(3), 'theta': torch.ones(3)};"
        "multi_step(torch.zeros(2, 1, 3), values, {}, LIF.dynamics_of(), want_h=False)"
    )
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(REPOSITORY)}
    first, second = (
        subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
        for _ in range(2)
    )
    assert first.stderr.count("compiling a CPU kernel (forward_columns)") == len(first.stderr.splitlines()) == 1
    assert second.stderr == ""


# In the place of ONE stands a number.
CALLED = """from numba import types
from numba.extending import intrinsic
from snn.compiling import inlined
@inlined
def of_inlined():
    return ONE
@intrinsic
def of_intrinsic(_):
    return types.int64(), lambda context, builder, *_: context.get_constant(types.int64, ONE)
"""
CALLER = """import numpy as np
from called import of_inlined, of_intrinsic
from snn.ops.compiled import in_parts, inlined, kernel
@inlined
def middle():
    return of_inlined()
@kernel
def fill_inlined(out, begin, end):
    out[begin:end] = middle()
@kernel
def fill_intrinsic(out, begin, end):
    out[begin:end] = of_intrinsic()
def numbers():
    found = set()
    for fill in (fill_inlined, fill_intrinsic):
        for threads in (1, 2):
            out = np.zeros(9, int)
            in_parts(fill, (out,), 9, threads)
            found.update(out.tolist())
    return found
"""


def test_a_kernel_is_compiled_anew_with_what_it_calls_in_another_file(tmp_path):
    """numba alone would keep using the old one."""
    (tmp_path / "caller.py").write_text(CALLER)
    environment = os.environ | {"PYTHONPATH": f"{REPOSITORY}{os.pathsep}{tmp_path}"}

    def write(number: int) -> None:
        (tmp_path / "called.py").write_text(CALLED.replace("ONE", str(number)))

    def run(then: str = "pass") -> tuple[str, str]:
        command = [sys.executable, "-c", f"import caller; {then}; print(caller.numbers())"]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return result.stdout, result.stderr

    write(1)
    assert run()[0] == "{1}\n"
    assert run() == ("{1}\n", "")  # from disk
    write(2)
    later = f"import pathlib; path = pathlib.Path({str(tmp_path / 'called.py')!r}); text = path.read_text()"
    assert run(f"{later}; path.write_text(text.replace('2', '3'))")[0] == "{2}\n"  # changed after the import
    assert run()[0] == "{3}\n"
