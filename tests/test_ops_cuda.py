"""The CUDA kernels without a GPU: compiled by NVRTC for each architecture, and, by g++, run on the CPU.

What stays untested here, the launch itself (pointers, stream, device), is in tests/test_gpu.py.
"""

import ctypes
import itertools
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest
import torch

from snn.ops import fused
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
    """The kernels of one variant as a library on the CPU: no contraction, as on the GPU."""

    @cache
    def compiled(options: tuple[str, ...]) -> ctypes.CDLL:
        library = tmp_path_factory.mktemp("kernels") / "neuron.so"
        command = ["g++", "-x", "c++", "-shared", "-fPIC", "-O1", "-ffp-contract=off", "-include", SHIM]
        subprocess.run([*command, *options, cuda.SOURCE, "-o", library], check=True)
        return ctypes.CDLL(str(library))

    return compiled


@pytest.fixture
def on_host(build, monkeypatch):
    """`snn.ops.cuda` with the launch replaced by a loop over blocks and threads; gives its multi_step."""
    launched = []

    def launch(kernel, neuron, learned, tensors, scalars):
        launched.append(kernel)
        library = build(cuda.defines(neuron, tensors[0].dtype, learned))
        pointers = [ctypes.c_void_p(None if tensor is None else tensor.data_ptr()) for tensor in tensors]
        theta, *integers = scalars
        arguments = [*pointers, ctypes.c_double(theta), *map(ctypes.c_longlong, integers)]
        for block, thread in itertools.product(range(-(-scalars[-2] // cuda.THREADS)), range(cuda.THREADS)):
            library.place(block, thread, cuda.THREADS)
            getattr(library, kernel)(*arguments)

    monkeypatch.setattr(cuda, "_launch", launch)

    def multi_step(*call):
        return fused.multi_step(cuda, *call, want_h=True)

    yield multi_step
    assert {"forward", "backward"} <= set(launched)


@over_dtypes
@over_family
def test_equals_reference(neuron, dtype, on_host, poisoned):  # noqa: F811
    assert_equal_to_reference(on_host, make_call(neuron, RAGGED, dtype))


@pytest.mark.parametrize("shape", [(1, 1, 1), (9, 3, 129)], ids=str)
@pytest.mark.parametrize("neuron", [n for n in FAMILY if n.reset == "hard"], ids=name)
def test_recurrent_equals_reference(neuron, shape, on_host, poisoned):  # noqa: F811
    call = make_call(neuron, shape, torch.float64, recurrent=True)
    outputs, gradients = run(on_host, call)
    expected_outputs, expected_gradients = run(reference.multi_step, call)
    assert torch.equal(outputs[0], expected_outputs[0])
    assert_close_gradients([*outputs, *gradients], [*expected_outputs, *expected_gradients])


@pytest.mark.parametrize("recurrent", [False, True], ids=["feedforward", "recurrent"])
def test_values_that_are_not_learned(recurrent, on_host, poisoned):  # noqa: F811
    call = make_call(CUADLIF, RAGGED, torch.float64, recurrent)
    for value in call[1]:
        value.requires_grad_(False)
    assert_close_gradients(run(on_host, call)[1], run(reference.multi_step, call)[1])


@pytest.mark.parametrize(
    "architecture",
    ["90", "120", *(pytest.param(sm, marks=pytest.mark.slow) for sm in ("70", "75", "80", "86", "89", "100"))],
)
def test_every_variant_fits_the_registers(architecture):
    try:
        _, report = cuda.machine_code(architecture, cuda.defines(CUADLIF, torch.float32, True))
    except cuda.nvrtc.NVRTCError:
        pytest.skip(f"this NVRTC does not know sm_{architecture}")
    if "registers" not in report:
        pytest.skip("this NVRTC (that of CUDA 13.0, for one) does not say how many registers it took")
    for neuron, dtype, learned in itertools.product(FAMILY, REGISTERS, (False, True)):
        _, report = cuda.machine_code(architecture, cuda.defines(neuron, dtype, learned))
        registers = [int(number) for number in re.findall(r"Used (\d+) registers", report)]
        spills = re.findall(r"(\d+) bytes spill", report)
        assert len(registers) == 2, report
        assert max(registers) <= REGISTERS[dtype], report
        assert set(spills) == {"0"}, report
