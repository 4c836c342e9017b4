"""The CUDA kernels without a GPU: compiled by NVRTC for each architecture, and, by g++, run on the CPU.

What stays untested here, the launch itself (pointers, stream, device), is in tests/test_gpu.py.
"""

import ctypes
import itertools
import math
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest
import torch

from snn.ops import fused
from snn.ttfs import functional, kernels
from tests.test_ops import (
    CUADLIF,
    FAMILY,
    assert_close_gradients,
    assert_equal_to_reference,
    make_call,
    name,
    over_dtypes,
    over_family,
    poisoned,  # noqa: F401
    reference,
    run,
)

cuda = pytest.importorskip("snn.ops.cuda", reason="needs cupy")

SHIM = Path(__file__).with_name("host_shim.h")
REGISTERS = {torch.float32: 64, torch.float64: 96}
# Four blocks, the last one of three threads.
RAGGED = (9, 3, 129)


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """The kernels of one variant of a file as a library on the CPU: no contraction, as on the GPU."""

    @cache
    def compiled(source: str, options: tuple[str, ...]) -> ctypes.CDLL:
        library = tmp_path_factory.mktemp("kernels") / "kernels.so"
        command = ["g++", "-x", "c++", "-shared", "-fPIC", "-O1", "-ffp-contract=off", "-include", SHIM]
        subprocess.run([*command, *options, cuda.KERNELS / source, "-o", library], check=True)
        return ctypes.CDLL(str(library))

    return compiled


@pytest.fixture
def on_host(build, monkeypatch):
    """The launch replaced by a loop over blocks and threads; gives the names of the kernels that ran."""
    launched = []

    def launch(source, kernel, options, tensors, scalars, threads):
        launched.append(kernel)
        library = build(source, options)
        pointers = [ctypes.c_void_p(None if tensor is None else tensor.data_ptr()) for tensor in tensors]
        scalars = [(ctypes.c_double if isinstance(scalar, float) else ctypes.c_longlong)(scalar) for scalar in scalars]
        for block, thread in itertools.product(range(-(-threads // cuda.THREADS)), range(cuda.THREADS)):
            library.place(block, thread, cuda.THREADS)
            getattr(library, kernel)(*pointers, *scalars)

    monkeypatch.setattr(cuda, "launch", launch)
    return launched


@pytest.fixture
def multi_step(on_host):
    """`snn.ops.multi_step` through the kernels."""
    yield lambda *call: fused.multi_step(cuda, *call, want_h=True)
    assert set(on_host) == {"forward", "backward"}


@over_dtypes
@over_family
def test_equals_reference(neuron, dtype, multi_step, poisoned):  # noqa: F811
    assert_equal_to_reference(multi_step, make_call(neuron, RAGGED, dtype))


@pytest.mark.parametrize("shape", [(1, 1, 1), (9, 3, 129)], ids=str)
@pytest.mark.parametrize("neuron", [n for n in FAMILY if n.reset == "hard"], ids=name)
def test_recurrent_equals_reference(neuron, shape, multi_step, poisoned):  # noqa: F811
    call = make_call(neuron, shape, torch.float64, recurrent=True)
    outputs, gradients = run(multi_step, call)
    expected_outputs, expected_gradients = run(reference.multi_step, call)
    assert torch.equal(outputs[0], expected_outputs[0])
    assert_close_gradients([*outputs, *gradients], [*expected_outputs, *expected_gradients])


@pytest.mark.parametrize("recurrent", [False, True], ids=["feedforward", "recurrent"])
def test_values_that_are_not_learned(recurrent, multi_step, poisoned):  # noqa: F811
    call = make_call(CUADLIF, RAGGED, torch.float64, recurrent)
    for value in call[1]:
        value.requires_grad_(False)
    assert_close_gradients(run(multi_step, call)[1], run(reference.multi_step, call)[1])


TIMES = torch.tensor([0, 0.3, 1, math.inf, 0.999, math.nan], dtype=torch.float64)
SUMS = torch.tensor([0, -0.0, -1, -2, 0.5, 1e-30, -1e-30, 2, -0.5, 1, math.nan], dtype=torch.float64)


@over_dtypes
@pytest.mark.parametrize("T", [1.0, 0.3])
@pytest.mark.parametrize("clip", [None, 0.6])
@pytest.mark.parametrize("zero_drive_fires", [False, True])
def test_ttfs_equals_plain_torch(dtype, T, clip, zero_drive_fires, on_host, monkeypatch):
    """Bit for bit: all pairs of special values, and many random ones; the last block is ragged."""
    torch.manual_seed(0)
    S, A = torch.cat([torch.cartesian_prod(SUMS, T * SUMS), torch.randn(400, 2, dtype=torch.float64)]).to(dtype).T
    last = torch.rand(400, dtype=dtype)  # spikes at the very end of the window, where rounding may lead beyond it
    S, A = torch.cat([S, last]), torch.cat([A, -T * last])
    t = torch.cat([T * TIMES, T * torch.rand(len(S) - len(TIMES), dtype=torch.float64)])
    x, t, g = torch.stack([S, A]).to(dtype), t.to(dtype)[None], torch.randn(1, len(S)).to(dtype)
    assert len(S) % cuda.THREADS
    steps = {
        "split": lambda: [functional._split(t, T)],
        "fire": lambda: functional._fire(x, T, zero_drive_fires),
        "spread": lambda: [functional._spread(g, *functional._fire(x, T, zero_drive_fires), T, clip or math.inf)],
        "by_time": lambda: [functional._by_time(g.clone(), t)],
    }
    monkeypatch.setattr(kernels, "fits", lambda *_: False)
    expected = {kernel: step() for kernel, step in steps.items()}
    monkeypatch.setattr(kernels, "fits", lambda *_: True)
    monkeypatch.setattr(kernels, "_run", kernels._launch)
    monkeypatch.setattr(kernels.ops, "kernels", lambda *_: cuda)
    for kernel, step in steps.items():
        for got, want in zip(step(), expected[kernel], strict=True):
            torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)
    assert set(on_host) == set(steps)


@pytest.mark.parametrize(
    "architecture",
    ["90", "120", *(pytest.param(sm, marks=pytest.mark.slow) for sm in ("70", "75", "80", "86", "89", "100"))],
)
def test_every_variant_fits_the_registers(architecture):
    try:
        _, report = cuda.machine_code("neuron.cu", architecture, cuda.defines(CUADLIF, torch.float32, True))
    except cuda.CannotCompile as error:
        if "invalid value for --gpu-architecture" not in str(error):
            raise
        pytest.skip(f"this NVRTC does not know sm_{architecture}")
    if "registers" not in report:
        pytest.skip("this NVRTC (that of CUDA 13.0, for one) does not say how many registers it took")
    variants = [
        ("neuron.cu", dtype, cuda.defines(neuron, dtype, learned), 2)
        for neuron, dtype, learned in itertools.product(FAMILY, REGISTERS, (False, True))
    ]
    variants += [("ttfs.cu", dtype, (cuda.real(dtype),), 4) for dtype in REGISTERS]
    for source, dtype, options, number in variants:
        _, report = cuda.machine_code(source, architecture, options)
        registers = [int(number) for number in re.findall(r"Used (\d+) registers", report)]
        spills = re.findall(r"(\d+) bytes spill", report)
        assert len(registers) == number, report
        assert max(registers) <= REGISTERS[dtype], report
        assert set(spills) == {"0"}, report
