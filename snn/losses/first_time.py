"""The loss of first-spike times, with a term that wakes silent target neurons (Liu et al. 2023)."""

from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import Tensor

from snn.coding import Window, first_times, narrowed_D
from snn.losses.loss import Activity, Loss, check
from snn.schema import Section


class SilentTarget(Section):
    weight: NonNegativeFloat = Field(
        0.01, description="λ, weight of the term that wakes silent target neurons (first_time only)"
    )
    beta: PositiveFloat = Field(0.02, description="β of exp(β τ) - 1 (1/step)")


class FirstTime(Loss, name="first_time", section="fs"):
    """The cross-entropy of softmax(-α t^F), plus λ mean(exp(β τ) - 1) in training.

    Source: doi 10.3389/fnins.2023.1266003.
    """

    about: ClassVar = "the time of the first spikes"
    further: ClassVar = {"treg": SilentTarget}
    wakes: ClassVar = "a larger loss.treg.weight"
    calms: ClassVar = "a smaller loss.fs.A"
    alpha: PositiveFloat = Field(0.2, description="α of softmax(-α t^F) (1/step; first_time only)")
    D: Annotated[float, Field(ge=1)] = Field(16.0, description="the gradient window has σ = max(1, floor(T/D)) steps")
    A: PositiveFloat = Field(200.0, description="amplitude of the gradient window")
    D_final: Annotated[float, Field(ge=1)] | None = Field(
        None, description="narrow the window by letting D grow to this over the epochs"
    )
    window: Literal["peak", "paper"] = Field("peak", description="peak of the window: A, or A/(2πσ) as in the paper")

    @property
    def code(self) -> str:
        return f"fs{self.alpha:g}"

    def scheduled(self, epoch: int, epochs: int) -> dict[str, float]:
        return {"D": narrowed_D(self.D, self.D_final, epoch / epochs) if self.D_final else self.D}

    def value(self, activity: Activity, target_B: Tensor, options: Any, training: bool, theta: float | None) -> Tensor:
        T = len(activity.s_TBN)
        t_BN = first_times(activity.s_TBN, activity.h_TBN, Window.of(T, self.D, self.A, self.window))
        value = first_time(t_BN, target_B, self.alpha)
        if training:
            value = value + silent_target(t_BN, target_B, T, options.treg.weight, options.treg.beta)
        return value


def first_time(t_BN: Tensor, target_B: Tensor, alpha: float) -> Tensor:
    """Return the cross-entropy of softmax(-α t^F), α per step."""
    check(t_BN, target_B, alpha=alpha)
    return F.cross_entropy(-alpha * t_BN, target_B)


def silent_target(t_BN: Tensor, target_B: Tensor, T: int, weight: float, beta: float) -> Tensor:
    """Return the regulariser λ mean(exp(β τ) - 1) for training.

    τ is the time of the target neuron if it is silent (t^F > T), otherwise 0. `weight` is λ; β is per step.
    """
    check(t_BN, target_B, T=T, weight=weight, beta=beta)
    t_B = t_BN.gather(1, target_B.unsqueeze(1)).squeeze(1)
    tau_B = torch.where(t_B > T, t_B, 0)
    return weight * torch.expm1(beta * tau_B).mean()
