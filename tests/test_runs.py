"""Runs that are interrupted, killed or damaged, and continue.

Training processes that will be killed come from a fork server that has imported torch once. This file is also a program
that torchrun starts twice.
"""

import fcntl
import math
import multiprocessing
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

import tasks
from snn import checkpoint, runs
from snn.inputs import SparseCounts
from snn.team import gather
from tests.conftest import ON_CPU, REPOSITORY, TORCHRUN, assert_one_line
from tests.programs import EVENTS, rows, run_here, state

IMAGES = (
    f"train.py --path_to_yaml {REPOSITORY}/configs/ttfs_mnist_mlp.yaml --dataset_name toy --path_to_dataset toy "
    "--num_classes 3 --set data.layout=npz --set data.shape=[1,12,12] --batch-size 16 --set ttfs.layers=16F "
    "--set data.augment=[crop,cutout]"
)
CALLS = ("fsync", "replace", "truncate", "rename")  # of os: a run killed at any of these was writing
servers = multiprocessing.get_context("forkserver")
servers.set_forkserver_preload(["tests.test_runs"])


def test_the_smallest_weights_are_pruned(uninterrupted):
    """The other tests of killed and resumed runs rely on it, as `uninterrupted` and they have network.density = 0.5."""
    _, bits = uninterrupted
    for layer in range(3):
        W = np.frombuffer(bits[f"last.pt layers.{layer}.linear.weight"], np.float32)
        assert (W == 0).mean() == (0.5 if layer < 2 else 0)


def test_delays_are_whole_at_the_end(uninterrupted):
    """The best model is chosen among those epochs, even if an earlier one was right more often."""
    log, bits = uninterrupted
    assert log[0]["validation_fs_accuracy"] >= log[2]["validation_fs_accuracy"]
    for name in ("best.pt", "last.pt"):
        delays = np.frombuffer(bits[f"{name} layers.0.linear.delays.steps"], np.float32)
        assert np.array_equal(delays, delays.round())
        assert len(np.unique(delays)) > 1


def enter(folder: Path) -> None:
    """Go to that folder with one thread, and write what is printed to a file there."""
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # for a program that this process starts
    os.chdir(folder)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream.fileno())


def train_in_process(folder: Path, command: str, kill_at: float) -> None:
    """Train in `folder`, from the first line of train.py to its exit code, and die at that call of CALLS."""
    enter(folder)
    calls = iter(range(10**9))

    def deadly(call: Callable) -> Callable:
        def counted(*words: object) -> object:
            if next(calls) >= kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*words)

        return counted

    for name in CALLS:
        setattr(os, name, deadly(getattr(os, name)))
    script, *sys.argv[1:] = command.split()
    runpy.run_path(str(REPOSITORY / script), run_name="__main__")


def train_afresh(folder: Path, command: str) -> None:
    """Turn this process into one that a user starts in `folder`."""
    enter(folder)
    script, *words = command.split()
    os.execv(sys.executable, [sys.executable, str(REPOSITORY / script), *words])


def start(folder: Path, command: str, kill_at: float = math.inf) -> multiprocessing.Process:
    process = servers.Process(target=train_in_process, args=(folder, command, kill_at))
    process.start()
    return process


def finish(process: multiprocessing.Process) -> int:
    process.join(600)
    assert process.exitcode is not None
    return process.exitcode


def test_killed_while_it_writes(both_kinds):
    """Kill it between best.pt and last.pt and, after a resume, when last.pt has just become last.previous.pt."""
    assert finish(start(both_kinds, f"{EVENTS} --epochs 2 --save_name whole")) == 0
    for point in (9, 8):
        words = f"{EVENTS} --epochs 2 --save_name x" + " --resume" * (both_kinds / "runs" / "x").exists()
        assert finish(start(both_kinds, words, point)) == -signal.SIGKILL
    assert {path.name for path in (both_kinds / "runs" / "x").glob("*.pt")} == {"best.pt", "last.previous.pt"}
    assert finish(start(both_kinds, f"{EVENTS} --epochs 2 --save_name x --resume")) == 0
    assert state(both_kinds / "runs" / "x") == state(both_kinds / "runs" / "whole")
    assert not list((both_kinds / "runs" / "x").glob(".*"))


def contents(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Both kinds of networks write by the same code: in CI one is killed at each call, and the other at random moments.
@pytest.mark.parametrize(
    "command",
    [
        pytest.param(EVENTS, marks=pytest.mark.slow, id="events"),
        pytest.param(IMAGES, marks=pytest.mark.long, id="images"),
    ],
)
def test_killed_at_every_call_that_writes(both_kinds, command):
    """Resume from what a kill would leave at each call that changes the disk; each gives the same result.

    One run notes its files before each call. A kill leaves just these, as it loses what the process still buffers.
    """
    words, left = f"{command} --epochs 2 --save_name x", []
    all_runs, run = both_kinds / "runs", both_kinds / "runs" / "x"

    def watched(call: Callable) -> Callable:
        def noted(*arguments: object) -> object:
            files = contents(all_runs)
            if [files] != left[-1:]:  # not every call has changed them
                left.append(files)
            return call(*arguments)

        return noted

    with pytest.MonkeyPatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, watched(getattr(os, name)))
        run_here(both_kinds, words)
    whole = state(run)
    assert len(left) > 12
    for files in left:
        shutil.rmtree(all_runs)
        all_runs.mkdir()
        for path, content in files.items():
            (all_runs / path).parent.mkdir(exist_ok=True)
            (all_runs / path).write_bytes(content)
        run_here(both_kinds, words + " --resume" * run.exists())
        assert state(run) == whole, files.keys()


@pytest.mark.parametrize(
    ("command", "times"),
    [
        pytest.param(IMAGES, 8, marks=pytest.mark.slow, id="images-8"),
        pytest.param(EVENTS, 20, marks=pytest.mark.long, id="events-20"),
        pytest.param(IMAGES, 20, marks=pytest.mark.long, id="images-20"),
    ],
)
def test_killed_at_random_moments(both_kinds, command, times):
    """Kill a process from outside, every third time while it writes a checkpoint; 20 are started as by a user."""
    random, run = np.random.default_rng(0), both_kinds / "runs" / "x"

    def train(name: str) -> multiprocessing.Process:
        """Start or resume a run, and return its process when it has opened TensorBoard's file, just before training."""
        folder = both_kinds / "runs" / name
        words = f"{command} --epochs {8 * times} --save_name {name}" + " --resume" * folder.exists()
        before = set(folder.glob("events.*"))
        if times == 8:
            process = start(both_kinds, words)
        else:
            process = servers.Process(target=train_afresh, args=(both_kinds, words))
            process.start()
        while set(folder.glob("events.*")) == before:
            assert process.is_alive(), (both_kinds / "output.txt").read_text()
            time.sleep(0.01)
        return process

    whole = train("whole")
    assert finish(whole) == 0
    # the median is that of a machine that is now and then busy; 2: an epoch is also saved
    epoch_s = 2 * np.median([row["seconds"] for row in rows(both_kinds / "runs" / "whole" / "metrics.jsonl")])
    log = run / "metrics.jsonl"

    def epochs() -> int:
        return log.read_text().count("\n") if log.exists() else 0

    for kill in range(times):
        process = train("x")
        more, part = divmod(random.uniform(0, 8 / 1.5), 1)  # so that the run outlives the kills
        last = epochs() + more  # counted, as this machine may be less busy now than it was
        while process.is_alive() and epochs() < last:
            time.sleep(0.001)
        time.sleep(part * epoch_s)
        while kill % 3 == 0 and process.is_alive() and not list(run.glob(".*.pt.*")):
            pass
        process.kill()
        assert finish(process) == -signal.SIGKILL  # otherwise the run ended too soon to be killed so often
    assert finish(train("x")) == 0
    assert state(run) == state(both_kinds / "runs" / "whole")


@pytest.mark.usefixtures("both_kinds")
@pytest.mark.parametrize(
    ("command", "task", "number"),
    [(EVENTS, tasks.events.EventTraining, signal.SIGTERM), (IMAGES, tasks.images.ImageTraining, signal.SIGINT)],
)
def test_a_signal_ends_with_the_batch(program, tmp_path, monkeypatch, command, task, number):
    """It comes in the second batch of the third epoch, when weights are pruned; the run continues with the third."""
    words = f"{command} --epochs 3 {ON_CPU}"  # on a GPU `_loss` is not called for a step that is replayed
    assert program(f"{words} --save_name whole").returncode == 0
    loss, steps = task._loss, iter(range(100))

    def interrupted(self, *batch: object) -> torch.Tensor:
        if next(steps) == 9:
            signal.raise_signal(number)
        return loss(self, *batch)

    monkeypatch.setattr(task, "_loss", interrupted)
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    result = program(f"{words} --save_name x")
    assert result.returncode == 128 + number
    lines = [line for line in result.stderr.splitlines() if "interrupted" in line]
    assert lines == ["interrupted in epoch 3, after batch 2; the same command with --resume continues from there"]
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers
    _, content = checkpoint.load(tmp_path / "runs" / "x" / "last.pt", for_resume=True)
    assert (content["epoch"], content["step"]) == (2, 2)
    resumed = program(f"{words} --save_name x --resume")
    assert resumed.returncode == 0, resumed.stderr
    assert state(tmp_path / "runs" / "x") == state(tmp_path / "runs" / "whole")


@pytest.mark.usefixtures("both_kinds")
def test_a_second_ctrl_c_ends_at_once(program, tmp_path, monkeypatch):
    def impatient(self) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(tasks.events.EventTraining, "after_step", impatient)
    result = program(f"{EVENTS} --epochs 1 --save_name x")
    assert result.returncode == 130
    assert "continues from runs/x/last.pt" in result.stderr
    assert "Traceback" not in result.stderr
    _, content = checkpoint.load(tmp_path / "runs" / "x" / "last.pt", for_resume=True)
    assert (content["epoch"], content["step"]) == (0, 0)


TEAM = f"{EVENTS} {ON_CPU} --epochs 3 --distributed --save_name"


def train_as_one_of_two() -> None:
    """Train a whole run, and one that SIGTERM, which torchrun passes on, ends in the second batch of the third epoch.

    torchrun lets its processes meet once: both runs use the same group.
    """
    gather(False, torch.device("cpu"))
    dist.init_process_group = dist.destroy_process_group = lambda *_, **__: None
    loss, steps = tasks.events.EventTraining._loss, iter(range(100))

    def interrupted(self, *batch: object) -> torch.Tensor:
        if next(steps) == 9:
            if dist.get_rank() == 0:
                os.kill(os.getppid(), signal.SIGTERM)
            heard = signal.getsignal(signal.SIGTERM).__self__
            while not heard.number:
                time.sleep(0.01)
        return loss(self, *batch)

    for name, tasks.events.EventTraining._loss in (("whole", loss), ("x", interrupted)):
        sys.argv = [*TEAM.split(), name]
        runpy.run_path(str(REPOSITORY / "train.py"), run_name="__main__")


@pytest.mark.slow
def test_two_processes_resume_within_an_epoch(both_kinds, launch):
    """Each process continues with its own random numbers."""

    def finish_two(*words: str | Path) -> tuple[str, int]:
        path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
        environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        process = launch([*TORCHRUN, *words], cwd=both_kinds, env=environment, stderr=subprocess.PIPE, text=True)
        return process.communicate(timeout=600)[1], process.returncode

    said, code = finish_two(__file__)
    assert "interrupted in epoch 3, after batch 2; the same command with --resume continues" in said, said
    assert code != 0
    _, content = checkpoint.load(both_kinds / "runs" / "x" / "last.pt", for_resume=True)
    assert (content["epoch"], content["step"], len(content["processes"])) == (2, 2, 2)
    script, *words = TEAM.split()
    said, code = finish_two(REPOSITORY / script, *words, "x", "--resume")
    assert code == 0, said
    assert state(both_kinds / "runs" / "x") == state(both_kinds / "runs" / "whole")


KINDS = [(EVENTS, tasks.events.EventTraining), (IMAGES, tasks.images.ImageTraining)]


def weight_of_output(network: torch.nn.Module) -> torch.Tensor:
    return network.readout.weight if hasattr(network, "readout") else network.output.linear.weight


@pytest.mark.usefixtures("both_kinds")
@pytest.mark.parametrize(("command", "task"), KINDS)
@pytest.mark.parametrize("fault", ["input", "weight", "loss", "gradient"])
def test_not_a_finite_number(program, tmp_path, monkeypatch, command, task, fault):
    """It occurs in the second batch: the place, the samples and the checkpoint are named, and that checkpoint works."""
    command = f"{command} {ON_CPU}"  # on a GPU a step that is replayed would not see what is spoiled here
    kind = task
    batches, loss, after_step, steps = kind.batches, kind._loss, kind.after_step, iter(range(100))

    orders = []

    def spoiled_batches(self, order: np.ndarray) -> Iterator:
        orders.append(order.tolist())
        for step, (x, target_B) in enumerate(batches(self, order)):
            if step == 1 and fault == "input":
                if isinstance(x, SparseCounts):
                    x.counts[x.offsets[7] : x.offsets[8]] = math.inf  # step 0 of sample 7
                else:
                    x[7, 0, 3, 3] = math.nan
            yield x, target_B

    def spoiled_loss(self, x: object, target_B: torch.Tensor, weight: float) -> torch.Tensor:
        value = loss(self, x, target_B, weight)
        if next(steps) == 1 and fault == "loss":
            return value / 0
        if fault == "gradient":
            weight_of_output(self.network).register_hook(lambda gradient: gradient * math.nan)
        return value

    def spoiled_step(self) -> None:
        after_step(self)
        if fault == "weight":
            weight_of_output(self.network).data[1, 2] = math.nan

    monkeypatch.setattr(kind, "batches", spoiled_batches)
    monkeypatch.setattr(kind, "_loss", spoiled_loss)
    monkeypatch.setattr(kind, "after_step", spoiled_step)
    result = program(f"{command} --epochs 1 --save_name x")
    step = {"input": 2, "loss": 2, "weight": 1, "gradient": 1}[fault]
    output = "readout" if task is tasks.images.ImageTraining else "layers.2.linear"
    place = {"input": "the input", "loss": "the loss"}.get(fault, f"{fault} {output}.weight")
    place = place.replace("gradient ", "the gradient of ").replace(f"weight {output}", f"the parameter {output}")
    assert_one_line(result, f"epoch 1/1, step {step}: not a finite number in {place};", "runs/x/last.pt holds")
    named = [int(number) for number in result.stderr.rsplit(": ", 1)[1].split(", ")]
    assert named == (orders[0][16 + 7 :][:1] if fault == "input" else orders[0][16 * (step - 1) :][:16])
    _, content = checkpoint.load(tmp_path / "runs" / "x" / "last.pt", for_resume=True)
    assert all(value.isfinite().all() for value in content["network"].values())


@pytest.mark.parametrize("fault", ["data have vanished", "another trains there"])
def test_what_stops_a_run_leaves_it_as_it_was(program, both_kinds, fault):
    words = f"{EVENTS} --epochs 1 --save_name x"
    assert program(words).returncode == 0
    before = {path: path.read_bytes() for path in (both_kinds / "runs" / "x").iterdir()}
    lock = (both_kinds / "runs" / ".x.lock").open("w")
    if fault == "data have vanished":
        (both_kinds / "shd" / "shd_train.h5").unlink()
    else:
        fcntl.flock(lock, fcntl.LOCK_EX)
    message = "shd_train.h5: not found" if fault == "data have vanished" else "is being trained by another process"
    for more in ("", " --resume"):
        assert_one_line(program(words + more), message)
    assert {path: path.read_bytes() for path in (both_kinds / "runs" / "x").iterdir()} == before
    assert {path.name for path in (both_kinds / "runs").iterdir()} == {"x", ".x.lock"}
    lock.close()


@pytest.mark.usefixtures("both_kinds")
@pytest.mark.parametrize("command", [EVENTS, IMAGES], ids=["events", "images"])
def test_a_seed_is_a_run(program, tmp_path, command):
    """The same seed gives the same bits, and another seed gives others."""
    for name, seed in (("one", 3), ("same", 3), ("other", 4)):
        assert program(f"{command} --epochs 1 --save_name {name} --seed {seed}").returncode == 0
    one, same, other = (state(tmp_path / "runs" / name) for name in ("one", "same", "other"))
    assert one == same
    assert one[0] != other[0]
    weights = [name for name in one[1] if name.startswith("last.pt") and name.endswith(".weight")]
    assert len(weights) >= 2
    assert all(one[1][name] != other[1][name] for name in weights)


@pytest.mark.usefixtures("both_kinds")
def test_ctrl_c_as_the_run_begins_is_heard(program, monkeypatch):
    """Once its folder is there, a run says how to continue it."""
    begin = runs.begin

    def interrupted(*arguments):
        begin(*arguments)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(runs, "begin", interrupted)
    monkeypatch.setattr(signal, "getsignal", lambda _: signal.default_int_handler)  # under `&` it would be ignored
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        result = program(f"{EVENTS} --epochs 3 --save_name x")
    finally:
        signal.signal(signal.SIGINT, before)
    assert result.returncode == 130
    assert "--resume" in result.stderr


if __name__ == "__main__":
    train_as_one_of_two()
