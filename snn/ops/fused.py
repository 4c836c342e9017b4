"""The code that all compiled backends share: what is allocated, what is kept, and the chain rule around the kernels.

Forward keeps the input and, every few steps, a mark: the states at that step. Backward recomputes the steps from a mark
on. A recurrent layer also keeps its spikes, and instead of its input it keeps the sum of input and feedback.
"""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from snn.ops import reference
from snn.ops.printer import segment
from snn.ops.reference import Dynamics, Feedback, State


class Call(NamedTuple):
    """The arguments of a call of the kernels that are not tensors of the layer."""

    backend: "Backend"
    neuron: Dynamics
    learned: frozenset[str]  # values whose gradients are wanted
    feedback: Feedback | None
    want_h: bool
    records: bool  # for a backward pass
    near_TW: Tensor | None = None  # room for what `near_room` describes


class Backend(Protocol):
    """Two launches on contiguous tensors of one device and dtype.

    forward   reads x and, for a recurrent layer, past (D outputs that come before s_1); writes s and, where they are
              not None, h, total (x plus what was fed back), and marks[c], the states after `segment` · (c + 1) steps;
              turns the initial state into the final one, in place.
    backward  reads the gradients of s and h, the input that forward had (of a recurrent layer: total), marks and the
              initial state; writes the gradient of the input, and those of the learned values before they are summed
              over samples; turns the gradient of the final state into that of the initial one, in place.
    """

    def forward(self, call, x_TBN, s_TBN, h_TBN, total_TBN, marks_CSBN, state_SBN, past_DBN, values_PN) -> None: ...

    def backward(
        self, call, gs_TBN, gh_TBN, x_TBN, gx_TBN, marks_CSBN, state_SBN, gstate_SBN, gvalues_QBN, values_PN
    ) -> None: ...


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx, call: Call, x_TBN, past_DBN, V_NN, delay_N, state_SBN, values_PN):
        """Run the kernels; without a gradient, ctx is None, which saves a tenth of the time of a single step."""
        s_TBN = torch.empty_like(x_TBN)
        h_TBN = torch.empty_like(x_TBN) if call.want_h else None
        total_TBN = torch.empty_like(x_TBN) if call.records and call.feedback else None
        marks = (len(x_TBN) - 1) // segment(call.neuron)
        marks_CSBN = x_TBN.new_empty(marks, *state_SBN.shape) if call.records else None
        final_SBN = state_SBN.clone()
        call.backend.forward(call, x_TBN, s_TBN, h_TBN, total_TBN, marks_CSBN, final_SBN, past_DBN, values_PN)
        if ctx is None:
            return s_TBN, h_TBN, final_SBN
        ctx.call = call._replace(feedback=None, near_TW=None)
        ctx.longest = call.feedback.longest if call.feedback else 0
        ctx.set_materialize_grads(False)
        kept_TBN, spikes_TBN = (total_TBN, s_TBN) if call.feedback else (x_TBN, None)
        ctx.save_for_backward(kept_TBN, marks_CSBN, spikes_TBN, past_DBN, V_NN, delay_N, state_SBN, values_PN)
        return s_TBN, h_TBN, final_SBN

    @staticmethod
    @once_differentiable
    def backward(ctx, gs_TBN, gh_TBN, gfinal_SBN):
        kept_TBN, marks_CSBN, s_TBN, past_DBN, V_NN, delay_N, state_SBN, values_PN = ctx.saved_tensors
        call = ctx.call if V_NN is None else ctx.call._replace(feedback=Feedback(V_NN, delay_N, ctx.longest))
        neuron, learned = call.neuron, call.learned
        gs_TBN = torch.zeros_like(kept_TBN) if gs_TBN is None else gs_TBN.contiguous()
        gh_TBN = None if gh_TBN is None else gh_TBN.contiguous()
        gx_TBN = torch.empty_like(kept_TBN)
        gvalues_QBN = kept_TBN.new_empty(len(learned), *kept_TBN.shape[1:])
        # A copy in rows: kernels work in place, and autograd may need what it handed over.
        gstate_SBN = (
            torch.zeros_like(state_SBN)
            if gfinal_SBN is None
            else gfinal_SBN.clone(memory_format=torch.contiguous_format)
        )
        call.backend.backward(
            call, gs_TBN, gh_TBN, kept_TBN, gx_TBN, marks_CSBN, state_SBN, gstate_SBN, gvalues_QBN, values_PN
        )
        gvalues_PN = None
        if learned:
            gvalues_PN = torch.zeros_like(values_PN)
            places = [k for k, name in enumerate(neuron.values) if name in learned]
            for place, gvalue_N in zip(places, gvalues_QBN.sum(1), strict=True):  # a list of places would be copied
                gvalues_PN[place] = gvalue_N  # to the GPU, which a recorded CUDA graph cannot do
        gpast_DBN = gV_NN = gdelay_N = None
        if V_NN is not None:
            gpast_DBN, gV_NN, gdelay_N = _feedback_gradients(call.feedback, gx_TBN, past_DBN, s_TBN)
        return None, gx_TBN, gpast_DBN, gV_NN, gdelay_N, gstate_SBN, gvalues_PN


def _feedback_gradients(feedback: Feedback, gx_TBN: Tensor, past_DBN: Tensor, s_TBN: Tensor) -> tuple:
    """Return the gradients of the outputs before the first, the weights and the delays."""
    V_NN, delay_N, _ = feedback
    given = [past_DBN.detach().requires_grad_()]
    if delay_N is not None:
        given.append(delay_N.detach().requires_grad_())
        feedback = feedback._replace(delay_N=given[1])
    with torch.enable_grad():
        fed_TBN = reference.delayed(torch.cat([given[0], s_TBN.detach()]), feedback)[: len(gx_TBN)]
    # Steps that read anything in `given`.
    read = len(gx_TBN) if delay_N is not None else min(len(past_DBN), len(gx_TBN))
    gfed_TBN = torch.zeros_like(gx_TBN)
    torch.matmul(gx_TBN[:read], V_NN, out=gfed_TBN[:read])
    gpast_DBN, *gdelay = torch.autograd.grad(fed_TBN, given, gfed_TBN)
    gV_NN = gx_TBN.flatten(0, 1).T @ fed_TBN.detach().flatten(0, 1)
    return gpast_DBN, gV_NN, gdelay[0] if gdelay else None


def multi_step(
    backend: Backend,
    x_TBN: Tensor,
    values: Mapping[str, Tensor],
    state: State,
    neuron: Dynamics,
    feedback: Feedback | None,
    want_h: bool,
    near_TW: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
    """Run `snn.ops.multi_step` on one compiled backend, with arguments that are already checked."""
    state = reference.filled(state, neuron, x_TBN[0], feedback.D if feedback else 0)
    # Broadcast here, where autograd sums the gradients over the neurons.
    values_PN = torch.stack([values[name].expand(x_TBN.shape[-1]) for name in neuron.values])
    state_SBN = torch.stack([state[name] for name in neuron.states])
    # The variant that spikes first has one more output before s_1, still to come out.
    due_1BN = reference.spike(state["h"] - values["theta"], neuron)[None] if neuron.spike_first else x_TBN[:0]
    past_DBN = torch.cat([state["y"], due_1BN]) if feedback else None
    V_NN, delay_N, _ = feedback or (None, None, 0)

    tensors = (x_TBN.contiguous(), past_DBN, V_NN, delay_N, state_SBN, values_PN)
    records = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)
    learned = frozenset(name for name in neuron.values if records and values[name].requires_grad)
    call = Call(backend, neuron, learned, feedback, want_h or neuron.spike_first, records, near_TW)
    s_TBN, h_TBN, final_SBN = _Fused.apply(call, *tensors) if records else _Fused.forward(None, call, *tensors)

    final = dict(zip(neuron.states, final_SBN.unbind(), strict=True))
    if neuron.spike_first:
        final["h"] = h_TBN[-1]
        s_TBN = torch.cat([due_1BN, s_TBN[:-1]])
        h_TBN = torch.cat([state["h"][None], h_TBN[:-1]])
    if feedback:
        final["y"] = torch.cat([state["y"][len(s_TBN) :], s_TBN[-feedback.D :]])
    return s_TBN, h_TBN, final
