"""The folder of a run: runs/<name> with config.yaml, last.pt, best.pt, metrics.jsonl and TensorBoard's file."""

import fcntl
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from snn import checkpoint, schema, settings
from snn.errors import InputError
from snn.files import write_whole


def folder(name: str) -> Path:
    """Return runs/<name>. InputError unless the name is that of a single folder."""
    if not re.fullmatch(r"[\w.+-]*\w[\w.+-]*", name):
        raise InputError(
            f"'{name}' cannot name a run: use letters, digits and . _ + - only (--save_name, --dataset_name, --study)"
        )
    return Path("runs") / name


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Keep other processes from training into the same folder. InputError if one is."""
    path = run.parent / f".{run.name}.lock"
    try:
        run.parent.mkdir(exist_ok=True)
        file = path.open("w", encoding="utf-8")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(f"{run} is being trained by another process; choose another --save_name") from None
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written and locked ({error.strerror}); train where runs/ is writable"
        ) from None
    with file:  # closing it unlocks; a file that is only forgotten stays locked until it is collected
        yield


def begin(run: Path, cfg: schema.AnyConfig, save: Callable[[Path], None]) -> None:
    """Make the folder with config.yaml and an initial last.pt, and only then move away an earlier run of that name."""
    if run.exists() and not (run / "config.yaml").exists():
        raise InputError(f"{run} already exists and is not a run of train.py; choose another --save_name")
    new = run.with_name(f".{run.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    try:
        new.mkdir()
        (new / "config.yaml").write_text(settings.as_yaml(cfg), encoding="utf-8")
        save(new / "last.pt")
        if run.exists():
            aside = next(name for k in range(1, 10**6) if not (name := run.with_name(f"{run.name}.{k}")).exists())
            run.rename(aside)
            print(f"{run} already exists: moved to {aside}")
        new.rename(run)
        checkpoint.sync_folder(run.parent)
    except (OSError, InputError) as error:
        shutil.rmtree(new, ignore_errors=True)
        raise InputError(f"{run}: cannot be made ({getattr(error, 'strerror', None) or error})") from None


def reopen(run: Path, cfg: schema.AnyConfig, found: Path, epochs: int) -> None:
    """Undo what came after the checkpoint `found`: it becomes last.pt, and metrics.jsonl ends with its epoch.

    The run goes on with `cfg`, which may differ from the configuration so far in fields that a resumed run may change.
    """
    for part in (*run.glob(".*.pt.*"), *run.glob(".config.yaml.*")):
        part.unlink()
    write_whole(run / "config.yaml", settings.as_yaml(cfg))
    if found.name != "last.pt":
        found.replace(run / "last.pt")
    log_path = run / "metrics.jsonl"
    log_path.touch()
    rows = log_path.read_bytes().splitlines(keepends=True)[:epochs]
    if len(rows) < epochs:
        print(f"warning: {log_path} has {len(rows)} of the {epochs} completed epochs", file=sys.stderr)
    os.truncate(log_path, sum(map(len, rows)))


@contextmanager
def tensorboard(run: Path, first_epoch: int) -> Iterator[SummaryWriter]:
    """Open TensorBoard's file, in which epochs from first_epoch on are written again."""
    try:
        board = SummaryWriter(run, purge_step=first_epoch)
    except OSError as error:
        raise InputError(f"{run}: TensorBoard's file cannot be written ({error.strerror})") from None
    try:
        yield board
    finally:
        with suppress(OSError):  # `log` has flushed, or has reported why it could not
            board.close()


def log(run: Path, board: SummaryWriter, row: dict, validation: str, constants: dict[str, Tensor]) -> None:
    """Log an epoch's numbers to the screen, metrics.jsonl and TensorBoard, here with histograms of `constants`."""
    tqdm.write(
        f"epoch {row['epoch']:3d}  loss {row['train_loss']:.4f}  validation: {validation}  ({row['seconds']:.1f} s)"
    )
    row = row | {f"learned/{name}": float(value.mean()) for name, value in constants.items()}
    try:
        with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        for name, value in row.items():
            name = name.replace("validation_", "validation/")
            values = {f"{name}/{k}": v for k, v in enumerate(value, 1)} if isinstance(value, list) else {name: value}
            for tag, number in values.items():
                if isinstance(number, (int, float)) and tag != "epoch":
                    board.add_scalar(tag, number, row["epoch"])
        for name, value in constants.items():
            board.add_histogram(f"learned/{name}", value, row["epoch"])
        board.flush()
    except OSError as error:
        raise InputError(
            f"{run}: the numbers of epoch {row['epoch']} cannot be written ({error.strerror}); --resume repeats it "
            "from last.pt"
        ) from None
