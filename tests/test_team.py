"""Several processes train as one. This file is also the program that torchrun starts twice, once for all tests."""

import math
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from spikingjelly.activation_based import layer

from snn import checkpoint, cli, config
from snn.network import Network
from snn.neurons import NEURONS
from snn.team import SyncBatchNorm, Team, gather
from tests.conftest import ON_CPU, REPOSITORY, TORCHRUN, assert_one_line, make_events, toy_images, write_shd
from tests.programs import AUGMENT, TRAIN, TRAIN_IMAGES, rows, run_here, without_times

CPU = torch.device("cpu")
# The last batch of an epoch has one recording (54 and 81 are kept), so one process has none of it; --distributed is
# published, but torchrun is enough.
RUNS = {
    "events": f"{TRAIN} --neuron1 5 5 .1 --neuron2 20 20 .3 --batch-size 53 {AUGMENT} --distributed "
    "--set loss.spike_count.weight=0.1",
    "camera": f"{TRAIN} --neuron1 5 5 .1 --neuron2 20 20 .3 --batch-size 53 --set data.channels=null "
    '--set data.sensor={"height":4,"width":5} '
    "--set network.layers=[4C3,P2,8R] --set network.neuron=CuAdLIF",
    "rates": f"{TRAIN} --loss_mode firing_rate --set network.variant=superspike --set network.neuron=PCuLIF "
    "--set network.values=layer --set network.batch_norm=false --hidden_size 8",
    "images": f"{TRAIN_IMAGES} --set ttfs.standardised=true --set train.silent_drive=0.5 --set ttfs.layers=4C3-P2-16F "
    "--set data.augment=[]",
}
# rounding decides a spike of the camera's network in its second epoch, and runs differ from then on
RUNS = {
    name: f"{words} --epochs {1 if name == 'camera' else 2} --save_name {name} {ON_CPU}"
    + (" --set network.dropout=0" if name != "images" else "")
    for name, words in RUNS.items()
}
ROWS, WIDTH = (5, 3), 4  # rows of each process
COUNTS = ((True, True), (True, False))


def norm_rows(process: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows for BatchNorm, whose mean is far from 0, and the gradient of its output."""
    random = torch.Generator().manual_seed(process)
    x_TBN = 5 + torch.randn(2, ROWS[process], WIDTH, generator=random)
    return x_TBN, torch.randn(2, ROWS[process], WIDTH, generator=random)


def norm_state(norm: layer.BatchNorm1d, x_TBN: torch.Tensor, g_TBN: torch.Tensor) -> dict[str, torch.Tensor]:
    """Run a forward and a backward pass and return what comes out."""
    x_TBN.requires_grad_()
    with torch.no_grad():
        norm.weight += torch.arange(WIDTH)
    y_TBN = norm(x_TBN)
    y_TBN.backward(g_TBN)
    gradients = {"x_grad": x_TBN.grad, "weight_grad": norm.weight.grad, "bias_grad": norm.bias.grad}
    return {"y": y_TBN.detach(), **gradients, **{name: value.clone() for name, value in norm.named_buffers()}}


def work() -> None:
    """Do the work of one of the two processes."""
    team = gather(False, CPU)
    found = {"norms": []}
    for counts in COUNTS:
        norm = SyncBatchNorm(WIDTH, step_mode="m")
        norm.counts = counts[team.rank]
        x_TBN, g_TBN = norm_rows(team.rank)
        found["norms"].append(norm_state(norm, x_TBN, g_TBN * norm.counts))
    norm.running_mean.fill_(team.rank + 5)
    team.agree(norm)
    found["agreed"] = norm.running_mean
    found["largest"] = team.largest(0, team.rank, 3 - team.rank)
    found["total"] = team.total([team.rank])
    torch.save(found, f"process{team.rank}.pt")
    # torchrun lets its processes meet once: the runs below use the same group
    destroy = dist.destroy_process_group
    dist.init_process_group = dist.destroy_process_group = lambda *_, **__: None
    for words in RUNS.values():
        sys.argv = words.split()
        runpy.run_path(str(REPOSITORY / "train.py"), run_name="__main__")
    destroy()


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """Make the data and the runs of one process. It comes first, because two would both compile the kernels."""
    folder = tmp_path_factory.mktemp("alone")
    write_shd(folder / "shd" / "shd_train.h5", **make_events(60, 3, 40, 0))
    (folder / "data").mkdir()
    pixels, labels = toy_images(90, 0)
    np.savez(folder / "data" / "toy.npz", x_train=pixels, y_train=labels)
    for words in RUNS.values():
        run_here(folder, words)
    return folder


@pytest.fixture(scope="module")
def folder(alone, tmp_path_factory) -> Path:
    """Return the same data with the runs of the two processes."""
    folder = tmp_path_factory.mktemp("team")
    for part in ("shd", "data"):
        shutil.copytree(alone / part, folder / part)
    result = torchrun(folder, str(Path(__file__)))
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("best epoch") == len(RUNS), result.stdout
    return folder


def torchrun(folder: Path, words: str) -> subprocess.CompletedProcess:
    command = [*TORCHRUN, *words.split()]
    path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_two_processes_train_as_one(folder, alone, name):
    """The same loss, validation and weights as in one process; checkpoints are of the plain network."""
    runs = folder / "runs" / name, alone / "runs" / name
    two, one = (torch.load(run / "last.pt", weights_only=True) for run in runs)
    assert (len(two["processes"]), len(one["processes"])) == (2, 1)
    assert two["network"].keys() == one["network"].keys()
    for key, weight in one["network"].items():
        # not element by element, because Adam amplifies rounding where a gradient is almost 0
        weight, difference = weight.double(), (two["network"][key] - weight).double()
        assert difference.norm() <= 1e-4 * weight.norm() + 1e-5 * math.sqrt(weight.numel()), key
    for row_two, row_one in zip(*(without_times(rows(run / "metrics.jsonl")) for run in runs), strict=True):
        assert row_two.keys() == row_one.keys()
        for key, value in row_one.items():
            assert row_two[key] == (None if value is None else pytest.approx(value, rel=1e-4)), key


@pytest.mark.slow
def test_resume_with_another_number_of_processes(program, folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    again = program(f"{RUNS['rates']} --resume")
    assert_one_line(again, "the run has 2 processes, but 1 were started", "torchrun --nproc_per_node=2")


@pytest.mark.slow
@pytest.mark.parametrize("case", range(len(COUNTS)))
def test_batch_norm_over_processes(folder, case):
    """Outputs, gradients and running statistics of torch's BatchNorm over the rows of both, or of those that count."""
    states = [torch.load(folder / f"process{rank}.pt", weights_only=True)["norms"][case] for rank in (0, 1)]
    counting = [rank for rank in (0, 1) if COUNTS[case][rank]]
    x_TBN, g_TBN = (torch.cat(parts, 1) for parts in zip(*map(norm_rows, counting), strict=True))
    alone = norm_state(layer.BatchNorm1d(WIDTH, step_mode="m"), x_TBN, g_TBN)
    for name in ("y", "x_grad"):
        together = torch.cat([states[rank][name] for rank in counting], 1)
        torch.testing.assert_close(together, alone[name], rtol=1e-5, atol=1e-5)
    for name in ("weight_grad", "bias_grad"):
        torch.testing.assert_close(states[0][name] + states[1][name], alone[name], rtol=1e-5, atol=1e-5)
    for state in states:
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            torch.testing.assert_close(state[name], alone[name], rtol=1e-6, atol=1e-6)
    if case:
        assert not states[1]["x_grad"].any()


@pytest.mark.slow
def test_numbers_over_processes(folder):
    for rank in (0, 1):
        found = torch.load(folder / f"process{rank}.pt", weights_only=True)
        assert (found["agreed"] == 5).all()  # the leader's
        assert found["largest"] == [0, 1, 3]
        assert found["total"] == [0, 1]


@pytest.mark.parametrize(
    "message",
    [
        "[/x/gloo/transport/tcp/pair.cc:545] Read error [127.0.0.1]:39661: Connection reset by peer. GLHF!",
        "NCCL communicator was aborted on rank 1",
    ],
)
def test_a_lost_process_is_one_line(capsys, message):
    """These are errors that torch.distributed raises in the remaining processes."""

    def main():
        raise RuntimeError(message)

    with pytest.raises(SystemExit) as end:
        cli.run(main)
    assert end.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def completed(run: Path) -> int:
    """Return the number of epochs in the newest checkpoint of a run, -1 before there is one."""
    try:
        return checkpoint.load_newest(run / "last.pt")[2]["epoch"]
    except checkpoint.Damaged:
        return -1


@pytest.mark.slow
def test_a_killed_process_ends_the_job_and_it_resumes(tmp_path, launch):
    """Kill the leader; resume, and kill the other process when it has completed another epoch; resume again."""
    write_shd(tmp_path / "shd" / "shd_train.h5", **make_events(60, 3, 40, 0))
    run, words, done = tmp_path / "runs" / "rates", RUNS["rates"].replace("--epochs 2", ""), -1
    command = [*TORCHRUN, str(REPOSITORY / "train.py"), *f"{words} --epochs 3000".split()[1:]]
    for rank in (0, 1):
        job = launch(command + ["--resume"] * rank, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 600
        while completed(run) <= done:
            assert time.monotonic() < deadline
            assert job.poll() is None, job.stderr.read()
            time.sleep(0.05)
        children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
        environments = {int(child): Path(f"/proc/{child}/environ").read_text() for child in children}
        os.kill(next(pid for pid, text in environments.items() if f"\0RANK={rank}\0" in text), signal.SIGKILL)
        _, stderr = job.communicate(timeout=300)  # the others notice it, which is not to wait for TIMEOUT
        assert job.returncode != 0
        assert "[rank" not in stderr, stderr  # no traceback of the remaining process
        assert "Signal 9 (SIGKILL)" in stderr
        done = completed(run)
    resumed = torchrun(tmp_path, f"{REPOSITORY}/{words} --epochs {done + 1} --resume")
    assert resumed.returncode == 0, resumed.stderr
    assert len(rows(run / "metrics.jsonl")) == done + 1


@pytest.mark.parametrize("variant", ["spkjelly", "superspike"])
@pytest.mark.parametrize("neuron", NEURONS)
def test_every_parameter_has_a_gradient_in_every_step(neuron, variant):
    """DistributedDataParallel waits for all of them; silent layers and layers that fire all the time too.

    AdLIF stands for all compiled neurons: the same code returns their gradients, which tests/test_ops.py compares.
    """
    backend = "cpu" if neuron == "AdLIF" else "torch"
    for theta in (1e-3, 1e6):
        params = {"tau_mem_steps": 5.0, "tau_syn_steps": 5.0, "theta": theta}
        section = {"layers": ("8F", "8R"), "neuron": neuron, "neuron1": params, "neuron2": params, "variant": variant}
        network = Network(config.Network(**section), (6,), 3, backend)
        network(torch.rand(4, 2, 6)).s_TBN.sum().backward()
        assert [name for name, p in network.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_shares_cover_a_batch_once(size):
    for n in (1, 2, 5, 8, 17):
        teams, index = [Team(CPU, rank, size) for rank in range(size)], np.arange(n)
        shares = [(team.share(index), team.weight(n)) for team in teams]
        counted = np.concatenate([share for share, weight in shares if weight])
        assert sorted(counted) == list(index)
        assert all(len(share) == max(1, round(weight * n)) for share, weight in shares)
        assert math.isclose(sum(weight for _, weight in shares), 1)
        assert sorted(np.concatenate([team.part(index) for team in teams])) == list(index)


if __name__ == "__main__":
    work()
