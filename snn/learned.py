"""Learned quantities besides weights: values as reports show them, and delays, which several kinds of layers have."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from snn import checks
from snn.errors import InputError
from snn.ops import taps


class Learned(NamedTuple):
    """A value that a layer learned, in the unit of a report."""

    title: str
    unit: str  # "ms", or "1" for a plain number
    value: Tensor  # one per neuron, input or synapse, or one for the layer
    began: tuple[float, float]  # bounds of the initial values


class Delays(nn.Module):
    """Learned delays of any shape, in steps from 0 to max_steps.

    Args:
        shape: the shape of the delays.
        max_steps: the longest delay.
        initial_steps: the delays begin at random between these two, by default anywhere in their range.
        title: the name of the delays in reports.
    """

    def __init__(self, shape: tuple[int, ...], max_steps: int, initial_steps: tuple[float, float] | None, title: str):
        super().__init__()
        checks.whole("the longest delay", max_steps, 1)
        if initial_steps and not 0 <= initial_steps[0] <= initial_steps[1] <= max_steps:
            raise InputError(
                f"initial delays of {initial_steps} steps: choose two numbers in 0 to {max_steps}, in order"
            )
        self.max_steps, self.title = max_steps, title
        self.sigma_steps = 0.0  # σ of the triangle, see `snn.ops.taps`
        self.are_whole = False  # see `keep_whole`
        self.initial_steps = initial_steps or (0.0, float(max_steps))
        self.steps = nn.Parameter(torch.empty(shape).uniform_(*self.initial_steps))

    @property
    def reach(self) -> int:
        """Return the largest number of steps by which an event may come late."""
        return taps.reach(self.max_steps, self.sigma_steps if self.training else 0.0)

    def taps(self) -> tuple[Tensor, Tensor]:
        """Return (first, h_K), see `snn.ops.taps.taps`; in evaluation only the rounded delay, K = 1."""
        if self.training:
            return taps.taps(self.steps, self.sigma_steps)
        first = taps.rounded(self.steps).long()
        return first, self.steps.new_ones(1, *first.shape)

    def present(self) -> tuple[Tensor, int, float]:
        """Return the present (delays, longest delay, σ) for `snn.ops.taps.product`."""
        if self.training:
            return self.steps, self.max_steps, self.sigma_steps
        return taps.rounded(self.steps), self.max_steps, 0.0

    @torch.no_grad()
    def round(self) -> None:
        """Round the delays to whole steps permanently."""
        self.steps.copy_(taps.rounded(self.steps))

    def keep_whole(self) -> None:
        """Round the delays; they stay whole if `clamp_values` is called after each step of the optimiser."""
        self.are_whole = True
        self.round()

    @torch.no_grad()
    def clamp_values(self) -> None:
        """Bring delays back to between 0 and max_steps; call it after each step of the optimiser."""
        self.steps.clamp_(0, self.max_steps)
        if self.are_whole:
            self.round()

    def check_values(self, where: str) -> None:
        """Raise InputError if a delay lies outside 0 to max_steps or is NaN."""
        fine = (self.steps >= 0) & (self.steps <= self.max_steps)
        if not fine.all():
            raise InputError(
                f"{where}: a learned delay is {self.steps[~fine][0].item():g} steps, outside 0 to {self.max_steps}"
            )

    def learned(self, dt_ms: float) -> Learned:
        """Return the learned delays for a report."""
        low, high = self.initial_steps
        return Learned(self.title, "ms", dt_ms * self.steps.detach().flatten(), (dt_ms * low, dt_ms * high))

    def extra_repr(self) -> str:
        return f"{tuple(self.steps.shape)}, max_steps={self.max_steps}"
