"""The processes that train one network together: one process, or those that torchrun has started.

Each process takes its share of every batch. `Team.parallel` wraps the loss in torch's DistributedDataParallel, so that
a step is that of the whole batch even if the shares differ in size. Terms that are not means over samples go through
`Team.mean`, and BatchNorm through `SyncBatchNorm`. Only the first process writes files.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import reduce
from operator import add
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from spikingjelly.activation_based import layer
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import batch_norm
from torch.nn.parallel import DistributedDataParallel

from snn.errors import InputError

TIMEOUT = timedelta(minutes=10)  # for a message, if a process hangs; far longer than a step or validation
PATIENCE = timedelta(days=1)  # for `Team.wait`, while the leader makes or fetches data
Part = TypeVar("Part")
Loss = Callable[..., Tensor]  # arguments (x, labels, weight)


@dataclass(frozen=True)
class Team:
    """The processes as seen by one: it is number `rank` of `size`, on `device`. Group `patient` may wait for long."""

    device: torch.device
    rank: int = 0
    size: int = 1
    patient: dist.ProcessGroup | None = None

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def share(self, batch: np.ndarray) -> np.ndarray:
        """Return this process's share of a batch. An empty share repeats a recording of another, with weight 0."""
        return batch[self.rank % len(batch) :: self.size]

    def weight(self, batch_size: int) -> float:
        """Return this process's fraction of a batch of this size, 0 to 1."""
        return len(range(self.rank, batch_size, self.size)) / batch_size

    def part(self, index: np.ndarray) -> np.ndarray:
        """Return this process's part of samples that are only summed over, as in validation; it may be empty."""
        return index[self.rank :: self.size]

    def sum(self, value: float) -> float:
        """Return the sum of a number over all processes."""
        total = torch.tensor(value, dtype=torch.float64, device=self.device)
        if self.size > 1:
            dist.all_reduce(total)
        return float(total)

    def largest(self, *values: int) -> list[int]:
        """Return, for each value, the largest of any process. All processes get the same result at the same point."""
        if self.size == 1:
            return list(values)
        most = torch.tensor(values, device=self.device, dtype=torch.int64)
        dist.all_reduce(most, dist.ReduceOp.MAX)
        return most.tolist()

    def gathered(self, value: Part) -> list[Part]:
        """Return all processes' values in the order of their ranks."""
        values = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values

    def total(self, part: Part) -> Part:
        """Return the sum of all processes' parts, added in the order of their ranks; all get the same result."""
        return reduce(add, self.gathered(part))

    def mean(self, value: Tensor, weight: float) -> Tensor:
        """Turn the mean over this process's share into the mean over the batch. Its gradient reaches all shares."""
        return value if self.size == 1 else _Sum.apply(value * weight)

    def parallel(self, network: nn.Module, loss: Loss) -> Loss:
        """Wrap `loss`(x, labels, weight) of this process's share: backward() leaves the whole batch's gradient.

        With several processes the loss comes out multiplied by weight · size, and all must call it at the same time.
        """
        if self.size == 1:
            return loss
        share = _Share(network, loss, self.size)
        return DistributedDataParallel(share, forward_sync_buffers=False, gradient_as_bucket_view=True)

    def synchronise(self, network: nn.Module) -> None:
        """Make each BatchNorm of a new network see whole batches."""
        if self.size == 1:
            return
        for module in list(network.modules()):
            for name, child in module.named_children():
                if isinstance(child, layer.BatchNorm1d):
                    setattr(module, name, SyncBatchNorm(child.num_features, step_mode="m").to(self.device))

    def agree(self, network: nn.Module) -> None:
        """Copy the leader's buffers to all processes. They differ if BatchNorm is not synchronised."""
        if self.size > 1:
            for buffer in network.buffers():
                dist.broadcast(buffer, 0)

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.size > 1:
            dist.barrier(self.patient)

    def part_ways(self) -> None:
        """Wait for all processes and end the group."""
        self.wait()
        if self.size > 1:
            dist.destroy_process_group()


class SyncBatchNorm(layer.BatchNorm1d):
    """SpikingJelly's BatchNorm1d in step mode "m" with statistics over all processes, on CPUs too.

    A process whose share only repeats a recording of another (`counts` False) adds nothing to them.
    """

    counts = True

    def forward(self, x_TBN: Tensor) -> Tensor:
        if not (self.training and torch.is_grad_enabled()):  # without a gradient, other processes may not call this
            return super().forward(x_TBN)
        y_RN, moments_KN = _SyncBatchNorm.apply(x_TBN.flatten(0, 1), self.weight, self.bias, self.eps, self.counts)
        with torch.no_grad():
            n, mean_N, var_N = moments_KN
            self.running_mean += self.momentum * (mean_N.float() - self.running_mean)
            self.running_var += self.momentum * ((var_N * (n / (n - 1).clamp(min=1))).float() - self.running_var)
            self.num_batches_tracked += 1
        return y_RN.view_as(x_TBN)


class _SyncBatchNorm(torch.autograd.Function):
    """(normalised rows, [number of rows, mean, variance] over all processes, float64)."""

    @staticmethod
    def forward(ctx, x_RN, weight_N, bias_N, eps, counts):
        # BatchNorm's own, because torch.var_mean takes eight times as long as all of BatchNorm here (torch 2.14, CPU)
        mean_N, var_N = (m_N.double() for m_N in torch.batch_norm_update_stats(x_RN, None, None, 0.0))
        n = len(x_RN) * counts
        sums_KN = torch.stack([torch.full_like(mean_N, n), n * mean_N, n * (var_N + mean_N.square())])
        dist.all_reduce(sums_KN)
        total, mean_N = sums_KN[0], sums_KN[1] / sums_KN[0]
        var_N = (sums_KN[2] / total - mean_N.square()).clamp(min=0)
        mean, var = mean_N.to(x_RN.dtype), var_N.to(x_RN.dtype)
        ctx.save_for_backward(x_RN, weight_N, mean, var)
        ctx.eps, ctx.share_of_row = eps, float(counts) / total.to(x_RN.dtype)
        moments_KN = torch.stack([total, mean_N, var_N])
        ctx.mark_non_differentiable(moments_KN)
        return batch_norm(x_RN, mean, var, weight_N, bias_N, training=False, eps=eps), moments_KN

    @staticmethod
    @once_differentiable
    def backward(ctx, gy_RN, _):
        x_RN, weight_N, mean_N, var_N = ctx.saved_tensors
        _, gweight_N, gbias_N = torch.ops.aten.native_batch_norm_backward(
            gy_RN, x_RN, weight_N, mean_N, var_N, None, None, False, ctx.eps, [False, True, True]
        )
        sums_KN = torch.stack([gweight_N, gbias_N])
        dist.all_reduce(sums_KN)
        # Σ gy x̂ comes through the variance and Σ gy through the mean; the whole is linear in gy and in x
        inverse_N = torch.rsqrt(var_N + ctx.eps)
        scale_N = weight_N * inverse_N
        slope_N = -scale_N * inverse_N * ctx.share_of_row * sums_KN[0]
        rest_N = -scale_N * ctx.share_of_row * sums_KN[1] - slope_N * mean_N
        gx_RN = torch.addcmul(rest_N, x_RN, slope_N).addcmul_(gy_RN, scale_N)
        return gx_RN, gweight_N, gbias_N, None, None


class _Sum(torch.autograd.Function):
    """The sum of a tensor over all processes. Each process's loss depends on it, so gradients are also summed."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, g: Tensor) -> Tensor:
        total = g.clone()
        dist.all_reduce(total)
        return total


class _Share(nn.Module):
    """The module for DistributedDataParallel, which averages gradients: so each loss is multiplied by weight · size."""

    def __init__(self, network: nn.Module, loss: Loss, size: int):
        super().__init__()
        self.network, self.loss, self.size = network, loss, size

    def forward(self, x, target_B: Tensor, weight: float) -> Tensor:
        for module in self.network.modules():
            if isinstance(module, SyncBatchNorm):
                module.counts = weight > 0
        return self.loss(x, target_B, weight) * (weight * self.size)


def gather(distributed: bool, device: torch.device) -> Team:
    """Join the team that torchrun (or, with `distributed`, another launcher) started; otherwise return this process."""
    started = dist.is_torchelastic_launched() or (distributed and "WORLD_SIZE" in os.environ)
    if not started or os.environ.get("WORLD_SIZE") == "1":
        return Team(device)
    backend = "gloo"
    if device.type == "cuda":
        backend, number = "nccl", int(os.environ.get("LOCAL_RANK", 0))
        if number >= torch.cuda.device_count():
            raise InputError(
                f"process {number} of this machine has no GPU of its own: there are {torch.cuda.device_count()}; start "
                "that many processes (torchrun --nproc_per_node), or use --set train.device=cpu"
            )
        device = torch.device("cuda", number)
        torch.cuda.set_device(device)
    try:
        dist.init_process_group(backend, timeout=TIMEOUT)
        patient = dist.new_group(backend="gloo", timeout=PATIENCE)
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"the processes cannot find each other ({reason:.120}); start all of them with one torchrun"
        ) from None
    return Team(device, dist.get_rank(), dist.get_world_size(), patient)  # type: ignore[arg-type]  # a group of all
