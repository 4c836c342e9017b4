"""BatchNorm that leaves its scaling and shift to the neurons after it, which saves two passes over memory each way."""

from typing import NamedTuple

import torch
from spikingjelly.activation_based.layer import BatchNorm1d
from torch import Tensor
from torch.autograd.function import once_differentiable

from snn.ops import rows


class Normed(NamedTuple):
    """An input scale · x + shift that neurons compute as they read x."""

    x_TBN: Tensor
    scale_N: Tensor
    shift_N: Tensor

    def dense(self) -> Tensor:
        """Return (T, B, N)."""
        return self.scale_N * self.x_TBN + self.shift_N


class LazyNorm(BatchNorm1d):
    """SpikingJelly's BatchNorm1d in step mode "m"; in training on the CPU its output is `Normed`."""

    def forward(self, x_TBN: Tensor) -> Tensor | Normed:
        if not self.training or x_TBN.device.type != "cpu":
            return super().forward(x_TBN)
        x_RN, scale_N, shift_N, mean_N, var_N = _Norm.apply(x_TBN.flatten(0, 1), self.weight, self.bias, self.eps)
        R = len(x_RN)
        with torch.no_grad():
            self.running_mean += self.momentum * (mean_N - self.running_mean)
            self.running_var += self.momentum * (var_N * (R / max(R - 1, 1)) - self.running_var)
            self.num_batches_tracked += 1
        return Normed(x_RN.view_as(x_TBN), scale_N, shift_N)


class _Norm(torch.autograd.Function):
    """(x, scale, shift, mean, variance) of rows: scale x + shift = (x - mean) / sqrt(variance + eps) · weight + bias.

    The incoming gradient of x lacks the part through mean and variance, which is added in place.
    """

    @staticmethod
    def forward(ctx, x_RN, weight_N, bias_N, eps):
        mean_N, var_N = rows.moments(x_RN)
        inverse_N = (var_N + eps).rsqrt()
        scale_N = weight_N * inverse_N
        moments = mean_N.to(x_RN.dtype), var_N.to(x_RN.dtype)
        ctx.mark_non_differentiable(*moments)
        ctx.save_for_backward(x_RN, weight_N, mean_N, inverse_N)
        return x_RN.view_as(x_RN), scale_N.to(x_RN.dtype), (bias_N - scale_N * mean_N).to(x_RN.dtype), *moments

    @staticmethod
    @once_differentiable
    def backward(ctx, gx_RN, gscale_N, gshift_N, *_):
        x_RN, weight_N, mean_N, inverse_N = ctx.saved_tensors
        gweight_N = (gscale_N - gshift_N * mean_N) * inverse_N
        slope_N = -gweight_N * weight_N * inverse_N.square() / len(x_RN)
        rest_N = -gshift_N * weight_N * inverse_N / len(x_RN) - slope_N * mean_N
        rows.add_linear_(gx_RN, x_RN, slope_N, rest_N)
        return gx_RN, gweight_N.to(x_RN.dtype), gshift_N, None
