"""A linear layer whose work follows the events: where its input is mostly zero, only what is not zero is multiplied."""

import math
from dataclasses import replace

import numpy as np
import torch
from spikingjelly.activation_based import layer
from torch import Tensor, nn
from torch.nn import functional as F

from snn import checks
from snn.inputs import SparseCounts, Spikes, as_tensor
from snn.ops import sparse

# The share of active inputs up to which the event-driven product, forward and weight gradient together, is not slower.
# `python -m benchmarks.events` measures it, 700 to 256, 2 cores with AVX-512: at .2 it is 1.9 x faster on an AMD EPYC,
# as fast on an Intel Xeon, whose dense product is a faster one; at .3 1.3 x faster and slower.
DENSE_ABOVE = 0.2

# The same for the gradient of the input, where the neurons before have a surrogate of finite width: the share of their
# outputs, not dropped, whose gradient can come to anything, up to which it is faster to compute these alone. And how
# many outputs of ours that takes: of few the dense product is no work, and writing down its result is. One core of an
# AMD EPYC, 256 to 256, 12,800 rows: dense 16.5 ms, a share of 0.1 7, 0.2 10, 0.35 13, 0.5 16 ms; 256 to 128: 9 ms
# against 4.6, 6.3, 8.3, 10 ms; 256 to 64: 4.8 against 3.3, 4.6, 6, 7 ms.
DENSE_GRADIENT_ABOVE = 0.4
FEW_OUTPUTS = 128


class EventLinear(layer.Linear):
    """SpikingJelly's Linear, for dense input (T, B, C), `SparseCounts` or `Spikes`; the output is (T, B, N).

    The weights are float32 or float64. Input of any real numbers, truth values included, is taken as their type, and so
    is all that is computed, under `torch.autocast` too. On the CPU an input that is not finite is an InputError.

    On the CPU an input with few active entries takes the event-driven product, equal to the dense one up to rounding.
    Elsewhere, and where activity is dense, it is the dense product. `active_share` is what the last input had. Of
    `Spikes` that say where a gradient can come to anything, those few get one, the others 0; `near_share` is how many.
    """

    def __init__(self, inputs: int, outputs: int, bias: bool = False):
        super().__init__(inputs, outputs, bias=bias, step_mode="m")
        nn.init.xavier_uniform_(self.weight)
        self.dense_above, self.dense_gradient_above = DENSE_ABOVE, DENSE_GRADIENT_ABOVE
        self.active_share = self.near_share = float("nan")

    @property
    def is_event_driven(self) -> bool:
        """Return whether the last input took the event-driven product."""
        return self.weight.device.type == "cpu" and self.active_share <= self.dense_above

    def forward(self, x_TBC: Tensor | SparseCounts | Spikes) -> Tensor:
        checks.weights("the layer's weight", self.weight)
        with checks.without_autocast(self.weight.device):
            return self._product(self._checked(x_TBC))

    def _checked(self, x_TBC: Tensor | SparseCounts | Spikes) -> Tensor | SparseCounts | Spikes:
        """The input, if it fits: of the weights' dtype and on their device."""
        if isinstance(x_TBC, SparseCounts):
            x_TBC.check_fits(self.in_features, self.weight.device)
            return x_TBC
        sizes = ("steps", "samples", self.in_features)
        if isinstance(x_TBC, Spikes):
            s_TBC = checks.like_weights("x", x_TBC.s_TBN, sizes, self.weight)
            mask_BC = None if x_TBC.mask_BN is None else x_TBC.mask_BN.to(s_TBC.dtype)
            return replace(x_TBC, s_TBN=s_TBC, mask_BN=mask_BC)
        return checks.like_weights("x", x_TBC, sizes, self.weight)

    def _product(self, x_TBC: Tensor | SparseCounts | Spikes) -> Tensor:
        if (entries := self._entries(x_TBC)) is None:
            return F.linear(as_tensor(x_TBC).to(self.weight.dtype), self.weight, self.bias)
        y_RN = _EventProduct.apply(*entries, self.weight, self._near(x_TBC))
        return self._add_bias(y_RN).view(*x_TBC.shape[:2], -1)

    def _entries(self, x_TBC: Tensor | SparseCounts | Spikes) -> tuple[Tensor | None, ...] | None:
        """(s_RC, mask_BC, offsets, channels, counts) of an input that takes the event-driven product, otherwise None.

        s_RC · mask_BC is that input, None where it is `SparseCounts`.
        """
        if isinstance(x_TBC, SparseCounts):
            self.active_share = len(x_TBC.counts) / math.prod(x_TBC.shape)
            counts = x_TBC.counts.to(self.weight.dtype)
            return (None, None, x_TBC.offsets, x_TBC.channels, counts) if self.is_event_driven else None
        if self.weight.device.type != "cpu":
            return None
        s_TBC, mask_BC = (x_TBC.s_TBN, x_TBC.mask_BN) if isinstance(x_TBC, Spikes) else (x_TBC, None)
        s_RC = s_TBC.flatten(0, -2).contiguous()
        found = sparse.find(s_RC, mask_BC)
        self.active_share = found.number / s_RC.numel()
        entries = sparse.compress(s_RC, found) if self.is_event_driven else None
        if not found.only_ones:
            checks.finite("x", s_TBC, entries[2] if entries and mask_BC is None else None)
        return (s_RC, mask_BC, *entries) if entries else None

    def _near(self, x_TBC: Tensor | SparseCounts | Spikes) -> Tensor | None:
        """Where a gradient of the input is to be computed, if not everywhere."""
        if not isinstance(x_TBC, Spikes) or x_TBC.near_TW is None:
            return None
        near_TW = sparse.kept(x_TBC.near_TW, x_TBC.mask_BN, x_TBC.shape)
        self.near_share = int(np.bitwise_count(near_TW.numpy()).sum()) / math.prod(x_TBC.shape)
        few = self.near_share <= self.dense_gradient_above and self.out_features >= FEW_OUTPUTS
        return near_TW if few else None

    def _add_bias(self, y_RN: Tensor) -> Tensor:
        return y_RN if self.bias is None else y_RN + self.bias


class _EventProduct(torch.autograd.Function):
    """(s · mask) @ W^T for a product s · mask given by its entries. s itself, or None, is here for its gradient.

    near_TW: where that gradient is wanted; None: everywhere.
    """

    @staticmethod
    def forward(ctx, s_RC, mask_BC, offsets, channels, counts, W_NC, near_TW):
        ctx.save_for_backward(mask_BC, offsets, channels, counts, W_NC, near_TW)
        return sparse.product(offsets, channels, counts, W_NC.detach(), True)

    @staticmethod
    def backward(ctx, gy_RN):
        mask_BC, offsets, channels, counts, W_NC, near_TW = ctx.saved_tensors
        gs_RC = gW_NC = None
        if ctx.needs_input_grad[0] and near_TW is not None:
            gs_RC = sparse.input_gradient(gy_RN, W_NC, near_TW, mask_BC)
        elif ctx.needs_input_grad[0]:
            gs_RC = input_gradient(gy_RN, W_NC)
            if mask_BC is not None:
                gs_RC.view(-1, *mask_BC.shape).mul_(mask_BC)
        if ctx.needs_input_grad[5]:
            gW_NC = sparse.weight_gradient(offsets, channels, counts, gy_RN, W_NC.shape[1], True)
        return gs_RC, None, None, None, None, gW_NC, None


def input_gradient(gy_RN: Tensor, W_NC: Tensor) -> Tensor:
    """gy @ W, of which nothing is sparse.

    In float32 as a 1×1 convolution of channels-last pixels: torch has oneDNN compute those, with AVX-512 on any
    processor that has it, but has MKL compute products, with AVX2 on AMD's.
    """
    if gy_RN.dtype != torch.float32 or not torch.backends.mkldnn.is_available():
        return gy_RN @ W_NC
    y_1NR1, W_CN11 = gy_RN[None, :, None].permute(0, 3, 1, 2), W_NC.T[:, :, None, None]
    # named, as torch by itself would not take oneDNN where there is one thread
    gs_1CR1 = torch.ops.aten.mkldnn_convolution(y_1NR1, W_CN11, None, [0, 0], [1, 1], [1, 1], 1)
    return gs_1CR1.permute(0, 2, 3, 1).reshape(len(gy_RN), -1)
