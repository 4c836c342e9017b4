"""`python -m datasets.prepare events`: from a tree of recordings to files that train."""

import os
from pathlib import Path

import h5py
import numpy as np
import pytest

import tasks
from datasets import readers
from datasets.binning import Bins
from datasets.prepare import cut, sources, store
from datasets.prepare.cameras import pieces
from datasets.prepare.picture import Picture
from datasets.prepare.writer import new_file
from snn import config
from tests.cameras import (
    HEIGHT,
    SENSOR,
    WIDTH,
    some_events,
    write_aedat3,
    write_bin,
    write_metavision,
    write_partly_invalid,
    write_tree,
)
from tests.conftest import assert_one_line, nmnist_bytes


def read(path: Path, split: str = "train", classes: int = 2, height: int = HEIGHT, width: int = WIDTH):
    return readers.read("shd", path, split, 2 * height * width, classes)


def test_a_tree_becomes_files_with_every_event(program, tmp_path):
    written = write_tree(tmp_path / "recordings")
    result = program(f"-m datasets.prepare events recordings --out data/mine {SENSOR} --processes 2")
    assert result.returncode == 0, result.stderr
    assert "10 to train on, 2 to test; 2 classes (left, right)" in result.stdout
    assert (tmp_path / "data/mine/mine.png").stat().st_size > 1000
    made = sorted(path.name for path in (tmp_path / "data/mine").iterdir())
    assert made == ["mine.png", "mine_test.h5", "mine_train.h5"]
    found = {}
    for split in ("train", "test"):
        recordings = read(tmp_path / f"data/mine/mine_{split}.h5", split)
        assert recordings.ticks_per_second == 1e6
        assert recordings.class_names == ("left", "right")
        for r in range(len(recordings)):
            part = slice(*recordings.offsets[r : r + 2])
            key = recordings.times[part].tobytes(), recordings.channels[part].astype(np.int64).tobytes()
            found[key] = int(recordings.labels[r])
    assert len(found) == len(written)
    for name, e in written.items():
        t, x, y, p = e.T
        key = (t - t[0]).astype(np.uint32).tobytes(), ((p * HEIGHT + y) * WIDTH + x).tobytes()
        assert found[key] == name.startswith("right")


def test_what_it_says_trains(program, tmp_path):
    write_tree(tmp_path / "recordings", 12)
    result = program(f"-m datasets.prepare events recordings --out data/mine {SENSOR} --divide 2")
    words = result.stdout.split("to train on them: python train.py ")[1].strip().replace(str(tmp_path) + "/", "")
    options = "--set network.layers=[16F] --set data.T=20 --epochs 1 --batch-size 8 --neuron2 20 20 1"
    result = program(f"train.py {words} {options}")
    assert result.returncode == 0, result.stderr
    result = program("test.py --load_pt_file runs/mine_fs0.2_tau20_adlif")
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(("files", "windows"), [(1, ""), (2, ""), (1, "--window-ms 20"), (4, "--test-share 0")])
def test_what_it_says_of_few_files_trains(program, tmp_path, files, windows):
    """The printed command trains even if nothing can be held out."""
    write_tree(tmp_path / "recordings", files)
    result = program(f"-m datasets.prepare events recordings --out data/mine {SENSOR} --divide 2 {windows}")
    words = result.stdout.split("to train on them: python train.py ")[1].strip().replace(str(tmp_path) + "/", "")
    assert ("validation_share=0" in words) == (files < 4)
    options = "--set network.layers=[16F] --set data.T=20 --epochs 1 --batch-size 8 --neuron2 20 20 1"
    result = program(f"train.py {words} {options}")
    assert result.returncode == 0, result.stderr


def test_splits_come_from_folders_lists_tables_and_subjects(tmp_path, capsys):
    write_tree(tmp_path / "a", 3)
    (tmp_path / "b").mkdir()
    for name in ("Train", "Test", "Validation"):
        write_tree(tmp_path / "b" / name, 2)

    def of(folder: str, by: str = "file", share: float = 0.34, lists=None, **words) -> dict[str, str]:
        words = {"glob": None, "label_pattern": None, "label_csv": None, **words}
        found = sources.list_sources(tmp_path / folder, lists=lists or {}, **words)
        found = sources.draw_splits(found, share, 0.0, by, 0)
        return {s.path.relative_to(tmp_path / folder).as_posix(): (s.label, s.split) for s in found}

    assert of("b")["Validation/left/s1_1.bin"] == ("left", "validation")
    assert {split for _, split in of("b").values()} == {"train", "validation", "test"}
    for name in ("Train", "Test"):  # folders with longer names, in another folder
        write_tree(tmp_path / "c" / "set" / f"n-cars_{name.lower()}", 2)
    assert of("c")["set/n-cars_test/left/s1_1.bin"] == ("left", "test")
    assert {split for _, split in of("c").values()} == {"train", "test"}
    drawn = of("a")
    assert sorted(drawn.values()) == [(c, s) for c in ("left", "right") for s in ("test", "train", "train")]
    by_subject = of("a", "subject", label_pattern=r"(?P<label>\w+)/(?P<subject>s\d)")
    assert {name.split("/")[1][:2] for name, (_, split) in by_subject.items() if split == "test"} == {"s0"} or len(
        {name.split("/")[1][:2] for name, (_, split) in by_subject.items() if split == "test"}
    ) == 1
    assert set(of("a", share=0).values()) == {("left", "train"), ("right", "train")}
    (tmp_path / "testing.txt").write_text("left/s0_0.bin\nright/s1_1.bin\n")
    listed = of("a", lists={"test": tmp_path / "testing.txt"})
    assert [name for name, (_, split) in listed.items() if split == "test"] == ["left/s0_0.bin", "right/s1_1.bin"]
    rows = "left/s0_0.bin, low ,a,train", "right/s0_0.bin,high,b,Test", "right/s1_1.bin,high,b,valid"
    (tmp_path / "table.csv").write_text("\n".join(["File,label, Subject,split,room", *(f"{row},1" for row in rows)]))
    assert of("a", label_csv=tmp_path / "table.csv") == {
        "left/s0_0.bin": ("low", "train"),
        "right/s0_0.bin": ("high", "test"),
        "right/s1_1.bin": ("high", "validation"),
    }
    assert capsys.readouterr().out == f"columns of {tmp_path / 'table.csv'} not used: room\n"
    (tmp_path / "a" / "__MACOSX").mkdir()
    (tmp_path / "a" / "left" / "._s0_0.bin").write_bytes(b"x")
    assert of("a") == drawn


def test_a_list_finds_files_that_a_table_names_by_another_path(tmp_path, monkeypatch):
    write_tree(tmp_path / "a", 2)
    write_tree(tmp_path / "b", 2)
    monkeypatch.chdir(tmp_path)
    rows = f"{tmp_path}/a/left/s0_0.bin,left", f"{tmp_path}/b/left/s0_0.bin,left", "right/s0_0.bin,right"
    (tmp_path / "table.csv").write_text("\n".join(["file,label", *rows]))
    (tmp_path / "testing.txt").write_text("left/s0_0.bin\n")
    found = sources.list_sources(Path("a"), None, None, Path("table.csv"), {"test": Path("testing.txt")})
    assert [source.split for source in found] == ["test", "train", "train"]


def test_names_have_one_spelling(tmp_path):
    """A class in two Unicode forms is one class, and a table finds a file by its name in the other form."""
    write_bin(tmp_path / "caf\u00e9/0.bin", 0, 0)
    write_bin(tmp_path / "cafe\u0301/gru\u0308n.bin", 0, 1)
    found = sources.list_sources(tmp_path, None, None, None, {})
    assert [source.label for source in found] == ["caf\u00e9"] * 2
    (tmp_path / "table.csv").write_text("file,label\ncafe\u0301/gr\u00fcn.bin, very  low\n", "utf-8")
    (source,) = sources.list_sources(tmp_path, None, None, tmp_path / "table.csv", {})
    assert (source.path.name, source.label) == ("gru\u0308n.bin", "very low")


def test_linked_folders_are_searched(tmp_path):
    write_tree(tmp_path / "elsewhere", 2)
    (tmp_path / "in").mkdir()
    for name in ("left", "right"):
        (tmp_path / "in" / name).symlink_to(tmp_path / "elsewhere" / name)
    found = sources.list_sources(tmp_path / "in", None, None, None, {})
    assert {source.label for source in found} == {"left", "right"}


BAD = {
    "table twice": ("line 3: ", "is in line 2 already", "--labels table.csv"),
    "table missing": ("line 2: ", "does not exist: correct the name", "--labels table.csv"),
    "one file, two paths": ("line 3: ", "is in line 2 already: as 'a' and as 'b'", "--labels table.csv"),
    "control character": ("line 2: the label 'a\\x00b' has characters that cannot be stored", "", "--labels table.csv"),
    "no text": ("the label 'left\\udcff' has characters that cannot be stored: rename it", "", "--test-share 0"),
    "long name": ("line 2: ", "does not exist: correct the name", "--labels table.csv"),
    "list": ("testing.txt, line 3: ", "is not a recording in the folder", "--test-list testing.txt"),
    "pattern": ("does not match the label pattern", "change either", r"--label-pattern (?P<label>\d+)"),
    "flat": (
        "is not in a folder that names its class; move it to in/left/CLASS/",
        "--label-pattern or --labels",
        "",
    ),
    "none": ("holds no recording with a known name", "--glob", ""),
    "no folder": ("is not a folder", "", ""),
    "only test": ("class 'right' has no recording to train on", "change the split", "--labels table.csv"),
    "shares": ("must be at least 0, and together below 1", "", "--test-share 0.6 --validation-share 0.5"),
    "subject": ("needs a subject for each file", "", "--split-by subject"),
    "list and split": (
        "give the splits already",
        "leave out --test-list",
        "--labels table.csv --test-list testing.txt",
    ),
    "long window": ("--window-ms 5e+06", "lasts at most 71.6 min", "--window-ms 5e6"),
    "split given": ("--validation-share is for a split", "leave it out", "--labels table.csv --validation-share 0.1"),
    "sizes": ("its sensor has 100x120 pixels, the first file's 16x20", "convert each size separately", ""),
    "glob": ("--glob '/x/*.bin'", "give a pattern below", "--glob /x/*.bin"),
    "stride": ("--stride-ms needs --window-ms", "", "--stride-ms 5"),
    "window": ("--window-ms 0.0004", "choose at least 0.001", "--window-ms 4e-4"),
    "stride of nothing": ("--stride-ms 0.0004", "choose at least 0.001", "--window-ms 5 --stride-ms 4e-4"),
    "glob and table": ("--glob and --labels both choose the files", "leave one out", "--labels table.csv --glob *.bin"),
    "sensor": ("is not a size such as 128x128", "", "--sensor 5"),
    "stray folder": ("/left/s0_0.bin: is in no folder for training", "--label-pattern or --labels", ""),
    "no table": ("table.csv needs the header file,label[,subject][,speaker][,split]", "", "--labels table.csv"),
    "unit of no table": ("--time-unit is for tables", "in has none: leave it out", "--time-unit ms"),
    "table of another name": ("not named like a recording", "--format", "--time-unit ms --glob **/*.txt"),
    "columns of no table": ("--columns is for tables", "leave it out", "--columns t,x,y,p"),
    "polarity of no table": ("--brighter is for tables", "leave it out", "--format nmnist --brighter 1"),
}


@pytest.mark.parametrize("word", ["--time-unit s", "--columns p,t,x,y", "--brighter 0"])
def test_metavision_says_what_its_columns_are(program, tmp_path, word):
    for name in ("left", "right"):
        (tmp_path / "in" / name).mkdir(parents=True)
        write_metavision(tmp_path / "in" / name / "0.hdf5", some_events())
    refused = program(f"-m datasets.prepare events in --out out {word}")
    assert_one_line(refused, f"{word.split()[0]} is for tables", "leave it out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", BAD)
def test_trees_that_are_refused(program, tmp_path, kind):
    write_tree(tmp_path / "in", 3)
    tables = {
        "table twice": "file,label\nleft/s0_0.bin,a\nleft/s0_0.bin,b\n",
        "one file, two paths": "file,label\nleft/s0_0.bin,a\nleft/../left/s0_0.bin,b\n",
        "control character": "file,label\nleft/s0_0.bin,a\0b\n",
        "long name": f"file,label\n{'a' * 5000},a\n",
        "table missing": "file,label\nleft/nothing.bin,a\n",
        "list and split": "file,label,split\nleft/s0_0.bin,left,train\n",
        "split given": "file,label,split\nleft/s0_0.bin,left,train\n",
        "no table": "name,class\nleft/s0_0.bin,left\n",
        "only test": "file,label,split\nleft/s0_0.bin,left,train\nright/s0_0.bin,right,test\n",
    }
    (tmp_path / "table.csv").write_text(tables.get(kind, ""))
    (tmp_path / "testing.txt").write_text("\n\nleft/no.bin\n")
    folder = "in"
    if kind == "flat":
        folder = "in/left"
    elif kind == "none":
        (tmp_path / "empty").mkdir()
        folder = "empty"
    elif kind == "table of another name":
        (tmp_path / "in/left/x.txt").write_text("0 1 2 1\n")
    elif kind == "no text":
        write_bin(tmp_path / "in" / os.fsdecode(b"left\xff") / "0.bin", 0, 0)
    elif kind == "stray folder":
        for name in ("train", "test"):
            write_tree(tmp_path / "in" / name, 2)
    elif kind == "no folder":
        folder = "nowhere"
    elif kind == "sizes":
        (tmp_path / "in/left/z.raw").write_bytes(b"% evt 3.0\n% geometry 120x100\n" + bytes([0, 0x80]))
    *parts, words = BAD[kind]
    sensor = "" if kind == "sensor" else SENSOR
    if kind == "sizes":  # each says its own
        words_of_evt3 = np.array([0x8001, 1, 0x2001], "<u2").tobytes()
        (tmp_path / "in/left/a.raw").write_bytes(b"% evt 3.0\n% geometry 20x16\n" + words_of_evt3)
        sensor = "--glob **/*.raw"
    result = program(f"-m datasets.prepare events {folder} --out data/mine {sensor} {words}")
    assert_one_line(result, *parts)
    assert not list(tmp_path.glob("data/mine/*.h5"))


def test_a_split_left_from_before_is_not_taken_for_one_of_this_set(program, tmp_path):
    write_tree(tmp_path / "in", 5)
    assert program(f"-m datasets.prepare events in --out mine {SENSOR} --validation-share 0.2").returncode == 0
    result = program(f"-m datasets.prepare events in --out mine {SENSOR}")
    assert_one_line(result, "mine_validation.h5: exists already", "remove it")


def test_the_picture_counts_where_and_when_events_of_a_class_are():
    picture = Picture(["a", "b"], (HEIGHT, WIDTH))
    random = np.random.default_rng(0)
    units = random.integers(0, HEIGHT * WIDTH, 500)  # darker ones
    times = np.sort(random.integers(0, 130_000, 500)).astype(np.uint32)
    picture.see(1, times, units.astype(np.uint32))
    assert picture.counts[0].sum() == 0
    expected = np.bincount(units, minlength=HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)
    assert np.array_equal(picture.counts[1, 0], expected)
    assert picture.counts[1, 1].sum() == 0
    assert picture.slice_us * len(picture.rates[1]) > times[-1]
    assert np.array_equal(picture.rates[1], np.bincount(times // picture.slice_us, minlength=60))
    long = np.full(10 * 2**16, 7, np.uint32)  # of a long recording, evenly spread events stand for all
    picture.see(0, np.arange(len(long), dtype=np.uint32), long)
    assert picture.counts[0, 0, 0, 7] == len(long) == picture.rates[0].sum()


def test_the_picture_shows_a_name_with_dollars_as_it_is(tmp_path):
    picture = Picture(["$_$", "$x$"], (HEIGHT, WIDTH))
    picture.see(0, np.zeros(1, np.uint32), np.zeros(1, np.uint32))
    picture.save(tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 1000


@pytest.mark.filterwarnings("error:Glyph")
def test_names_of_any_script_are_drawn(tmp_path):
    """A name that no font can draw is the number of its class."""
    picture = Picture(["右手", "\uf8ff"], (HEIGHT, WIDTH))
    picture.see(0, np.array([0, 10], np.uint32), np.array([1, 2], np.uint32))
    picture.save(tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 1000


# ---- windows, filters


@pytest.mark.parametrize("more", ["", "--hot-pixel-hz 20", "--noise-us 20000 --divide 2", "--sort --hot-pixel-hz 20"])
def test_recordings_that_come_in_parts_are_the_same(program, tmp_path, monkeypatch, more):
    """Only a part of a long recording is in memory until it is written."""
    write_tree(tmp_path / "in", 3)
    content = {}
    for at_once in (2**18, 64):
        monkeypatch.setattr(cut, "AT_ONCE", at_once)
        monkeypatch.setattr(pieces, "BLOCK", 5 * at_once // 2)
        result = program(f"-m datasets.prepare events in --out {at_once}/mine {SENSOR} {more}")
        assert result.returncode == 0, result.stderr
        with h5py.File(tmp_path / f"{at_once}/mine/mine_train.h5") as file:
            content[at_once] = [[v.tolist() for v in file[f"spikes/{name}"][()]] for name in ("times", "units")]
    assert content[64] == content[2**18]
    lengths = [len(times) for times in content[64][0]]
    assert max(lengths) > 64
    assert (min(lengths) < 300) == ("--" in more)


@pytest.mark.parametrize("lengths", [[5] * 9, [5, 0, 7, 300, 1, 1, 1, 40], [1], [250, 250], [3, 3, 3]])
def test_recordings_that_are_written_together_are_those_that_were_appended(tmp_path, monkeypatch, lengths):
    monkeypatch.setattr(store, "RECORDINGS_AT_ONCE", 3)
    monkeypatch.setattr(store, "EVENTS_AT_ONCE", 200)
    times = [np.arange(n, dtype=np.uint32) * (k + 1) for k, n in enumerate(lengths)]
    with new_file(tmp_path / "x.h5", {}) as file:
        made = store.Store(file, 9000)
        for k, t in enumerate(times):
            made.append(t, np.repeat(np.arange(len(t)) + k, 2)[::2])  # of another type, and not contiguous
        made.finish(list(range(len(lengths))), None, [None] * len(lengths), tmp_path)
    with h5py.File(tmp_path / "x.h5") as file:
        assert [row.tolist() for row in file["spikes/times"][()]] == [t.tolist() for t in times]
        assert [row.tolist() for row in file["spikes/units"][()]] == [
            list(range(k, k + n)) for k, n in enumerate(lengths)
        ]
        assert file["labels"][()].tolist() == list(range(len(lengths)))


def test_recordings_that_the_filters_empty_are_counted(program, tmp_path):
    write_tree(tmp_path / "in", 3)
    for k in range(2):
        (tmp_path / f"in/left/lonely{k}.bin").write_bytes(nmnist_bytes([3], [3], [1], [7]))
    result = program(f"-m datasets.prepare events in {SENSOR} --noise-us 20000 --test-share 0 --out mine")
    assert result.returncode == 0, result.stderr
    assert "2 recordings have no event left" in result.stdout


@pytest.mark.parametrize("in_memory", [True, False])
def test_windows_of_one_file_are_held_out_together(program, tmp_path, in_memory):
    written = write_tree(tmp_path / "in", 10)
    words = f"{SENSOR} --window-ms 20 --stride-ms 10 --test-share 0 --out data/mine"
    assert program(f"-m datasets.prepare events in {words}").returncode == 0
    with h5py.File(tmp_path / "data/mine/mine_train.h5") as file:
        files, labels = file["extra/file"][()], file["labels"][()]
    assert len(np.unique(files)) == len(written) < len(files) / 10
    sensor = config.Sensor(height=HEIGHT, width=WIDTH)
    about = {"dataset_name": "mine", "path": str(tmp_path / "data/mine"), "sensor": sensor, "num_classes": 2}
    data = config.Data(**about, dt_ms=1.0, T=20, test_by="recording", test_share=0.2, in_memory=in_memory)
    bins = Bins(1.0, 20, 0, 2 * HEIGHT * WIDTH)
    recordings = tasks.events.read_recordings(data, "train", bins)
    kept, _, held_out = tasks.events.for_validation(recordings, data, bins, 0)
    tested = np.setdiff1d(np.arange(len(files)), np.concatenate([kept, held_out]))
    parts = [set(files[part]) for part in (kept, held_out, tested)]
    assert [len(part) for part in parts] == [14, 2, 4]  # of either class a fifth, then a tenth
    assert not parts[0] & parts[1]
    assert not parts[2] & (parts[0] | parts[1])
    assert [np.bincount(labels[part]).all() for part in (kept, held_out, tested)] == [True] * 3
    test = tasks.events.read_recordings(data, "test", bins)
    assert test.files.tolist() == files[tested].tolist()


@pytest.mark.parametrize("more", ["", "--window-ms 50", "--sort"])
def test_invalid_events_are_counted(program, tmp_path, more):
    invalid = write_partly_invalid(tmp_path / "in")
    result = program(f"-m datasets.prepare events in --out mine {more}")
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith(f"\n{invalid:,} events marked invalid were left out\n")
    write_tree(tmp_path / "valid")
    assert "invalid" not in program(f"-m datasets.prepare events valid --out other {SENSOR}").stdout


def test_a_file_of_invalid_events_alone(program, tmp_path):
    write_aedat3(tmp_path / "in/a/x.aedat", write_bin(tmp_path / "in/a/x.aedat", 0, 0), np.zeros(300, int))
    result = program("-m datasets.prepare events in --out mine --test-share 0")
    assert_one_line(result, "x.aedat: all of its 300 events are marked invalid; leave the file out")
