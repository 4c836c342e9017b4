"""Train a network: python train.py --path_to_yaml configs/adlif_digits.yaml

The loop is here; what it trains, a first-spike network on events or a TTFS network on images, is in tasks.py.
Writes runs/<name>/: best.pt and last.pt (weights and the whole configuration), config.yaml, metrics.jsonl and what
TensorBoard reads. The best model is chosen on data held out from the training file; test.py alone opens the test file.
"""

import argparse
import fcntl
import json
import math
import re
import sys
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TextIO

import numpy as np
import torch
import yaml
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

import tasks
from snn import checkpoint, cli, config, health
from snn.errors import InputError
from snn.memory import keep_freed_memory
from snn.team import Team, gather

MAY_CHANGE_ON_RESUME = {
    "train.epochs",
    "train.device",
    "train.backend",
    "train.log_interval",
    "train.patience",
    "data.path",
    "data.origin",
}
NO_STANDING = (-math.inf, -math.inf)  # (accuracy, -loss) of the best epoch before the first


def main() -> None:
    keep_freed_memory()
    cfg, args = read_command_line()
    train = cfg.train
    team = gather(args.distributed, cli.device(train.device))
    run = run_folder(args.save_name or cfg.run_name + (f"_{args.add_name}" if args.add_name else ""))
    resumed = checkpoint.load(run / "last.pt", for_resume=True) if args.resume else None
    started_from = cli.find_checkpoint(args.load_pt_file) if args.load_pt_file and not args.resume else None
    weights = checkpoint.load(started_from)[1]["network"] if started_from else None

    _lock = lock_run(run) if team.leads else None  # held to the end
    task = tasks.of(cfg, team)
    network, optimizer = task.network, task.optimizer
    best, best_epoch, first_epoch = NO_STANDING, 0, 0
    warned: set[str] = set()
    if resumed:
        best, best_epoch, first_epoch = resume(run, resumed, cfg, network, optimizer)
    elif weights:
        checkpoint.load_weights(network, weights, started_from)
    if team.leads:
        open_run(run, cfg, first_epoch)
        print(
            f"{run}: {network.num_trainable():,} trainable values on {team.device}; {len(task.kept)} {task.items} to "
            f"train on, {len(task.held_out)} held out"
        )

    advice = f"interrupted; the same command with --resume continues after the last whole epoch in {run / 'last.pt'}"
    with (
        cli.advice_on_ctrl_c(advice),
        SummaryWriter(run, purge_step=first_epoch + 1) if team.leads else nullcontext() as board,
    ):
        for epoch in range(first_epoch, train.epochs):
            if task.patience and epoch - best_epoch >= task.patience:
                break
            started = time.perf_counter()
            # everything random in an epoch follows from (seed, epoch), so a run resumes exactly
            random = np.random.default_rng([train.seed, epoch])
            torch.manual_seed(int(random.integers(2**62)) + team.rank)
            order = random.permutation(task.kept)
            schedule = task.begin_epoch(epoch, random)
            loss = train_epoch(task, order, epoch, train, team)
            if team.leads:
                validation = task.validate()
                row = {
                    "epoch": epoch + 1,
                    "train_loss": loss,
                    **{f"validation_{name}": value for name, value in validation.items()},
                    **schedule,
                    **health.gradient_norms(network, task.gradient_norm, train.clip_norm),
                    "seconds": time.perf_counter() - started,
                }
                log(run, board, row, task.describe(validation), health.learned_constants(network))
                for warning in health.warnings_of(row):
                    if warning not in warned:
                        tqdm.write(f"warning: {warning}", file=sys.stderr)
                        warned.add(warning)
                if args.verbose:
                    task.log_activity()
                standing = task.standing(validation)
                save = partial(checkpoint.save, config=cfg, network=network, validation=validation, epoch=epoch + 1)
                save = partial(save, class_names=task.class_names)
                if standing > best:
                    best, best_epoch = standing, epoch + 1
                    save(run / "best.pt")
                save(run / "last.pt", optimizer=optimizer.state_dict(), best=best)
            best_epoch = team.sum(best_epoch if team.leads else 0)

    if team.leads:
        _, content = checkpoint.load(run / "best.pt")
        print(
            f"best epoch {content['epoch']}: {task.conclude(content['validation'])}\n"
            f"saved in {run / 'best.pt'}; test it by: bash run_test.sh {run / 'best.pt'}"
        )


def train_epoch(task: tasks.Task, order: np.ndarray, epoch: int, train: config.AnyTrain, team: Team) -> float:
    """One pass over the training set in this order: the mean loss over all of it."""
    network, optimizer = task.network, task.optimizer
    network.train()
    loss_sum = 0.0
    name, steps = f"epoch {epoch + 1}/{train.epochs}", math.ceil(len(order) / train.batch_size)
    bar = tqdm(task.batches(order), name, steps, leave=False, disable=None if team.leads else True)
    for step, (x, target_B) in enumerate(bar):
        x, target_B = x.to(team.device), target_B.to(team.device)
        optimizer.zero_grad(set_to_none=True)
        loss = task.loss(x, target_B)
        loss.backward()
        batch_size = min(train.batch_size, len(order) - step * train.batch_size)
        team.average_gradients(network, team.weight(batch_size))
        norm = nn.utils.clip_grad_norm_(network.parameters(), train.clip_norm or math.inf)
        if not (loss.isfinite() and norm.isfinite()):
            raise InputError(
                f"{name}, step {step + 1}: not a finite number in {task.blame(x)}; the run's last.pt "
                "holds the epochs before this one, if any; look at the data there, or try a smaller train.lr"
            )
        optimizer.step()
        task.after_step()
        loss_value = loss.item()
        loss_sum += loss_value * team.weight(batch_size) * batch_size
        if step % train.log_interval == 0:
            bar.set_postfix(loss=f"{loss_value:.3f}")
    task.gradient_norm = float(norm)  # of the last step, before it was clipped
    return team.sum(loss_sum) / len(order)


def read_command_line() -> tuple[config.AnyConfig, argparse.Namespace]:
    parser = cli.Parser(__doc__.splitlines()[0], cli.TRAIN)
    parser.add_argument("--save_name", help="name of the run; default <dataset>_<fs|fr><α>_tau<τ>_<neuron>")
    parser.add_argument("--add_name", help="what to add to the run's default name")
    parser.add_argument("--verbose", action="store_true", help="say after each epoch how active each layer's input is")
    parser.add_argument("--resume", action="store_true", help="continue the run of that name after its last epoch")
    parser.add_argument("--path_to_json", type=Path, metavar="JSON", help="settings of T2FSNN's, over the YAML's")
    args = parser.parse_args()
    args.path_to_yaml = cli.find_yaml(args.path_to_yaml or cli.default_yaml(sys.argv[1:]))
    values = config.read_yaml(args.path_to_yaml)
    if args.path_to_json:
        for field, value in config.read_json(args.path_to_json).items():
            config.override(values, field, value)
    return parser.override(values, args), args


def run_folder(name: str) -> Path:
    """runs/<name>; the name must be that of a folder and nothing more."""
    if not re.fullmatch(r"[\w.+-]*\w[\w.+-]*", name):
        raise InputError(f"'{name}' cannot name a run: letters, digits and . _ + - only (--save_name, --dataset_name)")
    return Path("runs") / name


def lock_run(run: Path) -> TextIO:
    """Keep other processes from training into the same folder, for as long as the file that is returned is open."""
    run.parent.mkdir(exist_ok=True)
    lock = (run.parent / f".{run.name}.lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(f"{run} is being trained by another process; choose another --save_name") from None
    return lock


def resume(
    run: Path,
    resumed: tuple[config.AnyConfig, dict],
    cfg: config.AnyConfig,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
) -> tuple[tuple[float, float], int, int]:
    """Take up the last epoch of a run: (best standing so far, its epoch, number of epochs done)."""
    cfg_then, content = resumed
    path = run / "last.pt"
    if changed := [name for name in config.differences(cfg, cfg_then) if name not in MAY_CHANGE_ON_RESUME]:
        raise InputError(f"{path}: cannot resume with another {', '.join(changed)}; give the run's own, or a new name")
    _, best = checkpoint.load(run / "best.pt")
    checkpoint.load_weights(network, content["network"], path)
    try:
        optimizer.load_state_dict(content["optimizer"])
    except (ValueError, KeyError) as error:
        raise InputError(f"{path}: its optimiser state does not fit this network ({error})") from None
    return tuple(content["best"]), best["epoch"], content["epoch"]


def open_run(run: Path, cfg: config.AnyConfig, first_epoch: int) -> None:
    """Make the folder. An earlier run of that name moves aside; a resumed one loses what came after its last epoch."""
    log_path = run / "metrics.jsonl"
    if first_epoch:
        rows = log_path.read_text().splitlines()[:first_epoch] if log_path.exists() else []
        log_path.write_text("".join(f"{row}\n" for row in rows))
        return
    if run.exists():
        if not (run / "config.yaml").exists():
            raise InputError(f"{run} is there already and is no run of ours; choose another --save_name")
        aside = next(name for k in range(1, 10**6) if not (name := run.with_name(f"{run.name}.{k}")).exists())
        run.rename(aside)
        print(f"{run} is there already: moved to {aside}")
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(yaml.safe_dump(cfg.model_dump(mode="json"), sort_keys=False))


def log(run: Path, board: SummaryWriter, row: dict, validation: str, constants: dict[str, torch.Tensor]) -> None:
    """An epoch's numbers to the screen, to metrics.jsonl and to TensorBoard, which gets histograms of constants too."""
    tqdm.write(
        f"epoch {row['epoch']:3d}  loss {row['train_loss']:.4f}  validation: {validation}  ({row['seconds']:.1f} s)"
    )
    row = row | {f"learned/{name}": float(value.mean()) for name, value in constants.items()}
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    for name, value in row.items():
        name = name.replace("validation_", "validation/")
        values = {f"{name}/{k}": v for k, v in enumerate(value, 1)} if isinstance(value, list) else {name: value}
        for tag, number in values.items():
            if isinstance(number, (int, float)) and tag != "epoch":
                board.add_scalar(tag, number, row["epoch"])
    for name, value in constants.items():
        board.add_histogram(f"learned/{name}", value, row["epoch"])


if __name__ == "__main__":
    cli.run(main)
