"""Convolutions and pools over images of neurons.

Images are channels-last and their pixels count as samples: (T, P, C), P = B·H·W pixels, pixel (b·H + y)·W + x. So the
neurons of `snn.neurons` run on them as they are, with one value per channel, and nothing is copied between layers.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snn import checks
from snn.errors import InputError
from snn.inputs import Entries, SparseCounts, as_tensor
from snn.linear import EventDriven
from snn.ops import drives, max_pool, sparse_conv, winograd
from snn.ops.drives import Drive
from snn.ops.lanes import filled
from snn.ops.sparse_conv import Geometry

# Up to this share of active inputs the event-driven convolution (forward and weight gradient together) is the faster
# one. Measured by `python -m benchmarks.networks` for 64 to 128 channels on one thread of a machine with AVX-512:
# 1.6 x as fast at a share of 0.1, 1.2 x at 0.2, slower at 0.3. With fewer outputs, slices of lanes are partly empty,
# and with few input channels the dense one is always faster.
DENSE_ABOVE = 0.2
FEWEST_INPUTS = 8


def as_frames(x_TPC: Tensor, height: int, width: int) -> Tensor:
    """View pixels as (frames, C, height, width), channels last in memory."""
    return x_TPC.reshape(-1, height, width, x_TPC.shape[-1]).permute(0, 3, 1, 2)


def as_pixels(x_FCHW: Tensor, T: int) -> Tensor:
    """View frames that have their channels last in memory as (T, P, C)."""
    return x_FCHW.permute(0, 2, 3, 1).reshape(T, -1, x_FCHW.shape[1])


def pixels_of(x_TBC: Tensor | SparseCounts, image: tuple[int, int, int]) -> Tensor | SparseCounts:
    """Return (T, P, C) of images (C, H, W) with channels counted as (c·H + y)·W + x. On the CPU events stay sparse."""
    C, H, W = image
    T, B, channels = x_TBC.shape
    if channels != C * H * W:
        raise InputError(f"events of {channels} channels are not images of {C} x {H} x {W}")
    if isinstance(x_TBC, SparseCounts) and x_TBC.counts.device.type == "cpu":
        return SparseCounts(*sparse_conv.pixel_rows(x_TBC.entries, H * W), (T, B * H * W, C))
    return as_tensor(x_TBC).reshape(T, B, C, H * W).transpose(2, 3).reshape(T, -1, C)


def check_pixels(x_TPC: Tensor | SparseCounts, height: int, width: int) -> None:
    """Raise InputError unless the pixels make up whole images."""
    if x_TPC.shape[1] % (height * width):
        raise InputError(
            f"x has {x_TPC.shape[1]} pixels per step, which is not a whole number of images of {height} x {width}"
        )


class EventConv(EventDriven, nn.Module):
    """A convolution, padded by kernel // 2: (T, P, C) to (T, P', N). It has no bias until one is set.

    On the CPU an input with few active entries takes the event-driven product, which equals the dense one up to
    rounding. Other inputs take torch's convolution. `active_share` is that of the last input. Types of numbers, and
    `SparseCounts` as input, are as in `snn.linear.EventLinear`.
    """

    def __init__(self, inputs: int, outputs: int, height: int, width: int, kernel: int, stride: int):
        super().__init__()
        checks.whole("the number of inputs", inputs, 1)
        checks.whole("the number of outputs", outputs, 1)
        self.geometry = Geometry(height, width, kernel, stride)
        self.geometry.check()
        self.weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(outputs, inputs, kernel, kernel)))
        self.bias: nn.Parameter | None = None
        self.dense_above = DENSE_ABOVE * filled(outputs) if inputs >= FEWEST_INPUTS else 0.0
        self.active_share = float("nan")

    def forward(self, x_TPC: Tensor | SparseCounts) -> Tensor:
        checks.weights("the layer's weight", self.weight)
        if isinstance(x_TPC, SparseCounts):
            x_TPC.check_fits(self.weight.shape[1], self.weight.device)
        else:
            x_TPC = checks.like_weights("x", x_TPC, ("steps", "pixels", self.weight.shape[1]), self.weight)
        check_pixels(x_TPC, self.geometry.height, self.geometry.width)
        with checks.without_autocast(self.weight.device):
            y_TPN = self._product(x_TPC)
        return y_TPN if self.bias is None else y_TPN + self.bias

    def _product(self, x_TPC: Tensor | SparseCounts) -> Tensor:
        T = x_TPC.shape[0]
        if found := self._entries(x_TPC):
            x_RC, _, entries = found
            return _EventConvolution.apply(x_RC, entries, self.weight, self.geometry).view(T, -1, len(self.weight))
        x_FCHW = as_frames(as_tensor(x_TPC).to(self.weight.dtype), self.geometry.height, self.geometry.width)
        kernel = self.geometry.kernel
        x_FCHW, stride = sparse_conv.thinned(x_FCHW, kernel, self.geometry.stride)
        return as_pixels(F.conv2d(x_FCHW, self.weight, None, stride, kernel // 2), T)

    def drive(self, num_inputs: int) -> Drive:
        """Return how the layer streams: the input of its neurons, event by event."""
        return drives.convolution(self.weight, self.geometry)

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, {self.geometry}"


class _EventConvolution(torch.autograd.Function):
    """The convolution of x, given by its entries. x itself (or None) only receives the gradient and is not kept."""

    @staticmethod
    def forward(ctx, x_RC, entries, W_NCKK, shape: Geometry):
        ctx.save_for_backward(*entries, W_NCKK)
        ctx.shape = shape
        return sparse_conv.product(entries, W_NCKK.detach(), shape)

    @staticmethod
    def backward(ctx, gy_RN):
        *entries, W_NCKK = ctx.saved_tensors
        shape, C = ctx.shape, W_NCKK.shape[1]
        gx_RC = gW_NCKK = None
        if ctx.needs_input_grad[0]:  # the gradient of a dense input, since silent neurons have one too
            by_tiles = winograd.fits(W_NCKK, shape)
            gx_RC = (winograd.input_gradient if by_tiles else input_gradient_by_taps)(gy_RN, W_NCKK, shape)
        if ctx.needs_input_grad[2]:
            gW_NCKK = sparse_conv.weight_gradient(Entries(*entries), gy_RN, C, shape)
        return gx_RC, None, gW_NCKK, None


def input_gradient_by_taps(gy_RN: Tensor, W_NCKK: Tensor, shape: Geometry) -> Tensor:
    """Return the gradient of the input rows. `nn.grad.conv2d_input` is the same, but does not keep channels last."""
    gy_FNHW = as_frames(gy_RN, shape.out_height, shape.out_width)
    like_x = gy_RN.new_empty(1).expand(len(gy_FNHW), W_NCKK.shape[1], shape.height, shape.width)
    gx_FCHW, _, _ = torch.ops.aten.convolution_backward(
        gy_FNHW,
        like_x,
        W_NCKK.contiguous(memory_format=torch.channels_last),
        bias_sizes=None,
        stride=[shape.stride] * 2,
        padding=[shape.kernel // 2] * 2,
        dilation=[1, 1],
        transposed=False,
        output_padding=[0, 0],
        groups=1,
        output_mask=[True, False, False],
    )
    return as_pixels(gx_FCHW, 1)[0]


class Pooling(nn.Module):
    """Maximum or average of windows that do not overlap: (T, P, C) to (T, P', C). Partial windows are left out.

    Numbers that are neither float32 nor float64 are taken as float32.
    """

    def __init__(self, height: int, width: int, kernel: int, is_average: bool):
        super().__init__()
        checks.whole("the height", height, 1)
        checks.whole("the width", width, 1)
        checks.whole("the kernel of a pool", kernel, 1, min(height, width))
        self.height, self.width, self.kernel, self.is_average = height, width, kernel, is_average

    def forward(self, x_TPC: Tensor | SparseCounts) -> Tensor:
        x_TPC = as_tensor(x_TPC)
        checks.tensor("x", x_TPC, ("steps", "pixels", "channels"), checks.STORED)
        check_pixels(x_TPC, self.height, self.width)
        x_TPC = x_TPC if x_TPC.dtype in checks.FLOATS else x_TPC.float()
        checks.finite("x", x_TPC)
        if not self.is_average and x_TPC.device.type == "cpu" and self.kernel <= max_pool.LARGEST_KERNEL:
            x_FHWC = x_TPC.reshape(-1, self.height, self.width, x_TPC.shape[-1])
            return max_pool.max_pool(x_FHWC, self.kernel).view(len(x_TPC), -1, x_TPC.shape[-1])
        torch_pool = F.avg_pool2d if self.is_average else F.max_pool2d
        return as_pixels(torch_pool(as_frames(x_TPC, self.height, self.width), self.kernel), len(x_TPC))

    def drive(self, num_inputs: int) -> Drive:
        """Return how the layer streams images of `num_inputs` entries."""
        channels = num_inputs // (self.height * self.width)
        return drives.pool(self.height, self.width, self.kernel, self.is_average, channels)

    def extra_repr(self) -> str:
        name = "average" if self.is_average else "maximum"
        return f"{name}, {self.height}x{self.width}, {self.kernel}x{self.kernel}"
