"""A batch of events: counts per step, sample and channel, without the zeros."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from snn.ops.compiled import inlined


@inlined
def step_of(time, ticks_per_second, dt_ms, T):
    """The step, counted from 0, of an event at `time` ticks: floor(1000 t / dt) (Liu et al. 2023); T if that is past T.

    1000 t and dt · ticks are both exact: an event on the edge of a bin falls to the bin it begins.
    """
    return np.int64(min(np.floor(1000.0 * np.float64(time) / (dt_ms * ticks_per_second)), np.float64(T)))


@dataclass(frozen=True)
class Events:
    """Row r = t·B + b (step t, sample b) has the entries offsets[r] to offsets[r + 1] - 1: channel and count of each.

    A channel may stand twice in a row; its counts add up.
    """

    offsets: Tensor  # (T·B + 1,) int64
    channels: Tensor  # (entries,) int32
    counts: Tensor  # (entries,) float
    shape: tuple[int, int, int]  # T, B, channels

    def to(self, device: torch.device) -> "Events":
        """The same on another device: the entries travel, not the zeros."""
        return Events(self.offsets.to(device), self.channels.to(device), self.counts.to(device), self.shape)

    def per_step(self) -> Tensor:
        """(T, B): how many events each step of each sample has, float64."""
        total = torch.cat([self.counts.new_zeros(1, dtype=torch.float64), self.counts.cumsum(0, dtype=torch.float64)])
        return total[self.offsets].diff().view(self.shape[:2])

    def entries_per_step(self, weight_C: Tensor | None = None) -> Tensor:
        """(T, B): how many entries each step of each sample has, or the sum of their channels' weights, float64."""
        if weight_C is None:
            return self.offsets.diff().double().view(self.shape[:2])
        weights = weight_C.double()[self.channels]
        total = torch.cat([weights.new_zeros(1), weights.cumsum(0)])
        return total[self.offsets].diff().view(self.shape[:2])

    def dense(self) -> Tensor:
        """(T, B, channels), of the counts' dtype."""
        T, B, C = self.shape
        out = self.counts.new_zeros(self.shape)
        rows, numbers = torch.arange(T * B, device=self.offsets.device), self.offsets.diff()
        rows = torch.repeat_interleave(rows, numbers, output_size=len(self.counts))  # without it a GPU is waited for
        out.view(-1).index_add_(0, rows * C + self.channels, self.counts)
        return out


class Dropped(NamedTuple):
    """Spikes and the mask of a dropout, one for all steps: their product, left to the layer that takes it in."""

    s_TBN: Tensor
    mask_BN: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.s_TBN.shape)

    def dense(self) -> Tensor:
        """(T, B, N)."""
        return self.s_TBN * self.mask_BN


def as_tensor(x: Tensor | Events | Dropped) -> Tensor:
    """A layer's input with its zeros."""
    return x if isinstance(x, Tensor) else x.dense()
