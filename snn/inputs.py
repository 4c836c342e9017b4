"""The inputs of layers besides plain tensors: sparse counts of events, and spikes whose mask is still to be applied."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from snn import checks
from snn.errors import InputError


class Entries(NamedTuple):
    """A matrix without its zeros. Row r has the entries offsets[r] to offsets[r + 1] - 1, each a channel and a count.

    A channel may occur twice in a row; its counts add up.
    """

    offsets: Tensor  # (rows + 1,) int64
    channels: Tensor  # (entries,) int32 or int64
    counts: Tensor  # (entries,) float, or whole numbers


@dataclass(frozen=True)
class SparseCounts:
    """Counts without the zeros: `Entries` whose row r = t·B + b is step t of sample b.

    InputError if the tensors do not fit together, on a GPU too, or a count is not finite.
    """

    offsets: Tensor
    channels: Tensor
    counts: Tensor
    shape: tuple[int, int, int]  # T, B, channels

    def __post_init__(self) -> None:
        if not isinstance(self.shape, tuple) or len(self.shape) != 3:
            raise InputError(f"the shape of events must be (steps, samples, channels), but is {self.shape!r}")
        for name, size in zip(("steps", "samples", "channels"), self.shape, strict=True):
            checks.whole(f"the number of {name}", size, 1)
        T, B, C = self.shape
        entries = self.channels.numel() if isinstance(self.channels, Tensor) else 0
        checks.tensor("offsets", self.offsets, (T * B + 1,), (torch.int64,))
        checks.tensor("channels", self.channels, (entries,), (torch.int32, torch.int64), self.offsets.device)
        checks.tensor("counts", self.counts, (entries,), (*checks.WHOLE, *checks.FLOATS), self.offsets.device)
        begins = self.offsets.cpu().numpy()  # small operations are cheaper in numpy
        first, last = begins[0], begins[-1]
        if first != 0 or last != entries or (begins[1:] < begins[:-1]).any():
            raise InputError(
                f"offsets must rise from 0 to the {entries} entries, but go from {first} to {last} or fall"
            )
        if entries:
            low, high = (bound.item() for bound in self.channels.aminmax())
            if low < 0 or high >= C:
                raise InputError(f"channels must be 0 to {C - 1}, but go from {low} to {high}")
        checks.finite("counts", self.counts)

    @property
    def entries(self) -> Entries:
        return Entries(self.offsets, self.channels, self.counts)

    def to(self, device: torch.device) -> "SparseCounts":
        """Return a copy on another device; only the entries are sent, not the zeros."""
        return SparseCounts(self.offsets.to(device), self.channels.to(device), self.counts.to(device), self.shape)

    def check_fits(self, inputs: int, device: torch.device) -> None:
        """Raise InputError unless a layer with this number of inputs on this device can take the counts."""
        C = self.shape[2]
        if inputs != C or self.counts.device != device:
            raise InputError(
                f"events of {C} channels on {self.counts.device} do not fit a layer with {inputs} inputs on {device}"
            )

    def per_step(self) -> Tensor:
        """Return (T, B): the number of events in each step of each sample, float64."""
        total = torch.cat([self.counts.new_zeros(1, dtype=torch.float64), self.counts.cumsum(0, dtype=torch.float64)])
        return total[self.offsets].diff().view(self.shape[:2])

    def entries_per_step(self, weight_C: Tensor | None = None) -> Tensor:
        """Return (T, B): the number of entries in each step of each sample, or the sum of their weights, float64."""
        if weight_C is None:
            return self.offsets.diff().double().view(self.shape[:2])
        weights = weight_C.double()[self.channels]
        total = torch.cat([weights.new_zeros(1), weights.cumsum(0)])
        return total[self.offsets].diff().view(self.shape[:2])

    def dense(self) -> Tensor:
        """Return (T, B, channels) of the counts' dtype."""
        T, B, C = self.shape
        out = self.counts.new_zeros(self.shape)
        rows, numbers = torch.arange(T * B, device=self.offsets.device), self.offsets.diff()
        # without output_size the CPU would wait for the GPU
        rows = torch.repeat_interleave(rows, numbers, output_size=len(self.counts))
        out.view(-1).index_add_(0, rows * C + self.channels, self.counts)
        return out


@dataclass(frozen=True)
class Spikes:
    """Spikes and a dropout mask, the same for all steps; the layer that takes them in multiplies the two.

    near_TW (see `snn.ops.near_room`) marks the spikes that can use a gradient.
    """

    s_TBN: Tensor
    mask_BN: Tensor | None = None  # None: nothing is dropped
    near_TW: Tensor | None = None  # None: all can use one

    def __post_init__(self) -> None:
        checks.tensor("spikes", self.s_TBN, ("steps", "samples", "neurons"))
        T, B, N = self.s_TBN.shape
        if self.mask_BN is not None:
            checks.tensor("the mask of a dropout", self.mask_BN, (B, N), device=self.s_TBN.device)
            checks.finite("the mask of a dropout", self.mask_BN)
        if self.near_TW is not None:
            checks.tensor("near", self.near_TW, (T, -(-B * N // 64)), (torch.int64,), torch.device("cpu"))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.s_TBN.shape)

    def dense(self) -> Tensor:
        """Return (T, B, N)."""
        return self.s_TBN if self.mask_BN is None else self.s_TBN * self.mask_BN


def as_tensor(x: Tensor | SparseCounts | Spikes) -> Tensor:
    """Return a layer's input as a dense tensor."""
    checks.kind("a layer's input", x, Tensor, SparseCounts, Spikes)
    return x if isinstance(x, Tensor) else x.dense()
