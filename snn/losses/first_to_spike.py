"""The likelihood that the target neuron spikes first, if the output neurons had noisy thresholds."""

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import Tensor

from snn import checks
from snn.losses.loss import Activity, Loss, check

MOST_LOG_RATE = 8.0  # a neuron with a larger one fires within the step anyway
PRESSED_AFTER = 0.5  # of the epochs `early` and `late` have their full weights; up to then they rise in ten steps


class FirstToSpike(Loss, name="first_to_spike"):
    """-log P(the target spikes first), as in the function `first_to_spike`, which has the equation and its source."""

    about: ClassVar = "the probability that the target spikes first"
    wakes: ClassVar = "a larger loss.first_to_spike.silent"
    calms: ClassVar = "a smaller loss.first_to_spike.slope"
    slope: PositiveFloat = Field(
        10.0, description="k: an output neuron of potential h fires at the rate exp(k (h/θ - 1)) (first_to_spike only)"
    )
    silent: NonNegativeFloat = Field(
        0.0, description="cost of a recording in which no output neuron fires; a larger value makes outputs fire"
    )
    early: NonNegativeFloat = Field(
        0.0,
        description="weight of the expected time of the decision, as a share of the window, reached in ten steps over "
        "the first half of the epochs; a larger value makes decisions earlier",
    )
    late: NonNegativeFloat = Field(
        0.0,
        description="weight of the expected square of that share, reached in the same steps; a larger value makes the "
        "latest decisions earlier, and tempts less than `early` to decide before anything is heard",
    )
    each_step: NonNegativeFloat = Field(
        0.0,
        description="weight of the cross-entropy of softmax(k h/θ) at each step up to the decision, summed and divided "
        "by T; the potentials then say at each step what has been heard so far",
    )

    @property
    def code(self) -> str:
        return f"fts{self.slope:g}"

    def scheduled(self, epoch: int, epochs: int) -> dict[str, float]:
        # With their full weights at the start, a network would decide at once and learn nothing.
        share = min(1.0, math.floor(10 * epoch / (PRESSED_AFTER * epochs)) / 10)
        return {"early": share * self.early, "late": share * self.late}

    def value(self, activity: Activity, target_B: Tensor, options: Any, training: bool, theta: float | None) -> Tensor:
        prices = (self.early, self.each_step, self.late) if training else ()
        s_TBN, h_TBN, _ = activity
        constants = self.slope, self.silent, *prices
        return first_to_spike(s_TBN, h_TBN, target_B, theta, *constants)  # type: ignore[arg-type]


def first_to_spike(
    s_TBN: Tensor,
    h_TBN: Tensor,
    target_B: Tensor,
    theta: float,
    slope: float,
    silent: float = 0.0,
    early: float = 0.0,
    each_step: float = 0.0,
    late: float = 0.0,
) -> Tensor:
    """Return the mean -log P(the target's neuron spikes first) of neurons that have a noisy threshold.

    A neuron n with the potential h_n fires at the rate r_n = exp(slope (h_n / theta - 1)) per step ("escape noise"), so
    with R_t = Σ_n r_n of step t,

        P(y) = Σ_t exp(-Σ_{τ<t} R_τ) (1 - exp(-R_t)) r_y / R_t  +  exp(-Σ_τ R_τ) e^{-silent} q_y

    The network itself has no noise. So the sum ends at the step of its first actual spike, to which all the remaining
    probability goes. The last term, for samples without any spike, is the decision by potentials:
    q = softmax(slope · max_t h / theta). `early` adds early · (Σ_t P(no spike up to t)) / T, the expected time of the
    decision as a share of the window, and `late` adds late · (Σ_t (2t - 1) P(no spike up to t)) / T², the expected
    square of that share. `each_step` adds each_step · (Σ_t -log q_y(t)) / T over the steps up to the first
    spike, with q(t) = softmax(slope · h_t / theta): a loss on potentials at each step, as Song et al. 2024 have it
    (arXiv 2406.12726). The likelihood alone asks nothing of the potentials before the steps in which decisions fall.

    The likelihood is that of Bagheri et al. 2018 (arXiv 1710.10704), the noise that of Gerstner & Kistler 2002. The
    gradient reaches the potentials at every step up to the first spike, and never the spikes.
    """
    checks.tensor("potentials", h_TBN, ("steps", "samples", "classes"), checks.FLOATS)
    checks.tensor("spikes", s_TBN, h_TBN.shape)
    check(h_TBN[0], target_B, theta=theta, slope=slope, silent=silent, early=early, late=late, each_step=each_step)
    T, B, _ = h_TBN.shape
    log_r_TBN = slope * (h_TBN / theta - 1)
    capped_TBN = log_r_TBN.clamp(max=MOST_LOG_RATE)  # its exponential stays finite
    R_TB = capped_TBN.exp().sum(-1)
    sum_TB = R_TB.cumsum(0)
    before_TB = sum_TB - R_TB
    place_TB1 = target_B.view(1, B, 1).expand(T, B, 1)
    log_y_TB, capped_y_TB = (each.gather(2, place_TB1).squeeze(2) for each in (log_r_TBN, capped_TBN))
    fires_TB = s_TBN.detach().amax(-1) > 0
    number_TB = fires_TB.cumsum(0)
    fired_TB = number_TB > 0  # up to and with this step
    is_first_TB = fires_TB & (number_TB == 1)
    # log((1 - exp(-R)) / R) is nearly -R/2 where R is small; the clamp keeps 0/0 away
    R_clamped_TB = R_TB.clamp(min=1e-12)
    log_P_TB = capped_y_TB - before_TB + torch.log(-torch.expm1(-R_clamped_TB) / R_clamped_TB)
    log_sum_TB = log_r_TBN.logsumexp(-1)
    log_taken_TB = log_y_TB - before_TB - log_sum_TB
    log_P_TB = torch.where(is_first_TB, log_taken_TB, log_P_TB.masked_fill(fired_TB, -math.inf))
    log_q_B = F.log_softmax(slope * h_TBN.amax(0) / theta, -1).gather(1, target_B.unsqueeze(1)).squeeze(1)
    log_P_silent_B = (log_q_B - sum_TB[-1] - silent).masked_fill(fired_TB[-1], -math.inf)
    log_P_B = torch.cat([log_P_TB, log_P_silent_B.unsqueeze(0)]).logsumexp(0)
    waiting_TB = torch.exp(-sum_TB).masked_fill(fired_TB, 0)
    loss = early * waiting_TB.mean() - log_P_B.mean()
    if late:
        odd_T1 = torch.arange(1, 2 * T, 2, dtype=h_TBN.dtype, device=h_TBN.device).unsqueeze(1)
        loss = loss + late * (odd_T1 * waiting_TB).mean() / T
    if each_step:
        loss = loss - each_step * (log_y_TB - log_sum_TB).masked_fill(fired_TB & ~is_first_TB, 0).mean()
    return loss
