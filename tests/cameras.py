"""Recordings of event cameras: as cameras write them, and as the published sets hold them."""

import struct
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np

from datasets.prepare import cut
from datasets.prepare.cameras.pieces import Said
from snn import config
from tests.conftest import REPOSITORY, nmnist_bytes

RECORDINGS = REPOSITORY.parent / "shared" / "data" / "recordings"
HEIGHT, WIDTH = 16, 20  # of the sensor of `write_tree`
SENSOR = f"--sensor {HEIGHT}x{WIDTH}"


def recordings_of(path: Path, said: Said, size: tuple[int, int], shape: cut.Shape) -> list[tuple]:
    """Return (times, units) of each recording, with its parts joined."""
    made, parts = [], []
    for part in cut.parts_of(path, said, size, shape):
        parts.append((part.times, part.units))
        if part.is_last:
            made.append(tuple(map(np.concatenate, zip(*parts, strict=True))))
            parts = []
    assert not parts
    return made


EVT3_HEADER = b"% evt 3.0\n% format EVT3;height=720;width=1280\n% geometry 1280x720\n% end\n"


def write_words(path: Path, words, header: bytes = EVT3_HEADER, dtype: str = "<u2") -> Path:
    path.write_bytes(header + np.asarray(words, np.uint64).astype(dtype).tobytes())
    return path


# words of EVT3


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


def some_events(n: int = 500, height: int = 100, width: int = 120, seed: int = 0) -> np.ndarray:
    """Make random events [events, 4]: t, x, y, p."""
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
    """Encode events in one kind of Metavision's compressed form: a header, times, then coordinates and polarities."""
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
    """Write a small file of a format; return its path, the options that it needs, and its events."""
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
SIZE = config.SENSORS
CHANNELS = {layout: 2 * height * width for layout, (height, width) in SIZE.items()}


def make_pixels(n: int, num_classes: int, layout: str, seed: int) -> dict:
    """Make recordings of 50 events, whose times in µs begin late in the counter."""
    random = np.random.default_rng(seed)
    height, width = SIZE[layout]
    times = [4_000_000_000 + np.sort(random.integers(0, 150_000, 50)) for _ in range(n)]
    data = [random.integers(0, (width, height, 2), (50, 3)) for _ in range(n)]
    return {"times": times, "data": data, "labels": [r % num_classes for r in range(n)]}


def write_camera(path: Path, layout: str, split: str, times: list, data: list, labels: list, dtype=None) -> Path:
    """Write a file in the published layout of DVSGesture or DVSPlane."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        group = file.create_group(split) if layout == "dvsgesture" else file
        for r, (ticks, events, label) in enumerate(zip(times, data, labels, strict=True)):
            group[f"{r}/time"] = np.asarray(ticks, np.uint32)
            group[f"{r}/data"] = np.asarray(events, dtype or {"dvsgesture": np.uint8, "dvsplane": np.uint16}[layout])
            group[f"{r}/labels"] = np.uint8(label)
    return path


def write_bin(path: Path, label: int, seed: int, n: int = 300) -> np.ndarray:
    """Write a recording whose class decides where its events are; return [events, 4]: t, x, y, p."""
    random = np.random.default_rng(seed)
    x = np.clip(random.normal(5 + 10 * label, 2, n), 0, WIDTH - 1).astype(int)
    y, p = random.integers(0, HEIGHT, n), random.integers(0, 2, n)
    t = np.sort(random.integers(0, 200_000, n)) + 1000
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(nmnist_bytes(x, y, p, t))
    return np.stack([t, x, y, p], 1)


def write_tree(folder: Path, per_class: int = 6, seed: int = 0) -> dict[str, np.ndarray]:
    """Write files left/s0_0.bin, right/s1_1.bin, ... of three subjects, and return their events."""
    return {
        f"{name}/s{k % 3}_{k}.bin": write_bin(folder / name / f"s{k % 3}_{k}.bin", label, 100 * label + k + seed)
        for label, name in enumerate(("left", "right"))
        for k in range(per_class)
    }


def write_partly_invalid(folder: Path) -> int:
    """Write recordings left/0.aedat, right/3.aedat, ... with events marked invalid; return how many these are."""
    invalid = 0
    for k in range(6):
        path = folder / f"{('left', 'right')[k // 3]}/{k}.aedat"
        e, valid = write_bin(path, 0, k), np.random.default_rng(k).integers(0, 2, 300)
        write_aedat3(path, e, valid)
        invalid += (valid == 0).sum()
    return invalid
