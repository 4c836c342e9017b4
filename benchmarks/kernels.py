"""How fast is one layer of neurons, forward and backward? Against the reference, JAX, SpikingJelly and the memory.

    python -m benchmarks.kernels [--json FILE] [--plot FILE] [--rounds 15] [--device cpu]

All contenders take turns within each round; the table shows medians. A turn is one call that is not timed and one that
is, so that nobody pays for what the one before left behind: cold caches, and threads that look for work for a while
before they sleep (JAX's do). The floor is a copy that moves as many bytes as the layer must: x, y, h forward and gy, h,
x, gx backward, once each. Peers are optional (benchmarks/requirements.txt).

`--device cuda` measures the cupy backend with CUDA events, the calls from Python included, as a training loop sees it,
and beside it how long the GPU itself is at work. That is what counts where it, not Python, takes the time: in large
layers, such
as that of LARGE_SHAPE at the end.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from snn import ops
from snn.machine import processor
from snn.memory import keep_freed_memory
from snn.ops import Dynamics, State, Values
from snn.ops.reference import SURROGATE_SLOPE

try:
    import jax
    from jax import numpy as jnp
except ModuleNotFoundError:
    jax = None

THETA = 0.25
SHAPE = (100, 128, 256)  # T, B, N
LARGE_SHAPE = (100, 1024, 512)
KINDS = {  # AdLIF and CuAdLIF learn their values, as in configs/; so does CuLIF here, to be comparable
    "CuLIF": Dynamics(current=True, adaptation=False, theta=THETA),
    "AdLIF": Dynamics(current=False, adaptation=True, theta=THETA),
    "CuAdLIF": Dynamics(current=True, adaptation=True, theta=THETA),
}
MOVED_TENSORS = 7
DECADES = range(3, 9)  # neuron-steps of the scaling curves: 1 k to 100 M

Step = Callable[[], object]  # one forward and backward


def make_values(neuron: Dynamics, N: int, device: str) -> Values:
    def full(value: float) -> Tensor:
        return torch.full((N,), value, device=device, requires_grad=True)

    lam_s = full(0.85) if neuron.current else None
    return Values(full(0.85), lam_s, *((full(0.98), full(0.3), full(0.3)) if neuron.adaptation else ()))


def ours(neuron: Dynamics, shape: tuple, device: str, backend: str) -> Step:
    x_TBN, gy_TBN = torch.randn(shape, device=device, requires_grad=True), torch.randn(shape, device=device)
    values = make_values(neuron, shape[-1], device)
    inputs = [x_TBN, *(value for value in values if value is not None)]

    def step() -> None:
        y_TBN, _, _ = ops.multi_step(x_TBN, values, State(), neuron, backend=backend, want_h=False)
        torch.autograd.grad(y_TBN, inputs, gy_TBN)

    return step


def copy_of_as_many_bytes(shape: tuple, device: str) -> Step:
    source = torch.zeros(MOVED_TENSORS * torch.Size(shape).numel() // 2, device=device)
    target = torch.zeros_like(source)
    return lambda: target.copy_(source)


def jax_scan(neuron: Dynamics, shape: tuple) -> Step:
    """The equations of `snn.ops.reference` as a jitted scan; gradients of x and of every value."""

    @jax.custom_vjp
    def spike(u):
        return (u >= 0).astype(u.dtype)

    spike.defvjp(lambda u: (spike(u), u), lambda u, g: (g / (1 + SURROGATE_SLOPE * jnp.abs(u)) ** 2,))

    def run(x_TBN, values):
        def single_step(state, x_BN):
            v, i, w, z = state
            drive = i if neuron.current else x_BN
            if neuron.adaptation:
                drive = drive - w
            h = values["lam_m"] * v + (1 - values["lam_m"]) * drive
            s = spike(h - THETA)
            v = (1 - jax.lax.stop_gradient(s)) * h
            if neuron.current:
                i = values["lam_s"] * i + x_BN
            if neuron.adaptation:
                w, z = values["lam_w"] * w + z, values["a"] * h + values["b"] * s
            return (v, i, w, z), s

        return jax.lax.scan(single_step, (jnp.zeros(shape[1:]),) * 4, x_TBN)[1]

    values = make_values(neuron, shape[-1], "cpu")._asdict()
    values = {name: jnp.asarray(value.detach().numpy()) for name, value in values.items() if value is not None}
    x_TBN, gy_TBN = (jnp.asarray(torch.randn(shape).numpy()) for _ in range(2))
    gradient = jax.jit(jax.grad(lambda *inputs: (run(*inputs) * gy_TBN).sum(), argnums=(0, 1)))
    return lambda: jax.block_until_ready(gradient(x_TBN, values))


def spikingjelly_node(node: str, shape: tuple, device: str) -> Step:
    """A simpler neuron than ours; its gradients are those of x alone."""
    from spikingjelly.activation_based import functional, neuron

    layer = getattr(neuron, node)().to(device)
    layer.step_mode = "m"
    x_TBN, gy_TBN = torch.randn(shape, device=device, requires_grad=True), torch.randn(shape, device=device)

    def step() -> None:
        functional.reset_net(layer)
        torch.autograd.grad(layer(x_TBN), x_TBN, gy_TBN)

    return step


def contenders(neuron: Dynamics, shape: tuple, device: str) -> dict[str, Step]:
    fused = "cupy" if device == "cuda" else "cpu"
    steps = {
        fused: ours(neuron, shape, device, fused),
        "torch reference": ours(neuron, shape, device, "torch"),
        "copy": copy_of_as_many_bytes(shape, device),
    }
    for node in ("LIFNode", "CUBALIFNode"):
        steps[f"SpikingJelly {node}"] = spikingjelly_node(node, shape, device)
    if jax:
        steps["JAX scan"] = jax_scan(neuron, shape)
    return steps


def milliseconds(step: Step, device: str) -> float:
    if device == "cpu":
        begin = time.perf_counter()
        step()
        return (time.perf_counter() - begin) * 1e3
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    step()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def medians(steps: dict[str, Step], rounds: int, device: str) -> dict[str, float]:
    """Milliseconds; the first round warms up, the others count."""

    def turn(step: Step) -> float:
        step()
        return milliseconds(step, device)

    times = [{name: turn(step) for name, step in steps.items()} for _ in range(rounds + 1)]
    return {name: statistics.median(row[name] for row in times[1:]) for name in steps}


def busy_milliseconds(step: Step, rounds: int = 10) -> float:
    """How long the GPU is at work for one call."""
    step()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(rounds):
            step()
        torch.cuda.synchronize()
    return sum(event.self_device_time_total for event in profiler.key_averages()) / 1e3 / rounds


def scaling(device: str) -> list[dict]:
    """One of T, B and N grows, the others stay at ten: the backend's time a neuron-step should stay the same."""
    backend = "cupy" if device == "cuda" else "cpu"
    rows = []
    for axis, letter in enumerate("TBN"):
        for decade in DECADES:
            shape = [10, 10, 10]
            shape[axis] = 10 ** (decade - 2)
            step = ours(KINDS["AdLIF"], tuple(shape), device, backend)
            step()
            rounds = 20 if decade < 7 else 3
            ms = statistics.median(milliseconds(step, device) for _ in range(rounds))
            rows.append({"grows": letter, "neuron_steps": 10**decade, "ms": ms})
    return rows


def high_water_megabytes() -> float:
    """Of this process; ru_maxrss would also count the one that started it. Linux only."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def peak_megabytes(backend: str) -> float:
    """Memory that a forward and backward adds to a process that has run a small one."""
    ours(KINDS["AdLIF"], (10, 2, 8), "cpu", backend)()
    step = ours(KINDS["AdLIF"], SHAPE, "cpu", backend)
    before = high_water_megabytes()
    step()
    return high_water_megabytes() - before


def peak_in_subprocess(backend: str) -> float:
    command = [sys.executable, "-m", "benchmarks.kernels", "--peak", backend]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def plot(rows: list[dict], path: Path) -> None:
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(5, 4), layout="constrained")
    for letter in "TBN":
        curve = [(row["neuron_steps"], row["ms"]) for row in rows if row["grows"] == letter]
        axes.loglog(*zip(*curve, strict=True), "o-", label=f"{letter} grows")
    axes.set(xlabel="neuron-steps (T·B·N)", ylabel="forward + backward [ms]", title="AdLIF")
    axes.legend()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", type=Path, help="write the numbers here")
    parser.add_argument("--plot", type=Path, help="draw the scaling curves here")
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds (15)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to measure (cpu)")
    parser.add_argument("--peak", choices=("cpu", "torch"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    keep_freed_memory()  # as train.py does; it helps every contender
    if arguments.peak:
        print(peak_megabytes(arguments.peak))
        return
    device = arguments.device
    on_gpu = device == "cuda"
    result = {
        "device": torch.cuda.get_device_name() if on_gpu else processor(),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "jax": jax and jax.__version__},
        "shape_TBN": SHAPE,
        "milliseconds": {},
    }
    fused = "cupy" if on_gpu else "cpu"
    print(f"forward + backward, T·B·N = {SHAPE}, float32, {result['device']}, {result['threads']} threads")
    moved = MOVED_TENSORS * torch.Size(SHAPE).numel() * 4
    for kind, neuron in KINDS.items():
        steps = contenders(neuron, SHAPE, device)
        times = medians(steps, arguments.rounds, device)
        result["milliseconds"][kind] = times
        print(f"{kind}: {moved / times[fused] / 1e6:.1f} GB/s, a copy {moved / times['copy'] / 1e6:.1f} GB/s")
        busy = {name: busy_milliseconds(step) for name, step in steps.items()} if on_gpu else {}
        for name, ms in times.items():
            work = f"; the GPU at work {busy[name]:8.3f} ms {busy[name] / busy[fused]:8.2f} x" if on_gpu else ""
            print(f"  {name:<24}{ms:9.3f} ms {ms / times[fused]:8.2f} x{work}")
        if on_gpu:
            result.setdefault("busy_milliseconds", {})[kind] = busy
            large = {
                name: busy_milliseconds(step)
                for name, step in (
                    (fused, ours(neuron, LARGE_SHAPE, device, fused)),
                    ("copy", copy_of_as_many_bytes(LARGE_SHAPE, device)),
                )
            }
            result.setdefault("busy_milliseconds_large", {})[kind] = large
            gigabytes = MOVED_TENSORS * torch.Size(LARGE_SHAPE).numel() * 4 / 1e9
            rates = ", ".join(f"{name} {ms:.3f} ms, {1e3 * gigabytes / ms:.0f} GB/s" for name, ms in large.items())
            print(f"  {LARGE_SHAPE}, the GPU at work: {rates}")
    result["scaling"] = scaling(device)
    for row in result["scaling"]:
        nanoseconds = row["ms"] * 1e6 / row["neuron_steps"]
        print(f"{row['grows']} grows: {row['neuron_steps']:>11,} neuron-steps {nanoseconds:8.2f} ns each")
    if not on_gpu:
        result["peak_megabytes"] = {backend: peak_in_subprocess(backend) for backend in ("cpu", "torch")}
        print(
            "peak memory of one AdLIF step: {cpu:.0f} MB, reference {torch:.0f} MB".format(**result["peak_megabytes"])
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + os.linesep, encoding="utf-8")
    if arguments.plot:
        plot(result["scaling"], arguments.plot)


if __name__ == "__main__":
    main()
