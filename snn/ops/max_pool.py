"""Pools on the CPU that take one entry of each window, such as the largest.

They keep one byte for each output, where torch keeps its input and eight bytes an output.

Images are (F, H, W, C), channels last. Windows of K x K lie side by side, and pixels that fill no window are left out.
Of equal entries, the first of the window counts, line by line, as in torch.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from snn.ops.compiled import in_parts, kernel

LARGEST_KERNEL = 16  # K·K places in a byte
SERIAL_BELOW = 1 << 15  # outputs: one thread finishes fewer of them before a second one wakes up


@kernel
def largest(x, out, places, K, begin, end):
    """Compute the lines begin ... end of `out`, counted over all frames."""
    _, height, width, C = out.shape
    for line in range(begin, end):
        f, y = line // height, line % height
        for column in range(width):
            best, place = out[f, y, column], places[f, y, column]
            best[:] = x[f, y * K, column * K]
            place[:] = 0
            for k in range(1, K * K):
                candidate = x[f, y * K + k // K, column * K + k % K]
                for c in range(C):
                    if candidate[c] > best[c]:
                        best[c] = candidate[c]
                        place[c] = k


@kernel
def _backward(gy, places, gx, K, begin, end):
    """Compute the frames begin ... end of `gx`: each gradient goes to the place its output came from."""
    (_, height, width, C), zero = gy.shape, gy.dtype.type(0)
    for f in range(begin, end):
        gx[f, height * K :] = 0
        gx[f, :, width * K :] = 0
        for y in range(height):
            for k in range(K * K):
                line = gx[f, y * K + k // K]
                for column in range(width):
                    at = column * K + k % K
                    for c in range(C):
                        line[at, c] = gy[f, y, column, c] if places[f, y, column, c] == k else zero


class Pool(torch.autograd.Function):
    """The entry of each window that a kernel `choose` takes, which fills `out` and `places` like `largest`."""

    @staticmethod
    def forward(ctx, x_FHWC: Tensor, kernel: int, choose: Callable) -> Tensor:
        F, H, W, C = x_FHWC.shape
        out = x_FHWC.new_empty((F, H // kernel, W // kernel, C))
        places = x_FHWC.new_empty(out.shape, dtype=torch.uint8)
        arguments = (x_FHWC.detach().contiguous().numpy(), out.numpy(), places.numpy(), kernel)
        lines = F * out.shape[1]
        in_parts(choose, arguments, lines, None if out.numel() >= SERIAL_BELOW else 1)
        ctx.save_for_backward(places)
        ctx.kernel, ctx.shape = kernel, x_FHWC.shape
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, gy_FHWC: Tensor):
        (places,) = ctx.saved_tensors
        gx_FHWC = gy_FHWC.new_empty(ctx.shape)
        arguments = (gy_FHWC.contiguous().numpy(), places.numpy(), gx_FHWC.numpy(), ctx.kernel)
        in_parts(_backward, arguments, ctx.shape[0], None if gy_FHWC.numel() >= SERIAL_BELOW else 1)
        return gx_FHWC, None, None


def max_pool(x_FHWC: Tensor, kernel: int) -> Tensor:
    """Return the largest entry of each window, (F, H // K, W // K, C), float32 or float64, for K <= LARGEST_KERNEL."""
    return Pool.apply(x_FHWC, kernel, largest)
