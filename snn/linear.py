"""A linear layer whose work follows the events: where its input is mostly zero, only what is not zero is multiplied."""

import torch
from spikingjelly.activation_based import layer
from torch import Tensor, nn
from torch.nn import functional as F

from snn.events import Events
from snn.ops import sparse

# The share of active inputs up to which the event-driven product, forward and weight gradient together, is the faster
# one. `python -m benchmarks.events` measures it: 700 to 256, 2 cores with AVX-512: 1.2 x faster at .2, slower at .3.
DENSE_ABOVE = 0.2


class EventLinear(layer.Linear):
    """SpikingJelly's Linear, for dense input (T, B, C) or for `Events`; the output is (T, B, N).

    On the CPU an input with few active entries takes the event-driven product, equal to the dense one up to rounding.
    Elsewhere, and where activity is dense, it is the dense product. `active_share` is what the last input had.
    """

    def __init__(self, inputs: int, outputs: int, bias: bool = False):
        super().__init__(inputs, outputs, bias=bias, step_mode="m")
        nn.init.xavier_uniform_(self.weight)
        self.dense_above = DENSE_ABOVE
        self.active_share = float("nan")

    @property
    def is_event_driven(self) -> bool:
        """Whether the last input took the event-driven product."""
        return self.weight.device.type == "cpu" and self.active_share <= self.dense_above

    def forward(self, x_TBC: Tensor | Events) -> Tensor:
        if isinstance(x_TBC, Events):
            T, B, C = x_TBC.shape
            self.active_share = len(x_TBC.counts) / (T * B * C)
            if not self.is_event_driven:
                return F.linear(x_TBC.dense(), self.weight, self.bias)
            counts = x_TBC.counts.to(self.weight.dtype)
            y_RN = _EventProduct.apply(None, x_TBC.offsets, x_TBC.channels, counts, self.weight)
            return self._add_bias(y_RN).view(T, B, -1)
        if x_TBC.device.type != "cpu":
            return F.linear(x_TBC, self.weight, self.bias)
        x_RC = x_TBC.flatten(0, -2).contiguous()
        found = sparse.find(x_RC.detach())
        self.active_share = int(found.firsts[-1]) / x_RC.numel()
        if not self.is_event_driven:
            return F.linear(x_TBC, self.weight, self.bias)
        events = sparse.compress(x_RC.detach(), found)
        return self._add_bias(_EventProduct.apply(x_RC, *events, self.weight)).view(*x_TBC.shape[:-1], -1)

    def _add_bias(self, y_RN: Tensor) -> Tensor:
        return y_RN if self.bias is None else y_RN + self.bias


class _EventProduct(torch.autograd.Function):
    """x @ W^T for x given by its entries. x itself (or None) is here for its gradient only and is not kept."""

    @staticmethod
    def forward(ctx, x_RC, offsets, channels, counts, W_NC):
        ctx.save_for_backward(offsets, channels, counts, W_NC)
        return sparse.product(offsets, channels, counts, W_NC.detach())

    @staticmethod
    def backward(ctx, gy_RN):
        offsets, channels, counts, W_NC = ctx.saved_tensors
        gx_RC = gy_RN @ W_NC if ctx.needs_input_grad[0] else None
        gW_NC = None
        if ctx.needs_input_grad[4]:
            gW_NC = sparse.weight_gradient(offsets, channels, counts, gy_RN, W_NC.shape[1])
        return gx_RC, None, None, None, gW_NC
