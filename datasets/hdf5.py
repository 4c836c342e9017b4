"""HDF5 files that are not trusted: the sizes they claim are checked against the file before anything is allocated.

If the C library finds damage, h5py raises one of a dozen exceptions; here each becomes an InputError. The library does
not survive two kinds of damage, so these are looked for first. It would allocate and clear a list that claims more than
the file holds before refusing it, and it would never leave a heap of lists with an object of size 0.
"""

import errno
import math
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import h5py
import numpy as np

from snn.errors import InputError

PROVENANCE = "provenance"  # attribute: a JSON object of the parameters the file was made with
MOST_SHRUNK = 1032  # times: how much deflate shrinks zeros; no event list comes near it
CANNOT_LOCK = "unable to lock file"  # in messages of the C library, as the next
IS_WRITTEN = f"{CANNOT_LOCK}, errno = {errno.EWOULDBLOCK},", "already open for write"
LISTS_AT_ONCE = 64
PIECE = 2**14  # bytes
SMALL = 2**20  # bytes that a file may always claim, for instance for labels that were never written and are all 0
# The file format, https://support.hdfgroup.org/documentation/hdf5/latest/_f_m_t3.html, III.E: a collection of the
# global heap, which holds lists and strings, is a signature, a version, 3 bytes, its size, and objects; an object is
# its index (0: free space), a count, 4 bytes, its size, and its data up to a multiple of 8. A list is stored as its
# length, the address of its collection and its index there.
COLLECTION, COLLECTION_HEADER, OBJECT_HEADER = b"GCOL\x01", struct.Struct("<8xQ"), struct.Struct("<HHxxxxQ")
REFERENCE = np.dtype([("length", "<u4"), ("address", "<u8"), ("index", "<u4")])


@contextmanager
def border(path: Path) -> Iterator[None]:
    """Turn any exception that h5py raises for damage into one InputError."""
    try:
        yield
    except InputError:
        raise
    except MemoryError:
        raise InputError(f"{path}: claims more than fits into memory, perhaps damaged; fetch it again") from None
    # h5py has no exception of its own: which of Python's it raises depends on the place of the damage
    except (OSError, RuntimeError, LookupError, ValueError, TypeError, ArithmeticError, AttributeError) as error:
        reason = " ".join(str(error).split())
        if any(words in reason for words in IS_WRITTEN):
            raise InputError(
                f"{path}: another program has it open for writing, or ended before it closed it; close it there, or "
                f"write it again ({reason:.120})"
            ) from None
        if CANNOT_LOCK in reason:
            raise InputError(
                f"{path}: its file system locks no files; copy it to another, or set HDF5_USE_FILE_LOCKING=FALSE in "
                f"the environment ({reason:.120})"
            ) from None
        raise InputError(
            f"{path}: not a readable HDF5 file, perhaps truncated; fetch it again ({reason:.120})"
        ) from None


class File:
    """A file of data sets, opened once in each process: a handle must not be shared with a forked process.

    Its methods raise InputError unless the data set exists and the file can hold its size.
    """

    def __init__(self, path: Path):
        self.path = path
        self._process = None
        self._heaps_are_checked = False
        with border(path):
            self.open()

    def open(self) -> h5py.File:
        """Return the handle of this process."""
        if self._process != os.getpid():
            self._file = h5py.File(self.path, "r")
            self._process = os.getpid()
        return self._file

    def has(self, name: str) -> bool:
        with border(self.path):
            return name in self._file

    def is_group(self, name: str) -> bool:
        with border(self.path):
            found = self._file.get(name)
            if found is None:
                self._check_links(name)
            return isinstance(found, h5py.Group)

    def is_dataset(self, name: str) -> bool:
        with border(self.path):
            return isinstance(self._file.get(name), h5py.Dataset)

    def number_of_members(self, name: str) -> int:
        with border(self.path):
            return len(self._file[name])

    def dataset(self, name: str, kinds: str | None = None) -> h5py.Dataset:
        """Return a data set that exists; `kinds` are the numpy kinds of numbers it may hold."""
        with border(self.path):
            dataset = self._file.get(name)
            if not isinstance(dataset, h5py.Dataset):
                self._check_links(name)
                raise InputError(f"{self.path}: wrong layout: it has no data set /{name}")
            if dataset.file.filename != self._file.filename or dataset.external:
                raise self._elsewhere(name)
            if dataset.shape is None:
                raise InputError(f"{self.path}: wrong layout: /{name} cannot hold values")
            if kinds and dataset.dtype.kind not in kinds:
                remedy = "" if dataset.dtype.kind in "biufc" else "; give each kind a number, from 0"
                raise InputError(f"{self.path}: wrong layout: /{name} holds {dataset.dtype}, not numbers{remedy}")
            if dataset.is_virtual:
                self._check_sources(dataset)
            else:
                _check_size(dataset, self.path)
            if dataset.dtype.kind == "O":  # of lists, or of strings of any length
                self._check_heaps()
            return dataset

    def _elsewhere(self, name: str) -> InputError:
        return InputError(
            f"{self.path}: /{name} lies in another file, and external links are not read; copy it into this one (by "
            "h5py's File.copy with expand_external=True)"
        )

    def _check_links(self, name: str) -> None:
        """Raise InputError if the path to a missing data set leads through an external link."""
        parts = name.split("/")
        for k in range(1, len(parts) + 1):
            if isinstance(self._file.get("/".join(parts[:k]), getlink=True), h5py.ExternalLink):
                raise self._elsewhere(name)

    def _check_sources(self, dataset: h5py.Dataset) -> None:
        """Raise InputError if a virtual data set has missing parts, for which the C library returns zeros."""
        size = 0
        for source in dataset.virtual_sources():
            beside, given = self.path.parent / source.file_name, Path(source.file_name)
            path = beside if beside.is_file() else given
            if source.file_name != "." and not path.is_file():
                raise InputError(f"{self.path}: {dataset.name} is virtual, and its part {path} does not exist")
            file = self if source.file_name == "." else File(path)
            size += file.dataset(source.dset_name.strip("/")).size
        if dataset.size > size:
            raise InputError(
                f"{self.path}: {dataset.name} is virtual and has {dataset.size:,} values, but its sources have "
                f"{size:,}; write it again"
            )

    def attribute(self, name: str) -> str | None:
        """Return an attribute of the file, a text or a whole number as text; None if missing, InputError if neither."""
        with border(self.path):
            self._check_heaps()
            value = self._file.attrs.get(name)
        if isinstance(value, np.ndarray | np.generic) and value.size == 1:  # MATLAB's numbers are lists of one
            value = value.item()
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        if type(value) is int or (isinstance(value, float) and value.is_integer()):
            value = str(int(value))
        if value is None or isinstance(value, str):
            return value
        raise InputError(f"{self.path}: its attribute {name} is neither a text nor a whole number; write it again")

    def _check_heaps(self) -> None:
        if not self._heaps_are_checked:
            _check_heaps(self.path)
            self._heaps_are_checked = True

    def part(self, name: str, selection: slice | np.ndarray | tuple = ()) -> np.ndarray:
        """Return the part of a data set that `selection` picks, () for all of it. The data set was checked before."""
        with border(self.path):
            return self.open()[name][selection]

    def numbers(self, name: str) -> np.ndarray:
        dataset = self.dataset(name, "iuf")
        with border(self.path):
            return np.asarray(dataset[()])

    def whole_numbers(self, name: str) -> np.ndarray:
        """Return a data set of whole numbers as int64; a file may store them as floats."""
        return whole(self.numbers(name), f"/{name}", self.path)

    def names(self, name: str) -> list[str]:
        dataset = self.dataset(name)
        if dataset.ndim != 1:
            raise InputError(f"{self.path}: wrong layout: /{name} must be a list of names")
        with border(self.path):
            values = dataset[()]
        return [value.decode(errors="replace") if isinstance(value, bytes) else str(value) for value in values]

    def check_lists(self, name: str, kinds: str, what: str) -> None:
        """Raise InputError if a data set does not hold variable-length lists of `kinds`, called `what` in words."""
        dataset = self.dataset(name)
        item = h5py.check_vlen_dtype(dataset.dtype)
        if dataset.ndim != 1 or not isinstance(item, np.dtype) or item.kind not in kinds:
            raise InputError(
                f"{self.path}: wrong layout: /{name} must hold a variable-length list of {what} for each recording"
            )
        if not item.isnative:
            raise InputError(
                f"{self.path}: /{name} holds lists in another order of bytes than this machine's, which h5py reads "
                "wrongly; write them again"
            )

    def lengths_of_lists(self, name: str) -> np.ndarray:
        """Return the length of each list in a data set of variable-length lists."""
        dataset = self.dataset(name)
        with border(self.path):
            references = _references(dataset, self.path)
            if references is None:  # the lists themselves must be read
                parts = (dataset[start : start + LISTS_AT_ONCE] for start in range(0, len(dataset), LISTS_AT_ONCE))
                return np.array([len(values) for part in parts for values in part], np.int64)
        lengths = references["length"].astype(np.int64)
        size = h5py.check_vlen_dtype(dataset.dtype).itemsize
        if lengths.sum() * size > self.path.stat().st_size:
            raise InputError(
                f"{self.path}: /{name} claims {lengths.sum():,} values, more than the file can hold; fetch it again"
            )
        return lengths


def whole(values: np.ndarray, name: str, path: Path) -> np.ndarray:
    """Return numbers of any type as int64. InputError if they are not whole."""
    if not (np.isfinite(values) & (values == np.floor(values)) & (np.abs(values.astype(np.float64)) < 2.0**63)).all():
        raise InputError(f"{path}: {name} must hold whole numbers")
    return values.astype(np.int64)


def largest(kind: np.dtype) -> int:
    """Return the largest number up to which a type holds every whole number."""
    return np.iinfo(kind).max if kind.kind in "iu" else 2 ** (np.finfo(kind).nmant + 1)


def native(values: np.ndarray) -> np.ndarray:
    """Return values in this machine's byte order, which compiled code needs."""
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def plain(kind: np.dtype) -> np.dtype:
    """Return a type for these numbers that compiled code knows: no float16, native byte order."""
    if kind.kind == "f":
        return np.dtype(np.float32 if kind.itemsize <= 4 else np.float64)
    return np.dtype(kind.newbyteorder("=").str)


def _check_size(dataset: h5py.Dataset, path: Path) -> None:
    """Raise InputError if a data set claims more bytes than its stored bytes can hold."""
    size = dataset.id.get_type().get_size()  # bytes of an element
    claimed = max(math.prod(dataset.shape), math.prod(dataset.chunks or ())) * size
    stored = min(dataset.id.get_storage_size(), path.stat().st_size)
    shrunk = MOST_SHRUNK if dataset.id.get_create_plist().get_nfilters() else 1
    if claimed > max(stored * shrunk, SMALL):
        raise InputError(
            f"{path}: {dataset.name} claims {claimed:,} bytes, but {stored:,} are stored, perhaps truncated; fetch it "
            "again"
        )


def _references(dataset: h5py.Dataset, path: Path) -> np.ndarray | None:
    """Return the stored references of a data set of lists; None if they are compressed or have another address size."""
    number, plist = len(dataset), dataset.id.get_create_plist()
    if dataset.chunks is None:
        offset = dataset.id.get_offset()
        if offset is None or dataset.id.get_storage_size() != number * REFERENCE.itemsize:
            return None
        return np.fromfile(path, REFERENCE, number, offset=offset)
    references = np.zeros(number, REFERENCE)  # a list that was never written is empty
    for k in range(dataset.id.get_num_chunks()):
        chunk = dataset.id.get_chunk_info(k)
        if plist.get_nfilters() or chunk.size != dataset.chunks[0] * REFERENCE.itemsize:
            return None
        start = chunk.chunk_offset[0]
        part = np.fromfile(path, REFERENCE, min(dataset.chunks[0], number - start), offset=chunk.byte_offset)
        references[start : start + len(part)] = part
    return references


def _check_heaps(path: Path) -> None:
    """Raise InputError if the file has a heap in which the C library would loop for ever."""
    size_of_file = path.stat().st_size
    with path.open("rb") as file:
        start = _find_collection(file, 0)
        while start is not None:
            (size,) = COLLECTION_HEADER.unpack(_read_at(file, start, COLLECTION_HEADER.size))
            place, end = start + COLLECTION_HEADER.size, start + size
            while place + OBJECT_HEADER.size <= min(end, size_of_file):
                index, _, size = OBJECT_HEADER.unpack(_read_at(file, place, OBJECT_HEADER.size))
                step = size if index == 0 else OBJECT_HEADER.size + -(-size // 8) * 8
                if not 0 < step < 2**63:
                    raise InputError(
                        f"{path}: damaged, its heap at byte {start} has an object of size {size} at byte {place}; "
                        "fetch it again"
                    )
                place += step
            start = _find_collection(file, place if place == end else start + 1)


def _find_collection(file: BinaryIO, start: int) -> int | None:
    """Find where the next collection begins. The file is not mapped: mapped pages would count as process memory."""
    while len(piece := _read_at(file, start, PIECE)) >= COLLECTION_HEADER.size:
        found = piece.find(COLLECTION, 0, len(piece) - COLLECTION_HEADER.size + len(COLLECTION))
        if found >= 0:
            return start + found
        start += len(piece) - COLLECTION_HEADER.size + 1
    return None


def _read_at(file: BinaryIO, start: int, size: int) -> bytes:
    return os.pread(file.fileno(), size, start)
