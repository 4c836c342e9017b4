"""Classes by name: if files name their classes, they are matched by name and not by number."""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from snn.errors import InputError

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")  # a line has one end, and a terminal takes no commands
MOST_SAID = 5  # the most names in a message


class Named(NamedTuple):
    """The classes 0, 1, ... of a network or a file, and where their names come from, for messages."""

    names: tuple[str, ...] | None  # None: the classes have no names
    where: str


def tidied(names: Iterable[str]) -> tuple[str, ...]:
    """Remove what is invisible in names: control characters, blanks around them, and the two encodings of an accent."""
    return tuple(unicodedata.normalize("NFC", CONTROL.sub(" ", name)).strip() for name in names)


def all_different(names: tuple[str, ...], where: str) -> tuple[str, ...]:
    """Return the names. InputError if two are equal."""
    if twice := [name for k, name in enumerate(names) if name in names[:k]]:
        raise InputError(f"{where}: two classes have the name {twice[0]!r:.40}; rename one of them")
    return names


def name_of_each(names: Sequence[str] | None, number: int) -> list[str]:
    """Return a name for each of so many classes: "class 3" for one that has none."""
    return [names[k] if names is not None and k < len(names) else f"class {k}" for k in range(number)]


def numbers_in(wanted: Named, own: Named) -> np.ndarray:
    """Return (classes,) int64: the number in `wanted` of each class of `own`. InputError if the classes differ."""
    if own.names == wanted.names:
        return np.arange(len(own.names))
    if alone := " and ".join(filter(None, (_only(own, wanted), _only(wanted, own)))):
        raise InputError(
            f"{own.where}: its classes differ from those of {wanted.where}: {alone}; use a set with the same classes"
        )
    for named in (own, wanted):
        all_different(named.names, named.where)
    return np.array([wanted.names.index(name) for name in own.names])


def _only(one: Named, other: Named) -> str:
    """List the names that `one` has and `other` lacks, for a message."""
    names = sorted(set(one.names) - set(other.names))
    said = ", ".join(f"{name!r:.40}" for name in names[:MOST_SAID]) + (", ..." if len(names) > MOST_SAID else "")
    return f"only {one.where} has {said}" if names else ""
