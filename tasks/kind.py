"""A kind of network as a value: all that train.py and test.py need to know of it."""

import argparse
import hashlib
import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from snn.classes import Named
from snn.config import AnyConfig
from snn.errors import InputError
from snn.evaluation import Evaluation
from snn.health import Cures
from snn.report import Column, Subject
from snn.tables import Table
from snn.team import Team
from snn.ttfs.evaluation import TTFSEvaluation


class Kind(NamedTuple):
    """A kind of network: its configuration, and its two halves."""

    config: type[AnyConfig]
    training: "type[Training]"
    testing: "type[Testing]"


class Training(ABC):
    """The half of train.py. A new one has read its data and built its network.

    Attributes:
        items: a word for its samples.
        chosen_by: the metric of `validate` by which the best model is chosen; of equals, the lower loss.
        cures: advice for a run that goes wrong.
        patience: epochs without a better model before training ends, or None.
        network, optimizer: to be trained.
        kept, held_out: indices of the samples to train on, and to choose the best model by.
        class_names: of the training file, or None.
        loss: of (x, labels, weight), the mean loss of this process's share of a training batch.
    """

    items: ClassVar[str]
    cures: ClassVar[Cures]
    chosen_by: str
    patience: int | None = None
    network: nn.Module
    optimizer: torch.optim.Optimizer
    kept: np.ndarray
    held_out: np.ndarray
    class_names: Sequence[str] | None
    loss: Callable[[Any, Tensor, float], Tensor]

    def __init__(self, cfg: AnyConfig, team: Team, classes: Named | None = None):
        self.cfg, self.team = cfg, team

    @classmethod
    def schedule(cls, cfg: AnyConfig, epoch: int) -> dict[str, float]:
        """Return what changes from epoch to epoch, by name: at least the learning rate, "lr"."""
        train = cfg.train
        return {"lr": train.lr * (1 + math.cos(math.pi * epoch / train.epochs)) / 2 if train.lr_decay else train.lr}

    def begin_epoch(self, epoch: int, random: np.random.Generator) -> dict[str, float]:
        """Set what changes from epoch to epoch, and return it. `random` draws what is random in this epoch."""
        now = self.schedule(self.cfg, epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = now["lr"]
        return now

    @abstractmethod
    def batches(self, order: np.ndarray) -> Iterator[tuple[Any, Tensor]]:
        """Yield (x, labels): the training samples in this order, of each batch the share of this process."""

    def after_step(self) -> None:  # noqa: B027 - most networks need nothing
        """Do what follows a step of the optimiser."""

    @abstractmethod
    def evaluate(self, held_out: np.ndarray) -> Evaluation | TTFSEvaluation:
        """Sums over these held-out samples; those of two parts can be added."""

    def validate(self) -> dict:
        """Metrics on what is held out, of which each process sees a part; none where nothing is held out."""
        self.team.agree(self.network)
        if not len(self.held_out):
            return {}
        return self.metrics(self.team.total(self.evaluate(self.team.part(self.held_out))))

    @abstractmethod
    def metrics(self, evaluation: Any) -> dict:
        """Plain numbers from the sums, among them "loss" and `chosen_by`."""

    @abstractmethod
    def describe(self, validation: dict) -> str:
        """An epoch's validation, for the screen."""

    @abstractmethod
    def conclude(self, validation: dict) -> str:
        """The best epoch's accuracy, in a sentence."""

    def learned(self) -> dict[str, Tensor]:
        """Return what the network learned beside weights, for the log; times in steps."""
        return {}

    def activity(self) -> list[str]:
        """Say how active the network was last, a line a layer."""
        return []


class Result(NamedTuple):
    """A network that was tested."""

    subject: Subject
    metrics: dict  # for metrics.json
    samples: dict[str, np.ndarray | Tensor]  # what each sample gave, for samples.npz


class Testing(ABC):
    """The half of test.py: several networks that see the same batches. A new one has read its data and the networks.

    Attributes:
        words: words of the command line that this kind takes, and their help.
        choices: what follows a word, if anything does.
        columns: of a table with a row for each network.
        items: a word for its samples.
    """

    words: ClassVar[dict[str, str]] = {}
    choices: ClassVar[dict[str, tuple[str, ...]]] = {}
    columns: ClassVar[tuple[Column, ...]]
    items: ClassVar[str]

    def __init__(self, args: argparse.Namespace, subjects: Sequence[Subject]):
        self.args, self.subjects = args, subjects

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of batches."""

    @abstractmethod
    def __iter__(self) -> Iterator[tuple[Any, Tensor]]:
        """Yield the batches: (x, labels)."""

    @abstractmethod
    def examine(self, x: Any, target_B: Tensor) -> None:
        """Run all networks over a batch."""

    @abstractmethod
    def results(self) -> Iterator[Result]:
        """Yield what was found, network after network, once all batches are examined; its report.html is written."""

    @staticmethod
    @abstractmethod
    def tables(metrics: dict) -> list[Table]:
        """The numbers for people."""


def named(class_names: Sequence[str] | None, num_classes: int) -> list[str]:
    """A word for each class: its name where it has one, else its number."""
    return [class_names[k] if class_names is not None and k < len(class_names) else str(k) for k in range(num_classes)]


def fingerprint(labels_n: np.ndarray, class_names: Sequence[str] | None, *of_samples: np.ndarray) -> str:
    """Tells one list of samples from another: by class, whatever the order of the classes, and these arrays."""
    by_name_n = labels_n if class_names is None else np.argsort(np.argsort(class_names))[labels_n]
    digest = hashlib.sha256()
    for array in (by_name_n, *of_samples):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]


def say_missing(labels_n: np.ndarray, classes: int, where: str, item: str) -> None:
    """Say so if classes have nothing to be tested on."""
    if len(missing := np.setdiff1d(np.arange(classes), labels_n)):
        print(
            f"warning: {where}: no {item} of {len(missing)} of the network's {classes} classes, the first of them "
            f"{missing[0]}; is it the set of its training?",
            file=sys.stderr,
        )


def say_refusal(look: Callable[[], None]) -> None:
    """Say now, before training, what test.py would refuse: `look` raises it as InputError."""
    try:
        look()
    except InputError as error:
        print(f"warning: test.py will refuse the test data: {error}", file=sys.stderr)
