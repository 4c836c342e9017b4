"""What the fused backends have in common: what is allocated, what is saved, and the chain rule around the kernels.

A fused kernel runs all T steps of a layer and gives s_n and h_n of `snn.ops.reference`. What comes out, and what a
recurrent layer feeds back, may lag behind: `first_DBN` are the D outputs that come before s_1, so that step n is fed
output n of (first, s_1, s_2, ...), counted from one.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from snn.ops.reference import Dynamics, State, Values, spike


class Backend(Protocol):
    """Two launches on contiguous tensors of one device and dtype; values are (N,). None: the neuron has no such thing.

    forward   reads x, writes y, and h and total (x plus what was fed back) where they are not None; turns the initial
              state into the final one, in place.
    backward  reads the gradients of y and h; writes gx, and to sums (if not None: then x, the total input, is not)
              the gradients of lam_m, lam_s, lam_w, a, b before summation over samples; turns the gradient of the
              final state into that of the initial one, in place, and adds to that of first.
    """

    def forward(self, x_TBN, y_TBN, h_TBN, total_TBN, state, first_DBN, values, neuron, V_NN) -> None: ...

    def backward(
        self, gy_TBN, gh_TBN, x_TBN, h_TBN, gx_TBN, sums_KBN, gstate, gfirst_DBN, state, values, neuron, V_NN
    ) -> None: ...


class _Call(NamedTuple):
    """What a call of the kernels is about, besides tensors."""

    backend: Backend
    neuron: Dynamics
    keep_h: bool
    keep_total: bool


def _run_forward(call: _Call, x_TBN, first_DBN, V_NN, state: State, values: Values):
    """(s_TBN, h_TBN or None, total input or None, final state)."""
    s_TBN = torch.empty_like(x_TBN)
    h_TBN = torch.empty_like(x_TBN) if call.keep_h else None
    total_TBN = torch.empty_like(x_TBN) if call.keep_total and V_NN is not None else None
    final = State(*(None if field is None else field.clone() for field in state))
    call.backend.forward(x_TBN, s_TBN, h_TBN, total_TBN, final, first_DBN, values, call.neuron, V_NN)
    return s_TBN, h_TBN, x_TBN if V_NN is None else total_TBN, final


def _own_gradient(field: Tensor | None, grad: Tensor | None) -> Tensor | None:
    """Of a final state: in rows, and a copy, as kernels work in place and autograd may need what it handed over."""
    if field is None:
        return None
    return torch.zeros_like(field) if grad is None else grad.clone(memory_format=torch.contiguous_format)


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx, call: _Call, want_h: bool, x_TBN, first_DBN, V_NN, v, i, w, z, *values):
        state, values = State(v, i, w, z), Values(*values)
        s_TBN, h_TBN, total_TBN, final = _run_forward(call, x_TBN, first_DBN, V_NN, state, values)
        ctx.call = call
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(total_TBN if call.keep_total else None, h_TBN, first_DBN, V_NN, v, i, w, z, *values)
        return s_TBN, h_TBN if want_h else None, final.v, final.i, final.w, final.z

    @staticmethod
    @once_differentiable
    def backward(ctx, gs_TBN, gh_TBN, *gfinal):
        total_TBN, h_TBN, first_DBN, V_NN, v, i, w, z, *values = ctx.saved_tensors
        neuron, state, values = ctx.call.neuron, State(v, i, w, z), Values(*values)
        gs_TBN = torch.zeros_like(h_TBN) if gs_TBN is None else gs_TBN.contiguous()
        gh_TBN = None if gh_TBN is None else gh_TBN.contiguous()
        gx_TBN = torch.empty_like(h_TBN)
        sums_KBN = h_TBN.new_empty(len(values), *h_TBN.shape[1:]) if ctx.call.keep_total else None
        gstate = State(*map(_own_gradient, state, gfinal))
        gfirst_DBN = None if first_DBN is None else torch.zeros_like(first_DBN)
        ctx.call.backend.backward(
            gs_TBN, gh_TBN, total_TBN, h_TBN, gx_TBN, sums_KBN, gstate, gfirst_DBN, state, values, neuron, V_NN
        )
        gvalues = [None] * len(values)
        if sums_KBN is not None:
            gvalues = [
                None if value is None else sums_BN.sum(0) for value, sums_BN in zip(values, sums_KBN, strict=True)
            ]
        gV_NN = None
        if V_NN is not None:
            u_TBN = h_TBN - neuron.theta
            fired_TBN = (u_TBN > 0) if neuron.spike_first else (u_TBN >= 0)
            fed_TBN = torch.cat([first_DBN, fired_TBN.to(h_TBN.dtype)])[: len(h_TBN)]
            gV_NN = gx_TBN.flatten(0, 1).T @ fed_TBN.flatten(0, 1)
        return None, None, gx_TBN, gfirst_DBN, gV_NN, *gstate[:4], *gvalues


def multi_step(
    backend: Backend, x_TBN: Tensor, values: Values, state: State, neuron: Dynamics, V_NN: Tensor | None, want_h: bool
) -> tuple[Tensor, Tensor | None, State]:
    """`snn.ops.multi_step` on one fused backend, arguments already checked."""
    recurrent = V_NN is not None
    state = state.filled(neuron, recurrent, x_TBN[0])
    # Broadcast here, where autograd sums over the neurons again.
    values = Values(*(None if value is None else value.expand(x_TBN.shape[-1]).contiguous() for value in values))
    x_TBN = x_TBN.contiguous()
    V_NN = V_NN.contiguous() if recurrent else None
    steps = (state.v, state.i if neuron.current else None, *((state.w, state.z) if neuron.adaptation else (None, None)))
    steps = tuple(None if field is None else field.contiguous() for field in steps)
    # The outputs that come before s_1; the variant that spikes first has one more of them, still to come out.
    due_BN = spike(state.h - neuron.theta, True) if neuron.spike_first else None
    first_DBN = None
    if recurrent:
        first_DBN = torch.stack([state.y, due_BN] if neuron.spike_first else [state.y])

    tensors = (x_TBN, first_DBN, V_NN, *steps, *values)
    records = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)
    learned = records and any(value is not None and value.requires_grad for value in values)
    want_h = want_h or neuron.spike_first
    call = _Call(backend, neuron, keep_h=want_h or records, keep_total=learned)
    if records:
        s_TBN, h_TBN, v, i, w, z = _Fused.apply(call, want_h, *tensors)
    else:
        s_TBN, h_TBN, _, (v, i, w, z, *_) = _run_forward(call, x_TBN, first_DBN, V_NN, State(*steps), values)

    final = {"v": v}
    if neuron.current:
        final |= {"i": i}
    if neuron.adaptation:
        final |= {"w": w, "z": z}
    if neuron.spike_first:
        final |= {"h": h_TBN[-1]}
        s_TBN = torch.cat([due_BN[None], s_TBN[:-1]])
        h_TBN = torch.cat([state.h[None], h_TBN[:-1]])
    if recurrent:
        final |= {"y": s_TBN[-1]}
    return s_TBN, h_TBN, state._replace(**final)
