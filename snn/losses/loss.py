"""The base class of a loss, and what losses share.

A loss is the mean over the B samples of a batch. Labels are int64, 0 to classes - 1. Others are an InputError on the
CPU; on a GPU their values are not checked.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from snn import checks
from snn.errors import InputError
from snn.schema import Section

if TYPE_CHECKING:
    from snn.network import Activity  # which reads configurations, and these contain the options of losses
else:
    Activity = Any

LOSSES: dict[str, type["Loss"]] = {}  # by the names that `loss.mode` takes


class Loss(Section):
    """The options of a loss, as fields, and its value.

    A subclass names itself, and its section of options if that has another name:
    `class FirstTime(Loss, name="first_time", section="fs")`.

    Attributes:
        about: what the loss trains, for the manual of options.
        further: other sections of options that the loss reads.
        chosen_by: the metric of the validation that chooses the best model.
        wakes: a change of its options that makes silent outputs fire, as advice for a run that goes wrong.
        calms: one that makes gradients smaller.
    """

    name: ClassVar[str]
    section: ClassVar[str]
    about: ClassVar[str]
    further: ClassVar[Mapping[str, type[Section]]] = {}
    chosen_by: ClassVar[str] = "fs_accuracy"
    wakes: ClassVar[str | None] = None
    calms: ClassVar[str | None] = None

    def __init_subclass__(cls, name: str, section: str | None = None, **words: Any) -> None:
        super().__init_subclass__(**words)
        cls.name, cls.section = name, section or name
        if cls.section in ("mode", "spike_count"):
            raise InputError(f"the loss {name} of {cls.__module__}: `loss` has a field {cls.section}: rename it")
        for other in LOSSES.values():
            is_again = (cls.__module__, cls.__qualname__) == (other.__module__, other.__qualname__)  # in a notebook
            if not is_again and (name == other.name or cls.section in (other.section, *other.further)):
                raise InputError(
                    f"the loss {name} of {cls.__module__} has the name or the section of {other.name} in "
                    f"{other.__module__}: rename it"
                )
        LOSSES[name] = cls

    @property
    def code(self) -> str:
        """Return the loss's part of a run's default name."""
        return self.name

    def scheduled(self, epoch: int, epochs: int) -> dict[str, float]:
        """Return the options that change over the epochs, by name, as they are in this one, counted from 0."""
        return {}

    def value(self, activity: Activity, target_B: Tensor, options: Any, training: bool, theta: float | None) -> Tensor:
        """Return the loss of a batch; `options` has the sections in `further`, and `theta` is the output threshold."""
        raise NotImplementedError


def check(x_BN: Tensor, target_B: Tensor, **constants: float) -> None:
    """Raise InputError unless x has a row for each label, and the constants are finite numbers."""
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
    """Return the optional term λ_s |N_s - N_target| of Liu et al. 2023. `mean` is as in `objective`."""
    return weight * (mean(spikes_per_neuron(layers)) - target).abs()
