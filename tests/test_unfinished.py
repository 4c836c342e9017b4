"""Conversions of events that are interrupted: they continue, and give the same files."""

import json
import os
import resource
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest

from datasets.prepare import events, sources, store
from datasets.prepare.cameras.pieces import Said
from datasets.prepare.cut import Shape
from datasets.prepare.recordings import Recording
from datasets.prepare.unfinished import Unfinished
from datasets.prepare.writer import new_file
from snn.errors import InputError
from tests.cameras import HEIGHT, SENSOR, WIDTH, write_partly_invalid, write_tree
from tests.conftest import REPOSITORY, assert_one_line


def test_two_conversions_do_not_write_one_folder(tmp_path):
    first = Unfinished(tmp_path / "x", {}, [])
    with pytest.raises(InputError, match="another process is writing it"):
        Unfinished(tmp_path / "x", {}, [])
    first.close()
    Unfinished(tmp_path / "x", {}, []).close()


@pytest.mark.parametrize("cut", [0, 1, 30])
def test_a_run_that_ends_as_it_begins_to_continue_loses_nothing(tmp_path, cut):
    """Its disk is full, or it is killed: what is done is kept all the time, up to the first line that is not whole."""
    written = write_tree(tmp_path / "in", 3)
    found = sources.list_sources(tmp_path / "in", None, None, None, {})
    first = Unfinished(tmp_path / "x", {"size": 1}, found)
    for source, e in zip(found, written.values(), strict=True):
        first.append(*np.ascontiguousarray(e.T[:2], np.uint32))
        first.whole()
        first.commit(source, 0)
    first.close()
    index = tmp_path / "x/index.jsonl"
    index.write_bytes(index.read_bytes()[: len(index.read_bytes()) - cut])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (10, soft):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            again = Unfinished(tmp_path / "x", {"size": 1}, found)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert [len(times) for _, (times, _) in again.recordings()] == [300] * (6 - (cut > 0))
        again.close()
    index.write_bytes(b"")
    assert not Unfinished(tmp_path / "x", {"size": 1}, found).lines


def test_recordings_that_wait_hold_no_files_open(tmp_path):
    """Those of an interrupted run are maps of files, each of which holds one open; many systems allow 256 at a time."""
    (path := tmp_path / "a.bin").touch()
    found = [Recording(path, "a", None, None)]
    first, events = Unfinished(tmp_path / "x", {}, found), np.arange(10, dtype=np.uint32)
    for _ in range(100):
        first.append(events, events)
        first.whole()
    first.commit(found[0], 0)
    first.close()
    again = Unfinished(tmp_path / "x", {}, found)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/dev/fd")) + 50, hard))
    try:
        with new_file(tmp_path / "x.h5", {}) as file:
            made = store.Store(file, 9000)
            for _, recording in again.recordings():
                made.append(*recording)
            made.finish(["a"] * 100, None, [None] * 100, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        again.close()
    with h5py.File(tmp_path / "x.h5") as file:
        assert [row.tolist() for row in file["spikes/units"][()]] == [events.tolist()] * 100


def test_invalid_events_of_an_interrupted_run_are_counted_too(program, tmp_path):
    invalid = write_partly_invalid(tmp_path / "in")
    bad = tmp_path / "in/right/5.aedat"
    content = bad.read_bytes()
    bad.write_bytes(content[:-1])
    assert_one_line(program("-m datasets.prepare events in --out mine --processes 1"), "is truncated")
    bad.write_bytes(content)
    result = program("-m datasets.prepare events in --out mine --processes 1")
    assert "continuing after 5 of 6 files" in result.stdout + result.stderr
    assert f"\n{invalid:,} events marked invalid were left out" in result.stdout


def test_an_interrupted_run_goes_on_and_gives_the_same_files(tmp_path, monkeypatch):
    folder = tmp_path / "in"
    write_tree(folder, 6)
    found = sources.draw_splits(sources.list_sources(folder, None, None, None, {}), 0.2, 0.0, "file", 0)
    said = Said(size=(HEIGHT, WIDTH))

    def convert(out: str) -> None:
        events.convert_events(folder, tmp_path / out / "mine", found, said, Shape(window_ms=50), 2)

    convert("whole")
    bad = found[7].path
    content = bad.read_bytes()
    bad.write_bytes(content[:-1])
    with pytest.raises(InputError, match="is truncated"):
        convert("cut")
    left = tmp_path / "cut/mine/.mine.unfinished"
    assert [path.name for path in (tmp_path / "cut/mine").iterdir()] == [".mine.unfinished"]
    lines = (left / "index.jsonl").read_text().splitlines()
    assert len(lines) == 8
    (left / "index.jsonl").write_text("\n".join(lines) + '\n{"source": ["torn')  # killed in the midst of a line
    with (left / "times").open("ab") as file:
        file.write(b"123")
    bad.write_bytes(content)
    made = []
    of = events.parts_of
    monkeypatch.setattr(events, "parts_of", lambda path, *rest: made.append(path) or of(path, *rest))
    convert("cut")
    assert len(made) == len(found) - 7
    for name in ("mine_train.h5", "mine_test.h5"):
        with h5py.File(tmp_path / "whole/mine" / name) as a, h5py.File(tmp_path / "cut/mine" / name) as b:
            for key in ("spikes/times", "spikes/units"):
                assert [v.tolist() for v in a[key][()]] == [v.tolist() for v in b[key][()]]
            assert a["labels"][()].tolist() == b["labels"][()].tolist()
            assert json.loads(a.attrs["provenance"])["shape"]["window_ms"] == 50
    # other settings begin again
    bad.write_bytes(content[:-1])
    with pytest.raises(InputError):
        convert("third")
    made.clear()
    bad.write_bytes(content)
    events.convert_events(folder, tmp_path / "third/mine", found, said, Shape(window_ms=20), 1)
    assert len(made) == len(found)


@pytest.mark.slow
def test_a_killed_run_goes_on(tmp_path, launch):
    write_tree(tmp_path / "in", 6)
    long = "t_us,x,y,p\n" + "".join(f"{k},1,1,1\n" for k in range(1_500_000))  # so that the kill comes in time
    (tmp_path / "in/right/s9_9.csv").write_text(long)
    command = f"{sys.executable} -m datasets.prepare events in --out mine {SENSOR} --processes 1".split()
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    process = launch(command, cwd=tmp_path, env=environment)
    index = tmp_path / "mine/.mine.unfinished/index.jsonl"
    while process.poll() is None and not (index.is_file() and index.read_text().count("\n") > 6):
        time.sleep(0.005)
    process.kill()
    process.wait()
    done = index.read_text().count("\n") - 1
    assert 6 <= done < 13
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert f"continuing after {done} of 13 files" in result.stdout + result.stderr
    with h5py.File(tmp_path / "mine/mine_train.h5") as file:
        assert len(file["labels"]) == 10 or len(file["labels"]) == 11
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == ["mine.png", "mine_test.h5", "mine_train.h5"]
