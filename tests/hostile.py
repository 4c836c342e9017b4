"""Damaged files, made and read by number: python -m tests.hostile SEED FIRST LAST

Case k is a small valid file of layout k modulo their number, damaged in one of four ways, and read in this process
under a limit of memory and time. It prints a line for each case: its number, its layout, and "correct", "refused", or
the fault. If the C library crashes or loops, this process dies, and the caller knows at which case.
"""

import os
import resource
import signal
import struct
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import soundfile
from scipy.io import savemat

from datasets import images, readers
from datasets.prepare.dvsgesture import read_aedat
from datasets.prepare.dvsplane import read_mat
from datasets.prepare.ntidigits import convert_ntidigits
from datasets.prepare.wav import read_audio
from datasets.recordings import Recordings
from snn.errors import InputError
from tests.cameras import CHANNELS, make_pixels, write_camera
from tests.conftest import make_events, write_shd
from tests.make import image_data

SECONDS, MORE_MEMORY = 20, 2**30  # bytes
CLASSES = 3
EXTREMES = np.array([0, 1, 255, 2**31 - 1, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1], np.uint64)


def small_shd(path: Path, chunks: int | None = None) -> None:
    events = make_events(6, CLASSES, 40, 0)
    write_shd(path, **events)
    if chunks:
        with h5py.File(path, "w") as file:
            for name, dtype in (("times", np.float16), ("units", np.uint16)):
                kind = h5py.vlen_dtype(dtype)
                dataset = file.create_dataset(f"spikes/{name}", (6,), kind, chunks=(chunks,), maxshape=(None,))
                for r, row in enumerate(events[name]):
                    dataset[r] = np.asarray(row, dtype)
            file["labels"], file["extra/keys"] = events["labels"], ["a", "b", "c"]


def small_ntidigits(path: Path) -> None:
    random = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for r in range(4):
            file[f"data/{r}/times"] = np.sort(random.integers(0, 10**6, 20)).astype(np.uint32)
            file[f"data/{r}/addrs"] = random.integers(0, 64, (20, 1)).astype(np.uint8)
            file[f"data/{r}/labels"] = np.array([r % CLASSES], np.uint8)
        file["extra/train_keys"], file["extra/test_keys"] = [b"0", b"1", b"2"], [b"3"]


def small_gestures(path: Path, compression: str | None = None) -> None:
    write_camera(path, "dvsgesture", "train", **make_pixels(4, CLASSES, "dvsgesture", 0))
    if compression:
        with h5py.File(path, "a") as file:
            for r in range(4):
                for name in ("time", "data"):
                    values = file[f"train/{r}/{name}"][()]
                    del file[f"train/{r}/{name}"]
                    file[f"train/{r}"].create_dataset(name, data=values, compression=compression, shuffle=True)


def small_images(path: Path) -> None:
    random = np.random.default_rng(0)
    pixels, labels = random.integers(0, 256, (6, 4, 4), np.uint8), np.arange(6) % CLASSES
    np.savez_compressed(path, x_train=pixels, y_train=labels, x_test=pixels, y_test=labels)


def small_mat(path: Path) -> None:
    random = np.random.default_rng(0)
    x, y, p = random.integers(1, (305, 241, 2), (50, 3)).T
    times_us = np.sort(random.integers(0, 60_000, 50))
    savemat(path, {"TD": {"x": x.astype("u2"), "y": y.astype("u1"), "p": p.astype("i1"), "ts": times_us.astype("u2")}})


def small_aedat(path: Path) -> None:
    random = np.random.default_rng(0)
    words = (random.integers(0, (128, 128, 2), (20, 3)) << (17, 2, 1)).sum(1) | 1  # valid
    events = np.stack([words, np.sort(random.integers(0, 9999, 20))], axis=1).astype("<u4").tobytes()
    packet = struct.pack("<HHIIIIII", 1, 1, 8, 4, 0, 20, 20, 20) + events
    path.write_bytes(b"#!AER-DAT3.1\r\n#!END-HEADER\r\n" + 2 * packet)


def original_digits(path: Path) -> None:
    random = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for split in ("train", "test"):
            names = [f"man-a-0-{word}" for word in "z123456789o"]
            file[f"{split}_labels"] = np.array([name.encode() for name in names])
            for name in names:
                file[f"{split}_timestamps/{name}"] = np.sort(random.uniform(0.1, 1.5, 20))
                file[f"{split}_addresses/{name}"] = random.integers(0, 64, 20).astype(np.int32)


def recordings(layout: str, channels: int) -> Callable[[Path], None]:
    """Read into memory and from the file; both must be equal and keep every promise of `Recordings`."""

    def read(path: Path) -> None:
        held = readers.read(layout, path, "train", channels, CLASSES, in_memory=True)
        stored = readers.read(layout, path, "train", channels, CLASSES, in_memory=False)
        loaded, places = stored.load(np.arange(len(held)))
        assert np.array_equal(places, np.arange(len(held)))
        for one in (held, loaded):
            check(one, channels)
        for name in ("offsets", "times", "channels", "labels"):
            assert np.array_equal(getattr(held, name), getattr(loaded, name)), name

    return read


def check(found: Recordings, channels: int) -> None:
    assert found.offsets[0] == 0
    assert found.offsets[-1] == len(found.times) == len(found.channels)
    assert len(found.offsets) == len(found.labels) + 1
    assert (np.diff(found.offsets) >= 0).all()
    assert found.times.dtype.isnative
    assert found.times.dtype != np.float16
    assert ((found.times >= 0) & (found.times < np.inf)).all()
    assert ((found.channels >= 0) & (found.channels < channels)).all()
    assert set(found.labels) == set(range(CLASSES))


def read_images(path: Path) -> None:
    found = images.read(image_data("npz", path.parent, path.stem, (1, 4, 4), CLASSES), "train")
    assert found.pixels.shape[1:] == (1, 4, 4)
    assert len(found.pixels) == len(found.labels)
    assert ((found.labels >= 0) & (found.labels < CLASSES)).all()
    assert found.pixels.dtype == np.uint8 or ((found.pixels >= 0) & (found.pixels <= 1)).all()


def convert_digits(path: Path) -> None:
    out = path.parent / "out"
    convert_ntidigits(path, out)
    for split in ("train", "test"):
        readers.read("ntidigits", out / "n-tidigits-single.hdf5", split, 64, 11)


def read_mat_file(path: Path) -> None:
    """Read in a process of its own, as the preparation does: SciPy may crash on a damaged file, with one line."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            times_us, data = read_mat(path)
            code = (
                0
                if len(times_us) == len(data) and (np.diff(times_us) >= 0).all() and (data < (304, 240, 2)).all()
                else 1
            )
        except InputError as error:
            code = 2 if "\n" not in str(error) else 1
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code == 2 or code < 0:
        raise InputError(f"{path} was refused")
    assert code == 0, code


def read_aedat_file(path: Path) -> None:
    times_us, data, _ = read_aedat(path)
    assert len(times_us) == len(data)
    assert (data < (128, 128, 2)).all()


def write_sound(path: Path) -> None:
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, 1000), 8000)


def read_sound(path: Path) -> None:
    audio, rate_hz = read_audio(path)
    assert audio.ndim == 1
    assert len(audio) >= 0.06 * rate_hz > 0


# layout -> (suffix, write a small valid file, read it and check what is read)
LAYOUTS = {
    "shd": (".h5", small_shd, recordings("shd", 40)),
    "shd, in pieces": (".h5", lambda path: small_shd(path, chunks=4), recordings("shd", 40)),
    "ntidigits": (".h5", small_ntidigits, recordings("ntidigits", 64)),
    "dvsgesture": (".h5", small_gestures, recordings("dvsgesture", CHANNELS["dvsgesture"])),
    "dvsgesture, compressed": (
        ".h5",
        lambda path: small_gestures(path, "gzip"),
        recordings("dvsgesture", CHANNELS["dvsgesture"]),
    ),
    "dvsplane": (
        ".h5",
        lambda path: write_camera(path, "dvsplane", "train", **make_pixels(4, CLASSES, "dvsplane", 0)),
        recordings("dvsplane", CHANNELS["dvsplane"]),
    ),
    "npz": (".npz", small_images, read_images),
    "mat": (".mat", small_mat, read_mat_file),
    "aedat": (".aedat", small_aedat, read_aedat_file),
    "wav": (".wav", write_sound, read_sound),
    "flac": (".flac", write_sound, read_sound),
    "ogg": (".ogg", write_sound, read_sound),
    "mp3": (".mp3", write_sound, read_sound),
    "original digits": (".hdf5", original_digits, convert_digits),
}


def damage(content: bytes, random: np.random.Generator) -> bytes:
    """Flip bits, cut off the end, or overwrite numbers by extreme ones or parts by other parts."""
    new, kind = bytearray(content), random.integers(4)
    for _ in range(random.integers(1, 4)):
        place = int(random.integers(len(new)))
        if kind == 0:
            new[place] ^= 1 << int(random.integers(8))
        elif kind == 1:
            return bytes(new[:place])
        elif kind == 2:
            width = int(random.choice([1, 2, 4, 8]))
            new[place : place + width] = int(random.choice(EXTREMES)).to_bytes(8, "little")[:width]
        else:
            source, width = int(random.integers(len(new))), int(random.integers(1, 64))
            part = new[source : source + width]
            new[place : place + len(part)] = part
    return bytes(new)


def outcome(read: Callable[[Path], None], path: Path) -> str:
    try:
        read(path)
    except InputError as error:
        return "refused" if "\n" not in str(error) and str(path.parent) in str(error) else f"unclear: {error!r}"
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {error} ({where.filename}:{where.lineno})".replace("\n", " ")
    return "correct"


def limit_memory() -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MORE_MEMORY, used + MORE_MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main() -> None:
    seed, first, last = map(int, sys.argv[1:])
    with tempfile.TemporaryDirectory() as folder:
        whole = {}
        for k, (layout, (suffix, write, read)) in enumerate(LAYOUTS.items()):
            path = Path(folder) / f"{k}{suffix}"
            write(path)
            whole[layout] = path, path.read_bytes(), read
            read(path)  # nothing is wrong with it; and kernels are compiled before memory is limited
        limit_memory()
        for case in range(first, last):
            layout = list(LAYOUTS)[case % len(LAYOUTS)]
            path, content, read = whole[layout]
            path.write_bytes(damage(content, np.random.default_rng([seed, case])))
            signal.setitimer(signal.ITIMER_PROF, SECONDS)  # of the processor: ends this process, even within C
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # a warning is a line too many
                warnings.simplefilter("ignore", ResourceWarning)
                print(case, layout, outcome(read, path), sep=": ", flush=True)
            signal.setitimer(signal.ITIMER_PROF, 0)


if __name__ == "__main__":
    main()
