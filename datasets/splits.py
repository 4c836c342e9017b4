"""Choice of the samples that are held out, for validation or test."""

import sys
from collections.abc import Sequence
from typing import Literal

import numpy as np

from datasets.recordings import AnyRecordings, Samples, check_index
from snn import checks
from snn.errors import InputError

MOST_SAID = 8  # classes or recordings in a message


def hold_out(
    samples: Samples,
    share: float,
    seed: int,
    groups: np.ndarray | None = None,
    among: np.ndarray | None = None,
    name: str = "validation",
) -> tuple[np.ndarray, np.ndarray]:
    """Return indices (kept, held out): a share of the samples of every class or, with `groups`, of the groups.

    A share of 0 holds out none. `groups`, (n,), gives the group of each sample, such as its speaker; a group is never
    divided. If each group has one class, such as the file that windows were cut from, the share is taken of the groups
    of every class. `among` limits the choice to these samples, ascending. `name` is the name of the share in the
    configuration, for messages.
    """
    checks.number("the share held out", share, least=0)
    checks.whole("the seed", seed, 0)
    among = np.arange(len(samples)) if among is None else check_index(among, samples)
    if share == 0:
        return among, among[:0]
    random = np.random.default_rng(seed)
    labels = samples.labels[among]
    group = np.arange(len(among)) if groups is None else groups[among]
    if len(np.unique(np.stack([group, labels], 1), axis=0)) > len(np.unique(group)):  # some are of several classes
        drawn = random.permutation(np.unique(group))
        held = np.isin(group, drawn[: max(1, round(share * len(drawn)))])
    else:
        held = np.zeros(len(among), bool)
        for label in np.unique(labels):
            of_class = random.permutation(np.unique(group[labels == label]))
            held |= np.isin(group, of_class[: min(len(of_class) - 1, max(1, round(share * len(of_class))))])
    missing = np.setdiff1d(labels, labels[~held])
    if held.any():
        say_unseen(samples, labels, labels[held], name)
    if len(missing) or not held.any():
        raise InputError(
            f"{samples.where}: with data.{name}_share = {share}, "
            + (f"class {missing[0]} has no recording left to train on" if len(missing) else "nothing is held out")
            + "; this needs more recordings (all windows of one recording count as one) or more speakers"
            + (", or data.validation_share=0, which holds out nothing" if name == "validation" else "")
        )
    return among[~held], among[held]


def groups_by(recordings: AnyRecordings, by: Literal["recording", "speaker"], name: str) -> np.ndarray | None:
    """Return the groups that data.<name>_by means, or None for single recordings.

    Windows that were cut from one recording are one group. InputError if the file does not name the groups.
    """
    if by == "recording":
        return recordings.files
    if recordings.speakers is None:
        raise InputError(f"{recordings.where}: names no speakers (extra/speaker); set data.{name}_by=recording")
    return recordings.speakers


def say_unseen(samples: Samples, labels: np.ndarray, seen: np.ndarray, name: str) -> None:
    """Warn if the samples held out for `name`, with the labels `seen`, lack a class among `labels`."""
    if len(unseen := np.setdiff1d(labels, seen)):
        print(
            f"warning: {samples.where}: nothing of {some([name_of(samples, k) for k in unseen])} is held out, "
            f"so the {name} does not see it",
            file=sys.stderr,
        )


def name_of(samples: Samples, label: int) -> str:
    """Describe a class by its number and, if it has one, its name."""
    names = samples.class_names or ()
    return f"class {label}" + (f" ({names[label]})" if 0 <= label < len(names) else "")


def some(values: Sequence) -> str:
    """List the first of these values in words."""
    return ", ".join(map(str, values[:MOST_SAID])) + (", ..." if len(values) > MOST_SAID else "")
