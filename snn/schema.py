"""The parts that the configurations of all kinds of networks have in common, and the list of these kinds.

`snn.config` adds the options of each kind.
"""

import math
import re
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat

from snn.errors import InputError

if TYPE_CHECKING:
    from torch import nn

Share = Annotated[float, Field(ge=0, lt=1)]
LARGEST = 2**31 - 1  # no count of anything is larger, and any product of two fits into 64 bits
PositiveInt = Annotated[int, Field(gt=0, le=LARGEST)]
NonNegativeInt = Annotated[int, Field(ge=0, le=LARGEST)]


class Mark(Enum):
    """A mark on fields that a comparison of configurations leaves out; `snn.settings.marked` lists them."""

    MACHINE = "where the data are or what computes; the result does not depend on it"
    RESUME = "a resumed run may have another value"
    TRAINING = "only train.py reads it"


class Section(BaseModel):
    """A frozen section. Unknown keys, wrong types, NaN and infinity are errors; nothing is converted: "3" is text."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def scheduled(self, epoch: int, epochs: int) -> dict[str, float]:
        """Return, by name, the values that change over the epochs, as they are in this one, counted from 0."""
        return {}


class DataSet(Section):
    """Fields that recordings of events and images have in common."""

    dataset_name: str = Field(
        min_length=1, description="name of the set, used in the names of its files and of the run"
    )
    path: Annotated[str | None, Mark.MACHINE] = Field(
        None, description="folder of the files; default data/<dataset_name>"
    )
    num_classes: PositiveInt = Field(description="number of classes; labels are 0..num_classes-1")
    validation_share: Annotated[Share, Mark.TRAINING] = Field(
        0.1,
        description="share of the training file held out to choose the best model; 0 holds out nothing and keeps the "
        "last epoch; not used if there is a validation file",
    )
    strict: Annotated[bool, Mark.RESUME] = Field(
        False,
        description="refuse a file with a recording that has no event in the window; by default these are counted",
    )

    @property
    def run_word(self) -> str:
        """Return the name of the set as the name of a run begins with it, without characters that this cannot have."""
        return re.sub(r"[^\w.+-]", "_", self.dataset_name)

    @property
    def folder(self) -> Path:
        try:
            return Path(self.path or f"data/{self.dataset_name}").expanduser()
        except RuntimeError:  # ~name of a user whom this machine does not know
            raise InputError(f"data.path = {self.path}: there is no such home folder; write the whole path") from None


class Train(Section):
    """Fields of training that all kinds of networks have in common."""

    epochs: Annotated[PositiveInt, Mark.RESUME] = Field(description="largest number of passes over the training data")
    batch_size: PositiveInt = Field(128, description="recordings or images per step")
    test_batch_size: PositiveInt = Field(256, description="batch size in validation and test")
    lr: PositiveFloat = Field(
        1e-3, description="learning rate of the optimiser: Adam with amsgrad, or AdamW for a TTFS network"
    )
    lr_decay: bool = Field(False, description="decay the learning rate to 0 along a cosine")
    weight_decay: NonNegativeFloat = Field(1e-4, description="weight decay of the optimiser")
    clip_norm: NonNegativeFloat = Field(10.0, description="largest norm of the gradient; 0 does not clip")
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(
        0, description="seed of the weights, the order, dropout, augmentation and the held-out share"
    )
    log_interval: Annotated[PositiveInt, Mark.MACHINE] = Field(
        5, description="steps between updates of the progress bar's loss"
    )
    device: Annotated[str, Mark.MACHINE] = Field(
        "auto", description="auto (cuda if there is one), cpu, cuda, cuda:1, ..."
    )
    cuda_graphs: Annotated[bool, Mark.MACHINE] = Field(
        True,
        description="on a GPU, record a training step once and replay it; set false if your own code reads values "
        "on the CPU within a step",
    )

    def scheduled(self, epoch: int, epochs: int) -> dict[str, float]:
        return {"lr": self.lr * (1 + math.cos(math.pi * epoch / epochs)) / 2 if self.lr_decay else self.lr}


class AnyConfig(Section):
    """Configuration of a kind of network. One section that no other kind has identifies the kind.

    A subclass names that section (`class Mine(AnyConfig, section="mine")`). Its data have a `shape`: that of a sample
    as the network sees it.
    """

    section: ClassVar[str]

    if TYPE_CHECKING:  # each kind declares them itself, in the order of its YAML
        data: DataSet
        train: Train

    def __init_subclass__(cls, section: str, **words: Any) -> None:
        super().__init_subclass__(**words)
        cls.section = section
        KINDS.setdefault(section, cls)  # the first stays: `python -m snn.config` defines its classes again as __main__

    @property
    def run_name(self) -> str:
        """Return the default name of a run."""
        raise NotImplementedError

    def schedule(self, epoch: int) -> dict[str, float]:
        """Return what the sections say of this epoch, counted from 0: at least the learning rate, "lr"."""
        # The learning rate comes first in logs and warnings.
        sections = [self.train, *(getattr(self, name) for name in type(self).model_fields)]
        return {
            name: value for section in sections for name, value in section.scheduled(epoch, self.train.epochs).items()
        }

    @property
    def settles(self) -> int:
        """Return the epoch, counted from 0, from which on the network has its final form."""
        return 0

    def new_network(self, backend: str | None = None) -> "nn.Module":
        """Build the untrained network that this configuration describes; `backend` replaces train.backend."""
        raise NotImplementedError


KINDS: dict[str, type[AnyConfig]] = {}
