"""SHD and SSC from their official files, compressed or not, under any name."""

import shutil

import h5py
import pytest

from datasets import readers
from datasets.prepare import heidelberg
from tests.conftest import REPOSITORY, assert_one_line
from tests.originals import SPLITS, pack, write_official


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(heidelberg, "NUMBERS", SPLITS)


@pytest.mark.parametrize("name", SPLITS)
@pytest.mark.parametrize("packed", [True, False])
def test_official_files_packed_or_not(program, tmp_path, name, packed):
    content = {}
    for split in SPLITS[name]:
        path = write_official(tmp_path / "downloads" / f"{name}_{split}.h5", name, split)
        content[split] = path.read_bytes()
        if packed:
            pack(path)
    (tmp_path / "downloads" / "md5sums.txt").write_text("x")
    other = "ssc" if name == "shd" else "shd"  # beside the other set
    write_official(tmp_path / "downloads" / f"{other}_train.h5", other, "train")
    result = program(f"-m datasets.prepare {name} downloads")
    assert result.returncode == 0, result.stderr
    folder = tmp_path / "data" / name
    assert sorted(path.name for path in folder.iterdir()) == sorted(f"{name}_{split}.h5" for split in SPLITS[name])
    for split in SPLITS[name]:
        assert (folder / f"{name}_{split}.h5").read_bytes() == content[split]
    recordings = readers.read("shd", folder / f"{name}_train.h5", "train", 700, heidelberg.CLASSES[name])
    assert len(recordings) == SPLITS[name]["train"]
    words = result.stdout.split("bash run.sh ")[1].strip()
    if not packed:  # once
        return
    result = program(f"train.py --path_to_yaml {REPOSITORY}/{words} --epochs 1 --T 20 --hidden_size 16 16")
    assert result.returncode == 0, result.stderr


def test_names_do_not_matter(tmp_path, capsys):
    a = pack(write_official(tmp_path / "a", "shd", "test"))
    b = write_official(tmp_path / "download (1)", "shd", "train").rename(tmp_path / "b.bin")
    heidelberg.convert_official("shd", [a, b], tmp_path / "the out", partial_files=False)
    assert f"--path_to_dataset '{tmp_path}/the out'" in capsys.readouterr().out
    assert len(readers.read("shd", tmp_path / "the out/shd_train.h5", "train", 700, 20)) == 40


BAD = {
    "number": ("shd_train.h5: has 30 recordings, the official files of shd 40 (train), 24 (test)", "or give --partial"),
    "missing": ("the test file of shd is missing; fetch shd_test.h5.gz from https://zenkelab.org",),
    "cut": ("shd_train.h5.gz: is truncated or damaged", "fetch it again"),
    "damaged": ("shd_train.h5.gz: is truncated or damaged", "fetch it again"),
    "truncated": ("shd_train.h5: ", "fetch it again"),
    "twice": ("are both the train file of shd; give only one of them",),
    "lists": ("spikes/times, spikes/units and labels differ in length",),
    "labels": ("has the labels 0 to 25, not 0 to 19",),
    "unit": ("has the unit 700, beyond 0..699",),
    "none": ("in holds no HDF5 file, compressed or not",),
    "other": ("names 35 classes in extra/keys, and shd has 20",),
    "text": ("not an HDF5 file, compressed by gzip or not",),
    "nothing": ("does not exist",),
}


@pytest.mark.parametrize("kind", BAD)
def test_files_that_are_refused(program, tmp_path, kind):
    folder = tmp_path / "in"
    path = write_official(folder / "shd_train.h5", "shd", "train", 30 if kind == "number" else None)
    if kind != "missing":
        write_official(folder / "shd_test.h5", "shd", "test")
    words = "in"
    if kind in ("cut", "damaged"):
        path = pack(path)
        content = bytearray(path.read_bytes())
        if kind == "cut":
            del content[len(content) // 2 :]
        else:
            content[-6] ^= 1  # of the checksum
        path.write_bytes(content)
    elif kind == "truncated":
        path.write_bytes(path.read_bytes()[:-3000])
    elif kind == "twice":
        shutil.copy(path, folder / "again.h5")
    elif kind in ("lists", "labels", "unit"):
        with h5py.File(path, "a") as file:
            if kind == "labels":
                file["labels"][3] = 25
            else:
                values = file["spikes/units"][20].copy()
                values[0] = 700
                file["spikes/units"][20] = values if kind == "unit" else values[1:]
    elif kind == "none":
        shutil.rmtree(folder)
        folder.mkdir()
    elif kind == "other":
        write_official(tmp_path / "x.h5", "ssc", "train")
        words = "x.h5"
    elif kind == "text":
        (tmp_path / "x.h5").write_text("x")
        words = "x.h5"
    elif kind == "nothing":
        words = "nowhere.h5"
    assert_one_line(program(f"-m datasets.prepare shd {words} --out out"), *BAD[kind])
    assert not [path for path in tmp_path.glob("out/*") if "train" in path.name and kind not in ("missing", "twice")]
    assert not list(tmp_path.glob("out/.*"))


def test_parts_are_told_by_their_names(program, tmp_path):
    for split in ("train", "test"):
        write_official(tmp_path / "in" / f"my {split} part.h5", "shd", split, 20)
    assert program("-m datasets.prepare shd in --out out --partial").returncode == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["shd_test.h5", "shd_train.h5"]
