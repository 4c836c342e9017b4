"""The speed of one layer of neurons, forward and backward, against the reference, JAX, SpikingJelly and the memory.

    python -m benchmarks.kernels [--json FILE] [--plot FILE] [--rounds 15] [--device cpu]

All contenders take turns within each round; the table shows medians. A turn is an untimed call and a timed one, so that
no contender pays for what the one before left behind: cold caches, and threads that look for work for a while before
they sleep (as JAX's do). The floor is a copy that moves as many bytes as the layer must: x and y forward, x, gy and gx
backward, once each, and the marks of states twice. Peers are optional (benchmarks/requirements.txt). With `--before F`,
the kernels of the checkout in folder F, such as the commit before a change, take turns in a process of their own.

`--device cuda` measures the cupy backend with CUDA events, including the calls from Python, as a training loop sees it,
and also how long the GPU itself is at work. The latter counts where the GPU, not Python, takes the time: in large
layers, such as that of LARGE_SHAPE at the end.
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

from benchmarks.figures import Figure, Other, add_option, duration, others, store
from snn import cli, ops
from snn.errors import InputError
from snn.machine import processor
from snn.memory import keep_freed_memory
from snn.neurons import NEURONS
from snn.ops.printer import segment

try:
    import jax
    from jax import numpy as jnp
except ModuleNotFoundError:
    jax = None

THETA = 0.25
SHAPE = (100, 128, 256)  # T, B, N
LARGE_SHAPE = (100, 1024, 512)
PEERS = ("CuLIF", "AdLIF", "CuAdLIF")  # neurons that peers are compared with
KINDS = {name: neuron.dynamics_of() for name, neuron in NEURONS.items() if name not in ("PCuLIF", "PLIF")}
VALUES = {"theta": THETA, "lam_m": 0.85, "lam_s": 0.85, "lam_w": 0.98, "omega": 7.0, "b": 0.3, "a": 0.3, "delta": 0.01}
DECADES = range(3, 9)  # neuron-steps of the scaling curves: 1 k to 100 M

Step = Callable[[], object]  # one forward and backward


def make_values(name: str, N: int, device: str) -> dict[str, Tensor]:
    """Make the values of a neuron. All but θ are learned, as in configs/, and here also in CuLIF and LIF."""
    names = KINDS[name].values
    fixed = {value for value, declared in NEURONS[name].values_of().items() if declared.initial in ("theta", 0.01, 0.9)}
    return {
        value: torch.full((N,), VALUES.get(value, 0.5), device=device, requires_grad=value not in fixed)
        for value in names
    }


def ours(name: str, shape: tuple, device: str, backend: str) -> Step:
    x_TBN, gy_TBN = torch.randn(shape, device=device, requires_grad=True), torch.randn(shape, device=device)
    values = make_values(name, shape[-1], device)
    inputs = [x_TBN, *(value for value in values.values() if value.requires_grad)]

    def step() -> None:
        y_TBN, _, _ = ops.multi_step(x_TBN, values, {}, KINDS[name], backend=backend, want_h=False)
        torch.autograd.grad(y_TBN, inputs, gy_TBN)

    return step


def moved_numbers(name: str, shape: tuple) -> float:
    """Return how many numbers a forward and backward must move."""
    neuron = KINDS[name]
    return (5 + 2 * len(neuron.states) / segment(neuron)) * torch.Size(shape).numel()


BEFORE = """
import sys, time
from benchmarks.kernels import KINDS, ours
from snn.memory import keep_freed_memory
keep_freed_memory()
try:
    step = ours(KINDS[sys.argv[1]], eval(sys.argv[2]), "cpu", "cpu")
except (AttributeError, KeyError, TypeError):
    step = ours(sys.argv[1], eval(sys.argv[2]), "cpu", "cpu")
for line in sys.stdin:
    step()
    begin = time.perf_counter()
    step()
    print(time.perf_counter() - begin, flush=True)
"""


def before(folder: Path, name: str, shape: tuple) -> Step:
    """Return the same step in another checkout; its call returns the milliseconds that it took there."""
    command = [sys.executable, "-c", BEFORE, name, repr(tuple(shape))]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    child = subprocess.Popen(command, cwd=folder, env=os.environ | {"PYTHONPATH": str(folder)}, **pipes)

    def step() -> float:
        child.stdin.write("\n")
        child.stdin.flush()
        return 1e3 * float(child.stdout.readline())

    return step


def copy_of_as_many_bytes(name: str, shape: tuple, device: str) -> Step:
    source = torch.zeros(int(moved_numbers(name, shape) / 2), device=device)
    target = torch.zeros_like(source)
    return lambda: target.copy_(source)


def jax_scan(name: str, shape: tuple) -> Step:
    """Return a step with the neuron's equations as a jitted scan, with gradients of x and of every value."""
    has_current, adapts = name.startswith("Cu"), "Ad" in name

    @jax.custom_vjp
    def spike(u):
        return (u >= 0).astype(u.dtype)

    spike.defvjp(lambda u: (spike(u), u), lambda u, g: (g / (1 + 5 * jnp.abs(u)) ** 2,))

    def run(x_TBN, values):
        def single_step(state, x_BN):
            v, i, w, z = state
            drive = i if has_current else x_BN
            if adapts:
                drive = drive - w
            h = values["lam_m"] * v + (1 - values["lam_m"]) * drive
            s = spike(h - THETA)
            v = (1 - jax.lax.stop_gradient(s)) * h
            if has_current:
                i = values["lam_s"] * i + x_BN
            if adapts:
                w, z = values["lam_w"] * w + z, values["a"] * h + values["b"] * s
            return (v, i, w, z), s

        return jax.lax.scan(single_step, (jnp.zeros(shape[1:]),) * 4, x_TBN)[1]

    values = make_values(name, shape[-1], "cpu")
    values = {name: jnp.asarray(value.detach().numpy()) for name, value in values.items()}
    x_TBN, gy_TBN = (jnp.asarray(torch.randn(shape).numpy()) for _ in range(2))
    gradient = jax.jit(jax.grad(lambda *inputs: (run(*inputs) * gy_TBN).sum(), argnums=(0, 1)))
    return lambda: jax.block_until_ready(gradient(x_TBN, values))


def spikingjelly_node(node: str, shape: tuple, device: str) -> Step:
    """Return a step of a simpler neuron than ours, with the gradient of x alone."""
    from spikingjelly.activation_based import functional, neuron

    layer = getattr(neuron, node)().to(device)
    layer.step_mode = "m"
    x_TBN, gy_TBN = torch.randn(shape, device=device, requires_grad=True), torch.randn(shape, device=device)

    def step() -> None:
        functional.reset_net(layer)
        torch.autograd.grad(layer(x_TBN), x_TBN, gy_TBN)

    return step


def contenders(name: str, shape: tuple, device: str, earlier: Path | None) -> dict[str, Step]:
    fused = "cupy" if device == "cuda" else "cpu"
    steps = {fused: ours(name, shape, device, fused), "copy": copy_of_as_many_bytes(name, shape, device)}
    if name not in PEERS:
        return steps
    if earlier:
        steps["before"] = before(earlier, name, shape)
    steps["torch reference"] = ours(name, shape, device, "torch")
    for node in ("LIFNode", "CUBALIFNode"):
        steps[f"SpikingJelly {node}"] = spikingjelly_node(node, shape, device)
    if jax:
        steps["JAX scan"] = jax_scan(name, shape)
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
    """Measure medians in milliseconds; the first round warms up, the others count."""
    if rounds < 1:
        raise InputError(f"--rounds {rounds}: there must be at least 1")

    def turn(step: Step) -> float:
        if isinstance(elsewhere := step(), float):  # measured by another process
            return elsewhere
        return milliseconds(step, device)

    times = [{name: turn(step) for name, step in steps.items()} for _ in range(rounds + 1)]
    return {name: statistics.median(row[name] for row in times[1:]) for name in steps}


def busy_milliseconds(step: Step, rounds: int = 10) -> float:
    """Return the milliseconds that the GPU is at work for one call."""
    step()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(rounds):
            step()
        torch.cuda.synchronize()
    return sum(event.self_device_time_total for event in profiler.key_averages()) / 1e3 / rounds


def scaling(device: str) -> list[dict]:
    """Let one of T, B and N grow while the others stay at ten: the time per neuron-step should stay the same."""
    backend = "cupy" if device == "cuda" else "cpu"
    rows = []
    for axis, letter in enumerate("TBN"):
        for decade in DECADES:
            shape = [10, 10, 10]
            shape[axis] = 10 ** (decade - 2)
            step = ours("AdLIF", tuple(shape), device, backend)
            step()
            rounds = 20 if decade < 7 else 3
            ms = statistics.median(milliseconds(step, device) for _ in range(rounds))
            rows.append({"grows": letter, "neuron_steps": 10**decade, "ms": ms})
    return rows


def narrow(rounds: int = 3) -> list[dict]:
    """Compare, in turns, long recordings of a thousand columns with as many neuron-steps in a wide array."""
    rows = []
    for T in (10_000, 100_000):
        shapes = {"narrow": (T, 10, 100), "wide": (100, T // 100 * 10, 100)}
        steps = {name: ours("AdLIF", shape, "cpu", "cpu") for name, shape in shapes.items()}
        rows.append({"T": T, **medians(steps, rounds, "cpu")})
    return rows


def high_water_megabytes() -> float:
    """Return the peak memory of this process; ru_maxrss would also count its parent. Linux only."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def peak_megabytes(backend: str) -> float:
    """Measure the memory that a forward and backward adds to a process that has run a small one."""
    ours("AdLIF", (10, 2, 8), "cpu", backend)()
    step = ours("AdLIF", SHAPE, "cpu", backend)
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


NAMES = {  # of contenders on the page
    "before": "kernels written by hand, before",
    "SpikingJelly LIFNode": "SpikingJelly, LIFNode",
    "torch reference": "torch reference",
    "SpikingJelly CUBALIFNode": "SpikingJelly, CUBALIFNode",
    "JAX scan": "JAX, lax.scan",
    "copy": "a copy of the bytes that must move",
}
LAYER = "one AdLIF layer, T = 100, B = 128, N = 256, forward + backward"


def figures(result: dict, fused: str) -> list[Figure]:
    """Return the rows of docs/speed.md."""
    ms = result["milliseconds"]
    if fused == "cupy":
        busy, large = result["busy_milliseconds"]["AdLIF"], result["busy_milliseconds_large"]["AdLIF"]
        terabytes = 4 * moved_numbers("AdLIF", LARGE_SHAPE) / 1e12
        rates = {name: f"{1e3 * terabytes / value:.2g} TB/s" for name, value in large.items()}
        names = NAMES | {"SpikingJelly LIFNode": "SpikingJelly, LIFNode (Triton)"}
        title = "the same for B = 1,024, N = 512, the GPU at work"
        return [
            Figure(f"{LAYER}, time that the GPU is at work", duration(busy[fused]), others(busy, fused, names)),
            Figure(
                "the same as a single call from Python, which it then waits for",
                duration(ms["AdLIF"][fused]),
                others(ms["AdLIF"], fused, names),
            ),
            Figure(title, f"{duration(large[fused])}, {rates[fused]}", [Other("a copy", rates["copy"])]),
        ]

    def listed(who: str) -> str:
        return ", ".join(f"{kind} {times[who]:.2g}" for kind, times in ms.items() if kind != "AdLIF" and who in times)

    before = [Other(NAMES["before"], f"{listed('before')} ms")] if listed("before") else []
    narrow, wide = (" and ".join(f"{row[shape]:.3g}" for row in result["narrow"]) for shape in ("narrow", "wide"))
    return [
        Figure(LAYER, duration(ms["AdLIF"][fused]), others(ms["AdLIF"], fused, NAMES)),
        Figure("the same, other neurons", f"{listed(fused)} ms", before),
        Figure(
            "10,000 and 100,000 steps of 1,000 columns",
            f"{narrow} ms",
            [Other("as many neuron-steps in a wide array", f"{wide} ms")],
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", type=Path, help="file for the numbers (JSON)")
    parser.add_argument("--plot", type=Path, help="file for a picture of the scaling curves")
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds (15)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="device to measure on (cpu)")
    parser.add_argument("--before", type=Path, metavar="FOLDER", help="also time a checkout of an earlier commit")
    parser.add_argument("--peak", choices=("cpu", "torch"), help=argparse.SUPPRESS)
    add_option(parser)
    arguments = parser.parse_args()
    if arguments.before and arguments.device == "cuda":
        parser.error("--before times the other checkout on the CPU: leave out --device cuda")
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
    for kind in KINDS:
        moved = 4 * moved_numbers(kind, SHAPE)
        steps = contenders(kind, SHAPE, device, arguments.before)
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
                    (fused, ours(kind, LARGE_SHAPE, device, fused)),
                    ("copy", copy_of_as_many_bytes(kind, LARGE_SHAPE, device)),
                )
            }
            result.setdefault("busy_milliseconds_large", {})[kind] = large
            gigabytes = 4 * moved_numbers(kind, LARGE_SHAPE) / 1e9
            rates = ", ".join(f"{name} {ms:.3f} ms, {1e3 * gigabytes / ms:.0f} GB/s" for name, ms in large.items())
            print(f"  {LARGE_SHAPE}, the GPU at work: {rates}")
    result["scaling"] = scaling(device)
    for row in result["scaling"]:
        nanoseconds = row["ms"] * 1e6 / row["neuron_steps"]
        print(f"{row['grows']} grows: {row['neuron_steps']:>11,} neuron-steps {nanoseconds:8.2f} ns each")
    if not on_gpu:
        result["narrow"] = narrow()
        for row in result["narrow"]:
            ratio = row["narrow"] / row["wide"]
            print(f"T = {row['T']:,}, B·N = 1,000: {row['narrow']:.1f} ms, {ratio:.2f} x as many in a wide array")
        result["peak_megabytes"] = {backend: peak_in_subprocess(backend) for backend in ("cpu", "torch")}
        print(
            "peak memory of one AdLIF step: {cpu:.0f} MB, reference {torch:.0f} MB".format(**result["peak_megabytes"])
        )
    if arguments.store:
        store(figures(result, fused), device)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + os.linesep, encoding="utf-8")
    if arguments.plot:
        plot(result["scaling"], arguments.plot)


if __name__ == "__main__":
    cli.run(main)
