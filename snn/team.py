"""The processes that train one network together: one, or those that torchrun started for `train.py --distributed`.

Each process takes its share of every batch and gradients are averaged over the batch, so a step is that of the whole
batch; only BatchNorm's statistics are each process's own. The first process validates and writes.
"""

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn


@dataclass(frozen=True)
class Team:
    """This process is number `rank` of `size`, at work on `device`."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def share(self, batch: np.ndarray) -> np.ndarray:
        """This process's recordings of a batch. One that would have none repeats another's, with weight 0."""
        return batch[self.rank % len(batch) :: self.size]

    def weight(self, batch_size: int) -> float:
        """The part of a batch of this size that this process has, 0 to 1."""
        return len(range(self.rank, batch_size, self.size)) / batch_size

    def sum(self, value: float) -> float:
        """The sum of a number over all processes."""
        total = torch.tensor(value, dtype=torch.float64, device=self.device)
        if self.size > 1:
            dist.all_reduce(total)
        return float(total)

    def largest(self, value: int) -> int:
        """The largest of all processes' numbers."""
        if self.size == 1:
            return value
        most = torch.tensor(value, device=self.device)
        dist.all_reduce(most, dist.ReduceOp.MAX)
        return int(most)

    def gathered(self, value: Any) -> list[Any]:
        """All processes' values, in the order of their ranks."""
        values = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values

    def average_gradients(self, network: nn.Module, weight: float) -> None:
        """Each process's gradient times its weight, summed over all processes."""
        if self.size == 1:
            return
        gradients = [p.grad for p in network.parameters() if p.grad is not None]
        flat = torch.cat([g.flatten() for g in gradients]) * weight
        dist.all_reduce(flat)
        for g, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            g.copy_(part.view_as(g))

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            dist.barrier()


def gather(distributed: bool, device: torch.device) -> Team:
    """The team that torchrun has started if `distributed`, else this process alone."""
    if not distributed or "WORLD_SIZE" not in os.environ:
        return Team(device)
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return Team(device, dist.get_rank(), dist.get_world_size())
