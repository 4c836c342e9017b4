"""Layers of neurons that spike at most once, in closed form (Wei et al., ICCV 2023), as functions of spike times.

A time t lies in [0, T], or is inf for a silent neuron; each layer restarts its clock at 0. A neuron integrates
V(s) = Σ w max(s - t_i, 0) over its inputs and fires in [T, 2T], when V reaches the threshold 2T - s. All inputs have
arrived by then, so V is a straight line. With a mask m (1 if the input fires) and a lead a = T - t (0 if silent),

    S = Σ w m,  A = Σ w a,  drive V(2T) = T S + A,
    t_out = (T - A) / (1 + S), 0 if A >= T (early), inf if the drive is negative (silent).

The paper writes I = Σ w m t = T S - A and t* = T + t_out = (2T + I) / (1 + S). A neuron that is neither early nor
silent has 1 + S > 0: A < T and T S + A >= 0 imply S > -1. Both sums share their weights; a dense product computes them
in one call, on the stacked [m; a]. Gradients: dt/dA = -1 / (1 + S), dt/dS = -t / (1 + S), and 0 for early and silent
neurons. Without any drive, S = A = 0, V and the threshold meet at 2T. Such a neuron is silent here; with
`zero_drive_fires` it fires at T, as in the authors' framework. A bias b, one for each neuron or map, is a synapse of a
clock that fires at T: it is added to S.

Shapes: B samples, N inputs, O outputs; C channels, H, W. Times are converted to the type of the weights they meet,
float32 or float64, even under `torch.autocast`. InputError if a shape does not fit, or, on the CPU, a time is outside
[0, T] or a pixel outside [0, 1].
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from snn import checks
from snn.errors import InputError
from snn.ttfs import kernels, products
from snn.ttfs.products import masks_and_leads


def linear(
    t_BN: Tensor,
    W_ON: Tensor,
    T: float,
    *,
    bias_O: Tensor | None = None,
    zero_drive_fires: bool = False,
    grad_clip: float | None = None,
) -> Tensor:
    """Return the spike times (B, O) of a fully connected layer. Its product runs once forward and twice backward."""
    checks.number("the window T", T, above=0)
    checks.tensor("W", W_ON, ("outputs", "inputs"))
    t_BN = checks.like_weights("t", t_BN, ("samples", W_ON.shape[1]), W_ON)
    return _apply(t_BN, W_ON, bias_O, T, None, zero_drive_fires, grad_clip)


def conv2d(
    t_BCHW: Tensor,
    W_OCKK: Tensor,
    T: float,
    *,
    stride: int = 1,
    bias_O: Tensor | None = None,
    zero_drive_fires: bool = False,
    grad_clip: float | None = None,
) -> Tensor:
    """Return the spike times of a convolutional layer, padded by kernel // 2 with silent inputs."""
    checks.number("the window T", T, above=0)
    checks.tensor("W", W_OCKK, ("outputs", "channels", "kernel", "kernel"))
    checks.whole("stride", stride, 1)
    t_BCHW = checks.like_weights("t", t_BCHW, ("samples", W_OCKK.shape[1], "height", "width"), W_OCKK)
    return _apply(t_BCHW, W_OCKK, bias_O, T, stride, zero_drive_fires, grad_clip)


def _apply(
    t: Tensor,
    W: Tensor,
    bias_O: Tensor | None,
    T: float,
    stride: int | None,
    zero_drive_fires: bool,
    grad_clip: float | None,
) -> Tensor:
    if bias_O is not None:
        checks.tensor("the bias", bias_O, W.shape[:1], (W.dtype,), W.device)
    if grad_clip is not None:
        checks.number("grad_clip", grad_clip, above=0)
    with checks.without_autocast(t.device):
        return _Layer.apply(t, W, bias_O, T, stride, zero_drive_fires, grad_clip)


def max_pool2d(t_BCHW: Tensor, kernel: int) -> Tensor:
    """Return the earliest spike of each patch; patches do not overlap."""
    _check_pool(t_BCHW, kernel)
    if kernel == 2 and t_BCHW.device.type == "cpu" and kernels.fits(t_BCHW):
        return kernels.earliest(t_BCHW)
    with torch.no_grad():
        _, source_BCHW = F.max_pool2d(-t_BCHW, kernel, return_indices=True)
    return t_BCHW.flatten(2).gather(2, source_BCHW.flatten(2)).view_as(source_BCHW)


def avg_pool2d(t_BCHW: Tensor, kernel: int, T: float) -> Tensor:
    """Average patches as leads a = T - t, with 0 for a silent input; the result is silent if the whole patch is."""
    checks.number("the window T", T, above=0)
    _check_pool(t_BCHW, kernel)
    kernels.check_times(t_BCHW, T)
    m_BCHW, a_BCHW = masks_and_leads(t_BCHW, T)
    return torch.where(F.max_pool2d(m_BCHW, kernel) == 0, math.inf, T - F.avg_pool2d(a_BCHW, kernel))


def readout(t_BN: Tensor, W_ON: Tensor, T: float) -> Tensor:
    """Return the potentials V(2T) = Σ w m (2T - t) of neurons that do not fire, (B, O). The largest decides."""
    checks.number("the window T", T, above=0)
    checks.tensor("W", W_ON, ("outputs", "inputs"))
    t_BN = checks.like_weights("t", t_BN, ("samples", W_ON.shape[1]), W_ON)
    kernels.check_times(t_BN, T)
    with checks.without_autocast(t_BN.device):
        return F.linear(torch.where(t_BN == math.inf, 0, 2 * T - t_BN), W_ON)


def unit_encode(x: Tensor, T: float) -> Tensor:
    """Convert pixels in [0, 1] to times t = (1 - x) T, so that bright pixels come first; 0 is silent."""
    checks.number("the window T", T, above=0)
    checks.tensor("the pixels", x, (...,))
    x = x if x.is_floating_point() else x.float()
    # a look at the values would break a compiled graph, and make the CPU wait for a GPU
    if x.device.type == "cpu" and not torch.compiler.is_compiling() and x.numel():
        low, high = (bound.item() for bound in x.aminmax())
        if not (low >= 0 and high <= 1):  # also true for NaN
            raise InputError(
                f"pixels must lie in 0 to 1, but go from {low:g} to {high:g}; divide by their largest value"
            )
    return torch.where(x == 0, math.inf, (1 - x) * T)


def direct_encode(y: Tensor, T: float) -> Tensor:
    """Convert the real values of a layer to times: clamp them to [0, 1], then treat them as pixels."""
    checks.number("the window T", T, above=0)
    checks.tensor("the values", y, (...,))
    y = (y if y.is_floating_point() else y.float()).clamp(0, 1)
    return torch.where(y == 0, math.inf, (1 - y) * T)


def _check_pool(t_BCHW: Tensor, kernel: int) -> None:
    checks.tensor("t", t_BCHW, ("samples", "channels", "height", "width"), checks.FLOATS)
    checks.whole("the kernel of a pool", kernel, 1, min(t_BCHW.shape[2:]))


class _Layer(torch.autograd.Function):
    """Spike times of a layer, including its products.

    The backward pass needs the incoming times, the outgoing times (which the next layer keeps too) and 1 / (1 + S), or
    0 without a slope. This takes no more memory than a clamp and a linear map, but for a copy of maps that arrive with
    their channels not last.
    """

    @staticmethod
    def forward(ctx, t, W, bias_O, T, stride, zero_drive_fires, grad_clip):
        t = t.contiguous(memory_format=kernels.layout(t))
        x = products.sums(t, W, T, stride)
        if bias_O is not None:
            x[: len(t)] += bias_O.view(-1, *[1] * (x.dim() - 2))
        t_out, r = _fire(x, T, zero_drive_fires)
        ctx.save_for_backward(t, W, t_out, r)
        ctx.constants = T, stride, math.inf if grad_clip is None else grad_clip
        return t_out

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        t, W, t_out, r = ctx.saved_tensors
        T, stride, grad_clip = ctx.constants
        gx = _spread(g, t_out, r, T, grad_clip)
        g_a, g_W = products.gradients(gx, t, W, T, stride, *ctx.needs_input_grad[:2])
        g_t = None if g_a is None else _by_time(g_a, t)
        g_b = gx[: len(t)].sum([d for d in range(t_out.dim()) if d != 1]) if ctx.needs_input_grad[2] else None
        return g_t, g_W, g_b, None, None, None, None


def _fire(x: Tensor, T: float, zero_drive_fires: bool) -> tuple[Tensor, Tensor]:
    """Return spike times, and 1 / (1 + S) of the neurons that have a slope, from [S; A]."""
    if kernels.fits(x):
        return kernels.fire(x, T, zero_drive_fires)
    S, A = x.chunk(2)
    is_early = A >= T
    is_silent = ~is_early & ((T * S + A < 0) | ((S == 0) & (A == 0) & (not zero_drive_fires)))
    r = (1 / (1 + S)).masked_fill_(is_early | is_silent, 0)
    t = ((T - A) * r).clamp_(max=T)
    return t.masked_fill_(is_silent, math.inf), r


def _spread(g: Tensor, t: Tensor, r: Tensor, T: float, grad_clip: float) -> Tensor:
    """Return the gradient of [S; A] from that of the times.

    grad_clip bounds 1 / (1 + S) and t* / (1 + S), the gradients with respect to I and, at constant I, to S. In the
    authors' framework it is 1.
    """
    if kernels.fits(g, t, r):
        return kernels.spread(g, t, r, T, grad_clip)
    t = torch.where(t == math.inf, 0, t)
    if grad_clip == math.inf:
        return -torch.cat([g * (t * r), g * r])
    g_I = r.clamp(max=grad_clip)
    return torch.cat([g * (T * g_I - ((T + t) * r).clamp(max=grad_clip)), -g * g_I])


def _by_time(g_a: Tensor, t: Tensor) -> Tensor:
    """Turn the gradient of a = T - t into that of t, in place. A mask has no gradient, so silent inputs have none."""
    return kernels.by_time(g_a, t) if kernels.fits(g_a, t) else g_a.neg_().masked_fill_(t == math.inf, 0)
