"""The CUDA kernels without a GPU: compiled by NVRTC for each architecture, and, by g++, run on the CPU.

The launch itself (pointers, stream, device) is tested in tests/test_gpu.py.
"""

import ctypes
import itertools
import math
import re
import subprocess
from functools import cache, partial
from pathlib import Path

import pytest
import torch

from snn import ops
from snn.ops import Dynamics, fused, printer, reference
from snn.ttfs import functional, kernels, products
from tests.make import (
    DYNAMICS,
    NEURONS,
    assert_close_gradients,
    assert_equal_to_reference,
    assert_recurrent_equals_reference,
    make_call,
    over_neurons_and_dtypes,
    run,
)

cuda = pytest.importorskip("snn.ops.cuda", reason="needs cupy")

SHIM = Path(__file__).with_name("host_shim.h")
REGISTERS = {torch.float32: 64, torch.float64: 128}
# More than three blocks, the last one ragged.
RAGGED = (19, 3, 129)
over_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """Compile the kernels of one source text as a library for the CPU, without contraction, as on the GPU."""

    @cache
    def compiled(source: str, options: tuple[str, ...]) -> ctypes.CDLL:
        folder = tmp_path_factory.mktemp("kernels")
        (folder / "kernels.cu").write_text(source, encoding="utf-8")
        command = ["g++", "-x", "c++", "-shared", "-fPIC", "-O1", "-ffp-contract=off", "-include", SHIM]
        subprocess.run([*command, *options, folder / "kernels.cu", "-o", folder / "kernels.so"], check=True)
        return ctypes.CDLL(str(folder / "kernels.so"))

    return compiled


@pytest.fixture
def on_host(build, monkeypatch):
    """Replace the launch by a loop over blocks and threads; return the names of the kernels that ran."""
    launched = []

    def launch(source, kernel, tensors, scalars, threads):
        launched.append(kernel)
        dtype = tensors[0].dtype
        library, block_size = build(source, cuda.options_of(dtype)), cuda.threads_of(dtype)
        pointers = [ctypes.c_void_p(None if tensor is None else tensor.data_ptr()) for tensor in tensors]
        scalars = [(ctypes.c_double if isinstance(scalar, float) else ctypes.c_longlong)(scalar) for scalar in scalars]
        for block, thread in itertools.product(range(-(-threads // block_size)), range(block_size)):
            library.place(block, thread, block_size)
            getattr(library, kernel)(*pointers, *scalars)

    monkeypatch.setattr(cuda, "launch", launch)
    return launched


@pytest.fixture
def multi_step(on_host):
    """Return `snn.ops.multi_step`, run by these kernels."""
    yield lambda *call: fused.multi_step(cuda, *call, want_h=True)
    assert set(on_host) == {"forward", "backward"}


@over_neurons_and_dtypes
def test_equals_reference(neuron, dtype, multi_step, poisoned):
    assert_equal_to_reference(multi_step, make_call(neuron, RAGGED, dtype))


@pytest.mark.parametrize("longest", [0, 3], ids=["", "delayed"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (19, 3, 129)], ids=str)
@pytest.mark.parametrize("name", ["AdLIF", "CuLIF-soft-late", "SEAdLIF"])
def test_recurrent_equals_reference(name, shape, longest, multi_step, poisoned):
    assert_recurrent_equals_reference(multi_step, make_call(DYNAMICS[name], shape, torch.float64, True, longest))


@pytest.mark.slow
def test_names_of_a_step_may_mean_something_else_in_the_frame(multi_step):
    """Names of states, values and numbers are words of the frame, of Python's and of C++."""

    def step(x, state, p):
        N = p.P * state.sums + p.LINE * state.default
        potential = N + (1 - p.stride) * x
        new = p.spike(potential - p.theta)
        M = potential * (1 - new)
        return new, potential, {"sums": M, "default": p.n * state.default + p.short * new}

    values = ("theta", "P", "LINE", "stride", "n", "short")
    neuron = Dynamics("Awkward", step, ("sums", "default"), values)
    torch.manual_seed(0)
    T, B, N = RAGGED
    state = {name: torch.randn(B, N, requires_grad=True) for name in neuron.states}
    given = {name: torch.rand(N, requires_grad=True) for name in values}
    call = torch.randn(T, B, N, requires_grad=True), given, state, neuron, None
    for compiled in (multi_step, partial(ops.multi_step, backend="cpu")):
        assert_equal_to_reference(compiled, call)
    assert "float sums_, default_;" in printer.c(neuron)[0]


@pytest.mark.parametrize("recurrent", [False, True], ids=["feedforward", "recurrent"])
def test_values_that_are_not_learned(recurrent, multi_step, poisoned):
    call = make_call(DYNAMICS["CuAdLIF"], RAGGED, torch.float64, recurrent)
    for value in call[1].values():
        value.requires_grad_(False)
    assert_close_gradients(run(multi_step, call)[1], run(reference.multi_step, call)[1])


TIMES = torch.tensor([0, 0.3, 1, math.inf, 0.999, math.nan], dtype=torch.float64)
SUMS = torch.tensor([0, -0.0, -1, -2, 0.5, 1e-30, -1e-30, 2, -0.5, 1, math.nan], dtype=torch.float64)


@over_dtypes
@pytest.mark.parametrize("T", [1.0, 0.3])
@pytest.mark.parametrize("clip", [None, 0.6])
@pytest.mark.parametrize("zero_drive_fires", [False, True])
def test_ttfs_equals_plain_torch(dtype, T, clip, zero_drive_fires, on_host, monkeypatch):
    """Compare all pairs of special values and many random ones, bit by bit; the last block is ragged."""
    torch.manual_seed(0)
    S, A = torch.cat([torch.cartesian_prod(SUMS, T * SUMS), torch.randn(400, 2, dtype=torch.float64)]).to(dtype).T
    last = torch.rand(400, dtype=dtype)  # spikes at the very end of the window, where rounding may lead beyond it
    S, A = torch.cat([S, last]), torch.cat([A, -T * last])
    t = torch.cat([T * TIMES, T * torch.rand(len(S) - len(TIMES), dtype=torch.float64)])
    x, t, g = torch.stack([S, A]).to(dtype), t.to(dtype)[None], torch.randn(1, len(S)).to(dtype)
    assert len(S) % cuda.threads_of(dtype)
    steps = {
        "split": lambda: [products.split(t, T)],
        "fire": lambda: functional._fire(x, T, zero_drive_fires),
        "spread": lambda: [functional._spread(g, *functional._fire(x, T, zero_drive_fires), T, clip or math.inf)],
        "by_time": lambda: [functional._by_time(g.clone(), t)],
    }
    monkeypatch.setattr(kernels, "fits", lambda *_: False)
    expected = {kernel: step() for kernel, step in steps.items()}
    monkeypatch.setattr(kernels, "fits", lambda *_: True)

    def launch(work, tensors, *constants):
        if work is kernels._split:  # on the CPU it checks times, too
            tensors, constants = tensors[:2], constants[:1]
        kernels._launch(work, tensors, *constants)

    monkeypatch.setattr(kernels, "_run", launch)
    monkeypatch.setattr(kernels.ops, "kernels", lambda *_: cuda)
    for kernel, step in steps.items():
        for got, want in zip(step(), expected[kernel], strict=True):
            torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)
    assert set(on_host) == set(steps)


def learned_of(name: str) -> frozenset[str]:
    return frozenset(value for value, declared in NEURONS[name].values_of().items() if declared.learned)


@pytest.mark.parametrize(
    ("architecture", "every"),
    [
        ("90", False),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (("75", False), ("120", False), ("90", True))),
        *(pytest.param(sm, False, marks=pytest.mark.long) for sm in ("80", "86", "89", "100")),
        pytest.param("120", True, marks=pytest.mark.long),
    ],
)
def test_every_variant_fits_the_registers(architecture, every):
    """Most architectures take those with the most values in registers: all learned, and few of them in float64.

    CI takes the oldest that CUDA 13 knows and the newest.
    """

    def compile_for(source: str, dtype: torch.dtype) -> str:
        return cuda.machine_code(source, architecture, cuda.options_of(dtype))[1]

    says_registers = "registers" in compile_for(cuda.file("ttfs.cu"), torch.float32)
    sources = {
        f"{name}, {sorted(learned)}": (cuda.source(neuron, learned), 2)
        for name, neuron in DYNAMICS.items()
        for learned in {learned_of(neuron.name)} | ({frozenset()} if every else set())
    } | {"ttfs": (cuda.file("ttfs.cu"), 4)}
    for (name, (source, number)), dtype in itertools.product(sources.items(), REGISTERS):
        if not every and dtype == torch.float64 and not name.startswith(("AdLIF,", "CuLIF-soft-late,", "ttfs")):
            continue
        report = compile_for(source, dtype)
        if says_registers:
            registers = [int(found) for found in re.findall(r"Used (\d+) registers", report)]
            spills = re.findall(r"(\d+) bytes spill", report)
            assert len(registers) == number, report
            assert max(registers) <= REGISTERS[dtype], f"{name}, {dtype}: {registers}"
            assert set(spills) == {"0"}, f"{name}, {dtype}: {report}"
    if not says_registers:
        pytest.skip("all compiled; this NVRTC (that of CUDA 13.0, for one) does not say how many registers it took")
