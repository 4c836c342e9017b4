"""A batch of events: counts per step, sample and channel, without the zeros."""

from dataclasses import dataclass

import torch
from torch import Tensor


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

    def dense(self) -> Tensor:
        """(T, B, channels), of the counts' dtype."""
        T, B, C = self.shape
        rows = torch.repeat_interleave(torch.arange(T * B, device=self.offsets.device), self.offsets.diff())
        flat = torch.zeros(T * B * C, dtype=self.counts.dtype, device=self.counts.device)
        return flat.index_add_(0, rows * C + self.channels, self.counts).view(T, B, C)
