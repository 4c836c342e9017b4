"""The losses, one file each: the equation with its source, its options, and its value for a batch.

Put a file into this folder to add one: `loss.mode` then takes its name, and its options stand in a section of `loss`.
"""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, NonNegativeFloat, create_model
from torch import Tensor

from snn.errors import InputError
from snn.losses.loss import LOSSES, Activity, Loss, spike_count
from snn.schema import Section

for _path in sorted(Path(__file__).parent.glob("[!_]*.py")):
    import_module(f"{__name__}.{_path.stem}")


class SpikeCount(Section):
    weight: NonNegativeFloat = Field(0.0, description="λ_s of λ_s |N_s - target|; 0 leaves the term out")
    target: NonNegativeFloat = Field(1.0, description="target number of spikes per sample and neuron, over all layers")


class AnyLoss(Section):
    """The section `loss` of a configuration: the name of a loss, and the options of all."""

    mode: str
    spike_count: SpikeCount = Field(SpikeCount(), description="optional penalty on the spike count")

    @property
    def chosen(self) -> Loss:
        """Return the options of the loss that `mode` names."""
        return getattr(self, LOSSES[self.mode].section)

    def scheduled(self, epoch: int, epochs: int) -> dict[str, float]:
        now, loss = self.chosen.scheduled(epoch, epochs), type(self.chosen)
        if unknown := [name for name in now if name not in loss.model_fields]:
            raise InputError(f"the loss {loss.name} schedules {unknown[0]}, which is not one of its options")
        return now

    def at(self, epoch: int, epochs: int) -> "AnyLoss":
        """Return the section with the options that hold in this epoch, counted from 0."""
        now = self.chosen.model_copy(update=self.scheduled(epoch, epochs))
        return self.model_copy(update={now.section: now})


def _sections() -> dict[str, tuple[type[Section], Section]]:
    """Return the sections of options, with their defaults."""
    sections: dict[str, tuple[type[Section], Section]] = {}
    for loss in LOSSES.values():
        sections |= {name: (kind, kind()) for name, kind in {loss.section: loss, **loss.further}.items()}
    return sections


if TYPE_CHECKING:
    LossOptions = AnyLoss
else:
    LossOptions = create_model(
        "LossOptions",
        __base__=AnyLoss,
        __module__=__name__,
        mode=(
            Literal[tuple(LOSSES)],
            Field("first_time", description="; ".join(f"{name}: {loss.about}" for name, loss in LOSSES.items())),
        ),
        **_sections(),
    )


def objective(
    activity: Activity,
    target_B: Tensor,
    loss: AnyLoss,
    training: bool,
    mean: Callable[[Tensor], Tensor] = lambda x: x,
    theta: float | None = None,
) -> Tensor:
    """Return the loss of a batch, as the section `loss` of a configuration asks for it.

    Regularising terms are added in training only. `mean` turns the mean over this process's samples into the mean over
    the whole batch. `theta` is the threshold of the output neurons, which first_to_spike needs.
    """
    value = loss.chosen.value(activity, target_B, loss, training, theta)
    if training and loss.spike_count.weight > 0:
        value = value + spike_count(activity.layers, loss.spike_count.weight, loss.spike_count.target, mean)
    return value


__all__ = ["LOSSES", "AnyLoss", "Loss", "LossOptions", "objective"]
