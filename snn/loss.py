"""The losses of Liu et al. 2023 (doi 10.3389/fnins.2023.1266003), each a mean over the B samples of a batch.

Labels are int64, 0 to classes - 1. Others are an InputError on the CPU; on a GPU their values are not checked.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from snn import checks, config
from snn.coding import Window, first_times
from snn.errors import InputError
from snn.network import Activity


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


def firing_rate(s_TBN: Tensor, target_B: Tensor, alpha: float) -> Tensor:
    """Return the cross-entropy of softmax(α_FR rate), rate in spikes per step."""
    checks.tensor("spikes", s_TBN, ("steps", "samples", "classes"), checks.FLOATS)
    _check(s_TBN[0], target_B, alpha=alpha)
    return F.cross_entropy(alpha * s_TBN.mean(0), target_B)


def _check(x_BN: Tensor, target_B: Tensor, **constants: float) -> None:
    checks.tensor("times", x_BN, ("samples", "classes"), checks.FLOATS)
    checks.labels(target_B, *x_BN.shape, x_BN.device)
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
    return sum(s.sum() for s in layers) / (B * neurons)


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
) -> Tensor:
    """Return the loss that the configuration asks for. The two regularising terms are added in training only.

    `mean` turns the mean over this process's samples into the mean over the whole batch.
    """
    s_TBN, h_TBN, layers = activity
    if loss.mode == "first_time":
        t_BN = first_times(s_TBN, h_TBN, window)
        value = first_time(t_BN, target_B, loss.fs.alpha)
        if training:
            value = value + silent_target(t_BN, target_B, len(s_TBN), loss.treg.weight, loss.treg.beta)
    else:
        value = firing_rate(s_TBN, target_B, loss.fr.alpha)
    if training and loss.spike_count.weight > 0:
        value = value + spike_count(layers, loss.spike_count.weight, loss.spike_count.target, mean)
    return value
