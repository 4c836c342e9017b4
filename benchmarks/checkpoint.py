"""The cost of checkpoints in a run: some epochs of configs/adlif_digits.yaml, as train.py trains them.

    python -m benchmarks.checkpoint [--path_to_dataset data/digits] [--epochs 12] [--json FILE]

Measures, for each checkpoint, the time from the call until the file has been read back and renamed, and compares it
with the time of the epoch and its validation. The first epoch, which compiles or loads kernels, is left out.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

import train
from benchmarks.figures import Figure, add_option, store
from benchmarks.kernels import processor
from snn import checkpoint, cli

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "adlif_digits.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--path_to_dataset",
        type=Path,
        default=Path("data/digits"),
        help="folder of the data set, which is made if missing (data/digits)",
    )
    parser.add_argument("--epochs", type=int, default=12, help="epochs (12)")
    parser.add_argument("--json", type=Path, help="file for the numbers (JSON)")
    add_option(parser)
    arguments = parser.parse_args()
    data, out = arguments.path_to_dataset.resolve(), arguments.json and arguments.json.resolve()
    save, saves = checkpoint.save, []

    def timed_save(path: Path, *args: object, **more: object) -> None:
        started = time.perf_counter()
        save(path, *args, **more)
        saves.append((path.name, 1e3 * (time.perf_counter() - started), path.stat().st_size / 1e6))

    checkpoint.save = timed_save
    before = Path.cwd()
    with tempfile.TemporaryDirectory(dir=before, prefix=".checkpoints-") as folder:  # on the disk that runs go to
        os.chdir(folder)
        words = f"--path_to_yaml {CONFIG} --path_to_dataset {data} --epochs {arguments.epochs} --save_name x"
        given, sys.argv = sys.argv, ["train.py", *words.split()]
        train.main()
        sys.argv = given
        rows = [json.loads(line) for line in Path("runs/x/metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        os.chdir(before)

    epochs = [1e3 * row["seconds"] for row in rows[1:]]
    print(f"{processor()}, {torch.get_num_threads()} threads; medians")
    print(f"  an epoch{median(epochs):27.1f} ms")
    result = {"device": processor(), "threads": torch.get_num_threads(), "epoch_ms": median(epochs)}
    for name in ("last.pt", "best.pt"):
        times = [ms for of, ms, _ in saves if of == name][1:]  # the first last.pt is written before the first epoch
        megabytes = next(size for of, _, size in reversed(saves) if of == name)
        print(f"  {name}, {megabytes:.1f} MB, {len(times):3} times{median(times):12.1f} ms")
        result |= {f"{name}_ms": median(times)}
    saving = sum(ms for _, ms, _ in saves)
    share = saving / (saving + 1e3 * sum(row["seconds"] for row in rows))
    of_epoch = result["last.pt_ms"] / median(epochs)
    print(f"  last.pt takes {100 * of_epoch:.2f} % of an epoch, all checkpoints {100 * share:.2f} % of the run")
    if arguments.store:
        what = "checkpoints, written, read back and renamed, one an epoch of the default run"
        store([Figure(what, f"{100 * share:.1f} % of the run")])
    if out:
        out.write_text(json.dumps(result | {"share_of_run": share}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    cli.run(main)
