"""The time that test.py takes, report included, on any number of recordings.

    python -m benchmarks.testing runs/NAME [--recordings 1000] [--rounds 3] [--data DIR]

The run's test file (in the layout of SHD) is repeated up to that number, in a folder of its own, and test.py is started
again each time. Prints medians of wall clock and processor seconds; the first round compiles kernels and is left out.
"""

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import torch

from benchmarks.figures import Figure, add_option, store
from snn import arguments, checkpoint, cli
from snn.errors import InputError
from snn.files import REPOSITORY
from snn.machine import machine


def main() -> None:
    parser = cli.OneLineParser(description=__doc__)
    parser.add_argument("run", type=Path, help="checkpoint, run folder or run name")
    parser.add_argument("--recordings", type=int, default=1000, help="number of recordings (1000)")
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds (3)")
    parser.add_argument("--data", type=Path, help="folder of the test file, if the run's own does not exist")
    add_option(parser)
    args = parser.parse_args()
    path = arguments.find_checkpoint(args.run)
    cfg, _ = checkpoint.load(path)
    source = (args.data or cfg.data.folder) / cfg.data.test_path.name
    if cfg.data.layout != "shd" or not source.is_file():
        raise InputError(f"{source}: the run's test file must be there, in the layout of SHD (--data)")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "run").mkdir()
        for name in (path, path.with_name("metrics.jsonl"), path.with_name("config.yaml")):
            if name.is_file():
                shutil.copy2(name, Path(folder) / "run")
        repeat(source, Path(folder) / source.name, args.recordings)
        command = [
            sys.executable,
            REPOSITORY / "test.py",
            "--load_pt_file",
            f"run/{path.name}",
            "--path_to_dataset",
            ".",
        ]
        rounds = [measure(command, folder) for _ in range(args.rounds + 1)][1:]
        metrics = json.loads((Path(folder) / "run" / "test" / "metrics.json").read_text(encoding="utf-8"))
    wall, processor = (statistics.median(column) for column in zip(*rounds, strict=True))
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    where = machine(torch.device("cpu"))
    print(
        f"test.py, {metrics['samples']} recordings, report included: {wall:.1f} s, {processor:.1f} s of processor "
        f"({where['processor']}, {where['cores']} cores, threads: {threads}; load now {os.getloadavg()[0]:.1f})"
    )
    if args.store:
        hidden = "-".join(word.rstrip("FR") for word in cfg.network.layers)
        what = f"`test.py` on {metrics['samples']:,} recordings of the {hidden} network, report included"
        store([Figure(what, f"{wall:.1f} s")])


def repeat(source: Path, target: Path, n: int) -> None:
    """Repeat the recordings of a file in SHD's layout, up to n."""
    with h5py.File(source) as file, h5py.File(target, "w") as copy:
        for name in ("spikes/times", "spikes/units", "labels", "extra/speaker"):
            if name in file:
                old = file[name]
                new = copy.create_dataset(name, (n,), old.dtype)
                for r in range(n):
                    new[r] = old[r % len(old)]
        if "extra/keys" in file:
            copy["extra/keys"] = file["extra/keys"][()]


def measure(command: list, folder: str) -> tuple[float, float]:
    """Measure wall clock and processor seconds of a program."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    cli.run(main)
