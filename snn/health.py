"""Diagnosis of training: find where a step went wrong, and warn of a run whose numbers look wrong."""

import math
from typing import NamedTuple

import torch
from spikingjelly.activation_based.functional import reset_net
from torch import Tensor, nn

from snn.inputs import SparseCounts, Spikes
from snn.norm import Normed


def blame(network: nn.Module, x: Tensor | SparseCounts, loss: Tensor) -> str:
    """Name the first place with a number that is not finite, from the input to the loss and then backwards.

    A bad weight or statistic is named before the layers that it spoils.
    """
    if samples_at_fault(x):
        return "the input"
    for name, value in network.state_dict().items():
        if not value.isfinite().all():
            return f"the {'parameter' if name in dict(network.named_parameters()) else 'buffer'} {name}"
    faults: list[str] = []

    def inspect(module: nn.Module, inputs: tuple, outputs: Tensor | tuple) -> None:
        for out in outputs if type(outputs) is tuple else (outputs,):
            out = out.dense() if isinstance(out, Normed | Spikes) else out
            is_fine = out.isfinite()
            if getattr(module, "gives_times", False):  # inf is valid there: it marks a silent neuron
                is_fine |= out == math.inf
            if not is_fine.all():
                faults.append(f"the output of {names[module]}")

    names = {module: name for name, module in network.named_modules() if name}
    hooks = [module.register_forward_hook(inspect) for module in names]
    with torch.no_grad():
        reset_net(network)
        network(x)
    for hook in hooks:
        hook.remove()
    if faults:
        return faults[0]
    if not loss.isfinite():
        return "the loss"
    for name, parameter in reversed(list(network.named_parameters())):
        if parameter.grad is not None and not parameter.grad.isfinite().all():
            return f"the gradient of {name}"
    return "the size of the gradient"


def samples_at_fault(x: Tensor | SparseCounts) -> list[int]:
    """List the samples that are not finite in a batch of events, dense (T, B, ...) or images (B, C, H, W)."""
    if (x.counts if isinstance(x, SparseCounts) else x).sum().isfinite():  # true nearly always
        return []
    if isinstance(x, SparseCounts):
        entries = (~x.counts.isfinite()).nonzero().flatten()
        rows = torch.searchsorted(x.offsets, entries, right=True) - 1  # row t·B + b
        return sorted(set((rows % x.shape[1]).tolist()))
    x_BX = (x if x.dim() == 4 else x.transpose(0, 1)).flatten(1)
    return (~x_BX.isfinite().all(1)).nonzero().flatten().tolist()


def are_finite(values: list[Tensor]) -> bool:
    """Return whether all weights and statistics are finite; nearly always one look at their norm is enough."""
    return bool(nn.utils.get_total_norm(values).isfinite()) or all(bool(value.isfinite().all()) for value in values)


# Norms before clipping: of a whole step (1e3 to 1e4 is usual where loss.fs.A is 200), and of one module in it.
EXPLODES_ABOVE = 1e6
VANISHES_BELOW = 1e-8


def gradient_norms(network: nn.Module, clipped_from: float, clip_norm: float) -> dict[str, float]:
    """Return the norms of the last step's gradient, total and by module, before clipping from `clipped_from`."""
    modules: dict[str, list[Tensor]] = {}
    for name, parameter in network.named_parameters():
        if parameter.grad is not None:
            modules.setdefault(name.rpartition(".")[0], []).append(parameter.grad)
    clipped = max(1.0, clipped_from / clip_norm) if clip_norm else 1.0
    norms = {name: math.hypot(*(float(n) for n in torch._foreach_norm(grads))) for name, grads in modules.items()}
    return {"gradient_norm": clipped_from} | {f"gradient_norm/{name}": clipped * norm for name, norm in norms.items()}


class Cures(NamedTuple):
    """Advice for a run that goes wrong: fields of the configuration that are worth changing."""

    dead: str  # for a hidden layer that never fires
    dead_output: str
    exploding: str  # for gradients, like the next
    vanishing: str
    silent: str = ""  # for outputs that are mostly silent, where a task counts those


def warnings_of(row: dict, cures: Cures) -> list[str]:
    """Find faults in an epoch's numbers (as in metrics.jsonl), and describe each in a sentence with its likely cure.

    No sentence has a number that changes from epoch to epoch, so that each need be said only once.
    """
    found = []
    by_layer = row.get("validation_spikes_per_neuron_by_layer", [])
    for k, rate in enumerate(by_layer, 1):
        if rate == 0:
            cure = cures.dead_output if k == len(by_layer) else cures.dead
            found.append(
                f"layer {k} is dead: it fires no spike on the held-out data; try {cure}, or a smaller train.lr"
            )
    if row.get("validation_silent_samples", 0) > row.get("validation_samples", 0) / 2:
        found.append(
            "silent outputs: most held-out recordings end without an output spike and are decided by potentials; try "
            f"{cures.silent}"
        )
    if row.get("gradient_norm", 0) > EXPLODES_ABOVE:
        found.append(f"exploding gradients: the norm is above {EXPLODES_ABOVE:g}; try {cures.exploding}")
    for name, norm in row.items():
        if name.startswith("gradient_norm/") and norm < VANISHES_BELOW:
            found.append(f"vanishing gradients: nothing reaches {name.partition('/')[2]}; try {cures.vanishing}")
    return found
