"""Forward and backward of a training step as CUDA graphs: recorded once, then replayed without Python in between.

The layers of a first-spike network are small beside what a GPU can do, and most of the time it would wait for Python; a
recurrent layer alone is hundreds of launches. Replayed, a step takes the GPU's own time.
"""

import gc
from collections.abc import Callable

import torch
from torch import Tensor, nn

from snn.errors import InputError

Loss = Callable[[Tensor, Tensor, float], Tensor]  # of (x, labels, weight)


class Replayed:
    """A loss of a network on a GPU. Batches as large as the largest so far are replayed, smaller ones computed afresh.

    What is recorded is one course of events: the loss must not ask for a value on the CPU, nor change between batches
    without `forget()`. A recording keeps the memory of its step.
    """

    def __init__(self, network: nn.Module, loss: Loss):
        self.network, self.loss = network, loss
        self.forget()
        # torch records on a stream of its own and warns of steps that are not replayed: they may wait a little
        torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)

    def forget(self) -> None:
        """Record anew at the next batch."""
        self._step: Callable[[Tensor, Tensor], Tensor] | None = None
        self._x_TBC: Tensor | None = None

    def __call__(self, x_TBC: Tensor, target_B: Tensor, weight: float) -> Tensor:
        if self._x_TBC is None or x_TBC.shape[1] > self._x_TBC.shape[1]:
            self._record(x_TBC, target_B, weight)
        if x_TBC.shape != self._x_TBC.shape:
            return self.loss(x_TBC, target_B, weight)
        return self._step(x_TBC, target_B)

    def _record(self, x_TBC: Tensor, target_B: Tensor, weight: float) -> None:
        self.forget()
        gc.collect()  # the one before is in a cycle; freed while another is recorded, it would spoil that
        self._x_TBC = x_TBC.clone()  # where torch puts the batches to come
        device = x_TBC.device
        # torch runs the step a few times first: that must not count in statistics, nor in what is drawn
        kept = [(buffer, buffer.clone()) for buffer in self.network.buffers()]
        random = torch.cuda.get_rng_state(device)
        step = _Step(self.network, lambda x, target: self.loss(x, target, weight))
        try:
            self._step = torch.cuda.make_graphed_callables(
                step, (self._x_TBC, target_B.clone()), allow_unused_input=True
            )
        except RuntimeError as error:
            if "capturing" not in str(error):
                raise
            raise InputError(
                "this training step cannot be recorded as CUDA graphs: some layer or loss asks for a value on the CPU "
                "(.item(), a branch on a tensor) or changes the device; set train.cuda_graphs=false"
            ) from error
        torch.cuda.set_rng_state(random, device)
        with torch.no_grad():
            for buffer, before in kept:
                buffer.copy_(before)


class _Step(nn.Module):
    """The loss as a module, so that torch finds the parameters that have gradients."""

    def __init__(self, network: nn.Module, loss: Callable[[Tensor, Tensor], Tensor]):
        super().__init__()
        self.network, self.loss = network, loss

    def forward(self, x_TBC: Tensor, target_B: Tensor) -> Tensor:
        return self.loss(x_TBC, target_B)
