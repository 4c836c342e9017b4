"""Forward and backward of a training step as CUDA graphs: recorded once, then replayed without Python in between.

The layers of these networks are small for a GPU, which would spend most of the time waiting for Python; a recurrent
layer alone takes hundreds of launches. A replayed step takes only the GPU's own time.
"""

import gc
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from snn.errors import InputError

Loss = Callable[[Tensor, Tensor, float], Tensor]  # arguments (x, labels, weight)


class Replayed:
    """A loss of a network on a GPU that is replayed for batches of the largest size so far, and computed for others.

    A recording has no branches: the loss must not ask for a value on the CPU, nor change between batches without
    `forget()`. A recording keeps the memory of its step.
    """

    def __init__(self, network: nn.Module, loss: Loss):
        self.network, self.loss = network, loss
        self.forget()
        # torch records on a separate stream and warns of steps that are not replayed; those only wait a little
        torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)

    def forget(self) -> None:
        """Record again at the next batch."""
        self._recorded: tuple[int, Callable[..., Any]] | None = None  # the size of the batch, and the step

    def __call__(self, x: Tensor, target_B: Tensor, weight: float) -> Tensor:
        if self._recorded is None or len(target_B) > self._recorded[0]:
            self._recorded = len(target_B), self._record(x, target_B, weight)
        batch_size, step = self._recorded
        return step(x, target_B) if len(target_B) == batch_size else self.loss(x, target_B, weight)

    def _record(self, x: Tensor, target_B: Tensor, weight: float) -> Callable[..., Any]:
        self.forget()
        gc.collect()  # the old recording is in a cycle; freed during the new one, it would spoil that
        batch = x.clone(), target_B.clone()  # torch copies later batches into these
        device = x.device
        # torch first runs the step a few times, which must change neither statistics nor random states
        kept = [(buffer, buffer.clone()) for buffer in self.network.buffers()]
        random = torch.cuda.get_rng_state(device)
        step = _Step(self.network, lambda x, target: self.loss(x, target, weight))
        try:
            replayed = torch.cuda.make_graphed_callables(step, batch, allow_unused_input=True)
        except RuntimeError as error:
            if "capturing" not in str(error):
                raise
            raise InputError(
                "this training step cannot be recorded as CUDA graphs: a layer or loss reads a value on the CPU "
                "(.item(), a branch on a tensor) or changes the device; set train.cuda_graphs=false"
            ) from error
        torch.cuda.set_rng_state(random, device)
        with torch.no_grad():
            for buffer, before in kept:
                buffer.copy_(before)
        return replayed


class _Step(nn.Module):
    """A module that computes the loss, in which torch finds the parameters that have gradients."""

    def __init__(self, network: nn.Module, loss: Callable[[Tensor, Tensor], Tensor]):
        super().__init__()
        self.network, self.loss = network, loss

    def forward(self, x: Tensor, target_B: Tensor) -> Tensor:
        return self.loss(x, target_B)
