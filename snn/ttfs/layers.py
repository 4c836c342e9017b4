"""Layers of neurons that spike at most once, as modules over `snn.ttfs.functional`, from spike times to spike times."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from snn import checks, operations
from snn.ops.sparse_conv import Geometry, thinned
from snn.ttfs import functional

# The synapses of a standardised neuron sum up to this much below 0. If they summed up to 0, inputs that all fire at
# once, as in a white area of an image, would leave it without drive but for rounding, which would decide whether it
# fires.
LEAST_SUM = 1e-4


def _flat(t: Tensor) -> Tensor:
    """Flatten (B, ...) to (B, N)."""
    checks.tensor("t", t, ("samples", "inputs", ...), checks.STORED)
    return t.flatten(1)


class GivesTimes(nn.Module):
    """A module that outputs spike times, which are infinite for silent neurons."""

    gives_times = True


class SpikingLayer(GivesTimes):
    """Weights followed by neurons: the base class of `Linear` and `Conv2d`.

    Args:
        weight_shape: the shape of the weights, outputs first.
        T: the window.
        bias: give each neuron, or map, a learned drive that begins at T, when it may fire (`snn.ttfs.functional`).
        standardised: scale each neuron's weights to a mean just below 0 (`LEAST_SUM`) and their initial spread, times a
            learned gain. This depends only on the weights and so needs no statistics of the data; `fold` turns it into
            plain weights.
        zero_drive_fires: neurons without any drive fire at T, as in the authors' framework, instead of staying silent.
        grad_clip: bound of the two inner gradients; 1 in the authors' framework. None: they are exact.
    """

    def __init__(
        self,
        weight_shape: tuple[int, ...],
        T: float,
        bias: bool = False,
        standardised: bool = False,
        zero_drive_fires: bool = False,
        grad_clip: float | None = None,
    ):
        super().__init__()
        checks.number("the window T", T, above=0)
        for size in weight_shape:
            checks.whole("a size of the layer", size, 1)
        self.T = T
        self.options: dict[str, Any] = {"zero_drive_fires": zero_drive_fires, "grad_clip": grad_clip}
        # Normal(0, sqrt(2 / fan_in)), as in the authors' framework
        self.spread = math.sqrt(2 / math.prod(weight_shape[1:]))
        self.weight = nn.Parameter(torch.randn(weight_shape) * self.spread)
        ones = torch.ones(weight_shape[0], *[1] * (len(weight_shape) - 1))
        self.register_parameter("gain", nn.Parameter(ones) if standardised else None)
        self.bias: nn.Parameter | None = nn.Parameter(torch.zeros(weight_shape[0])) if bias else None

    def synapses(self) -> Tensor:
        """Return the effective weights."""
        if self.gain is None:
            return self.weight
        inputs = tuple(range(1, self.weight.dim()))
        centred = self.weight - self.weight.mean(inputs, keepdim=True)
        W = self.gain * self.spread * centred * torch.rsqrt(centred.square().mean(inputs, keepdim=True) + 1e-12)
        return W - LEAST_SUM / math.prod(W.shape[1:])

    @torch.no_grad()
    def fold(self) -> None:
        """Replace the weights by the synapses: the same function without a gain."""
        self.weight.copy_(self.synapses())
        self.gain = None

    def bias_like_sums(self) -> Tensor:
        """Return the bias, or zeros, in a shape that can be added to S of a sample."""
        bias_O = self.weight.new_zeros(len(self.weight)) if self.bias is None else self.bias
        return bias_O.view(-1, *[1] * (self.weight.dim() - 2))

    def sums(self, x: Tensor, W: Tensor) -> Tensor:
        """Return the weighted sums, through the synapses W, of one number per input."""
        raise NotImplementedError

    def fan_out(self, shape: torch.Size) -> Tensor:
        """Count the synapses other than 0 that each input meets, for inputs of this shape (without the batch)."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        options = ", ".join(f"{name}={value}" for name, value in self.options.items())
        has = f"bias={self.bias is not None}, standardised={self.gain is not None}"
        return f"{tuple(self.weight.shape)}, T={self.T:g}, {has}, {options}"


class Linear(SpikingLayer):
    """A fully connected layer that takes inputs of any shape (B, ...). Options are as in `SpikingLayer`."""

    def __init__(self, inputs: int, outputs: int, T: float, **options: Any):
        super().__init__((outputs, inputs), T, **options)

    def forward(self, t: Tensor) -> Tensor:
        return functional.linear(_flat(t), self.synapses(), self.T, bias_O=self.bias, **self.options)

    def sums(self, x: Tensor, W: Tensor) -> Tensor:
        return nn.functional.linear(x.flatten(1), W)

    def fan_out(self, shape: torch.Size) -> Tensor:
        return operations.fan_out(self.synapses()).view(shape)


class Conv2d(SpikingLayer):
    """A convolution, padded by kernel // 2 with silent inputs. Options are as in `SpikingLayer`."""

    def __init__(self, inputs: int, outputs: int, kernel: int, T: float, stride: int = 1, **options: Any):
        super().__init__((outputs, inputs, kernel, kernel), T, **options)
        checks.whole("stride", stride, 1)
        self.stride = stride

    def forward(self, t_BCHW: Tensor) -> Tensor:
        options = {"stride": self.stride, "bias_O": self.bias, **self.options}
        return functional.conv2d(t_BCHW, self.synapses(), self.T, **options)

    def sums(self, x: Tensor, W: Tensor) -> Tensor:
        kernel = W.shape[-1]
        x, stride = thinned(x, kernel, self.stride)
        return nn.functional.conv2d(x, W, None, stride, kernel // 2)

    def fan_out(self, shape: torch.Size) -> Tensor:
        _, height, width = shape
        geometry = Geometry(height, width, self.weight.shape[-1], self.stride)
        return operations.fan_out(self.synapses(), geometry)


class EarliestSpike(GivesTimes):
    """A pool that passes on the earliest spike of each patch: the maximum of leads. Patches do not overlap."""

    def __init__(self, kernel: int):
        super().__init__()
        self.kernel = kernel

    def forward(self, t_BCHW: Tensor) -> Tensor:
        return functional.max_pool2d(t_BCHW, self.kernel)


class AverageLead(GivesTimes):
    """A pool that passes on the mean lead of each patch, with 0 for silent inputs."""

    def __init__(self, kernel: int, T: float):
        super().__init__()
        checks.number("the window T", T, above=0)
        self.kernel, self.T = kernel, T

    def forward(self, t_BCHW: Tensor) -> Tensor:
        return functional.avg_pool2d(t_BCHW, self.kernel, self.T)


class Readout(nn.Module):
    """One neuron per class that does not fire; its potential at the end decides."""

    def __init__(self, inputs: int, outputs: int, T: float):
        super().__init__()
        checks.number("the window T", T, above=0)
        for size in (inputs, outputs):
            checks.whole("a size of the layer", size, 1)
        self.T = T
        self.weight = nn.Parameter(torch.randn(outputs, inputs) * math.sqrt(2 / inputs))

    def forward(self, t: Tensor) -> Tensor:
        return functional.readout(_flat(t), self.weight, self.T)


class UnitEncoder(GivesTimes):
    """An encoder of pixels x in [0, 1] as times (1 - x) T."""

    def __init__(self, T: float):
        super().__init__()
        checks.number("the window T", T, above=0)
        self.T = T

    def forward(self, x: Tensor) -> Tensor:
        return functional.unit_encode(x, self.T)


class DirectEncoder(GivesTimes):
    """A first layer of real numbers: sums of `layer` over the pixels and its bias, clamped to [0, 1], become times."""

    def __init__(self, layer: SpikingLayer):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        checks.kind("the pixels", x, Tensor)
        checks.finite("the pixels", x)
        y = self.layer.sums(x, self.layer.synapses()) + self.layer.bias_like_sums()
        return functional.direct_encode(y, self.layer.T)
