"""The gain from several processes, and the cost of their exchange, on the network of configs/adlif_shd.yaml.

    python -m benchmarks.scaling [--json FILE] [--rounds 15]

1. Two processes of one thread each, gloo, against one process of one thread: the same batch of 128 (strong scaling),
   and 128 each (weak scaling). They take turns within each round, in the same two processes: while one works alone the
   other waits. Results are medians of whole training steps, with train.py's loss, exchange of gradients, BatchNorm and
   flags, by the clock and as work (processor time, which other load on the machine hardly changes). Each is repeated
   with train.sync_batch_norm=false: every process has its own BatchNorm statistics. Recordings are made up, some with
   more events than others.
2. The limits: a share's step without any exchange, how much longer the slower of the two shares takes, and the
   all_reduce of as many bytes as the gradient and BatchNorm's statistics have.
3. A model for 2 to 64 GPUs from the messages of a step, as counted here; docs/several_processes.md describes it.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from benchmarks.figures import Figure, Other, add_option, duration, store
from benchmarks.kernels import processor
from benchmarks.step import CONFIG, EVENTS, LENGTH_S
from datasets.binning import Bins, bin_events
from datasets.recordings import Recordings
from snn import cli, config, settings
from snn.losses import objective
from snn.memory import keep_freed_memory
from snn.team import Team, gather

EVENTS_SPREAD = 0.3  # standard deviation of a recording's number of events over its mean
GPUS = (2, 4, 8, 16, 32, 64)
GPU_STEP_MS = 10.0  # assumed: a step of a GPU's share, without exchange
# assumed: bytes/s, and seconds a message waits at each hop
LINKS = {"NVLink": (200e9, 5e-6), "PCIe 4": (20e9, 10e-6), "10 Gbit/s Ethernet": (1.1e9, 50e-6)}


def make_recordings(n: int, channels: int, classes: int) -> Recordings:
    """Make recordings as in benchmarks.step, but some have more events than others."""
    random = np.random.default_rng(0)
    lengths = np.maximum(100, random.normal(EVENTS, EVENTS_SPREAD * EVENTS, n)).astype(np.int64)
    times = [np.sort(random.uniform(0, LENGTH_S, length)) for length in lengths]
    units = np.clip(random.normal(0.7 * channels, 0.18 * channels, lengths.sum()), 0, channels - 1)
    return Recordings(
        offsets=np.cumsum([0, *lengths]),
        times=np.concatenate(times).astype(np.float32),
        ticks_per_second=1.0,
        channels=units.astype(np.uint16),
        labels=random.integers(0, classes, n),
        speakers=None,
        where="made up",
    )


def only(recordings: Recordings, index: np.ndarray) -> Recordings:
    """Return the recordings in `index`."""
    parts = [np.arange(*recordings.offsets[r : r + 2]) for r in index]
    events = np.concatenate(parts)
    return replace(
        recordings,
        offsets=np.cumsum([0, *map(len, parts)]),
        times=recordings.times[events],
        channels=recordings.channels[events],
        labels=recordings.labels[index],
    )


def make_step(
    cfg: config.Config,
    team: Team,
    recordings: Recordings,
    buckets: list[int] | None = None,
    is_synchronised: bool = True,
) -> Callable[[], None]:
    """Return a training step of this team on all the recordings as one batch, as train.py takes it.

    `buckets` gets the bytes of DistributedDataParallel's messages. is_synchronised: train.sync_batch_norm.
    """
    torch.manual_seed(0)
    data = cfg.data
    network = cfg.new_network("cpu")
    if is_synchronised:
        team.synchronise(network)
    optimizer = torch.optim.Adam(network.train().parameters(), cfg.train.lr, amsgrad=True, fused=True)
    goal = partial(objective, loss=cfg.loss, training=True)
    bins, share = Bins(data.dt_ms, data.T, data.T_empty, data.channels), team.share(np.arange(len(recordings)))
    target_B = torch.from_numpy(recordings.labels[share])

    def loss_of_share(x_TBC, target_B, weight):
        network.reset()
        return goal(network(x_TBC), target_B)

    loss_of = team.parallel(network, loss_of_share)
    if buckets is not None:

        def counted(_, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
            buckets.append(bucket.buffer().nbytes)
            return allreduce_hook(dist.group.WORLD, bucket)

        loss_of.register_comm_hook(None, counted)

    def step() -> None:
        x_TBC = bin_events(recordings, share, bins)
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(x_TBC, target_B, team.weight(len(recordings)))
        loss.backward()
        norm = nn.utils.clip_grad_norm_(network.parameters(), cfg.train.clip_norm)
        team.largest(not (loss.isfinite() and norm.isfinite()), 0)
        optimizer.step()
        network.clamp_values()

    return step


def milliseconds(step: Callable[[], None]) -> tuple[float, float]:
    """Measure a call begun by both processes at once, after an untimed one: ms by the clock, and ms of work."""
    step()
    dist.barrier()
    started, worked = time.perf_counter(), time.process_time()
    step()
    return 1e3 * (time.perf_counter() - started), 1e3 * (time.process_time() - worked)


def count_messages(step: Callable[[], None]) -> list[int]:
    """Return the bytes of each all_reduce of a step, apart from DistributedDataParallel's."""
    sizes: list[int] = []
    all_reduce = dist.all_reduce

    def counted(tensor: torch.Tensor, *how: object, **options: object) -> dist.Work | None:
        if "async_op" not in options:  # DistributedDataParallel's have it
            sizes.append(tensor.nbytes)
        return all_reduce(tensor, *how, **options)

    dist.all_reduce = counted
    try:
        step()
    finally:
        dist.all_reduce = all_reduce
    return sizes


def work(rounds: int) -> dict:
    """Run the part of one of the two processes; the first one's numbers count."""
    torch.set_num_threads(1)
    keep_freed_memory()
    team = gather(False, torch.device("cpu"))
    alone = Team(team.device)
    cfg = settings.load(CONFIG)
    B, channels, classes = cfg.train.batch_size, cfg.data.channels, cfg.data.num_classes
    once, twice = make_recordings(B, channels, classes), make_recordings(2 * B, channels, classes)
    buckets: list[int] = []
    messages = count_messages(make_step(cfg, team, once, buckets))
    gradient, statistic = torch.zeros(sum(buckets) // 4), torch.zeros(max(messages) // 8, dtype=torch.float64)
    steps = {
        "one process": make_step(cfg, alone, once) if team.leads else lambda: None,
        "two, the same batch": make_step(cfg, team, once),
        "two, a batch each": make_step(cfg, team, twice),
        "two, the same batch, own BatchNorm": make_step(cfg, team, once, is_synchronised=False),
        "two, a batch each, own BatchNorm": make_step(cfg, team, twice, is_synchronised=False),
        "its share, no exchange": make_step(cfg, alone, only(once, team.share(np.arange(B)))),
        "all_reduce, gradient": lambda: dist.all_reduce(gradient),
        "all_reduce, statistics": lambda: dist.all_reduce(statistic),
    }
    rows = [{name: milliseconds(step) for name, step in steps.items()} for _ in range(rounds + 2)][2:]
    of_both = team.total([rows])
    team.part_ways()
    shares = zip(*([row["its share, no exchange"][1] for row in rows] for rows in of_both), strict=True)
    return {
        "milliseconds": {name: statistics.median(row[name][0] for row in rows) for name in steps},
        "work_milliseconds": {name: statistics.median(row[name][1] for row in rows) for name in steps},
        "slower_share_over_mean": statistics.median(max(pair) / statistics.mean(pair) for pair in shares),
        "bucket_bytes": buckets,
        "other_message_bytes": messages,
    }


def exchange_ms(size: int, messages: list[int], bandwidth: float, latency: float) -> float:
    """Model a ring all_reduce of each message: 2 (N - 1) hops, each with 1 / N of the bytes."""
    hops = 2 * (size - 1)
    return 1e3 * sum(hops * (latency + message / size / bandwidth) for message in messages)


def report(result: dict) -> None:
    print(f"{processor()}, two processes of one thread; medians, ms    clock   first process's work")
    kinds = result["milliseconds"], result["work_milliseconds"]
    for name in kinds[0]:
        print(f"  {name:<54}" + "".join(f"{ms[name]:9.2f}" for ms in kinds))
    for name in (name for name in kinds[0] if name.startswith("two")):
        batches = 2 if "each" in name else 1
        gains = "".join(f"{batches * ms['one process'] / ms[name]:7.2f} x" for ms in kinds)
        print(f"  {'gain of ' + name:<54}{gains}")
    print(f"  the slower share takes {result['slower_share_over_mean']:.3f} x the work of the mean of both")
    buckets, others = result["bucket_bytes"], result["other_message_bytes"]
    print(f"a step's messages: gradient {buckets} bytes, others {others} bytes")
    print(f"model of exchange, ms a step, none of it hidden behind work; efficiency at {GPU_STEP_MS:g} ms of work")
    print(f"  {'GPUs':>6}" + "".join(f"{name:>26}" for name in LINKS))
    for size in GPUS:
        times = [exchange_ms(size, buckets + others, *link) for link in LINKS.values()]
        cells = "".join(f"{t:>18.2f} ({100 * GPU_STEP_MS / (GPU_STEP_MS + t):3.0f} %)" for t in times)
        print(f"  {size:>6}{cells}")


def figures(ms: dict[str, float]) -> list[Figure]:
    """Return the rows of docs/speed.md, from milliseconds by the clock."""
    one = ms["one process"]
    each, same = ms["two, a batch each, own BatchNorm"], ms["two, the same batch, own BatchNorm"]
    title = "two processes of one thread, the network of `configs/adlif_shd.yaml`, a batch each, "
    alone = Other("one process, one batch", f"{duration(one)}: two do {2 * one / each:.1f} x as much")
    gains = 2 * one / ms["two, a batch each"], one / ms["two, the same batch"]
    return [
        Figure(f"{title}`train.sync_batch_norm=false`", f"{duration(each)} a step", [alone]),
        Figure("the same, one batch for both", f"{one / same:.1f} x as fast as one process"),
        Figure(
            "the same, BatchNorm synchronised: a batch each, and one batch for both",
            " and ".join(f"{gain:.1f} x" for gain in gains),
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", type=Path, help="file for the numbers (JSON)")
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds (15)")
    add_option(parser)
    arguments = parser.parse_args()
    if dist.is_torchelastic_launched():  # one of the two processes
        result = work(arguments.rounds)
        if os.environ["RANK"] == "0":
            arguments.json.write_text(json.dumps(result), encoding="utf-8")
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result.json"
        launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "-m", "benchmarks.scaling"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        words = ["--json", str(path), "--rounds", str(arguments.rounds)]
        subprocess.run([*launcher, *words], env=environment, check=True)
        result = json.loads(path.read_text(encoding="utf-8"))
    report(result)
    if arguments.store:
        store(figures(result["milliseconds"]))
    if arguments.json:
        versions = {"device": processor(), "torch": torch.__version__}
        arguments.json.write_text(json.dumps(versions | result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    cli.run(main)
