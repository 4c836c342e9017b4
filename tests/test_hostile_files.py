"""Damaged and strange files of every layout: read correctly or refused in one line, in bounded time and memory."""

import fcntl
import itertools
import re
import signal
import warnings
from collections import Counter
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datasets import readers
from datasets.prepare.parallel import map_in_order
from snn.errors import InputError
from tests import hostile
from tests.programs import count_outcomes


@pytest.mark.parametrize(
    ("seed", "cases"),
    [(0, 300), pytest.param(1, 600, marks=pytest.mark.slow), pytest.param(2, 5040, marks=pytest.mark.long)],
    ids=["some", "many", "most"],
)
def test_damaged_files(seed, cases, tmp_path):
    outcomes = count_outcomes("tests.hostile", seed, cases, ("correct", "refused"), TMPDIR=str(tmp_path))
    for layout in hostile.LAYOUTS:  # damage may lie where it does not matter, or give other events
        if layout not in ("npz", "flac", "ogg"):  # whose checksums cover nearly every byte
            assert outcomes[layout, "correct"] > 0
        assert outcomes[layout, "refused"] > cases / len(hostile.LAYOUTS) / 8


def test_a_process_of_the_preparation_that_dies():
    """A process that crashes, as SciPy does on some MATLAB files, ends and says so."""
    with pytest.raises(InputError, match=r"planes: a process died, .* at recording 0 \(11\) or one of the next"):
        list(map_in_order(signal.raise_signal, [int(signal.SIGSEGV)], 1, "planes"))


MEMBERS = {  # what a reader looks for
    "shd": ("spikes", "spikes/times", "spikes/units", "labels", "extra/speaker", "extra/keys"),
    "ntidigits": ("data", "data/1", "data/1/times", "data/1/addrs", "data/1/labels", "extra", "extra/train_keys"),
    "dvsgesture": ("train", "train/1", "train/1/time", "train/1/data", "train/1/labels"),
    "dvsplane": ("1", "1/time", "1/data", "1/labels", "4"),
}
TYPES = [
    *("i1", "u1", "<i2", ">u2", "<i4", ">i8", "<u8", "<f2", ">f4", "<f8", "f16", "c8", "?", "S3", "V4"),
    np.dtype([("x", "<i4"), ("y", "<f4")]),
    np.dtype(("<u2", (2,))),
    h5py.string_dtype(),
    h5py.ref_dtype,
    h5py.regionref_dtype,
    h5py.enum_dtype({"a": 0, "b": 1}),
    h5py.vlen_dtype(np.dtype(">u2")),
    h5py.vlen_dtype(np.dtype("f16")),
    h5py.vlen_dtype(h5py.string_dtype()),
    h5py.vlen_dtype(h5py.vlen_dtype(np.float32)),
]
SHAPES = [(), (0,), (1,), (4,), (6,), (20, 1), (50,), (50, 3), (0, 3), (6, 2, 2), (10**12,), (10**9, 3)]
VALUES = [0, 1, 2, -1, 200, 2.5, np.nan, np.inf, 1e300]
LINKS = ["none", "group", "soft", "soft circle", "external", "external circle", "null"]


def replace_member(path: Path, name: str, link: str, kind: object, shape: tuple, value: float, how: str) -> None:
    """A data set of any type and shape, or something else, in place of what the layout has there."""
    with h5py.File(path, "a") as file:
        if name in file:
            del file[name]
        if link == "group":
            file.create_group(name)
        elif link == "soft":
            file[name] = h5py.SoftLink("/nowhere")
        elif link == "soft circle":
            file[name] = h5py.SoftLink(f"/{name}")
        elif link == "external":
            file[name] = h5py.ExternalLink("nowhere.h5", "/x")
        elif link == "external circle":
            file[name] = h5py.ExternalLink(path.name, f"/{name}")
        elif link == "null":
            file[name] = h5py.Empty(kind if isinstance(kind, str) else "i4")
        elif link == "data":
            chunked = {"chunks": tuple(min(n, 4) for n in shape), "compression": "gzip"} if how != "plain" else {}
            if 0 in shape or not shape:
                chunked = {}
            dataset = file.create_dataset(name, shape, kind, **chunked)
            if dataset.dtype.kind in "iuf" and dataset.size < 1000:
                with np.errstate(all="ignore"), warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    dataset[...] = np.full(shape, value).astype(dataset.dtype)
    if how == "filter" and link == "data":  # compressed by something that is not installed here
        deflate = b"\x01\x00\x08\x00\x01\x00\x01\x00deflate"
        path.write_bytes(path.read_bytes().replace(deflate, b"\x39\x30" + deflate[2:]))


@pytest.mark.parametrize(
    "examples",
    [100, pytest.param(400, marks=pytest.mark.slow), pytest.param(1500, marks=pytest.mark.long)],
    ids=["some", "many", "most"],
)
def test_strange_files(tmp_path, examples):
    """A valid HDF5 file that is not what the layout says."""
    whole = {}
    for layout in MEMBERS:
        _, write, read = hostile.LAYOUTS[layout]
        path = tmp_path / f"{layout}.h5"
        write(path)
        read(path)
        whole[layout] = path, path.read_bytes(), read
    members = [(layout, name) for layout, names in MEMBERS.items() for name in names]
    outcomes, numbers = Counter(), itertools.count()

    @settings(max_examples=examples, derandomize=True, deadline=None, database=None, suppress_health_check=HealthCheck)
    @given(
        st.sampled_from(members),
        st.sampled_from(["data"] * 5 + LINKS),
        st.sampled_from(TYPES),
        st.sampled_from(SHAPES),
        st.sampled_from(VALUES),
        st.sampled_from(["plain", "chunked", "filter"]),
    )
    def try_one(member, link, kind, shape, value, how):
        (path, content, read), name = whole[member[0]], member[1]
        # another name each time: the last file may still be open, in what its error came from
        path = path.with_stem(f"{path.stem}{next(numbers)}")
        path.write_bytes(content)
        replace_member(path, name, link, kind, shape, value, how)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            result = hostile.outcome(read, path)
        path.unlink()
        outcomes[result] += 1
        assert result in ("correct", "refused")

    try_one()
    assert outcomes["correct"] > 0
    assert outcomes["refused"] > examples / 2


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        ("lists", "/spikes/times claims 4,294,967,595 values, more than the file can hold"),
        ("numbers", "claims 8,000,000,000,000 bytes, but 0 are stored"),
        ("chunks", "claims 8,000,000,000,000 bytes"),
        ("heap", "has an object of size 0"),
    ],
)
def test_promises_that_a_file_cannot_keep(tmp_path, claim, message):
    """They are refused before memory is taken, and before the C library loops for ever in a damaged heap."""
    path = tmp_path / "x.h5"
    hostile.small_shd(path)
    if claim in ("numbers", "chunks"):
        with h5py.File(path, "a") as file:
            del file["labels"]
            more = {"chunks": (2**20,), "compression": "gzip"} if claim == "chunks" else {}
            file.create_dataset("labels", (10**12,), np.int64, **more)
            if more:
                file["labels"][0] = 1
    else:
        with h5py.File(path) as file:
            first_list = file["spikes/times"].id.get_offset()
        content = bytearray(path.read_bytes())
        if claim == "lists":
            content[first_list : first_list + 4] = b"\xff" * 4
        else:
            heap = content.index(b"GCOL")
            content[heap + 16 : heap + 32] = bytes(16)  # as where a block of the disk was lost
        path.write_bytes(content)
    with pytest.raises(InputError, match=re.escape(message)):
        readers.read("shd", path, "train", 40, 3)


def test_a_file_that_is_being_written(shd_folder):
    """It is not damaged, and need not be fetched again."""
    path = shd_folder / "shd_train.h5"
    with path.open("rb+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # as the C library does while it writes
        with pytest.raises(InputError, match="another program has it open for writing"):
            readers.read("shd", path, "train", 40, 3)
    assert len(readers.read("shd", path, "train", 40, 3)) == 60


def test_a_file_on_a_file_system_without_locks(shd_folder, monkeypatch):
    def refuse(*_):
        raise OSError("[Errno 37] Unable to open file (unable to lock file, errno = 37, error message = 'No locks')")

    monkeypatch.setattr(h5py, "File", refuse)
    with pytest.raises(InputError, match=r"its file system locks no files; .* set HDF5_USE_FILE_LOCKING=FALSE"):
        readers.read("shd", shd_folder / "shd_train.h5", "train", 40, 3)
