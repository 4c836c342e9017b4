"""An interrupted preparation can be continued, and the processes and threads that it starts end."""

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from datasets.prepare import parallel, wav
from datasets.prepare.journal import Journal
from snn.errors import InputError
from tests.conftest import REPOSITORY
from tests.programs import converted


def test_a_conversion_goes_on_where_it_was_interrupted(four, convert, monkeypatch):
    heard = []

    def interrupted(audio, rate_hz, seed):
        if len(heard) == 2:
            raise KeyboardInterrupt
        heard.append(seed)
        return np.array([seed[1]], np.float32), np.array([seed[1]], np.uint16)

    monkeypatch.setattr(wav, "map_in_order", lambda function, tasks, *_: map(function, tasks))
    with monkeypatch.context() as patched:
        patched.setattr(wav, "cochlea", interrupted)
        with pytest.raises(KeyboardInterrupt, match="2 of 4 recordings are kept; the same command continues"):
            wav.convert_wavs(four / "in", four / "out", None, None, 0.5, 0, 1)
    (journal,) = (four / "out").iterdir()
    with journal.open("ab") as file:  # and was killed while it wrote
        file.write(journal.read_bytes()[-100:-40])
    with pytest.raises(InputError, match=r"out\.unfinished holds .*\(seed 0, now 1\): repeat that command"):
        convert(seed=1)
    assert "2 of 4 recordings were converted before: continuing" in convert()
    times = [float(row[0]) for split in ("train", "test") for row in converted(four, split)["times"]]
    assert times == pytest.approx([0, 1, 0.1, 0.1])
    assert sorted(path.name for path in (four / "out").iterdir()) == ["out_test.h5", "out_train.h5"]
    monkeypatch.setattr(wav, "write_events", None)  # what is complete is not made again
    assert "4 recordings of 2 classes" in convert()


def test_a_journal_that_ended_within_its_first_line_begins_anew(tmp_path):
    Journal(tmp_path / "x", {"seed": 1})._file.close()
    content = (tmp_path / "x").read_bytes()
    (tmp_path / "x").write_bytes(content[:5])
    assert len(Journal(tmp_path / "x", {"seed": 1})) == 0
    assert (tmp_path / "x").read_bytes() == content


@pytest.mark.parametrize("cut", [1, 40, 130, 200, 330])
def test_a_journal_keeps_whole_results(tmp_path, cut):
    path, plan = tmp_path / "x.unfinished", {"seed": 1}
    results = [(np.arange(n, dtype=np.float32), np.arange(n, dtype=np.uint16)) for n in (3, 0, 5)]
    journal = Journal(path, plan)
    for result in results:
        journal.append(*result)
    with pytest.raises(InputError, match="another process is writing it"):
        Journal(path, plan)
    journal._file.close()
    path.write_bytes(path.read_bytes()[:-cut])
    again = Journal(path, plan)
    assert len(again) == 2
    for result in results[2:]:
        again.append(*result)
    for got, want in zip(again, results, strict=True):
        assert all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(got, want, strict=True))
    again.remove()
    assert not path.exists()


@pytest.mark.parametrize("notes", ["my notes\n", "my notes", "[1]\n", "\0" * 20_000])
def test_a_journal_of_something_else(tmp_path, notes):
    path = tmp_path / "x.unfinished"
    path.write_text(notes)
    with pytest.raises(InputError, match="is not an unfinished conversion"):
        Journal(path, {})
    assert path.read_text() == notes
    with pytest.raises(InputError, match="cannot be written"):
        Journal(path / "below", {})


def test_a_full_disk_leaves_what_is_done(tmp_path):
    """Run in a process of its own, whose files may not grow beyond 1,000 bytes."""
    script = (
        "import resource, sys, numpy, pathlib; from datasets.prepare.journal import Journal\n"
        "from snn.cli import run\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "def main():\n"
        "    journal = Journal(pathlib.Path(sys.argv[1]), {})\n"
        "    for _ in range(9):\n        journal.append(numpy.zeros(40))\n"
        "run(main)\n"
    )
    words = [sys.executable, "-c", script, str(tmp_path / "x.unfinished")]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "x.unfinished cannot be written (File too large): finished work is kept" in done.stderr
    assert len(Journal(tmp_path / "x.unfinished", {})) == 1


# processes


def test_no_thread_outlives_the_work():
    """A thread that did caused "Exception ignored in: threading ... Bad file descriptor" at the end of the program."""

    def threads():
        return {thread for thread in threading.enumerate() if type(thread).__name__ != "TMonitor"}  # tqdm's

    before = threads()
    assert list(parallel.map_in_order(abs, range(-9, 0), 2, "x")) == list(range(9, 0, -1))
    assert threads() <= before
    some = parallel.map_in_order(abs, range(-9, 0), 2, "x")
    assert next(some) == 9
    some.close()
    assert threads() <= before


def test_ctrl_c_while_workers_start_is_one_line(tmp_path, launch):
    """It reaches them, too, while they still import what their work needs. The worker sends it here, just then."""
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, signal\n"
        "from datasets.prepare.parallel import map_in_order\n"
        "from snn import cli\n"
        "if __name__ == '__mp_main__':\n    os.killpg(0, signal.SIGINT)\n"
        "if __name__ == '__main__':\n    cli.run(lambda: list(map_in_order(abs, range(600), 1, 'x')))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    parent = launch([sys.executable, str(script)], env=environment, stderr=subprocess.PIPE, text=True)
    assert parent.communicate(timeout=300)[1] == "interrupted\n"
    assert parent.returncode == 130


def test_workers_end_with_a_parent_that_is_killed(tmp_path, launch):
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, time\n"
        "from datasets.prepare.parallel import map_in_order\n"
        "def task(_):\n    time.sleep(0.05)\n    return os.getpid()\n"
        "if __name__ == '__main__':\n"
        "    for pid in map_in_order(task, range(600), 1, 'x'):\n        print(pid, flush=True)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    parent = launch(
        [sys.executable, str(script)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    worker = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    for _ in range(100):
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("the worker lives on")
