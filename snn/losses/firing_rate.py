"""The loss of firing rates (Liu et al. 2023, doi 10.3389/fnins.2023.1266003)."""

from typing import Any, ClassVar

import torch.nn.functional as F
from pydantic import Field, PositiveFloat
from torch import Tensor

from snn import checks
from snn.losses.loss import Activity, Loss, check


class FiringRate(Loss, name="firing_rate", section="fr"):
    """The cross-entropy of softmax(α rate), with rates in spikes per step."""

    about: ClassVar = "the number of spikes in the window"
    chosen_by: ClassVar = "fr_accuracy"
    alpha: PositiveFloat = Field(20.0, description="α of softmax(α rate) (steps; firing_rate only)")

    @property
    def code(self) -> str:
        return f"fr{self.alpha:g}"

    def value(self, activity: Activity, target_B: Tensor, options: Any, training: bool, theta: float | None) -> Tensor:
        return firing_rate(activity.s_TBN, target_B, self.alpha)


def firing_rate(s_TBN: Tensor, target_B: Tensor, alpha: float) -> Tensor:
    """Return the cross-entropy of softmax(α_FR rate), rate in spikes per step."""
    checks.tensor("spikes", s_TBN, ("steps", "samples", "classes"), checks.FLOATS)
    check(s_TBN[0], target_B, alpha=alpha)
    return F.cross_entropy(alpha * s_TBN.mean(0), target_B)
