"""Checks of stored labels: they get the numbers of their names, and must fit the number of classes."""

import sys

import numpy as np

from datasets.hdf5 import largest
from snn.classes import Named, numbers_in
from snn.errors import InputError


def check_type(kind: np.dtype, number: int, where: str, what: str, field: str) -> None:
    """Raise InputError if a type cannot hold 0 ... number - 1: larger numbers wrapped when they were written."""
    if largest(kind) < number - 1:
        raise InputError(
            f"{where}: its {what} are {kind}, which ends at {largest(kind):,}, but with {field} they go up to "
            f"{number - 1:,}; numbers beyond have wrapped, so write them again as {np.min_scalar_type(number - 1)}"
        )


def as_named(labels: np.ndarray, own: Named, wanted: Named | None) -> np.ndarray:
    """Return the numbers that the classes of these labels have in `wanted`. Labels outside all names stay as they are.

    If only `wanted` has names, a line says that the numbers were trusted. InputError if the names differ.
    """
    if wanted is None or wanted.names is None:
        return labels
    if own.names is None:
        print(
            f"warning: {own.where}: names no classes, so its labels are taken as the numbers in {wanted.where}",
            file=sys.stderr,
        )
        return labels
    numbers = numbers_in(wanted, own)
    is_named = (labels >= 0) & (labels < len(numbers))
    return np.where(is_named, numbers[np.where(is_named, labels, 0)], labels)


def check_labels(labels: np.ndarray, num_classes: int, where: str, is_training: bool, item: str) -> None:
    """Raise InputError if a label lies outside 0..num_classes-1, or if a class has nothing to train on."""
    present = np.unique(labels)
    low, high = int(present[0]), int(present[-1])
    missing = np.setdiff1d(np.arange(num_classes), present)
    if low < 0 or high >= num_classes:
        r = int(((labels < 0) | (labels >= num_classes)).argmax())
        fault = f"{item} {r} has the label {labels[r]}, outside 0..{num_classes - 1}"
    elif is_training and len(missing):
        fault = f"class {missing[0]} has no {item}"
    else:
        return
    if low < 0:
        remedy = "number the classes from 0, in a type that holds them all (int8 wraps from 127 to -128)"
    elif low > 0 and high - low + 1 == len(present):
        remedy = f"labels begin at {low}: subtract {low}" + (
            f", and set data.num_classes (--num_classes) to {len(present)}" if num_classes != len(present) else ""
        )
    elif is_training and len(present) <= high:
        remedy = (
            f"there are {len(present)} classes with labels up to {high}: number them 0..{len(present) - 1}, and set "
            f"data.num_classes (--num_classes) to {len(present)}"
        )
    else:
        remedy = f"set data.num_classes (--num_classes) to the set's number; labels go up to {high}"
    raise InputError(f"{where}: {fault}; {remedy}")
