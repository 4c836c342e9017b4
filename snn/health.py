"""Where a training step went wrong."""

import torch
from torch import Tensor, nn

from snn.events import Events
from snn.network import Network


def blame(network: Network, x_TBC: Tensor | Events) -> str:
    """The first place, from the input onwards, where this batch meets a number that is not finite."""
    if not (x_TBC.counts if isinstance(x_TBC, Events) else x_TBC).isfinite().all():
        return "the input"
    for name, parameter in network.named_parameters():
        if not parameter.isfinite().all():
            return f"the parameter {name}"
    faults: list[str] = []

    def inspect(module: nn.Module, inputs: tuple, outputs: Tensor | tuple) -> None:
        if not all(out.isfinite().all() for out in ([outputs] if isinstance(outputs, Tensor) else outputs)):
            faults.append(f"the output of {names[module]}")

    names = {module: name for name, module in network.named_modules() if name and module not in network.blocks}
    hooks = [module.register_forward_hook(inspect) for module in names]
    with torch.no_grad():
        network.reset()
        network(x_TBC)
    for hook in hooks:
        hook.remove()
    if faults:
        return faults[0]
    for name, parameter in network.named_parameters():
        if parameter.grad is not None and not parameter.grad.isfinite().all():
            return f"the gradient of {name}"
    return "the loss"
