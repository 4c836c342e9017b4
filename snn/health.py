"""Where a training step went wrong."""

import math

import torch
from torch import Tensor, nn

from snn.events import Events
from snn.network import Network
from snn.ttfs.network import Network as TTFSNetwork


def blame(network: Network | TTFSNetwork, x: Tensor | Events, loss: Tensor) -> str:
    """The first place where a step meets a number that is not finite: from the input onwards, then back from the loss.

    A bad weight or statistic comes before what it does to the layers.
    Between the layers of a TTFS network infinity is no fault: it is the time of a spike that there is not.
    """
    if samples_at_fault(x):
        return "the input"
    for name, value in network.state_dict().items():
        if not value.isfinite().all():
            return f"the {'parameter' if name in dict(network.named_parameters()) else 'buffer'} {name}"
    is_ttfs = isinstance(network, TTFSNetwork)
    faults: list[str] = []

    def inspect(module: nn.Module, inputs: tuple, outputs: Tensor | tuple) -> None:
        for out in [outputs] if isinstance(outputs, Tensor) else outputs:
            is_fine = out.isfinite()
            if is_ttfs and module is not network.readout:
                is_fine |= out == math.inf
            if not is_fine.all():
                faults.append(f"the output of {names[module]}")

    blocks = () if is_ttfs else network.blocks
    names = {module: name for name, module in network.named_modules() if name and module not in blocks}
    hooks = [module.register_forward_hook(inspect) for module in names]
    with torch.no_grad():
        if not is_ttfs:
            network.reset()
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


def samples_at_fault(x: Tensor | Events) -> list[int]:
    """The samples of a batch, events or dense (T, B, ...) or images (B, C, H, W), with a number that is not finite."""
    if (x.counts if isinstance(x, Events) else x).sum().isfinite():  # as nearly always
        return []
    if isinstance(x, Events):
        entries = (~x.counts.isfinite()).nonzero().flatten()
        rows = torch.searchsorted(x.offsets, entries, right=True) - 1  # row t·B + b
        return sorted(set((rows % x.shape[1]).tolist()))
    x_BX = (x if x.dim() == 4 else x.transpose(0, 1)).flatten(1)
    return (~x_BX.isfinite().all(1)).nonzero().flatten().tolist()


def are_finite(values: list[Tensor]) -> bool:
    """Whether all numbers of a network's weights and statistics are; their sums nearly always say so at once."""
    sums_are = bool(torch.stack([value.sum() for value in values]).isfinite().all())
    return sums_are or all(bool(value.isfinite().all()) for value in values)
