"""Small files of the true layouts: sounds, the published sets, and all that the commands of README and docs need."""

import gzip
import shutil
import struct
from pathlib import Path

import h5py
import numpy as np
import soundfile
from scipy.io import savemat, wavfile

from datasets.prepare import dvsplane, heidelberg
from tests.cameras import (
    HIGH,
    LOW,
    X,
    Y,
    evt2_words,
    some_events,
    structured,
    write_aedat2,
    write_aedat3,
    write_dat,
    write_words,
)
from tests.conftest import make_events, write_nmnist

RATE_HZ = 16_000


def save_sound(path: Path, number: int = 0, channels: int = 1, **how: object) -> Path:
    """Save a sound; each number gives another sound."""
    noise = np.random.default_rng(number).uniform(-0.4, 0.4, (1200, channels))
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, noise, RATE_HZ, **how)
    return path


SPLITS = {"shd": {"train": 40, "test": 24}, "ssc": {"train": 70, "valid": 35, "test": 36}}


def write_official(path: Path, name: str, split: str, n: int | None = None) -> Path:
    """Write a small file like the official ones: 16-bit times and units, numbers as labels, keys and metadata."""
    classes = heidelberg.CLASSES[name]
    made = make_events(n or SPLITS[name][split], classes, 700, len(split))
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for key, kind in (("times", np.float16), ("units", np.uint16)):
            lists = file.create_dataset(f"spikes/{key}", (len(made["labels"]),), h5py.vlen_dtype(kind))
            for r, row in enumerate(made[key]):
                lists[r] = np.asarray(row, kind)
        file["labels"] = np.array(made["labels"], np.uint16)
        file["extra/speaker"] = np.array(made["speakers"], np.uint16)
        file["extra/keys"] = np.array([f"word {k}" for k in range(classes)], "S")
        file["extra/meta_info/gender"] = np.array([b"male", b"female"])
    return path


def pack(path: Path) -> Path:
    with path.open("rb") as file, gzip.open(f"{path}.gz", "wb") as out:
        shutil.copyfileobj(file, out)
    path.unlink()
    return Path(f"{path}.gz")


def write_original_digits(path: Path) -> dict:
    """Write two recordings of each digit per split, and some of several digits; return (times_s, channels, label)."""
    random = np.random.default_rng(0)
    recordings = {"train": [], "test": []}
    with h5py.File(path, "w") as file:
        for split in recordings:
            names = [f"man-{who}-{take}-{word}" for who in "ab" for take, word in enumerate("z123456789o")]
            names.insert(5, "man-c-0-z12")
            file[f"{split}_labels"] = np.array([name.encode() for name in names])
            for k, name in enumerate(names):
                times_s = np.sort(random.uniform(0.1, 1.5, 20 + k))
                channels = random.integers(0, 64, 20 + k)
                file[f"{split}_timestamps/{name}"] = times_s
                file[f"{split}_addresses/{name}"] = channels.astype(np.int32)
                if name != "man-c-0-z12":
                    recordings[split].append((times_s, channels, "z123456789o".index(name[-1])))
    return recordings


GESTURES_HEADER = (
    b"#!AER-DAT3.1\r\n#Format: RAW\r\n#Source 1: DVS128\r\n#Start-Time: 2016-01-01 00:00:00\r\n#!END-HEADER\r\n"
)
SPECIAL, POLARITY, IMU6 = 0, 1, 3  # types of packets


def packet(kind: int, content: bytes, size: int, overflow: int = 0) -> bytes:
    number = len(content) // size
    return struct.pack("<HHIIIIII", kind, 1, size, 4, overflow, number, number, number) + content


def polarity_packet(times_us: np.ndarray, data: np.ndarray) -> bytes:
    """Encode events x, y, polarity between two overflows of the clock."""
    x, y, p = data.astype(np.uint32).T
    words = np.stack([x << 17 | y << 2 | p << 1 | 1, times_us & 0x7FFFFFFF], axis=1).astype("<u4")
    return packet(POLARITY, words.tobytes(), 8, int(times_us[0]) >> 31)


def write_gestures(
    folder: Path, name: str, labels: list[int], seed: int, start_us: int = 1000, classes: int = 10
) -> list:
    """Write a recording of gestures of 10 ms, each followed by a pause; return (times_us, data, label) of each."""
    random = np.random.default_rng(seed)
    gestures, packets, rows = [], [GESTURES_HEADER], ["class,startTime_usec,endTime_usec"]
    for label in labels:
        inside = start_us + np.sort(random.integers(0, 10_000, 30))
        times_us = np.concatenate([inside, start_us + 10_000 + np.arange(3)])
        data = random.integers(0, (128, 128, 2), (33, 3))
        packets += [packet(SPECIAL, bytes(16), 8), polarity_packet(times_us, data), packet(IMU6, bytes(36), 36)]
        gestures.append((inside - inside[0], data[:30], label - 1))
        rows.append(f"{label},{start_us},{start_us + 10_000}")
        start_us += 20_000
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.aedat").write_bytes(b"".join(packets))
    (folder / f"{name}_labels.csv").write_text("\n".join(rows) + "\n")
    return [gesture for gesture in gestures if gesture[2] < classes]


def write_drop(folder: Path, name: str, seed: int, busy_events: int = 30_000) -> tuple[np.ndarray, np.ndarray]:
    """Write a recording with a quiet second before and after 200 ms of many events; return (times_us, data)."""
    random = np.random.default_rng(seed)
    quiet = [np.linspace(start, start + 1e6, 1500) for start in (0, 1_200_000)]
    times_us = np.concatenate([quiet[0], np.linspace(1e6 + 700, 1.199e6, busy_events), quiet[1]]).astype(np.int64)
    data = random.integers(0, (304, 240, 2), (len(times_us), 3))
    x, y, p = (data + np.array([1, 1, 0])).T
    folder.mkdir(parents=True, exist_ok=True)
    column = {"x": x, "y": y, "p": np.where(p == 0, -1, 1), "ts": times_us}
    savemat(folder / f"{name}.mat", {"TD": {k: v.astype(np.float64)[:, None] for k, v in column.items()}}, format="5")
    return times_us, data


def write_originals(folder: Path) -> None:
    """Write into `folder` the files that the commands need."""
    (folder / "my_recordings").mkdir()
    for k in range(6):
        tone = np.sin(np.arange(8000) * (0.2 + 0.1 * (k % 2) + 0.001 * k)).astype(np.float32)
        wavfile.write(folder / "my_recordings" / f"{'ab'[k % 2]}_{k}.wav", 16000, tone)
    _write_recordings(folder)
    write_nmnist(folder / "N-MNIST", 2, 0)
    for split in ("train", "test"):
        for name, seed in (("cars", 0), ("background", 1)):
            path = folder / "N-CARS" / split / name / "obj_0_td.dat"
            path.parent.mkdir(parents=True)
            write_dat(path, some_events(seed=seed), b"% Data file containing Event2d events.\n% Version 2\n", 0)
    for name, downloads in SPLITS.items():
        for split in downloads:
            pack(write_official(folder / "downloads" / f"{name}_{split}.h5", name, split))
    write_original_digits(folder / "n-tidigits.hdf5")
    for user in (1, 24):
        write_gestures(folder / "DvsGesture", f"user{user:02d}_lab", list(range(1, 12)), user)
    for plane in dvsplane.CLASSES:
        for number in (1, 161):
            write_drop(folder / "DVSPlane", f"{plane}_{number}", number)


def _write_recordings(folder: Path) -> None:
    """Write recordings of a sensor of 128 x 128 in three formats, tables, and words without a header."""
    names = [f"{name}/{subject}_{k}" for name in ("left", "right") for k, subject in enumerate(("ann", "bob", "cy"))]
    header = b"% evt 2.0\n% geometry 128x128\n"
    for k, name in enumerate(names):
        e = some_events(1500, 24, 24, k)
        for place in ("recordings", "bare", "arrays", "columns", "texts"):
            (folder / place / name).parent.mkdir(parents=True, exist_ok=True)
        path = folder / "recordings" / name
        if k % 3 == 0:
            write_words(path.with_suffix(".raw"), evt2_words(e), header, "<u4")
        elif k % 3 == 1:
            write_aedat3(path.with_suffix(".aedat"), e)
        else:
            write_aedat2(path.with_suffix(".aedat"), e, "DVS128", 128, 128)
        words = [w for t, x, y, p in e.tolist() for w in (HIGH(t >> 12), LOW(t & 4095), Y(y), X(x, p))]
        write_words(folder / "bare" / f"{name}.raw", words, b"")
        np.save(folder / "arrays" / f"{name}.npy", structured(e))
        np.save(folder / "columns" / f"{name}.npy", e[:, [1, 2, 0, 3]] * [1, 1, 1e-6, 1])
        lines = "".join(f"{t / 1e6:.6f} {x} {y} {p}\n" for t, x, y, p in e)
        (folder / "texts" / f"{name}.txt").write_text(lines)
    (folder / "testing_list.txt").write_text("left/bob_1.aedat\nright/ann_0.raw\n")
    (folder / "validation_list.txt").write_text("left/ann_0.raw\n")
    rows = "left/ann_0.raw,a,train", "right/bob_1.aedat,b,train", "right/cy_2.aedat,b,test"
    (folder / "table.csv").write_text("\n".join(["file,label,split", *rows]))
