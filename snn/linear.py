"""A linear layer whose work follows the events: if most of the input is zero, it multiplies only the other entries."""

import math
from dataclasses import replace

import numpy as np
import torch
from spikingjelly.activation_based import layer
from torch import Tensor, nn
from torch.nn import functional as F

from snn import checks
from snn.inputs import Entries, SparseCounts, Spikes, as_tensor
from snn.ops import drives, sparse
from snn.ops.drives import Drive

# Up to this share of active inputs the event-driven product (forward and weight gradient together) is not slower.
# Measured by `python -m benchmarks.events` for 700 to 256 on 2 cores with AVX-512. At a share of 0.2 it is 1.9 x faster
# on an AMD EPYC and equally fast on an Intel Xeon, whose dense product is faster; at 0.3 it is 1.3 x faster on the
# EPYC and slower on the Xeon.
DENSE_ABOVE = 0.2

# The same for the gradient of the input if the neurons before have a surrogate of finite width. Some of their outputs
# are not dropped and can have a gradient other than 0; up to this share of them, it is faster to compute only these
# gradients. The layer also needs enough outputs: with few, the dense product costs little beside writing its result.
# One core of an AMD EPYC, 12,800 rows, dense against shares of 0.1, 0.2, 0.35 and 0.5: 256 to 256, 16.5 ms against 7,
# 10, 13 and 16 ms; 256 to 128, 9 ms against 4.6, 6.3, 8.3 and 10 ms; 256 to 64, 4.8 ms against 3.3, 4.6, 6 and 7 ms.
DENSE_GRADIENT_ABOVE = 0.4
FEW_OUTPUTS = 128


class EventDriven:
    """A layer that takes the event-driven product on a CPU if few inputs are active, and the dense one otherwise."""

    weight: Tensor
    dense_above: float  # share of active inputs
    active_share: float  # of the last input

    @property
    def is_event_driven(self) -> bool:
        """Return whether the last input took the event-driven product."""
        return self.weight.device.type == "cpu" and self.active_share <= self.dense_above

    def _entries(self, x_TBC: Tensor | SparseCounts | Spikes) -> tuple[Tensor | None, Tensor | None, Entries] | None:
        """Return (s_RC, mask_BC, entries) if the input takes the event-driven product, or None.

        s_RC · mask_BC is that input; s_RC is None if the input is `SparseCounts`.
        """
        if isinstance(x_TBC, SparseCounts):
            self.active_share = len(x_TBC.counts) / math.prod(x_TBC.shape)
            counts = x_TBC.counts.to(self.weight.dtype)
            return (None, None, x_TBC.entries._replace(counts=counts)) if self.is_event_driven else None
        if self.weight.device.type != "cpu":
            return None
        s_TBC, mask_BC = (x_TBC.s_TBN, x_TBC.mask_BN) if isinstance(x_TBC, Spikes) else (x_TBC, None)
        s_RC = s_TBC.flatten(0, -2).contiguous()
        found = sparse.find(s_RC, mask_BC)
        self.active_share = found.number / s_RC.numel()
        entries = sparse.compress(s_RC, found) if self.is_event_driven else None
        if not found.only_ones:
            checks.finite("x", s_TBC, entries.counts if entries and mask_BC is None else None)
        return (s_RC, mask_BC, entries) if entries else None


class EventLinear(EventDriven, layer.Linear):
    """SpikingJelly's Linear for dense input (T, B, C), `SparseCounts` or `Spikes`; the output is (T, B, N).

    The weights are float32 or float64. The input may be any real numbers or booleans; it is converted to the type of
    the weights, in which everything is computed, even under `torch.autocast`. On the CPU an input that is not finite is
    an InputError.

    On the CPU an input with few active entries takes the event-driven product, which equals the dense one up to
    rounding. Other inputs take the dense product. `active_share` is that of the last input. `Spikes` may mark where a
    gradient can be other than 0: then only these get one, and `near_share` is their share.
    """

    def __init__(self, inputs: int, outputs: int, bias: bool = False):
        checks.whole("the number of inputs", inputs, 1)
        checks.whole("the number of outputs", outputs, 1)
        super().__init__(inputs, outputs, bias=bias, step_mode="m")
        nn.init.xavier_uniform_(self.weight)
        self.dense_above, self.dense_gradient_above = DENSE_ABOVE, DENSE_GRADIENT_ABOVE
        self.active_share = self.near_share = float("nan")
        self.kept_NC: Tensor | None = None  # after `prune`: 1 for each weight that stays, 0 for the others

    @torch.no_grad()
    def prune(self, density: float) -> None:
        """Set the smallest weights to 0 so that this share stays (Han et al. 2015, arXiv 1506.02626).

        They stay 0 if `clamp_values` is called after each step of the optimiser. Weights that are 0 are among the
        smallest, so pruning again by the same share changes nothing.
        """
        size_NC = self.weight.abs()
        if removed := round((1 - density) * size_NC.numel()):
            self.kept_NC = (size_NC > size_NC.flatten().kthvalue(removed).values).to(size_NC.dtype)
            self.clamp_values()

    @torch.no_grad()
    def clamp_values(self) -> None:
        """Set the pruned weights back to 0."""
        if self.kept_NC is not None:
            self.weight.mul_(self.kept_NC)

    def forward(self, x_TBC: Tensor | SparseCounts | Spikes) -> Tensor:
        checks.weights("the layer's weight", self.weight)
        with checks.without_autocast(self.weight.device):
            return self._product(self._checked(x_TBC))

    def _checked(self, x_TBC: Tensor | SparseCounts | Spikes) -> Tensor | SparseCounts | Spikes:
        """Return the input in the weights' dtype; InputError unless it fits and is on their device."""
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
        if (found := self._entries(x_TBC)) is None:
            return F.linear(as_tensor(x_TBC).to(self.weight.dtype), self.weight, self.bias)
        y_RN = _EventProduct.apply(*found, self.weight, self._near(x_TBC))
        return self._add_bias(y_RN).view(*x_TBC.shape[:2], -1)

    def _near(self, x_TBC: Tensor | SparseCounts | Spikes) -> Tensor | None:
        """Return where to compute the gradient of the input, or None for everywhere."""
        if not isinstance(x_TBC, Spikes) or x_TBC.near_TW is None:
            return None
        near_TW = sparse.kept(x_TBC.near_TW, x_TBC.mask_BN, x_TBC.shape)
        self.near_share = int(np.bitwise_count(near_TW.numpy()).sum()) / math.prod(x_TBC.shape)
        few = self.near_share <= self.dense_gradient_above and self.out_features >= FEW_OUTPUTS
        return near_TW if few else None

    def drive(self, num_inputs: int) -> Drive:
        """Return how the layer streams: the input of its neurons, event by event."""
        return drives.full(self.weight)

    def _add_bias(self, y: Tensor) -> Tensor:
        return y if self.bias is None else y + self.bias


class _EventProduct(torch.autograd.Function):
    """(s · mask) @ W^T for a product s · mask given by its entries. s itself (or None) only receives the gradient.

    near_TW marks where that gradient is needed; None: everywhere.
    """

    @staticmethod
    def forward(ctx, s_RC, mask_BC, entries, W_NC, near_TW):
        ctx.save_for_backward(mask_BC, *entries, W_NC, near_TW)
        return sparse.product(entries, W_NC.detach())

    @staticmethod
    def backward(ctx, gy_RN):
        mask_BC, *entries, W_NC, near_TW = ctx.saved_tensors
        gs_RC = gW_NC = None
        if ctx.needs_input_grad[0] and near_TW is not None:
            gs_RC = sparse.input_gradient(gy_RN, W_NC, near_TW, mask_BC)
        elif ctx.needs_input_grad[0]:
            gs_RC = dense_input_gradient(gy_RN, W_NC)
            if mask_BC is not None:
                gs_RC.view(-1, *mask_BC.shape).mul_(mask_BC)
        if ctx.needs_input_grad[3]:
            gW_NC = sparse.weight_gradient(Entries(*entries), gy_RN, W_NC.shape[1])
        return gs_RC, None, None, gW_NC, None


def dense_input_gradient(gy_RN: Tensor, W_NC: Tensor) -> Tensor:
    """Return gy @ W, both dense.

    float32 is computed as a 1×1 convolution of channels-last pixels. torch gives convolutions to oneDNN, which uses
    AVX-512 on any processor that has it, but products to MKL, which uses AVX2 on AMD processors.
    """
    if gy_RN.dtype != torch.float32 or not torch.backends.mkldnn.is_available():
        return gy_RN @ W_NC
    y_1NR1, W_CN11 = gy_RN[None, :, None].permute(0, 3, 1, 2), W_NC.T[:, :, None, None]
    # call it by name, because torch by itself would not choose oneDNN for one thread
    gs_1CR1 = torch.ops.aten.mkldnn_convolution(y_1NR1, W_CN11, None, [0, 0], [1, 1], [1, 1], 1)
    return gs_1CR1.permute(0, 2, 3, 1).reshape(len(gy_RN), -1)
