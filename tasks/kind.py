"""The definition of a kind of network: everything that train.py and test.py need to know about it."""

import argparse
import hashlib
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from snn.errors import InputError
from snn.evaluation import Evaluation
from snn.health import Cures
from snn.replay import Replayed
from snn.report import Column, Subject
from snn.schema import AnyConfig
from snn.tables import Table
from snn.team import Loss, Team
from snn.ttfs.evaluation import TTFSEvaluation

# The fields that say which samples are held out from training, or left for training at all.
HELD_OUT_BY = {"train.seed", "data.validation_by", "data.validation_share", "data.validation_file"}
HELD_OUT_BY |= {"data.train_file", "data.test_by", "data.test_share"}


class Kind(NamedTuple):
    """A kind of network: its configuration, its training and its testing."""

    config: type[AnyConfig]
    training: "type[Training]"
    testing: "type[Testing]"


class Training(ABC):
    """The part that train.py uses. The constructor reads the data and builds the network.

    Attributes:
        items: a word for its samples.
        chosen_by: the metric of `validate` that chooses the best model; between equals, the lower loss decides.
        cures: advice for a run that goes wrong.
        goals: the metrics of `validate` that a search may optimise, and whether to "maximize" or "minimize" each.
        patience: training ends after this many epochs without a better model; None: it never ends early.
        network, optimizer: the network to train, and its optimiser.
        kept, held_out: indices of the samples to train on, and of those that choose the best model.
        class_names: the class names in the training file, or None.
        trained_on: fingerprints of the samples, by what they are for, as `check_unchanged` compares them.
        loss: a function of (x, labels, weight): the mean loss of this process's share of a training batch.
    """

    items: ClassVar[str]
    cures: Cures
    goals: ClassVar[dict[str, str]]
    chosen_by: str
    patience: int | None = None
    network: nn.Module
    optimizer: torch.optim.Optimizer
    kept: np.ndarray
    held_out: np.ndarray
    class_names: Sequence[str] | None
    trained_on: Mapping[str, str] = MappingProxyType({})
    loss: Loss

    def __init__(self, cfg: AnyConfig, team: Team):
        self.cfg, self.team = cfg, team

    def begin_epoch(self, epoch: int, random: np.random.Generator) -> dict[str, float]:
        """Set and return the values that change from epoch to epoch. `random` makes the epoch's random choices."""
        now = self.cfg.schedule(epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = now["lr"]
        return now

    def shared_or_replayed(self, loss: Loss) -> Loss:
        """Return the loss of this process's share for several processes; for one on a GPU, one that is replayed."""
        if self.team.device.type == "cuda" and self.team.size == 1 and self.cfg.train.cuda_graphs:
            return Replayed(self.network, loss)
        return self.team.parallel(self.network, loss)

    @staticmethod
    def holds_out(cfg: Any) -> bool:
        """Return whether there are samples to choose the best model by."""
        return bool(cfg.data.validation_share)

    @abstractmethod
    def batches(self, order: np.ndarray) -> Iterator[tuple[Any, Tensor]]:
        """Yield (x, labels) for the training samples in this order: this process's share of each batch."""

    def after_step(self) -> None:  # noqa: B027 - most networks need nothing
        """Do the work that follows each step of the optimiser."""

    @abstractmethod
    def evaluate(self, held_out: np.ndarray) -> Evaluation | TTFSEvaluation:
        """Return sums over these held-out samples. The results for two parts can be added."""

    def validate(self) -> dict:
        """Return the metrics on the held-out samples, split among the processes; empty if nothing is held out."""
        self.team.agree(self.network)
        if not len(self.held_out):
            return {}
        return self.metrics(self.team.total(self.evaluate(self.team.part(self.held_out))))

    @abstractmethod
    def metrics(self, evaluation: Any) -> dict:
        """Turn the sums into plain numbers, including "loss" and `chosen_by`."""

    @abstractmethod
    def describe(self, validation: dict) -> str:
        """Describe an epoch's validation for the screen."""

    @abstractmethod
    def conclude(self, validation: dict) -> str:
        """Give the best epoch's accuracy in words."""

    def uses(self, checkpoint: Path) -> list[str]:
        """Return one line for each further use of the trained network."""
        return []

    def learned(self) -> dict[str, Tensor]:
        """Return the values other than weights that the network learned, for the log. Times are in steps."""
        return {}

    def activity(self) -> list[str]:
        """Say how active the network was in its last pass, one line per layer."""
        return []


class Result(NamedTuple):
    """The result of testing one network."""

    subject: Subject
    metrics: dict  # for metrics.json
    samples: dict[str, np.ndarray | Tensor]  # arrays with an entry per sample, for samples.npz


class Testing(ABC):
    """The part that test.py uses: several networks that see the same batches. The constructor loads both.

    Attributes:
        words: the command-line options of this kind, and their help.
        choices: the values that an option takes, if it takes one.
        columns: the columns of a table with a row for each network.
    """

    words: ClassVar[dict[str, str]] = {}
    choices: ClassVar[dict[str, tuple[str, ...]]] = {}
    columns: ClassVar[tuple[Column, ...]]

    def __init__(self, args: argparse.Namespace, subjects: Sequence[Subject]):
        self.args, self.subjects = args, subjects

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of batches."""

    @abstractmethod
    def __iter__(self) -> Iterator[tuple[Any, Tensor]]:
        """Yield the batches as (x, labels)."""

    @abstractmethod
    def examine(self, x: Any, target_B: Tensor) -> None:
        """Run all networks over a batch."""

    @abstractmethod
    def results(self) -> Iterator[Result]:
        """Write report.html for each network and yield its result, after all batches have been examined."""

    @staticmethod
    @abstractmethod
    def tables(metrics: dict) -> list[Table]:
        """Return the tables that show these metrics."""


def named(class_names: Sequence[str] | None, num_classes: int) -> list[str]:
    """Return a word for each class: its name, or its number if it has no name."""
    return [class_names[k] if class_names is not None and k < len(class_names) else str(k) for k in range(num_classes)]


def fingerprint(labels_n: np.ndarray, class_names: Sequence[str] | None, *of_samples: np.ndarray) -> str:
    """Hash a list of samples: their classes, in whatever order these are numbered, and the arrays `of_samples`."""
    by_name_n = labels_n if class_names is None else np.argsort(np.argsort(class_names))[labels_n]
    digest = hashlib.sha256()
    for array in (by_name_n, *of_samples):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]


def changed_samples(then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Name the samples whose fingerprints differ. What only one of them has counts as unchanged."""
    return [name for name in now if then.get(name, now[name]) != now[name]]


def check_unchanged(content: Mapping[str, Any], now: Mapping[str, str], path: Path, remedy: str) -> None:
    """Raise InputError if fingerprints differ from those of a checkpoint's training, which earlier versions lack."""
    if changed := changed_samples(content.get("trained_on", {}), now):
        raise InputError(
            f"{path}: the samples {' and '.join(changed)} are not those of its training; their files have changed "
            f"since, or are others: {remedy}"
        )


def say_missing(labels_n: np.ndarray, classes: int, where: str, item: str) -> None:
    """Warn if there are classes without a sample to test."""
    if len(missing := np.setdiff1d(np.arange(classes), labels_n)):
        print(
            f"warning: {where}: no {item} of {len(missing)} of the network's {classes} classes, the first of which is "
            f"{missing[0]}; was the network trained on this set?",
            file=sys.stderr,
        )


def say_refusal(look: Callable[[], None]) -> None:
    """Warn, before training, if `look` raises InputError: test.py would then refuse the test data."""
    try:
        look()
    except InputError as error:
        print(f"warning: test.py will refuse the test data: {error}", file=sys.stderr)
