"""The published file layouts, each with a record of how the file was made."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from datasets.hdf5 import PROVENANCE
from snn.errors import InputError
from snn.files import whole

ROOM = 2**18  # bytes, more than HDF5 adds to a recording
ROW = 24  # bytes, at most, of a recording in the lists of labels, speakers and files
CANNOT_TAKE_ROOM = errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL  # of file systems, where the C library does not help


def remove_leftovers(path: Path) -> None:
    """Remove unfinished versions of a file that `new_file` began in processes that have ended."""
    for left in path.parent.iterdir():
        number = left.name.removeprefix(f".{path.name}.")
        if number != left.name and number.isdecimal() and not _lives(int(number)):
            left.unlink(missing_ok=True)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)  # sends nothing
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # it lives, but belongs to another user
        return True
    return True


@contextmanager
def new_file(path: Path, provenance: dict) -> Iterator[h5py.File]:
    """Open an HDF5 file to fill; it appears only when it is complete. InputError if the folder cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path)
        with whole(path) as part:
            with part.open("wb") as file:
                _take_room(file.fileno(), 0, ROOM)
            with h5py.File(part, "w") as file:
                make_room(file)
                yield file
                file.attrs[PROVENANCE] = json.dumps(provenance, sort_keys=True)
                file.flush()
                size = file.id.get_filesize()
            os.truncate(part, size)
    except OSError as error:
        if error.filename not in map(str, (path, *path.parents)):  # but of a file that the events come from
            raise
        raise InputError(f"{path} cannot be written ({error.strerror}): choose another folder for it") from error


def make_room(file: h5py.File, num_bytes: int = 0) -> None:
    """Take room on the disk for so many bytes and for what HDF5 adds to them. OSError if there is none (on Linux).

    HDF5 must not find out itself: if it cannot write what it holds, it prints pages, and the program ends in a crash.
    Some file systems cannot take room, and then it does.
    """
    _take_room(file.id.get_vfd_handle(), file.id.get_filesize(), ROOM + num_bytes)


def _take_room(descriptor: int, start: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, start, size)
        except OSError as error:
            if error.errno not in CANNOT_TAKE_ROOM:
                raise


def write_events(
    path: Path,
    recordings: Iterable[tuple[np.ndarray, np.ndarray]],
    labels: Sequence[int],
    keys: Sequence[str],
    provenance: dict,
    speakers: Sequence[int] | None,
) -> None:
    """Write recordings in the layout of the Spiking Heidelberg Digits (Cramer et al. 2022).

    recordings: (times_s [events], units [events]) per label, written as they come; keys: the names of the classes.
    Layout: spikes/times float32 s and spikes/units uint16, of variable length; labels uint16; extra/keys strings;
    extra/speaker uint16 (uint32 if there are more than uint16 holds) unless `speakers` is None.
    """
    with new_file(path, provenance) as file:
        times = file.create_dataset("spikes/times", (len(labels),), h5py.vlen_dtype(np.float32))
        units = file.create_dataset("spikes/units", (len(labels),), h5py.vlen_dtype(np.uint16))
        for i, (times_s, channels) in zip(range(len(labels)), recordings, strict=True):
            make_room(file, times_s.nbytes + channels.nbytes)
            times[i], units[i] = times_s, channels
        make_room(file, ROW * len(labels))
        file["labels"] = np.asarray(labels, np.uint16)
        file.create_dataset("extra/keys", data=list(keys), dtype=h5py.string_dtype())
        if speakers is not None:
            file["extra/speaker"] = np.asarray(speakers, np.result_type(np.uint16, np.min_scalar_type(max(speakers))))


def write_camera(
    path: Path,
    group: str,
    recordings: Iterable[tuple[np.ndarray, np.ndarray, int]],
    dtype: type[np.unsignedinteger],
    provenance: dict,
) -> int:
    """Write an event camera's recordings as Liu et al. 2023 published theirs; return their number.

    recordings: (times in µs [events], data [events, 3] = x, y, polarity 0 or 1, label), written as they come.
    Layout: <group>/<i>/time uint32 µs, <i>/data of `dtype`, <i>/labels uint8, one number.
    """
    count = 0
    with new_file(path, provenance) as file:
        for times_us, data, label in recordings:
            make_room(file, times_us.nbytes + data.nbytes)
            recording = file.create_group(f"{group}/{count}")
            recording["time"] = times_us.astype(np.uint32)
            recording["data"] = data.astype(dtype)
            recording["labels"] = np.uint8(label)
            count += 1
    return count


def is_made(path: Path, provenance: dict) -> bool:
    """Return whether `path` is a complete file that was made with this provenance."""
    if not path.exists():
        return False
    try:
        with h5py.File(path) as file:
            return file.attrs.get(PROVENANCE) == json.dumps(provenance, sort_keys=True)
    except OSError:  # not an HDF5 file
        return False
