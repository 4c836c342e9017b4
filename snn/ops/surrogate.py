"""Surrogate derivatives of a spike: ds/du as a function of u = h - θ.

Each is written in plain torch, so that it runs on tensors and, traced, in every compiled backend. Each comes with the
smooth function whose true derivative it is: with that instead of the step, `gradcheck` can check a whole network.

    superspike  1 / (1 + k|u|)²                      Zenke & Ganguli 2018; the paper's, k = 5
    arctan      (k/2) / (1 + (π/2 · k u)²)           Fang et al. 2021, k = 2
    triangle    k max(0, 1 - k|u|)                   Esser et al. 2016, Bellec et al. 2018, k = 1
    boxcar      k/2 where |u| <= 1/k, otherwise 0    Bittar & Garner 2022, k = 2
    slayer      exp(-k|u|)                           Shrestha & Orchard 2018, k = 5
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from snn import checks

SLOPES = {"superspike": 5.0, "arctan": 2.0, "triangle": 1.0, "boxcar": 2.0, "slayer": 5.0}


@dataclass(frozen=True)
class Surrogate:
    """A surrogate of this name with slope k, by default the slope of its source."""

    name: str = "superspike"
    slope: float = 0.0

    def __post_init__(self):
        checks.word("surrogate", self.name, SLOPES)
        checks.number("the slope of a surrogate", self.slope, least=0)
        object.__setattr__(self, "slope", float(self.slope or SLOPES[self.name]))

    @property
    def reach(self) -> float:
        """Return the |u| beyond which the derivative is exactly 0."""
        return 1 / self.slope if self.name in ("triangle", "boxcar") else math.inf

    def derivative(self, u: Tensor) -> Tensor:
        """Return ds/du."""
        k, away = self.slope, torch.abs(u)
        if self.name == "superspike":
            width = 1 + k * away
            return 1 / (width * width)
        if self.name == "arctan":
            scaled = (math.pi / 2 * k) * u
            return (k / 2) / (1 + scaled * scaled)
        if self.name == "triangle":
            return torch.where(away <= self.reach, k * (1 - k * away), 0.0)
        if self.name == "boxcar":
            return torch.where(away <= self.reach, k / 2, 0.0)
        return torch.exp(-k * away)

    def smooth(self, u: Tensor) -> Tensor:
        """Return the function whose derivative is `derivative`, up to a constant."""
        k, away = self.slope, u.abs()
        if self.name == "superspike":
            return u / (1 + k * away)
        if self.name == "arctan":
            return torch.atan(math.pi / 2 * k * u) / math.pi
        if self.name == "triangle":
            inside = away.clamp(max=1 / k)
            return u.sign() * (k * inside - (k * inside).square() / 2)
        if self.name == "boxcar":
            return k / 2 * u.clamp(-1 / k, 1 / k)
        return u.sign() * (1 - torch.exp(-k * away)) / k
