"""Commands that several tests run, and functions that read their results."""

import hashlib
import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import h5py
import pytest

from datasets.prepare import writer
from snn import checkpoint
from tests.conftest import REPOSITORY, TINY

TRAIN = f"train.py --path_to_yaml {REPOSITORY}/configs/adlif_shd.yaml --path_to_dataset shd --dataset_name shd {TINY}"
AUGMENT = " ".join(
    f"--set data.augment.{part}" for part in ("stretch=.1", "time_jitter_ms=3", "drop=.2", "shift=2", "unit_jitter=1")
)
EVENTS = (
    f"{TRAIN.replace('--hidden_size 16 16', '--set network.layers=[16FD3,16F]')} --lr_decay "
    "--set network.dropout=0.3 --set network.density=.5 --set loss.fs.D_final=4 --set data.augment.drop=.2"
)
TRAIN_IMAGES = (
    f"train.py --path_to_yaml {REPOSITORY}/configs/ttfs_mnist_mlp.yaml --dataset_name toy --path_to_dataset data "
    "--num_classes 3 --set data.layout=npz --set data.shape=[1,12,12] --batch-size 16 --lr 5e-3 --seed 1"
)

# Run commands one after another, in one process: starting torch takes seconds. Reports are made, but not painted.
COMMANDS = """
import json, runpy, sys
from snn import pictures
from tests.conftest import unpainted
pictures.png = unpainted
for module, *words in json.loads(sys.argv[1]):
    sys.argv = [module, *words]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code:
            raise
"""


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def without_times(log: list[dict]) -> list[dict]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in log]


def state(run: Path) -> tuple[list[dict], dict[str, bytes]]:
    """Return the state of a run: its log without times, and the bits of all tensors in its checkpoints."""
    bits = {}
    for name in ("best.pt", "last.pt"):
        _, content = checkpoint.load(run / name)
        bits |= {f"{name} {key}": value.numpy().tobytes() for key, value in content["network"].items()}
        for k, values in content.get("optimizer", {}).get("state", {}).items():
            bits |= {f"{name} {k} {key}": value.numpy().tobytes() for key, value in values.items()}
        bits[f"{name} counts"] = str([content.get(key) for key in ("epoch", "best", "best_epoch", "validation")])
    return without_times(rows(run / "metrics.jsonl")), bits


def metrics(run: Path) -> dict:
    return json.loads((run / "test" / "metrics.json").read_text())


def run_here(folder: Path, command: str) -> None:
    """Run a script in this process and in `folder`, for fixtures that several tests share; a test uses `program`."""
    script, *words = command.split()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", [script, *words])
        runpy.run_path(str(REPOSITORY / script), run_name="__main__")


ONE_THREAD = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}


def count_outcomes(
    module: str, seed: int, cases: int, good: tuple[str, str], *options: str, **environment: str
) -> Counter:
    """Count the cases of a module by what they are of and how they end; those that do not end well have their number.

    The module prints a line for each case: its number, what it is of, and its outcome. A new process runs them, and
    another one the rest if it dies.
    """
    outcomes, first = Counter(), 0
    while first < cases:
        words = [sys.executable, "-m", module, *map(str, (seed, first, cases)), *options]
        variables = os.environ | ONE_THREAD | environment
        done = subprocess.run(words, cwd=REPOSITORY, env=variables, capture_output=True, text=True)
        lines = re.findall(r"^(\d+): (.*?): (.*)$", done.stdout, re.MULTILINE)
        assert lines or done.returncode < 0, done.stderr  # it began
        for k, of, outcome in lines:
            outcomes[of, outcome if outcome in good else f"case {k}: {outcome}"] += 1
        first += len(lines)
        if done.returncode:
            died = signal.Signals(-done.returncode).name if done.returncode < 0 else done.stderr[-500:]
            outcomes["any", f"case {first}: the process died of {died}"] += 1
            first += 1
    assert {what: number for what, number in outcomes.items() if what[1] not in good} == {}
    assert outcomes.total() == cases
    return outcomes


def prepare(*arguments):
    """Run `python -m datasets.prepare` and return the finished process."""
    command = [sys.executable, "-m", "datasets.prepare", *map(str, arguments)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)


def contents(path):
    with h5py.File(path) as file:
        return {
            "times": list(file["spikes/times"][:]),
            "units": list(file["spikes/units"][:]),
            "labels": file["labels"][:].tolist(),
            "keys": [key.decode() for key in file["extra/keys"][:]],
            "speakers": file["extra/speaker"][:].tolist() if "extra/speaker" in file else None,
            "provenance": json.loads(file.attrs[writer.PROVENANCE]),
        }


def converted(folder: Path, split: str) -> dict:
    """Return the contents of one of the files that the fixture `convert` makes."""
    return contents(folder / "out" / f"out_{split}.h5")


def share_compiled(copy: Path) -> None:
    """Let the packages in `copy` share the compiled kernels of the repository, so that none is compiled twice."""
    packages = [REPOSITORY / package for package in ("snn", "datasets")]
    for path in (path for package in packages for path in package.rglob("*.py")):
        if "__pycache__" not in path.parts and (copied := copy / path.relative_to(REPOSITORY)).is_file():
            shutil.copystat(path, copied)  # numba compares the time of a source
            if not (copied.parent / "__pycache__").exists():
                _share(path.parent, copied.parent)


def _share(folder: Path, copied: Path) -> None:
    """Link what __pycache__ of a folder with sources holds into that of its copy.

    In a folder with-..., where `snn.compiling` keeps some kernels, numba looks in one that it names after the path of
    the source.
    """

    def named_after(folder: Path) -> str:
        return f"{folder.name}_{hashlib.sha1(str(folder).encode()).hexdigest()}"

    (copied / "__pycache__").mkdir()
    for kept in (folder / "__pycache__").glob("*"):
        place = copied / "__pycache__" / kept.name
        if kept.name.startswith("with-"):
            place.mkdir()
            (kept / named_after(folder)).mkdir(exist_ok=True)
            (place / named_after(copied)).symlink_to(kept / named_after(folder))
        elif kept.name == "printed":
            place.mkdir()
            for path in kept.glob("*.py"):
                (place / path.name).symlink_to(path)
            _share(kept, place)
        else:
            place.symlink_to(kept)


def blocks(page: str, language: str) -> list[str]:
    """Return the code blocks of a page, also those within a list."""
    text = (REPOSITORY / "docs" / page).read_text()
    return [
        "\n".join(line.removeprefix(indent) for line in block.splitlines())
        for indent, block in re.findall(rf"^( *)```{language}\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
    ]
