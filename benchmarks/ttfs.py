"""The cost of a training step of a TTFS network, against a clipped ReLU, a simulation, and the published way.

    python -m benchmarks.ttfs [--rounds 5] [--device cpu] [--json FILE]
    python -m benchmarks.ttfs --layers "64C3 - P2 - 128F" [--shape 3 32 32] [--classes 10] [--batch 16] ...

Measures forward, cross-entropy and backward of the network of configs/ttfs_mnist.yaml and of vgg7, or of your own, in
four ways that take turns within each round; times are medians. The optimiser's step, the same for all, is left out.

- clipped ReLU: the same weights, `clamp(0, T)` for the neurons; on a CPU with channels last in memory, which is faster.
- simulation: SpikingJelly's IFNodes over 16 steps with surrogate gradients; only a neuron's first spike is passed on.
- two products: the closed form as the authors' framework computes it, written again from the equations: one product for
  S and one for I, gradients assembled by hand from two products each, and a readout whose gradient goes through
  (B, inputs, outputs).

Kept memory is the memory that autograd holds between forward and backward, without weights, counting each storage once.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import Tensor, nn
from torch.nn import grad

from benchmarks.figures import Figure, Other, add_option, duration, store
from benchmarks.kernels import medians, processor
from snn import cli, config, settings
from snn.errors import InputError
from snn.machine import find_device
from snn.memory import keep_freed_memory
from snn.ttfs.layers import Conv2d, EarliestSpike, Linear
from snn.ttfs.network import TTFSNetwork

MNIST = Path(__file__).resolve().parent.parent / "configs" / "ttfs_mnist.yaml"
STEPS = 16
Forward = Callable[[Tensor], Tensor]


class Clip(nn.Module):
    """A ReLU clipped at T = 1, like the neurons."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(0, 1)


class ChannelsLast(nn.Module):
    """Put the channels of maps last in memory."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return x_BCHW.contiguous(memory_format=torch.channels_last)


class FirstSpike(nn.Module):
    """IFNodes that pass on only their first spike."""

    def __init__(self):
        super().__init__()
        self.neurons = neuron.IFNode(surrogate_function=surrogate.ATan(), detach_reset=True, step_mode="m")

    def forward(self, x_TB: Tensor) -> Tensor:
        s_TB = self.neurons(x_TB)
        return s_TB * (s_TB.detach().cumsum(0) <= 1)


def like(network: TTFSNetwork, conv: type, dense: type, pool: type, neurons: type) -> nn.Sequential:
    """Build a network of the same shape with other parts, and the same weights."""
    modules: list[nn.Module] = []
    is_flat = False
    for module in [*network.layers, network.readout]:
        if isinstance(module, EarliestSpike):
            modules.append(pool(module.kernel))
            continue
        is_conv = isinstance(module, Conv2d)
        if not is_conv and not is_flat:
            modules.append(layer.Flatten(step_mode="m") if dense is layer.Linear else nn.Flatten())
            is_flat = True
        outputs, inputs = module.weight.shape[:2]
        if is_conv:
            kernel = module.weight.shape[2]
            modules.append(conv(inputs, outputs, kernel, module.stride, kernel // 2, bias=False))
        else:
            modules.append(dense(inputs, outputs, bias=False))
        modules[-1].weight.data.copy_(module.weight)
        if module is not network.readout:
            modules.append(neurons())
    return nn.Sequential(*modules)


def clipped_relu(network: TTFSNetwork) -> nn.Sequential:
    clipped = like(network, nn.Conv2d, nn.Linear, nn.MaxPool2d, Clip).to(network.readout.weight.device)
    if network.readout.weight.device.type == "cuda":
        return clipped
    return nn.Sequential(ChannelsLast(), *clipped).to(memory_format=torch.channels_last)


class Simulation(nn.Module):
    """A copy of the network, with weights of its own, whose neurons are simulated over STEPS steps."""

    def __init__(self, network: TTFSNetwork):
        super().__init__()
        self.simulated = like(network, layer.Conv2d, layer.Linear, layer.MaxPool2d, FirstSpike)
        functional.set_step_mode(self.simulated, "m")
        self.to(network.readout.weight.device)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        functional.reset_net(self.simulated)
        step_BCHW = ((1 - x_BCHW) * (STEPS - 1)).round()
        steps = torch.arange(STEPS, device=x_BCHW.device).view(-1, 1, 1, 1, 1)
        return self.simulated((step_BCHW == steps).to(x_BCHW.dtype)).mean(0)


class TwoProducts(torch.autograd.Function):
    """A layer from I = Σ w m t and t* = (2T + I) / (1 + S), T = 1, with a separate product for each sum."""

    @staticmethod
    def forward(ctx, t: Tensor, W: Tensor, stride_padding: tuple[int, int] | None) -> Tensor:
        def product(x: Tensor) -> Tensor:
            return F.linear(x, W) if stride_padding is None else F.conv2d(x, W, None, *stride_padding)

        m = torch.isfinite(t).to(t.dtype)
        z = torch.where(torch.isfinite(t), t, 0)
        d, numerator = 1 + product(m), 2 + product(z)
        is_early = d >= numerator
        has_slope = ~is_early & (2 * d >= numerator) & (d > 0)
        t_star = numerator / torch.where(has_slope, d, 1)
        t_out = torch.where(has_slope, t_star - 1, torch.where(is_early, 0.0, torch.inf))
        g_I = torch.where(has_slope, 1 / torch.where(has_slope, d, 1), 0)
        g_S = torch.where(has_slope, -t_star * g_I, 0)
        ctx.save_for_backward(m, z, W, g_I, g_S)
        ctx.stride_padding = stride_padding
        return t_out

    @staticmethod
    def backward(ctx, g: Tensor) -> tuple[Tensor | None, ...]:
        m, z, W, g_I, g_S = ctx.saved_tensors
        g_I, g_S = g * g_I, g * g_S
        where, g_t = ctx.stride_padding, None
        if where is None:
            g_W = g_I.T @ z + g_S.T @ m
            if ctx.needs_input_grad[0]:
                g_t = (g_I @ W) * m
        else:
            g_W = grad.conv2d_weight(z, W.shape, g_I, *where) + grad.conv2d_weight(m, W.shape, g_S, *where)
            if ctx.needs_input_grad[0]:
                g_t = grad.conv2d_input(z.shape, W, g_I, *where) * m
        return g_t, g_W, None


class BufferedReadout(torch.autograd.Function):
    """A readout V = Σ w m (2 - t), whose gradient by W goes through a tensor (B, inputs, outputs)."""

    @staticmethod
    def forward(ctx, t_BN: Tensor, W_ON: Tensor) -> Tensor:
        lead_BN = torch.where(torch.isfinite(t_BN), 2 - t_BN, 0)
        ctx.save_for_backward(lead_BN, W_ON)
        return lead_BN @ W_ON.T

    @staticmethod
    def backward(ctx, g_BO: Tensor) -> tuple[Tensor, Tensor]:
        lead_BN, W_ON = ctx.saved_tensors
        g_BNO = lead_BN.unsqueeze(2) * g_BO.unsqueeze(1)
        return -(g_BO @ W_ON) * (lead_BN > 0), g_BNO.sum(0).T


def two_products(network: TTFSNetwork) -> Forward:
    def run(x_BCHW: Tensor) -> Tensor:
        t = torch.where(x_BCHW == 0, torch.inf, 1 - x_BCHW)
        for module in network.layers:
            if isinstance(module, EarliestSpike):
                t = -F.max_pool2d(-t, module.kernel)
            elif isinstance(module, Conv2d):
                t = TwoProducts.apply(t, module.weight, (module.stride, module.weight.shape[-1] // 2))
            else:
                t = TwoProducts.apply(t.flatten(1), module.weight, None)
        return BufferedReadout.apply(t.flatten(1), network.readout.weight)

    return run


def kept_megabytes(forward: Forward, x_BCHW: Tensor, weights: set[int]) -> float:
    """Return the megabytes that autograd keeps of a forward pass."""
    storages = {}

    def note(x: Tensor) -> Tensor:
        # keeps the tensor alive with its storage, so that no address is used twice
        storages.setdefault(x.untyped_storage().data_ptr(), x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        forward(x_BCHW)
    return sum(x.untyped_storage().nbytes() for at, x in storages.items() if at not in weights) / 1e6


def compare(layers: str, shape: tuple[int, ...], classes: int, batch: int, rounds: int, device: str) -> dict:
    """Measure and print milliseconds and kept megabytes of each way."""
    torch.manual_seed(0)
    network = TTFSNetwork(config.TTFS(layers=layers), shape, classes).to(device)
    if not all(isinstance(module, (Conv2d, Linear, EarliestSpike)) for module in network.layers):
        raise InputError("--layers: only C, P and F words are compared")
    x_BCHW = torch.rand(batch, *shape, device=device)
    target_B = torch.randint(classes, (batch,), device=device)
    forwards: dict[str, Forward] = {
        "ours": lambda x: network(x).V_BN,
        "clipped ReLU": clipped_relu(network),
        f"simulation, {STEPS} steps": Simulation(network),
        "two products": two_products(network),
    }
    difference_BN = (forwards["ours"](x_BCHW) - forwards["two products"](x_BCHW)).abs()
    # rounding may change whether a neuron close to its threshold fires, and so the outputs of a few images
    assert difference_BN.amax(1).median() < 1e-2, "the published way gives something else"

    def step(forward: Forward) -> Callable[[], None]:
        return lambda: F.cross_entropy(forward(x_BCHW), target_B).backward()

    median = medians({name: step(f) for name, f in forwards.items()}, rounds, device)
    kept = {}
    for name, forward in forwards.items():
        modules = forward if isinstance(forward, nn.Module) else network  # the former have copies of the weights
        weights = {p.untyped_storage().data_ptr() for p in modules.parameters()}
        kept[name] = kept_megabytes(forward, x_BCHW, weights)
    print(f"{layers}, {classes} classes, B = {batch}")
    for name, ms in median.items():
        against = f"{ms / median['clipped ReLU']:6.2f} x a clipped ReLU, {ms / median['ours']:6.2f} x ours"
        print(f"  {name:<24}{ms:10.1f} ms  {against}; keeps {kept[name]:8.1f} MB")
    return {"layers": layers, "classes": classes, "batch": batch, "milliseconds": median, "kept_megabytes": kept}


NAMES = {  # of the ways on the page
    "clipped ReLU": "clipped ReLU in place of neurons",
    "two products": "two products, as the authors compute it",
    f"simulation, {STEPS} steps": f"SpikingJelly, {STEPS} steps",
}


def figure(result: dict, mnist: str, device: str) -> Figure:
    """Return the row of docs/speed.md of one network; `mnist` has the layers of configs/ttfs_mnist.yaml."""
    ms, kept = result["milliseconds"], result["kept_megabytes"]
    what = f"`{result['layers']}` of neurons that spike once"
    what += ", forward + backward" if device == "cpu" else ""
    if result["layers"] == mnist:
        what = "the layers of `configs/ttfs_mnist.yaml`, weights not standardised"
    rows = [
        Other(who, f"{duration(ms[name])}, keeps {kept[name]:.0f} MB", ms[name] / ms["ours"])
        for name, who in NAMES.items()
    ]
    here = f"{duration(ms['ours'])}, keeps {kept['ours']:.0f} MB"
    return Figure(f"{what}, B = {result['batch']}", here, rows)


def main() -> None:
    keep_freed_memory()  # as train.py does; it helps every contender
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--layers", help="layer words, with P for pools (the two networks above)")
    parser.add_argument("--shape", type=int, nargs=3, default=(3, 32, 32), help="channels, height, width (3 32 32)")
    parser.add_argument("--classes", type=int, default=10, help="outputs of the readout (10)")
    parser.add_argument("--batch", type=int, default=16, help="images per step (16)")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds (5)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="device to measure on (cpu)")
    parser.add_argument("--json", type=Path, help="file for the numbers (JSON)")
    add_option(parser)
    arguments = parser.parse_args()
    device = find_device(arguments.device).type  # without TF32, as in train.py
    where = processor() if device == "cpu" else torch.cuda.get_device_name()
    where += f", {torch.get_num_threads()} threads, torch {torch.__version__}"
    print(where)
    mnist = settings.load(MNIST)
    networks = [
        (mnist.ttfs.layers, mnist.data.shape, mnist.data.num_classes, mnist.train.batch_size),
        ("vgg7", (3, 32, 32), 10, 16),
    ]
    if arguments.layers:
        networks = [(arguments.layers, tuple(arguments.shape), arguments.classes, arguments.batch)]
    results = [compare(*network, arguments.rounds, device) for network in networks]
    if arguments.store:
        store([figure(result, mnist.ttfs.layers, device) for result in results], device)
    if arguments.json:
        arguments.json.write_text(json.dumps({"where": where, "networks": results}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    cli.run(main)
