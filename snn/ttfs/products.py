"""The products of a layer and their gradients: dense, or on the CPU event by event where few neurons take part.

A convolution with an odd kernel is summed over the inputs that fire. If it has no stride, its gradients are summed over
the outputs that have one: silent and early neurons have none, and in front of a pool only the earliest neuron of each
patch has one. Both equal the dense products up to rounding; a NaN spreads only with an event. Notation as in
`snn.ttfs.functional`.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import grad

from snn.ops import sparse, sparse_conv
from snn.ops.lanes import filled
from snn.ops.sparse_conv import Geometry
from snn.ttfs import kernels

# Up to these shares the products over events are the faster ones, if the channels that they are summed for fill whole
# slices of lanes. Measured for 64 to 512 channels on one core with AVX-512.
DENSE_ABOVE = 0.6  # of inputs that fire
DENSE_GRADIENT_ABOVE = 0.4  # of outputs with a gradient


def sums(t: Tensor, W: Tensor, T: float, stride: int | None) -> Tensor:
    """Return [S; A] along the first axis; the stride is None for a fully connected layer.

    InputError as from `kernels.check_times`.
    """
    if stride and _fits(t, W):
        t_RC, shape = _rows(t), Geometry(t.shape[2], t.shape[3], W.shape[2], stride)
        found = sparse.find(t_RC, nothing=math.inf)
        if found.number <= DENSE_ABOVE * filled(len(W)) * t.numel():
            entries = sparse.compress(t_RC, found)
            kernels.check_times(entries.counts, T)
            leads = entries._replace(counts=T - entries.counts)
            x_RO = sparse_conv.product(leads, W, shape, with_sums=True)
            return _maps(x_RO, shape.out_height, shape.out_width)
    x = split(t, T)
    return F.linear(x, W) if stride is None else F.conv2d(x, W, None, stride, _padding(W))


def gradients(
    gx: Tensor, t: Tensor, W: Tensor, T: float, stride: int | None, of_t: bool, of_W: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of the leads a = T - t and of W, from that of [S; A]; None for one that is not asked for."""
    g_S, g_A = gx.chunk(2)
    g_a = g_W = None
    if stride == 1 and _fits(t, W):
        g_RO, shape = _rows(g_A), Geometry(t.shape[2], t.shape[3], W.shape[2], 1)
        found = sparse.find(g_RO)
        if found.number <= DENSE_GRADIENT_ABOVE * filled(t.shape[1]) * g_A.numel():
            entries = sparse.compress(g_RO, found)
            if of_t:
                g_RC = sparse_conv.product(entries, W.transpose(0, 1).flip(2, 3), shape)
                g_a = _maps(g_RC, shape.height, shape.width)
            if of_W:
                of_masks = sparse.compress(_rows(g_S), found._replace(only_ones=False))
                constants_E = of_masks.counts + T * entries.counts
                g_W = sparse_conv.weight_gradient(entries, _rows(t), len(W), shape, constants_E)
                g_W = g_W.transpose(0, 1).flip(2, 3)
            return g_a, g_W
    if of_t:
        g_a = g_A @ W if stride is None else grad.conv2d_input(t.shape, W, g_A, stride, _padding(W))
    if of_W:
        x = split(t, T)
        if stride is None:
            g_W = gx.T @ x
        else:
            x, stride = sparse_conv.thinned(x, max(W.shape[2:]), stride)
            g_W = grad.conv2d_weight(x, W.shape, gx, stride, _padding(W))
    return g_a, g_W


def split(t: Tensor, T: float) -> Tensor:
    """Return [m; a] along the first axis."""
    return kernels.split(t, T) if kernels.fits(t) else torch.cat(masks_and_leads(t, T))


def masks_and_leads(t: Tensor, T: float) -> tuple[Tensor, Tensor]:
    """Return m and a of spike times. NaN stays NaN."""
    is_silent = t == math.inf
    return (~is_silent).to(t.dtype), T - torch.where(is_silent, T, t)


def _padding(W_OCKK: Tensor) -> tuple[int, int]:
    return W_OCKK.shape[2] // 2, W_OCKK.shape[3] // 2


def _fits(t: Tensor, W_OCKK: Tensor) -> bool:
    """Return whether the kernels take such a convolution."""
    kernel, width = W_OCKK.shape[2:]
    return t.device.type == "cpu" and kernels.fits(t, W_OCKK) and kernel == width and kernel % 2 == 1


def _rows(x_BCHW: Tensor) -> Tensor:
    """Return (pixels, C)."""
    return kernels.channels_last(x_BCHW).flatten(0, 2)


def _maps(x_RC: Tensor, height: int, width: int) -> Tensor:
    """Return pixels as (B, C, height, width)."""
    return x_RC.view(-1, height, width, x_RC.shape[1]).permute(0, 3, 1, 2)
