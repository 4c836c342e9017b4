"""Small files of the true layouts, for every command of the README and of docs/my_data.md."""

from pathlib import Path

import numpy as np
from scipy.io import wavfile

from datasets.prepare import dvsplane
from tests.conftest import write_nmnist
from tests.test_prepare_cameras import (
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
from tests.test_prepare_official import SPLITS, pack, write_official
from tests.test_prepare_published import write_drop, write_original_digits, write_recording


def write_originals(folder: Path) -> None:
    """What the commands ask for, in `folder`."""
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
        write_recording(folder / "DvsGesture", f"user{user:02d}_lab", list(range(1, 12)), user)
    for plane in dvsplane.CLASSES:
        for number in (1, 161):
            write_drop(folder / "DVSPlane", f"{plane}_{number}", number)


def _write_recordings(folder: Path) -> None:
    """Recordings of one sensor of 128 x 128 in three formats, tables, and words without a header."""
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
