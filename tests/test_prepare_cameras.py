"""Recordings as cameras write them. The expected events come from decoders in plain numpy, written from the formats'
definitions, and from the numbers that the test itself put into a file."""

import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from datasets.prepare import cameras, cut
from datasets.prepare.cameras import foreign, pieces
from datasets.prepare.cameras.pieces import Said
from snn.errors import InputError
from tests.cameras import (
    BASE,
    HIGH,
    LOW,
    OURS,
    RECORDINGS,
    V8,
    V12,
    X,
    Y,
    evt2_words,
    later,
    recordings_of,
    some_events,
    structured,
    write_aedat2,
    write_aedat3,
    write_any,
    write_dat,
    write_es,
    write_metavision,
    write_words,
)
from tests.conftest import nmnist_bytes

needs_recordings = pytest.mark.skipif(not RECORDINGS.is_dir(), reason="the recordings lie outside the repository")


def decoded(path: Path, **said) -> np.ndarray:
    """Return [events, 4]: t, x, y, p, before any check."""
    pieces = cameras.open_recording(path, Said(**said)).pieces
    return np.concatenate([np.zeros((0, 4), np.int64), *(np.stack(piece, 1).astype(np.int64) for piece in pieces)])


# ---- EVT3, from its definition: what each word says holds until another of its kind


def _latest(at: np.ndarray, length: int) -> np.ndarray:
    places = np.full(length, -1)
    places[at] = at
    return np.maximum.accumulate(places)


def evt3_by_definition(words: np.ndarray) -> np.ndarray:
    """Decode 16-bit words to [events, 4]: t, x, y, p."""
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
    """Four libraries give 11,772,513, 11,727,467 and twice 11,727,457 µs as last time; the last is right.

    At event 20,121 TIME_LOW steps back from 811 to 800 under one TIME_HIGH. It "updates the lower 12 bits": the time is
    800. The first library took this for an overflow and added 4096 each time; the second kept the largest time so far.
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
    assert any(word in message for word in ("truncated", "not all numbers")), message


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
    "not a size": ("does not say the size of its sensor; give it with --sensor", {"time_unit": "us"}),
    "no unit": ("does not say the unit of t; give it with --time-unit", {"size": (100, 120)}),
    "no columns": ("does not name its 4 columns; name them, such as --columns t,x,y,p", {"time_unit": "us"}),
    "columns": ("has 4 columns, and --columns names 5", {"time_unit": "us", "columns": ("t", "x", "y", "p", "-")}),
    "polarity": ("event 7 has the polarity 2; it must be 0 or 1, or -1 or 1", {"time_unit": "us"}),
    "polarities": ("has the polarities 0 and -1", {"time_unit": "us"}),
    "nan": ("event 5 has the time nan", {"time_unit": "s"}),
    "before all time": ("event 0 has the time -9223372036854775808", {"time_unit": "us"}),
    "late": ("lasts longer than 71.6 min, the range of 32 bits in µs; cut it with --window-ms", {"time_unit": "s"}),
    "fraction": ("event 4 has x = 1.5", {"time_unit": "us"}),
    "names": ("none is named p (or pol, polarity, on)", {"time_unit": "us"}),
    "another unit": ("its column t_us has the unit us, but --time-unit says s; leave", {"time_unit": "s"}),
    "objects": ("not a readable .npy file", {"time_unit": "us"}),
    "shape": ("not a list of events", {"time_unit": "us"}),
    "claims": ("not a readable .npy file", {"time_unit": "us"}),
}


@pytest.mark.parametrize("kind", BAD)
def test_tables_that_are_refused(tmp_path, kind):
    path, e = tmp_path / "x.npy", some_events()
    rows = structured(e).astype([("x", "f8"), ("y", "i2"), ("p", "i1"), ("t", "f8")])
    if kind in ("not a size", "no unit"):
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
    elif kind == "another unit":
        rows.dtype.names = "x", "y", "p", "t_us"
    elif kind == "objects":
        rows = np.array([{}])
    elif kind == "shape":
        rows = rows.reshape(2, -1)
    np.save(path, rows)
    if kind == "claims":
        path.write_bytes(path.read_bytes().replace(b"(500,)", b"(9999999999999,)"))
    message, said = BAD[kind]
    assert message in refusal(path, **{"size": None if kind == "not a size" else (100, 120), **said})


def test_a_table_may_begin_with_many_comments(tmp_path):
    e = some_events()
    said = {"time_unit": "us", "size": (100, 120)}
    comments = "# made by hand\n% and another\n\n" * 50 + "#" * 5000 + "\n"
    (tmp_path / "x.csv").write_text(comments + "t,x,y,p\n" + "".join("{},{},{},{}\n".format(*row) for row in e))
    assert np.array_equal(decoded(tmp_path / "x.csv", **said), e)
    (tmp_path / "x.csv").write_text(comments)
    assert "holds no line of events" in refusal(tmp_path / "x.csv", **said)


def test_a_table_goes_on_after_many_comments_and_its_first_row_is_no_header(tmp_path):
    said = {"time_unit": "us", "columns": ("t", "x", "y", "p"), "size": (100, 120)}
    between = ("#" * 1000 + "\n") * 10_000  # more than is read at once
    (tmp_path / "x.csv").write_text(f"1,2,3,1\n{between}9,4,5,0\n")
    assert decoded(tmp_path / "x.csv", **said).tolist() == [[1, 2, 3, 1], [9, 4, 5, 0]]
    (tmp_path / "x.csv").write_text("nan,2,3,1\n5,2,3,1\n")
    refusal(tmp_path / "x.csv", **said)
    (tmp_path / "x.csv").write_text("v,v,v,v\n1,0,2,1\n4,3,5,1\n")
    assert decoded(tmp_path / "x.csv", **said).tolist() == [[1, 0, 2, 1], [4, 3, 5, 1]]
    (tmp_path / "x.csv").write_text("7,2,3,1,\n8,2,3,1,\n")
    said["columns"] = ("t", "x", "y", "p", "-")
    assert decoded(tmp_path / "x.csv", **said).tolist() == [[7, 2, 3, 1], [8, 2, 3, 1]]


def test_arrays_of_any_names_take_their_columns_in_their_order(tmp_path):
    e, said = some_events(), {"time_unit": "us", "size": (100, 120)}
    np.savez(tmp_path / "x.npz", stamps=e[:, 0], xs=e[:, 1], ys=e[:, 2], ps=e[:, 3])
    assert np.array_equal(decoded(tmp_path / "x.npz", columns=tuple("txyp"), **said), e)
    assert "of its columns stamps, xs, ys, ps none is named t" in refusal(tmp_path / "x.npz", **said)
    np.savez(tmp_path / "y.npz", t=e[:, 0], xs=e[:, 1], ys=e[:, 2], ps=e[:, 3])
    assert "of its columns t, xs, ys, ps none is named x" in refusal(tmp_path / "y.npz", **said)
    np.savez(tmp_path / "z.npz", name=np.array([{}]), p=e[:, 3], x=e[:, 1], y=e[:, 2], t=e[:, 0])
    assert np.array_equal(decoded(tmp_path / "z.npz", **said), e)
    assert np.array_equal(decoded(tmp_path / "z.npz", columns=("-", "p", "x", "y", "t"), **said), e)
    assert "has 5 columns, and --columns names 4" in refusal(tmp_path / "z.npz", columns=tuple("txyp"), **said)


def test_columns_of_hdf5_have_names(tmp_path):
    e, said = some_events(), {"time_unit": "us", "size": (100, 120)}
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for name, column in zip("txyp", e.T, strict=True):
            file[f"events/{name}"] = column
    assert np.array_equal(decoded(tmp_path / "x.h5", **said), e)
    assert "names its columns; leave --columns out" in refusal(tmp_path / "x.h5", columns=tuple("txyp"), **said)


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
    assert "not a Prophesee RAW file by its first bytes" in refusal(path, said["size"])
    write_words(path, [HIGH(1)], b"% date today\n")
    assert "has no header that names its encoding; give it with --format evt2, evt21 or evt3" in refusal(path)
    write_words(path, [HIGH(1)], b"% evt 4.0\n")
    assert "its header names the encoding '4.0', which is not supported" in refusal(path)
    write_words(path, [HIGH(1)], b"% evt 3.0\n% endianness big\n")
    assert "big-endian" in refusal(path)
    path.rename(tmp_path / "x.mp4")
    assert "not named like a recording (.aedat, " in refusal(tmp_path / "x.mp4")
    write_words(path, [HIGH(1), X(3)], b"% evt 3.0\n% plugin_name hal_plugin_gen41_evk3\n")
    assert "its sensor has 720x1280 pixels (height x width), but --sensor says 100x120" in refusal(
        path, (100, 120)
    ).replace("says that ", "")
    write_words(path, [HIGH(1), LOW(2)])
    assert "holds no event" in refusal(path)


def test_a_library_that_is_missing_crashes_or_hangs_is_one_line(tmp_path, monkeypatch):
    path = tmp_path / "x.aedat4"
    path.write_bytes(b"#!AER-DAT4.0\r\n")
    with monkeypatch.context() as patch:
        patch.setattr(foreign, "find_spec", lambda name: None)
        with pytest.raises(InputError, match="such files are read by faery; install it with: pip install faery"):
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
