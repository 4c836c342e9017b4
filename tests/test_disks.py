"""Runs whose disk is full, read-only or faulty: one line, and they continue."""

import errno
import gc
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from snn import checkpoint
from tests.conftest import assert_one_line
from tests.programs import EVENTS, state


@contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[Callable[[str], None]]:
    """Mount a file system of that size if we may; yield a function that mounts it again with other options."""

    def mount(options: str) -> None:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("may not mount here")

    if sys.platform != "linux":
        pytest.skip("tmpfs is Linux's")
    folder.mkdir()
    mount(f"size={kilobytes}k")
    try:
        yield lambda options: mount(f"remount,{options}")
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill_up_and_resume(program: Callable, folder: Path, kilobytes: int, uninterrupted: tuple) -> bool:
    """Return whether a run fills a disk of that size, which gives one line; with more room it finishes."""
    words = f"{EVENTS} --epochs 3 --save_name x"
    with small_disk(folder / "runs", kilobytes) as mount_again:
        result = program(words)
        is_full = result.returncode != 0
        if is_full:
            assert_one_line(result, "runs/x", "No space left on device")
            mount_again("size=9m")
            gc.collect()  # TensorBoard's thread keeps an error, whose frame holds the lock until a process ends
            result = program(words + " --resume" * (folder / "runs" / "x").exists())
        assert result.returncode == 0, result.stderr
        assert state(folder / "runs" / "x") == uninterrupted
    (folder / "runs").rmdir()
    return is_full


@pytest.mark.parametrize("kilobytes", [20, 80])
@pytest.mark.mounts
def test_a_full_disk(program, both_kinds, uninterrupted, kilobytes):
    assert fill_up_and_resume(program, both_kinds, kilobytes, uninterrupted)


@pytest.mark.parametrize("step", [pytest.param(16, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.long)])
@pytest.mark.mounts
def test_a_disk_that_is_full_at_any_page(program, both_kinds, uninterrupted, step):
    """Fill it at every fourth page, and at each in the long test."""
    kilobytes = 4
    while fill_up_and_resume(program, both_kinds, kilobytes, uninterrupted):
        kilobytes += step
    assert kilobytes > 100


@pytest.mark.usefixtures("both_kinds")
@pytest.mark.mounts
def test_a_read_only_folder(program, tmp_path):
    """At the start and at a resume, it gives one line, and no file changes."""
    words = f"{EVENTS} --epochs 1 --save_name x"
    with small_disk(tmp_path / "runs", 4096) as mount_again:
        assert program(words).returncode == 0
        before = state(tmp_path / "runs" / "x")
        mount_again("ro")
        for more in ("", " --resume"):
            assert_one_line(program(words + more), "runs/.x.lock: cannot be written", "Read-only file system")
        assert state(tmp_path / "runs" / "x") == before


@pytest.mark.parametrize("writer", ["metrics.jsonl", "TensorBoard", "checkpoint"])
def test_a_faulty_file(program, both_kinds, uninterrupted, monkeypatch, writer):
    """Whichever writer meets the full disk, in the second epoch or at its end, the run continues from the first."""
    calls = iter(range(10**6))

    def fails(call: Callable, at: int) -> Callable:
        def counted(*words: object) -> object:
            if next(calls) >= at:
                raise OSError(errno.ENOSPC, "No space left on device")
            return call(*words)

        return counted

    if writer == "TensorBoard":
        from tensorboard.summary.writer.record_writer import RecordWriter

        write, numbers = RecordWriter.write, iter(range(10**6))
        monkeypatch.setattr(RecordWriter, "write", lambda *words: (next(numbers), write(*words)))
        assert program(f"{EVENTS} --epochs 1 --save_name once").returncode == 0
        monkeypatch.setattr(RecordWriter, "write", fails(write, next(numbers) + 5))  # of the second epoch
    else:
        # three before the first epoch, one for metrics.jsonl, two each for best.pt and last.pt
        monkeypatch.setattr(os, "fsync", fails(os.fsync, {"metrics.jsonl": 8, "checkpoint": 9}[writer]))
    words = f"{EVENTS} --epochs 3 --save_name x"
    assert_one_line(program(words), "runs/x", "No space left on device")
    _, content = checkpoint.load(both_kinds / "runs" / "x" / "last.pt", for_resume=True)
    assert content["epoch"] == 1
    monkeypatch.undo()
    assert program(f"{words} --resume").returncode == 0
    assert state(both_kinds / "runs" / "x") == uninterrupted
