"""A share of samples held out, for validation or test."""

import sys
from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np

from datasets.recordings import AnyRecordings, check_index
from snn import checks
from snn.errors import InputError

MOST_SAID = 8  # classes or recordings in a message


class Samples(Protocol):
    """Recordings or images."""

    labels: np.ndarray  # (n,) int64
    where: str  # the file, for messages
    class_names: tuple[str, ...] | None


def hold_out(
    recordings: AnyRecordings,
    share: float,
    by: Literal["recording", "speaker"],
    seed: int,
    among: np.ndarray | None = None,
    name: str = "validation",
) -> tuple[np.ndarray, np.ndarray]:
    """Indices (kept, held out): the share of the recordings of every class, or of the speakers; 0 holds out none.

    `among`: only of these recordings. `name` says for messages which of the configuration's shares it is.
    """
    checks.number("the share held out", share, least=0)
    among = np.arange(len(recordings)) if among is None else check_index(among, recordings)
    if share == 0:
        return among, among[:0]
    random = np.random.default_rng(seed)
    labels = recordings.labels[among]
    if by == "speaker":
        if recordings.speakers is None:
            raise InputError(f"{recordings.where}: names no speakers (extra/speaker); set data.{name}_by=recording")
        speakers = random.permutation(np.unique(recordings.speakers[among]))
        held = np.isin(recordings.speakers[among], speakers[: max(1, round(share * len(speakers)))])
    else:
        held = np.zeros(len(among), bool)
        for label in np.unique(labels):
            of_class = random.permutation(np.flatnonzero(labels == label))
            held[of_class[: min(len(of_class) - 1, max(1, round(share * len(of_class))))]] = True
    missing = np.setdiff1d(labels, labels[~held])
    if held.any():
        say_unseen(recordings, labels, labels[held], name)
    if len(missing) or not held.any():
        raise InputError(
            f"{recordings.where}: with data.{name}_share = {share} held out by {by}, "
            + (f"class {missing[0]} has nothing left to train on" if len(missing) else "nothing is held out")
            + "; it needs more recordings, or more speakers"
        )
    return among[~held], among[held]


def say_unseen(recordings: AnyRecordings, labels: np.ndarray, seen: np.ndarray, name: str) -> None:
    """Say so if classes among `labels` are not among those `seen` in the recordings held out for `name`."""
    if len(unseen := np.setdiff1d(labels, seen)):
        print(
            f"warning: {recordings.where}: nothing of {some([name_of(recordings, k) for k in unseen])} is held out, "
            f"so that {name} does not see it",
            file=sys.stderr,
        )


def name_of(samples: Samples, label: int) -> str:
    """A class by its number and, where it has one, its name."""
    names = samples.class_names or ()
    return f"class {label}" + (f" ({names[label]})" if 0 <= label < len(names) else "")


def some(values: Sequence) -> str:
    """The first of these, in words."""
    return ", ".join(map(str, values[:MOST_SAID])) + (", ..." if len(values) > MOST_SAID else "")
