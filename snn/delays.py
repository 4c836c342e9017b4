"""Linear layers whose inputs arrive late by learned delays: one per input (axonal) or one per synapse.

Delays are real numbers of steps in training. In evaluation, in `Network.folded()` and in streams they are rounded to
whole steps. See `snn.ops.taps` for the equations. Input that is still on its way at the end of a call stays in the
layer, as the state of neurons does, so that a long sequence may come in chunks.
"""

from typing import Literal, get_args

import torch
from spikingjelly.activation_based.base import MemoryModule
from torch import Tensor
from torch.nn import functional as F

from snn import checks
from snn.errors import InputError
from snn.inputs import Entries, SparseCounts, Spikes, as_tensor
from snn.learned import Delays, Learned
from snn.linear import EventLinear, dense_input_gradient
from snn.ops import delays, drives, sparse, synaptic, taps
from snn.ops.drives import Drive

Per = Literal["input", "synapse"]


class DelayedLinear(EventLinear, MemoryModule):
    """An `EventLinear` whose inputs come late, one delay per input or per synapse; the output is (T, B, N).

    If the delays are `extra`, each input arrives twice: at once, and late. The weights are then (N, 2·C), those of the
    first arrival before those of the second. On the CPU the work follows the events. On other devices, and for dense
    activity, plain torch operations do it. InputError for extra delays per synapse.
    """

    past: Tensor | SparseCounts | None

    def __init__(
        self,
        inputs: int,
        outputs: int,
        per: Per,
        max_steps: int,
        initial_steps: tuple[float, float] | None = None,
        bias: bool = False,
        extra: bool = False,
    ):
        checks.word("per", per, get_args(Per))
        if extra and per != "input":
            raise InputError(
                "extra delays are delays of inputs: for delays of synapses, per='synapse', leave out extra"
            )
        super().__init__(2 * inputs if extra else inputs, outputs, bias)
        self.in_features, self.extra = inputs, extra
        shape = {"input": (inputs,), "synapse": (outputs, inputs)}[per]
        self.delays = Delays(shape, max_steps, initial_steps, f"delay of each {per}")
        self.per = per
        self.register_memory("past", None)
        if per == "synapse":
            self.dense_above = 1.0  # dense would mean one product for each step of delay

    def learned(self, dt_ms: float) -> dict[str, Learned]:
        """Return the values that the layer learned besides weights, by name, in the units of a report."""
        return {f"delay_{self.per}": self.delays.learned(dt_ms)}

    def _product(self, x_TBC: Tensor | SparseCounts | Spikes) -> Tensor:
        T, B, _ = x_TBC.shape
        x_TBC = _joined(self.past, x_TBC)
        past = x_TBC.shape[0] - T
        self.past = _last(x_TBC, self.delays.reach)
        if (found := self._entries(x_TBC)) is not None:
            first, h = self.taps()
            if self.per == "input":
                A_NKC = self.weight.unsqueeze(1) * h
                at_once = self.in_features if self.extra else 0
                constants = first, h.detach(), self.weight.detach(), at_once, self.in_features, B, past
                y_RN = _AxonalProduct.apply(*found, A_NKC.flatten(1), *constants)
            else:
                y_RN = _SynapticProduct.apply(*found, self.weight * h, first, B, past)
            return self._add_bias(y_RN).view(T, B, -1)
        x_TBC = as_tensor(x_TBC)
        if self.per == "input":
            x_TBC = torch.cat([x_TBC, x_TBC], 2) if self.extra else x_TBC
            y_TBN = F.linear(taps.shifted(x_TBC, *self.taps()), self.weight)
        else:
            y_TBN = taps.product(x_TBC, self.weight, *self.delays.present())
        return self._add_bias(y_TBN[past:])

    def taps(self) -> tuple[Tensor, Tensor]:
        """Return (first, h_K) as `Delays.taps` does, for each synapse or for each column of the weights."""
        first, h_K = self.delays.taps()
        if not self.extra:
            return first, h_K
        at_once_K = torch.zeros_like(h_K)
        at_once_K[0] = 1
        return torch.cat([torch.zeros_like(first), first]), torch.cat([at_once_K, h_K], 1)

    def drive(self, num_inputs: int) -> Drive:
        """Return how the layer streams, with delays in whole steps."""
        first, _ = self.taps()
        if self.per == "input":
            return drives.late_inputs(self.weight, first, num_inputs)
        return drives.late_synapses(self.weight, first)


class _AxonalProduct(torch.autograd.Function):
    """Σ_j w_nc h_jc x_{t - first_c - j} for entries of `EventLinear`. Gradients of w and h begin in A = w h, (N, K·C).

    There may be more columns c than inputs: see `snn.ops.delays`.
    """

    @staticmethod
    def forward(ctx, s_RC, mask_BC, entries, A_NM, first_C, h_KC, W_NC, at_once, num_inputs, B, past):
        arrived = delays.arrived(entries, first_C, at_once, len(h_KC), num_inputs, B, past)
        ctx.save_for_backward(mask_BC, *arrived, first_C, h_KC, W_NC)
        ctx.sizes = B, past, num_inputs
        return sparse.product(arrived, A_NM.detach())

    @staticmethod
    def backward(ctx, gy_RN):
        (mask_BC, *arrived, first_C, h_KC, W_NC), (B, past, num_inputs) = ctx.saved_tensors, ctx.sizes
        gs_RC = gA_NM = None
        if ctx.needs_input_grad[0]:
            gs_RC = delays.moved_back(dense_input_gradient(gy_RN, W_NC), first_C, h_KC, mask_BC, B, past, num_inputs)
        if ctx.needs_input_grad[3]:
            gA_NM = sparse.weight_gradient(Entries(*arrived), gy_RN, h_KC.numel())
        return gs_RC, None, None, gA_NM, *[None] * 7


class _SynapticProduct(torch.autograd.Function):
    """Σ_j A[j, n, c] x_{t - first_nc - j} for entries of `EventLinear`, A = w h."""

    @staticmethod
    def forward(ctx, s_RC, mask_BC, entries, A_KNC, first_NC, B, past):
        (K, N, C), steps = A_KNC.shape, (len(entries.offsets) - 1) // B
        ctx.save_for_backward(mask_BC, *entries, A_KNC, first_NC)
        ctx.past, ctx.sizes, ctx.laid_out = past, (N, C, K, B, steps), None
        if K == 1:  # backward lays out what it needs; an evaluation needs nothing
            return synaptic.whole_product(entries, first_NC, A_KNC[0], B, past)
        ctx.laid_out = synaptic.in_rows(entries, C, B), synaptic.synapses(first_NC, A_KNC.detach(), steps)
        return synaptic.product(*ctx.laid_out, N, B, past, steps)

    @staticmethod
    def backward(ctx, gy_RN):
        (mask_BC, *entries, A_KNC, first_NC), (N, C, K, B, steps) = ctx.saved_tensors, ctx.sizes
        rows, of = ctx.laid_out or (
            synaptic.in_rows(Entries(*entries), C, B),
            synaptic.synapses(first_NC, A_KNC.detach(), steps),
        )
        gs_RC = gA_KNC = None
        rows_INWL = synaptic.laid_out(gy_RN, of, B, ctx.past)
        if ctx.needs_input_grad[0]:
            gs_RC = synaptic.input_gradient(rows_INWL, of, mask_BC, B, steps)
        if ctx.needs_input_grad[3]:
            gA_KNC = synaptic.gradient(rows, rows_INWL, of, N, K)
        return gs_RC, None, None, gA_KNC, *[None] * 3


def _joined(
    past: Tensor | SparseCounts | None, x_TBC: Tensor | SparseCounts | Spikes
) -> Tensor | SparseCounts | Spikes:
    """Join the steps that came before and those that come now."""
    if past is None:
        return x_TBC
    if past.shape[1:] != x_TBC.shape[1:]:
        raise InputError(
            f"the layer remembers {past.shape[1]} samples and is given {x_TBC.shape[1]}: call reset() on the network "
            "before new recordings"
        )
    if isinstance(x_TBC, SparseCounts) and isinstance(past, SparseCounts):
        offsets = torch.cat([past.offsets, x_TBC.offsets[1:] + past.offsets[-1]])
        channels, counts = (torch.cat([getattr(past, name), getattr(x_TBC, name)]) for name in ("channels", "counts"))
        return SparseCounts(offsets, channels, counts, (past.shape[0] + x_TBC.shape[0], *x_TBC.shape[1:]))
    if isinstance(x_TBC, Spikes):
        return Spikes(torch.cat([as_tensor(past), x_TBC.s_TBN]), x_TBC.mask_BN)
    return torch.cat([as_tensor(past), as_tensor(x_TBC)])


def _last(x_TBC: Tensor | SparseCounts | Spikes, steps: int) -> Tensor | SparseCounts:
    """Return the last steps; those of `Spikes` without their dropout mask."""
    if isinstance(x_TBC, SparseCounts):
        T, B, C = x_TBC.shape
        steps = min(steps, T)
        begin = x_TBC.offsets[(T - steps) * B :]
        channels, counts = (each[begin[0] :] for each in (x_TBC.channels, x_TBC.counts))
        return SparseCounts(begin - begin[0], channels, counts, (steps, B, C))
    s_TBC = x_TBC.s_TBN if isinstance(x_TBC, Spikes) else x_TBC
    return s_TBC[max(0, len(s_TBC) - steps) :]
