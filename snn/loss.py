"""The losses, each a mean over the B samples of a batch.

Those of first times and of firing rates are by Liu et al. 2023 (doi 10.3389/fnins.2023.1266003).

Labels are int64, 0 to classes - 1. Others are an InputError on the CPU; on a GPU their values are not checked.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from snn import checks, config
from snn.coding import Window, first_times
from snn.errors import InputError
from snn.network import Activity

MOST_LOG_RATE = 8.0  # a neuron with a larger one fires within the step all the same


def first_time(t_BN: Tensor, target_B: Tensor, alpha: float) -> Tensor:
    """Return the cross-entropy of softmax(-α t^F), α per step."""
    _check(t_BN, target_B, alpha=alpha)
    return F.cross_entropy(-alpha * t_BN, target_B)


def silent_target(t_BN: Tensor, target_B: Tensor, T: int, weight: float, beta: float) -> Tensor:
    """Return the regulariser λ mean(exp(β τ) - 1) for training.

    τ is the time of the target neuron if it is silent (t^F > T), otherwise 0. `weight` is λ; β is per step.
    """
    _check(t_BN, target_B, T=T, weight=weight, beta=beta)
    t_B = t_BN.gather(1, target_B.unsqueeze(1)).squeeze(1)
    tau_B = torch.where(t_B > T, t_B, 0)
    return weight * torch.expm1(beta * tau_B).mean()


def first_to_spike(
    s_TBN: Tensor,
    h_TBN: Tensor,
    target_B: Tensor,
    theta: float,
    slope: float,
    silent: float = 0.0,
    early: float = 0.0,
) -> Tensor:
    """Return the mean -log P(the target's neuron spikes first) of neurons that have a noisy threshold.

    A neuron n with the potential h_n fires at the rate r_n = exp(slope (h_n / theta - 1)) per step ("escape noise"), so
    with R_t = Σ_n r_n of step t,

        P(y) = Σ_t exp(-Σ_{τ<t} R_τ) (1 - exp(-R_t)) r_y / R_t  +  exp(-Σ_τ R_τ) e^{-silent} q_y

    The neurons themselves are without noise. So the sum ends at the step of the first spike that really falls: whoever
    was not taken before is taken there. The last term, for samples without any spike, is the decision by potentials:
    q = softmax(slope · max_t h / theta). `early` adds early · (Σ_t P(no spike up to t)) / T, the expected time of the
    decision as a share of the window.

    The likelihood is that of Bagheri et al. 2018 (arXiv 1710.10704), the noise that of Gerstner & Kistler 2002. The
    gradient reaches the potentials at every step up to the first spike, and never the spikes.
    """
    checks.tensor("potentials", h_TBN, ("steps", "samples", "classes"), checks.FLOATS)
    checks.tensor("spikes", s_TBN, h_TBN.shape)
    _check(h_TBN[0], target_B, theta=theta, slope=slope, silent=silent, early=early)
    T, B, _ = h_TBN.shape
    log_r_TBN = (slope * (h_TBN / theta - 1)).clamp(max=MOST_LOG_RATE)
    R_TB = log_r_TBN.exp().sum(-1)
    sum_TB = R_TB.cumsum(0)
    before_TB = sum_TB - R_TB
    log_y_TB = log_r_TBN.gather(2, target_B.view(1, B, 1).expand(T, B, 1)).squeeze(2)
    fires_TB = s_TBN.detach().amax(-1) > 0
    number_TB = fires_TB.cumsum(0)
    fired_TB = number_TB > 0  # up to and with this step
    is_first_TB = fires_TB & (number_TB == 1)
    # log((1 - exp(-R)) / R) is nearly -R/2 where R is small; the clamp keeps 0/0 away
    R_clamped_TB = R_TB.clamp(min=1e-12)
    log_P_TB = log_y_TB - before_TB + torch.log(-torch.expm1(-R_clamped_TB) / R_clamped_TB)
    log_taken_TB = log_y_TB - before_TB - log_r_TBN.logsumexp(-1)
    log_P_TB = torch.where(is_first_TB, log_taken_TB, log_P_TB.masked_fill(fired_TB, -math.inf))
    log_q_B = F.log_softmax(slope * h_TBN.amax(0) / theta, -1).gather(1, target_B.unsqueeze(1)).squeeze(1)
    log_P_silent_B = (log_q_B - sum_TB[-1] - silent).masked_fill(fired_TB[-1], -math.inf)
    log_P_B = torch.cat([log_P_TB, log_P_silent_B.unsqueeze(0)]).logsumexp(0)
    waiting_TB = torch.exp(-sum_TB).masked_fill(fired_TB, 0)
    return early * waiting_TB.mean() - log_P_B.mean()


def firing_rate(s_TBN: Tensor, target_B: Tensor, alpha: float) -> Tensor:
    """Return the cross-entropy of softmax(α_FR rate), rate in spikes per step."""
    checks.tensor("spikes", s_TBN, ("steps", "samples", "classes"), checks.FLOATS)
    _check(s_TBN[0], target_B, alpha=alpha)
    return F.cross_entropy(alpha * s_TBN.mean(0), target_B)


def _check(x_BN: Tensor, target_B: Tensor, **constants: float) -> None:
    checks.tensor("times", x_BN, ("samples", "classes"), checks.FLOATS)
    B, classes = x_BN.shape
    checks.labels(target_B, B, classes, x_BN.device)
    for name, value in constants.items():
        checks.number(name, value)


def spikes_per_neuron(layers: Sequence[Tensor]) -> Tensor:
    """Return N_s, the number of spikes per sample and neuron over all layers, each (T, B, ...)."""
    if not layers:
        raise InputError("there are no layers whose spikes could be counted")
    checks.tensor("spikes", layers[0], ("steps", "samples", "neurons", ...))
    T, B = layers[0].shape[:2]
    for s in layers:
        checks.tensor("spikes", s, (T, B, "neurons", ...))
    neurons = sum(s[0, 0].numel() for s in layers)
    return sum((s.sum() for s in layers), layers[0].new_zeros(())) / (B * neurons)


def spike_count(
    layers: Sequence[Tensor], weight: float, target: float, mean: Callable[[Tensor], Tensor] = lambda x: x
) -> Tensor:
    """Return the optional term λ_s |N_s - N_target| (from the paper only). `mean` is as in `objective`."""
    return weight * (mean(spikes_per_neuron(layers)) - target).abs()


def objective(
    activity: Activity,
    target_B: Tensor,
    loss: config.Loss,
    window: Window,
    training: bool,
    mean: Callable[[Tensor], Tensor] = lambda x: x,
    theta: float | None = None,
) -> Tensor:
    """Return the loss that the configuration asks for. Regularising terms are added in training only.

    `mean` turns the mean over this process's samples into the mean over the whole batch. `theta` is the threshold of
    the output neurons, which first_to_spike needs.
    """
    s_TBN, h_TBN, layers = activity
    if loss.mode == "first_time":
        t_BN = first_times(s_TBN, h_TBN, window)
        value = first_time(t_BN, target_B, loss.fs.alpha)
        if training:
            value = value + silent_target(t_BN, target_B, len(s_TBN), loss.treg.weight, loss.treg.beta)
    elif loss.mode == "first_to_spike":
        race = loss.first_to_spike
        early = race.early if training else 0.0
        value = first_to_spike(s_TBN, h_TBN, target_B, theta, race.slope, race.silent, early)  # type: ignore[arg-type]
    else:
        value = firing_rate(s_TBN, target_B, loss.fr.alpha)
    if training and loss.spike_count.weight > 0:
        value = value + spike_count(layers, loss.spike_count.weight, loss.spike_count.target, mean)
    return value
