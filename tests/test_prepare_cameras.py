"""Recordings as cameras write them. The expected events come from decoders in plain numpy, written from the formats'
definitions, and from the numbers that the test itself put into a file."""

import os
import struct
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from datasets.prepare import cameras, cut
from datasets.prepare.cameras import foreign, pieces
from datasets.prepare.cameras.pieces import Said
from snn.errors import InputError
from tests.conftest import REPOSITORY, nmnist_bytes

RECORDINGS = REPOSITORY.parent / "shared" / "data" / "recordings"
needs_recordings = pytest.mark.skipif(not RECORDINGS.is_dir(), reason="the recordings lie outside the repository")


def recordings_of(path: Path, said: Said, size: tuple[int, int], shape: cut.Shape) -> list[tuple]:
    """(times, units) of each recording, its parts together."""
    made, parts = [], []
    for part in cut.parts_of(path, said, size, shape):
        parts.append((part.times, part.units))
        if part.is_last:
            made.append(tuple(map(np.concatenate, zip(*parts, strict=True))))
            parts = []
    assert not parts
    return made


def decoded(path: Path, **said) -> np.ndarray:
    """[events, 4]: t, x, y, p, before any check."""
    pieces = cameras.open_recording(path, Said(**said)).pieces
    return np.concatenate([np.zeros((0, 4), np.int64), *(np.stack(piece, 1).astype(np.int64) for piece in pieces)])


# ---- EVT3, from its definition: what each word says holds until another of its kind


def _latest(at: np.ndarray, length: int) -> np.ndarray:
    places = np.full(length, -1)
    places[at] = at
    return np.maximum.accumulate(places)


def evt3_by_definition(words: np.ndarray) -> np.ndarray:
    """[events, 4]: t, x, y, p of 16-bit words."""
    words = words.astype(np.int64)
    kind, value = words >> 12, words & 0xFFF
    begin = np.flatnonzero(kind == 8)
    if not len(begin):
        return np.zeros((0, 4), np.int64)
    kind, value = kind[begin[0] :], value[begin[0] :]
    n = len(kind)
    at_high = np.flatnonzero(kind == 8)
    high = value[at_high]
    loops = np.concatenate([[0], np.cumsum(high[:-1] - high[1:] >= 2048)])
    changes = np.concatenate([[True], high[1:] != high[:-1]])
    last_high, last_change = _latest(at_high, n), _latest(at_high[changes], n)
    last_low, last_y, last_base = (_latest(np.flatnonzero(kind == k), n) for k in (6, 0, 3))
    t = (loops * 4096 + high)[np.searchsorted(at_high, last_high)] * 4096
    t += np.where(last_low > last_change, value[last_low], 0)
    y = np.where(last_y >= 0, value[last_y] & 0x7FF, 0)
    advance = np.select([kind == 4, kind == 5], [12, 8], 0)
    before = np.cumsum(advance) - advance
    base = np.where(last_base >= 0, (value[last_base] & 0x7FF) + before - before[last_base], before)
    base_p = np.where(last_base >= 0, value[last_base] >> 11, 0)
    masks = np.select([kind == 2, kind == 4, kind == 5], [1, value, value & 0xFF], 0)
    word, bit = np.nonzero(masks[:, None] >> np.arange(12) & 1)
    is_single = kind[word] == 2
    x = np.where(is_single, value[word] & 0x7FF, base[word] + bit)
    return np.stack([t[word], x, y[word], np.where(is_single, value[word] >> 11, base_p[word])], 1)


HEADER = b"% evt 3.0\n% format EVT3;height=720;width=1280\n% geometry 1280x720\n% end\n"


def write_words(path: Path, words, header: bytes = HEADER, dtype: str = "<u2") -> Path:
    path.write_bytes(header + np.asarray(words, np.uint64).astype(dtype).tobytes())
    return path


def Y(y):
    return y


def X(x, p=0):
    return 0x2000 | p << 11 | x


def BASE(x, p=0):
    return 0x3000 | p << 11 | x


def V12(mask):
    return 0x4000 | mask


def V8(mask):
    return 0x5000 | mask


def LOW(t):
    return 0x6000 | t


def HIGH(t):
    return 0x8000 | t


CASES = {  # words -> (t, x, y, p) of the events, worked out by hand
    "plain": ([HIGH(5), LOW(7), Y(3), X(4, 1), X(6)], [(20487, 4, 3, 1), (20487, 6, 3, 0)]),
    "overflow of time_high": (
        [HIGH(4095), LOW(4090), Y(3), X(4), HIGH(0), LOW(3), X(5), HIGH(4095), LOW(0), X(1), HIGH(1), LOW(1), X(2)],
        [(2**24 - 6, 4, 3, 0), (2**24 + 3, 5, 3, 0), (2**25 - 4096, 1, 3, 0), (2**25 + 4097, 2, 3, 0)],
    ),
    "time_low steps back": ([HIGH(10), LOW(811), LOW(800), Y(1), X(1)], [(41760, 1, 1, 0)]),
    "time_high without time_low": (
        [HIGH(10), LOW(500), Y(1), X(1), HIGH(11), X(2)],
        [(41460, 1, 1, 0), (45056, 2, 1, 0)],
    ),
    "time_high again": ([HIGH(10), LOW(500), Y(1), X(1), HIGH(10), X(2)], [(41460, 1, 1, 0), (41460, 2, 1, 0)]),
    "before the first time_high": ([LOW(4), Y(1), X(2), HIGH(7), LOW(1), X(3)], [(28673, 3, 0, 0)]),
    "continued vectors": (
        [HIGH(1), LOW(1), Y(2), BASE(100, 1), V12(1), V12(1), V8(0xF01), X(3), V8(0x80)],
        [(4097, 100, 2, 1), (4097, 112, 2, 1), (4097, 124, 2, 1), (4097, 3, 2, 0), (4097, 139, 2, 1)],
    ),
    "continued, other and trigger words": (
        [HIGH(1), LOW(1), Y(2), BASE(10), V12(1), 0xE014, 0xF123, 0x7001, 0xA101, V12(1), 0x9123, 0xB000, 0x1234],
        [(4097, 10, 2, 0), (4097, 22, 2, 0)],
    ),
    "second camera": ([HIGH(1), LOW(1), Y(0x800 | 2), X(30)], [(4097, 30, 2, 0)]),
}


@pytest.mark.parametrize("case", CASES)
def test_evt3_words_mean_what_the_definition_says(tmp_path, case):
    words, expected = CASES[case]
    assert decoded(write_words(tmp_path / "x.raw", words)).tolist() == [list(event) for event in expected]
    if case != "before the first time_high":  # the oracle forgets what came before, as a y has no time
        assert evt3_by_definition(np.array(words)).tolist() == [list(event) for event in expected]


@pytest.mark.parametrize("seed", range(5))
def test_evt3_of_any_words_is_the_oracles_in_blocks_of_any_size(tmp_path, monkeypatch, seed):
    random = np.random.default_rng(seed)
    kinds = random.choice([0, 2, 3, 4, 5, 6, 7, 8, 10, 14, 15, 1], 20_000)
    words = kinds << 12 | random.integers(0, 4096, 20_000)
    words[0] = HIGH(3)
    path = write_words(tmp_path / "x.raw", words)
    monkeypatch.setattr(pieces, "BLOCK", int(random.integers(1, 3000)))
    expected = evt3_by_definition(words)
    expected[:, 1] = np.minimum(expected[:, 1], 65535)
    assert np.array_equal(decoded(path), expected)


@needs_recordings
def test_evt3_recording_ends_when_its_format_says():
    """Of four libraries' last times, 11,772,513, 11,727,467 and twice 11,727,457 µs, the last is the format's.

    At event 20,121 TIME_LOW steps back from 811 to 800 under one TIME_HIGH. It "updates the lower 12 bits": the time is
    800. The first library took this for an overflow and added 4096 each time, the second kept the largest time so far.
    """
    content = (RECORDINGS / "evt3.raw").read_bytes()
    start = content.index(b"system_ID 48\n") + len(b"system_ID 48\n")
    expected = evt3_by_definition(np.frombuffer(content, "<u2", offset=start))
    found = decoded(RECORDINGS / "evt3.raw")
    assert np.array_equal(found, expected)
    assert len(found) == 219_596
    assert found[[0, -1], 0].tolist() == [11_718_656, 11_727_457]
    assert found[20_119:20_123, 0].tolist() == [11_719_455, 11_719_455, 11_719_456, 11_719_456]
    with np.load(RECORDINGS / "evt3_decoded.npz") as other:
        assert np.array_equal(found[:, 1:], np.stack([other[name] for name in "xyp"], 1))


# ---- the other formats


@needs_recordings
@pytest.mark.parametrize(
    ("name", "said", "number", "size", "first", "last"),
    [
        ("evt2.raw", {}, 539_481, (480, 640), (1_317_888, 237, 121, 1), (1_367_888, 210, 142, 1)),
        ("ncars_loris.dat", {"size": (100, 120)}, 4_407, (100, 120), (0, 48, 53, 0), (99_937, 48, 47, 1)),
        ("ncars_tonic.dat", {"size": (100, 120)}, 2_009, (100, 120), None, (99_952, 75, 28, 1)),
        (
            "davis.aedat4",
            {},
            111_954,
            (240, 320),
            (1_605_537_493_718_345, 154, 204, 0),
            (1_605_537_494_308_262, 88, 237, 1),
        ),
    ],
)
def test_recordings_have_the_events_that_several_libraries_find(name, said, number, size, first, last):
    if name.endswith("aedat4"):
        pytest.importorskip("faery")
    opened = cameras.open_recording(RECORDINGS / name, Said(**said))
    assert (opened.height, opened.width) == size
    found = decoded(RECORDINGS / name, **said)
    assert len(found) == number
    assert tuple(found[-1]) == last
    if first and name != "ncars_loris.dat":
        assert tuple(found[0]) == first
    ((times, units),) = recordings_of(RECORDINGS / name, Said(**said), size, cut.Shape())
    assert np.array_equal(times, found[:, 0] - found[0, 0])
    assert np.array_equal(units, (found[:, 3] * size[0] + found[:, 2]) * size[1] + found[:, 1])


def some_events(n: int = 500, height: int = 100, width: int = 120, seed: int = 0) -> np.ndarray:
    """[events, 4]: t, x, y, p."""
    random = np.random.default_rng(seed)
    columns = random.integers(0, (width, height, 2), (n, 3))
    return np.column_stack([np.sort(random.integers(0, 400_000, n)), columns])


def later(e: np.ndarray, by_us: int) -> np.ndarray:
    return e + np.array([by_us, 0, 0, 0])


def evt2_words(e: np.ndarray, offset: int = 0) -> list[int]:
    words, high = [], None
    for t, x, y, p in later(e, offset).tolist():
        if t >> 6 != high:
            high = t >> 6
            words += [8 << 28 | high & 0xFFFFFFF, 0xA << 28 | 5, 0xE << 28, 0xF << 28]
        words.append(p << 28 | (t & 63) << 22 | x << 11 | y)
    return words


def evt21_words(e: np.ndarray) -> list[int]:
    words, high = [], None
    for t, x, y, p in e.tolist():
        if t >> 6 != high:
            high = t >> 6
            words += [8 << 60 | high << 32, 0xE << 60]
        words.append(p << 60 | (t & 63) << 54 | (x & ~31) << 43 | y << 32 | 1 << x % 32)
    return words


def write_dat(path: Path, e: np.ndarray, header: bytes, kind: int = 12, version: int = 2) -> Path:
    t, x, y, p = e.T
    address = x | y << 14 | p << 28 if version == 2 else x | y << 9 | p << 17
    path.write_bytes(header + bytes([kind, 8]) + np.stack([t & 0xFFFFFFFF, address], 1).astype("<u4").tobytes())
    return path


AEDAT3 = b"#!AER-DAT3.1\r\n#Format: RAW\r\n#Source 1: DVS128\r\n#Start-Time: x\r\n#!END-HEADER\r\n"


def write_aedat3(path: Path, e: np.ndarray, valid: np.ndarray | None = None, overflow: int = 0) -> Path:
    content = AEDAT3 + struct.pack("<HHIIIIII", 0, 1, 12, 8, 0, 1, 1, 1) + bytes(12)  # a special event
    valid = np.ones(len(e), int) if valid is None else valid
    for part, ok in zip(np.array_split(e, 3), np.array_split(valid, 3), strict=True):
        t, x, y, p = part.T
        content += struct.pack("<HHIIIIII", 1, 1, 8, 4, overflow, len(part), len(part), len(part))
        content += np.stack([x << 17 | y << 2 | p << 1 | ok, t], 1).astype("<u4").tobytes()
    path.write_bytes(content)
    return path


def write_aedat2(path: Path, e: np.ndarray, chip: str, height: int, width: int) -> Path:
    t, x, y, p = e.T
    x, y = width - 1 - x, height - 1 - y
    address = y << 8 | x << 1 | 1 - p if chip == "DVS128" else y << 22 | x << 12 | p << 11
    rows = np.stack([address, t & 0xFFFFFFFF], 1)
    other = 0x8000 if chip == "DVS128" else 0x80000000
    rows = np.concatenate([[[other, t[0] & 0xFFFFFFFF]], rows])
    head = f"#!AER-DAT2.0\r\n# Timestamps tick is 1 us\r\n# AEChip: eu.seebetter.ini.chips.{chip}\r\n"
    path.write_bytes(head.encode() + rows.astype(">u4").tobytes())
    return path


def write_metavision(path: Path, e: np.ndarray, ecf: str | None = None) -> Path:
    import h5py

    kind = np.dtype({"names": ["x", "y", "p", "t"], "formats": ["<u2", "<u2", "<i2", "<i8"], "offsets": [0, 2, 4, 8]})
    rows = np.zeros(len(e), kind)
    rows["t"], rows["x"], rows["y"], rows["p"] = e.T
    with h5py.File(path, "w") as file:
        file.attrs["geometry"] = "120x100"
        if not ecf:
            file.create_group("CD")["events"] = rows
            return path
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_chunk((len(e),))
        plist.set_filter(0x8ECF, h5py.h5z.FLAG_OPTIONAL, ())
        group = file.create_group("CD")
        space = h5py.h5s.create_simple((len(e),))
        dataset = h5py.h5d.create(group.id, b"events", h5py.h5t.py_create(kind), space, plist)
        dataset.write_direct_chunk((0,), ecf_bytes(e, ecf), 0)
    return path


def ecf_bytes(e: np.ndarray, kind: str) -> bytes:
    """Events in one of the kinds of Metavision's compressed form: a header, times, then coordinates and polarities."""
    kinds = {"packed": 2, "x packed": 1, "masked": 0}
    return (
        struct.pack("<IQ", len(e) << 2 | kinds[kind], e[0, 0])
        + _ecf_times(e[:, 0])
        + {
            "packed": _ecf_packed,
            "x packed": lambda e: _ecf_rows(e[:, 2]) + _ecf_x_packed(e),
            "masked": lambda e: _ecf_rows(e[:, 2]) + _ecf_masked(e),
        }[kind](e)
    )


def _runs(values: np.ndarray) -> list[tuple[int, int]]:
    begins = np.concatenate([[0], np.flatnonzero(np.diff(values)) + 1, [len(values)]])
    return [(int(values[a]), int(b - a)) for a, b in pairwise(begins)]


def _ecf_times(t: np.ndarray) -> bytes:
    """A byte of step and count; steps from 15 on go before it, four bits at a time; counts from 15 on follow in 16."""
    content, last = b"", int(t[0])
    for value, count in _runs(t):
        step, last = value - last, value
        if step >= 15:
            while step:
                content += bytes([0xF0 | step & 15])
                step >>= 4
        content += bytes([step << 4 | min(count, 15)]) + (struct.pack("<H", count) if count >= 15 else b"")
    return content


def _ecf_packed(e: np.ndarray) -> bytes:
    packed = (e[:, 2] << 12 | e[:, 1] << 1 | e[:, 3]).astype(np.uint64)
    a, b, c, d = np.concatenate([packed, np.zeros(-len(packed) % 4, np.uint64)]).reshape(-1, 4).T
    return np.stack([a << 8 | b & 255, (b >> 8) << 16 | c & 65535, (c >> 16) << 24 | d], 1).astype("<u4").tobytes()


def _ecf_rows(y: np.ndarray) -> bytes:
    return b"".join(
        struct.pack("<H", v << 5 | min(n, 31)) + (struct.pack("<H", n) if n >= 31 else b"") for v, n in _runs(y)
    )


def _ecf_x_packed(e: np.ndarray) -> bytes:
    packed = (e[:, 1] << 1 | e[:, 3]).astype(np.uint64)
    a, b, c, d = np.concatenate([packed, np.zeros(-len(packed) % 4, np.uint64)]).reshape(-1, 4).T
    return np.stack([a << 4 | b & 15, (b >> 4) << 8 | c & 255, (c >> 8) << 12 | d], 1).astype("<u2").tobytes()


def _ecf_masked(e: np.ndarray) -> bytes:
    """A column and a bit for each of the next five that follows it; then runs of polarities."""
    content, k, x = b"", 0, e[:, 1].tolist()
    while k < len(x):
        first, mask, k = x[k], 0, k + 1
        for step in range(1, 6):
            if k < len(x) and x[k] == first + step:
                mask |= 1 << (5 - step)
                k += 1
        content += struct.pack("<H", first << 5 | mask)
    for p, n in _runs(e[:, 3]):
        content += bytes([p << 7 | min(n, 127)]) + (struct.pack("<H", n) if n >= 127 else b"")
    return content


def write_es(path: Path, e: np.ndarray, height: int, width: int) -> Path:
    """Event Stream 2 of a DVS: a byte of time since the last and of polarity, x, y from below."""
    content = b"Event Stream" + bytes([2, 0, 0, 1]) + struct.pack("<HH", width, height)
    last = 0
    for t, x, y, p in e.tolist():
        step = t - last
        while step >= 127:
            content += b"\xff"
            step -= 127
        content += bytes([step << 1 | p]) + struct.pack("<HH", x, height - 1 - y)
        last = t
    path.write_bytes(content)
    return path


def structured(e: np.ndarray) -> np.ndarray:
    rows = np.zeros(len(e), [("x", "<i2"), ("y", "<i2"), ("p", "?"), ("t", "<i8")])  # as Tonic has them
    rows["t"], rows["x"], rows["y"], rows["p"] = e.T
    return rows


def write_any(folder: Path, name: str) -> tuple[Path, dict, np.ndarray]:
    """A small file of a format, what must be said about it, and its events."""
    e, size = some_events(), {"size": (100, 120)}
    path = folder / f"x.{name.split(' ')[0].split('-')[0]}"
    if name == "raw evt2":
        header = b"% evt 2.0\n% sensor_generation 3.1\n"
        return write_words(path, evt2_words(e), header, "<u4"), {}, e
    if name == "raw evt2 bare":
        return write_words(path, evt2_words(e), b"", "<u4"), {"format": "evt2", **size}, e
    if name == "raw evt21":
        return write_words(path, evt21_words(e), b"% format EVT21;height=100;width=120\n% end\n", "<u8"), {}, e
    if name == "raw evt21 legacy":
        words = [(w >> 32 | w << 32) & (2**64 - 1) for w in evt21_words(e)]
        header = b"% format EVT21;height=100;width=120;endianness=legacy\n% end\n"
        return write_words(path, words, header, "<u8"), {}, e
    if name == "raw evt3":
        words = [w for t, x, y, p in e.tolist() for w in (HIGH(t >> 12), LOW(t & 4095), Y(y), X(x, p))]
        return write_words(path, words), {}, e
    if name == "raw evt3 bare":
        words = [w for t, x, y, p in e.tolist() for w in (HIGH(t >> 12), LOW(t & 4095), Y(y), X(x, p))]
        return write_words(path, words, b""), {"format": "evt3", **size}, e
    if name == "dat cd":
        return write_dat(path, e, b"% Version 2\n% Width 120\n% Height 100\n"), {}, e
    if name == "dat 2d":
        return write_dat(path, e, b"% Data file containing Event2d events.\n% Version 2\n", 0), size, e
    if name == "dat version 1":
        return write_dat(path, e, b"% Version 1\n", 0, 1), size, e
    if name == "aedat3":
        return write_aedat3(path, e), {}, e
    if name == "aedat dvs128":
        return write_aedat2(path, e, "DVS128", 128, 128), {}, e
    if name == "aedat davis":
        return write_aedat2(path, e, "davis.Davis240C", 180, 240), {}, e
    if name == "bin":
        e = np.minimum(e, [2**23 - 1, 33, 33, 1])
        path.write_bytes(nmnist_bytes(*e.T[[1, 2, 3, 0]]))
        return path, {"size": (34, 34)}, e
    if name in ("h5", "h5 ecf"):
        return write_metavision(path, e, "packed" if name == "h5 ecf" else None), {}, e
    if name == "h5 columns":
        import h5py

        with h5py.File(path, "w") as file:
            for column, values in zip("txyp", e.T, strict=True):
                file[f"events/{column}"] = values.astype(np.uint32)
        return path, {"time_unit": "us", **size}, e
    if name == "es":
        return write_es(path, e, 100, 120), {}, e
    if name == "npy structured":
        np.save(path, structured(e))
        return path, {"time_unit": "us", **size}, e
    if name == "npy columns":
        np.save(path, (e * [1, 1, 1, 2] - [0, 0, 0, 1])[:, [1, 2, 0, 3]])  # polarity -1 and 1
        return path, {"time_unit": "us", "columns": ("x", "y", "t", "p"), **size}, e
    if name == "npz columns":
        np.savez_compressed(path, t_ms=e[:, 0] / 1000, x=e[:, 1], y=e[:, 2], p=e[:, 3])
        return path, size, e
    if name == "npz one":
        np.savez(path, events=structured(e))
        return path, {"time_unit": "us", **size}, e
    if name == "csv names":
        path.write_text("# made\nx,y,timestamp_us,polarity\n" + "".join(f"{x},{y},{t},{p}\n" for t, x, y, p in e))
        return path, size, e
    if name == "csv bare":
        path.write_text("".join(f"{t / 1e6:.6f} {x} {y} {p}\n" for t, x, y, p in e))
        return path, {"time_unit": "s", "columns": tuple("txyp"), **size}, e
    raise AssertionError(name)


OURS = [
    "raw evt2", "raw evt2 bare", "raw evt21", "raw evt21 legacy", "raw evt3", "raw evt3 bare", "dat cd", "dat 2d",
    "dat version 1", "aedat3", "aedat dvs128", "aedat davis", "bin", "h5", "h5 columns", "npy structured", "npy "
    "columns",
    "npz columns", "npz one", "csv names", "csv bare", "h5 ecf", "es",
]  # fmt: skip


@pytest.mark.parametrize("name", OURS)
def test_every_format_gives_the_events_that_were_put_in(tmp_path, name):
    path, said, expected = write_any(tmp_path, name)
    assert np.array_equal(decoded(path, **said), expected)


def test_event_streams_are_read_as_faery_reads_them(tmp_path):
    faery = pytest.importorskip("faery")
    e = some_events(200_000)  # more than at once
    e[:, 0] *= 20  # steps of more than a byte
    path = write_es(tmp_path / "x.es", e, 100, 120)
    known = faery.events_stream_from_file(path).to_array()
    assert np.array_equal(np.stack([known[name] for name in ("t", "x", "y", "on")], 1), e)
    assert np.array_equal(decoded(path), e)


@pytest.mark.parametrize("kind", ["packed", "x packed", "masked"])
@pytest.mark.parametrize("seed", [0, 1])
def test_every_kind_of_compressed_metavision_file(tmp_path, kind, seed):
    e = some_events(3000, seed=seed)
    if seed:  # rows of neighbours at one time, of one polarity, as a vertical edge leaves them
        e[:, 0] = np.sort(np.random.default_rng(seed).integers(0, 40, len(e)) * 1000)
        e[:, 3] = e[:, 0] // 1000 % 2
        e = e[np.lexsort((e[:, 1], e[:, 2], e[:, 0]))]
    assert np.array_equal(decoded(write_metavision(tmp_path / "x.hdf5", e, kind)), e)


def test_invalid_events_of_aedat_3_are_left_out_and_its_clock_overflows(tmp_path):
    e = some_events()
    valid = np.random.default_rng(1).integers(0, 2, len(e))
    found = decoded(write_aedat3(tmp_path / "x.aedat", e, valid, overflow=3))
    assert np.array_equal(found, later(e[valid == 1], 3 << 31))


@pytest.mark.parametrize("name", ["evt2", "dat", "aedat2"])
def test_counters_that_overflow_go_on(tmp_path, monkeypatch, name):
    monkeypatch.setattr(pieces, "BLOCK", 160)
    e = some_events()
    late = later(e, 2**32 - 200_000)
    if name == "evt2":
        offset = 2**34 - 200_000
        path = write_words(tmp_path / "x.raw", evt2_words(e, offset), b"% evt 2.0\n% generation 3.1\n", "<u4")
        late = later(e, offset)
    elif name == "dat":
        path = write_dat(tmp_path / "x.dat", late, b"% Version 2\n% Width 120\n% Height 100\n")
    else:
        path = write_aedat2(tmp_path / "x.aedat", late, "DVS128", 128, 128)
    assert np.array_equal(decoded(path), late)


def test_nmnist_clock_moves_on_at_its_marks(tmp_path):
    content = nmnist_bytes([1, 0, 2, 33], [3, 240, 4, 33], [1, 0, 0, 1], [5, 0, 6, 2**23 - 1])
    (tmp_path / "x.bin").write_bytes(content)
    expected = [[5, 1, 3, 1], [6 + 2**13, 2, 4, 0], [2**23 - 1 + 2**13, 33, 33, 1]]
    assert decoded(tmp_path / "x.bin", size=(34, 34)).tolist() == expected


# ---- what is refused


def refusal(path: Path, size: tuple[int, int] | None = None, **said) -> str:
    def read() -> None:
        opened = cameras.open_recording(path, Said(size=size, **said))
        list(recordings_of(path, Said(size=size, **said), (opened.height, opened.width), cut.Shape()))

    with pytest.raises(InputError) as caught:
        read()
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", OURS)
def test_a_file_that_breaks_off_within_an_event_is_refused_with_its_place(tmp_path, name):
    path, said, _ = write_any(tmp_path, name)
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    if name == "csv names":
        path.write_bytes(content[: content.rindex(b",")])
    if name == "csv bare":
        path.write_bytes(content[: content.rindex(b" ")])
    message = refusal(path, **said)
    assert any(word in message for word in ("breaks off", "truncated", "no numbers")), message


@pytest.mark.parametrize("name", OURS)
def test_an_empty_file_and_a_foreign_header_are_refused(tmp_path, name):
    path, said, _ = write_any(tmp_path, name)
    content = path.read_bytes()
    path.write_bytes(b"")
    assert "is empty (0 bytes)" in refusal(path, **said)
    if "bare" in name or name == "bin" or name.startswith("csv"):
        return  # without a header
    path.write_bytes(b"\x00\x01foreign" + content)
    assert "by its first bytes" in refusal(path, **said)
    other = b"#!AER-DAT4.0\r\n" if not name.startswith("aedat") else b"% evt 3.0\n"
    path.write_bytes(other + content)
    message = refusal(path, **said)
    assert "it looks like AEDAT 4" in message or "it looks like Prophesee RAW" in message


@pytest.mark.parametrize("name", OURS)
def test_pixels_beyond_the_sensor_are_refused(tmp_path, name):
    path, said, expected = write_any(tmp_path, name)
    opened = cameras.open_recording(path, Said(**said))
    e = int((expected[:, 1] == expected[:, 1].max()).argmax())
    width = int(expected[:, 1].max())
    small = cameras.Opened(path, opened.height, width, opened.pieces)
    with pytest.raises(InputError) as caught:
        list(cut._checked(small, False))
    assert f"event {e} is at x = {width}, y = {expected[e, 2]}" in str(caught.value)
    assert f"the sensor has x in 0..{width - 1}" in str(caught.value)


def test_times_that_fall_are_refused_or_sorted(tmp_path):
    e = some_events()
    e[[3, 9], 0] = e[[9, 3], 0]
    np.save(tmp_path / "x.npy", structured(e))
    said = {"time_unit": "us", "size": (100, 120)}
    place = int((np.diff(e[:, 0]) < 0).argmax()) + 1
    message = refusal(tmp_path / "x.npy", **said)
    assert f"goes back in time at event {place}, from {e[place - 1, 0]} to {e[place, 0]} µs" in message
    assert "--sort" in message
    shape = cut.Shape(sort=True)
    ((times, units),) = recordings_of(tmp_path / "x.npy", Said(**said), (100, 120), shape)
    order = np.argsort(e[:, 0], kind="stable")
    assert np.array_equal(times, e[order, 0] - e[:, 0].min())
    assert np.array_equal(units % 120, e[order, 1])


BAD = {
    "no size": ("does not say the size of its sensor; say it by --sensor", {"time_unit": "us"}),
    "no unit": ("does not say the unit of t; say it by --time-unit", {"size": (100, 120)}),
    "no columns": ("does not name its 4 columns; say what they are, such as --columns t,x,y,p", {"time_unit": "us"}),
    "columns": ("has 4 columns, and --columns names 5", {"time_unit": "us", "columns": ("t", "x", "y", "p", "-")}),
    "polarity": ("event 7 has the polarity 2; it must be 0 or 1, or -1 or 1", {"time_unit": "us"}),
    "polarities": ("has the polarities 0 and -1", {"time_unit": "us"}),
    "nan": ("event 5 has the time nan", {"time_unit": "s"}),
    "before all time": ("event 0 has the time -9223372036854775808", {"time_unit": "us"}),
    "late": ("lasts longer than 71.6 min, what 32 bits of µs hold; cut it by --window-ms", {"time_unit": "s"}),
    "fraction": ("event 4 has x = 1.5", {"time_unit": "us"}),
    "names": ("none is named p (or pol, polarity, on)", {"time_unit": "us"}),
    "objects": ("no readable .npy file", {"time_unit": "us"}),
    "shape": ("no list of events", {"time_unit": "us"}),
    "claims": ("no readable .npy file", {"time_unit": "us"}),
}


@pytest.mark.parametrize("kind", BAD)
def test_tables_that_are_refused(tmp_path, kind):
    path, e = tmp_path / "x.npy", some_events()
    rows = structured(e).astype([("x", "f8"), ("y", "i2"), ("p", "i1"), ("t", "f8")])
    if kind in ("no size", "no unit"):
        rows = structured(e)
    elif kind in ("no columns", "columns"):
        rows = e
    elif kind == "polarity":
        rows["p"][7] = 2
    elif kind == "polarities":
        rows["p"][9] = -1
    elif kind == "nan":
        rows["t"][5] = np.nan
    elif kind == "before all time":
        rows = structured(e)
        rows["t"][0] = -(2**63)
    elif kind == "fraction":
        rows["x"][4] = 1.5
    elif kind == "names":
        rows = rows[["x", "y", "t"]]
    elif kind == "objects":
        rows = np.array([{}])
    elif kind == "shape":
        rows = rows.reshape(2, -1)
    np.save(path, rows)
    if kind == "claims":
        path.write_bytes(path.read_bytes().replace(b"(500,)", b"(9999999999999,)"))
    message, said = BAD[kind]
    assert message in refusal(path, **{"size": None if kind == "no size" else (100, 120), **said})


def test_the_polarity_that_means_brighter_may_be_said(tmp_path):
    e = some_events()
    np.save(tmp_path / "x.npy", e * [1, 1, 1, -1] + [0, 0, 0, 2])  # 2 is darker and 1 brighter
    said = {"time_unit": "us", "columns": tuple("txyp"), "size": (100, 120)}
    assert "has the polarity 2; it must be 0 or 1, or -1 or 1; say which is brighter by --brighter" in refusal(
        tmp_path / "x.npy", **said
    )
    assert np.array_equal(decoded(tmp_path / "x.npy", brighter=1.0, **said), e)


def test_a_format_that_is_not_told_must_be_said(tmp_path):
    path, said, _ = write_any(tmp_path, "raw evt3 bare")
    assert "no Prophesee RAW file by its first bytes" in refusal(path, said["size"])
    write_words(path, [HIGH(1)], b"% date today\n")
    assert "has no header that names its encoding; say it by --format evt2, evt21 or evt3" in refusal(path)
    write_words(path, [HIGH(1)], b"% evt 4.0\n")
    assert "its header names the encoding '4.0', which is not read" in refusal(path)
    write_words(path, [HIGH(1)], b"% evt 3.0\n% endianness big\n")
    assert "highest byte first" in refusal(path)
    path.rename(tmp_path / "x.mp4")
    assert "no recording by its name; known are .aedat, " in refusal(tmp_path / "x.mp4")
    write_words(path, [HIGH(1), X(3)], b"% evt 3.0\n% plugin_name hal_plugin_gen41_evk3\n")
    assert "its sensor has 720x1280 pixels (height x width), and --sensor 100x120" in refusal(path, (100, 120)).replace(
        "says that ", ""
    )
    write_words(path, [HIGH(1), LOW(2)])
    assert "holds no event" in refusal(path)


def test_a_library_that_is_missing_crashes_or_hangs_is_one_line(tmp_path, monkeypatch):
    path = tmp_path / "x.aedat4"
    path.write_bytes(b"#!AER-DAT4.0\r\n")
    with monkeypatch.context() as patch:
        patch.setattr(foreign, "find_spec", lambda name: None)
        with pytest.raises(InputError, match="such files are read by faery; install it by: pip install faery"):
            cameras.open_recording(path, Said())
    # a library that ends its process, and one that says nothing
    for name, body, words in (
        ("crashing", "import os; os.abort()", "its process ended with -6"),
        ("silent", "import time; time.sleep(60)", "nothing for 1 s"),
        ("greedy", "bytearray(2**40)", "MemoryError"),
    ):
        (tmp_path / "faery.py").write_text(body)
        monkeypatch.setattr(foreign, "LONGEST_S", 1 if name == "silent" else 60)
        monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
        with monkeypatch.context() as patch:
            patch.syspath_prepend(tmp_path)
            with pytest.raises(InputError) as caught:
                foreign.open_by_faery(path)
        assert words in str(caught.value), name
        assert "\n" not in str(caught.value)
