"""Train a network on events: python train.py --path_to_yaml configs/adlif_digits.yaml

Writes runs/<name>/: best.pt and last.pt (weights and the whole configuration), config.yaml, metrics.jsonl and what
TensorBoard reads. The best model is chosen on recordings held out from the training file; test.py alone opens the test
file.
"""

import argparse
import fcntl
import json
import math
import re
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TextIO

import numpy as np
import torch
import yaml
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from datasets import prepare, readers
from datasets.augment import Augmentation, augment
from datasets.events import Bins, as_seen, batches, check_window, hold_out
from snn import checkpoint, cli, config, health
from snn.coding import Window, narrowed_D
from snn.conv import EventConv
from snn.errors import InputError
from snn.evaluation import evaluate
from snn.events import Events
from snn.linear import EventLinear
from snn.loss import objective
from snn.memory import keep_freed_memory
from snn.network import Network
from snn.team import Team, gather

MAY_CHANGE_ON_RESUME = {
    "train.epochs",
    "train.device",
    "train.backend",
    "train.log_interval",
    "data.path",
    "data.origin",
}
NO_STANDING = (-math.inf, -math.inf)  # (accuracy, -loss) of the best epoch before the first


def main() -> None:
    keep_freed_memory()
    cfg, args = read_command_line()
    data, train, fs = cfg.data, cfg.train, cfg.loss.fs
    team = gather(args.distributed, cli.device(train.device))
    run = run_folder(args.save_name or cfg.run_name + (f"_{args.add_name}" if args.add_name else ""))
    resumed = checkpoint.load(run / "last.pt", for_resume=True) if args.resume else None
    started_from = cli.find_checkpoint(args.load_pt_file) if args.load_pt_file and not args.resume else None
    weights = checkpoint.load(started_from)[1]["network"] if started_from else None

    _lock = lock_run(run) if team.leads else None  # held to the end
    if team.leads:
        prepare.make_if_missing(data.train_path, data.dataset_name, data.prepare)
    team.wait()
    recordings = readers.read(data.layout, data.train_path, "train", data.num_units, data.num_classes, data.origin)
    if data.sensor:
        recordings = as_seen(recordings, data.sensor)
    kept, held_out = hold_out(recordings, data.validation_share, data.validation_by, train.seed)
    bins = Bins(data.dt_ms, data.T, data.T_empty, math.prod(data.shape))
    check_window(recordings, bins)
    height, width = data.shape[1:] if data.sensor else (1, data.channels)
    changes = Augmentation(**data.augment.model_dump(), width=width, height=height)

    torch.manual_seed(train.seed)
    network = Network(cfg.network, data.shape, data.num_classes, train.backend).to(team.device)
    optimizer = torch.optim.Adam(network.parameters(), train.lr, weight_decay=train.weight_decay, amsgrad=True)
    best, first_epoch = NO_STANDING, 0
    if resumed:
        best, first_epoch = resume(run, resumed, cfg, network, optimizer)
    elif weights:
        checkpoint.load_weights(network, weights, started_from)
    if team.leads:
        open_run(run, cfg, first_epoch)
        print(
            f"{run}: {network.num_trainable():,} trainable values on {team.device}; {len(kept)} recordings to train "
            f"on, {len(held_out)} held out"
        )

    advice = f"interrupted; the same command with --resume continues after the last whole epoch in {run / 'last.pt'}"
    with (
        cli.advice_on_ctrl_c(advice),
        SummaryWriter(run, purge_step=first_epoch + 1) if team.leads else nullcontext() as board,
    ):
        for epoch in range(first_epoch, train.epochs):
            started = time.perf_counter()
            # everything random in an epoch follows from (seed, epoch), so a run resumes exactly
            random = np.random.default_rng([train.seed, epoch])
            torch.manual_seed(int(random.integers(2**62)) + team.rank)
            order = random.permutation(kept)
            change = None if changes.is_off else partial(augment, how=changes, key=int(random.integers(2**63)))
            if train.lr_decay:
                optimizer.param_groups[0]["lr"] = train.lr * (1 + math.cos(math.pi * epoch / train.epochs)) / 2
            D = narrowed_D(fs.D, fs.D_final, epoch / train.epochs) if fs.D_final else fs.D
            goal = partial(objective, loss=cfg.loss, window=Window.of(data.T + data.T_empty, D, fs.A, fs.window))

            train_batches = batches(recordings, order, bins, train.batch_size, team.share, change)
            loss = train_epoch(network, optimizer, train_batches, len(order), goal, epoch, train, team)
            if not team.leads:
                continue

            validation_batches = batches(recordings, held_out, bins, train.test_batch_size)
            goal = partial(goal, training=False)
            validation = evaluate(network, validation_batches, goal, team.device).metrics(data.dt_ms)
            row = {
                "epoch": epoch + 1,
                "train_loss": loss,
                **{f"validation_{name}": value for name, value in validation.items()},
                "lr": optimizer.param_groups[0]["lr"],
                "D": D,
                "seconds": time.perf_counter() - started,
            }
            log(run, board, row)
            if args.verbose:
                log_activity(network)
            # the better accuracy in the code that is trained; of equals, the lower loss
            code = "fs_accuracy" if cfg.loss.mode == "first_time" else "fr_accuracy"
            standing = (validation[code], -validation["loss"])
            save = partial(checkpoint.save, config=cfg, network=network, validation=validation, epoch=epoch + 1)
            save = partial(save, class_names=recordings.class_names)
            if standing > best:
                best = standing
                save(run / "best.pt")
            save(run / "last.pt", optimizer=optimizer.state_dict(), best=best)

    if team.leads:
        _, content = checkpoint.load(run / "best.pt")
        print(
            f"best epoch {content['epoch']}: validation FS accuracy {content['validation']['fs_accuracy']:.2f} %, "
            f"FR accuracy {content['validation']['fr_accuracy']:.2f} %\n"
            f"saved in {run / 'best.pt'}; test it by: bash run_test.sh {run / 'best.pt'}"
        )


def train_epoch(
    network: Network,
    optimizer: torch.optim.Optimizer,
    train_batches: Iterable[tuple[Events, Tensor]],
    num_recordings: int,
    goal: Callable[..., Tensor],
    epoch: int,
    train: config.Train,
    team: Team,
) -> float:
    """One pass over the batches: the mean loss over all recordings."""
    network.train()
    loss_sum = 0.0
    name, steps = f"epoch {epoch + 1}/{train.epochs}", math.ceil(num_recordings / train.batch_size)
    bar = tqdm(train_batches, name, steps, leave=False, disable=None if team.leads else True)
    for step, (x_TBC, target_B) in enumerate(bar):
        x_TBC, target_B = x_TBC.to(team.device), target_B.to(team.device)
        network.reset()
        optimizer.zero_grad(set_to_none=True)
        loss = goal(network(x_TBC), target_B, training=True)
        loss.backward()
        batch_size = min(train.batch_size, num_recordings - step * train.batch_size)
        team.average_gradients(network, team.weight(batch_size))
        norm = nn.utils.clip_grad_norm_(network.parameters(), train.clip_norm or math.inf)
        if not (loss.isfinite() and norm.isfinite()):
            raise InputError(
                f"{name}, step {step + 1}: not a finite number in {health.blame(network, x_TBC)}; the run's last.pt "
                "holds the epochs before this one, if any; look at the data there, or try a smaller train.lr"
            )
        optimizer.step()
        network.clamp_values()
        loss_value = loss.item()
        loss_sum += loss_value * team.weight(batch_size) * batch_size
        if step % train.log_interval == 0:
            bar.set_postfix(loss=f"{loss_value:.3f}")
    return team.sum(loss_sum) / num_recordings


def read_command_line() -> tuple[config.Config, argparse.Namespace]:
    parser = cli.Parser(__doc__.splitlines()[0], cli.TRAIN)
    parser.add_argument("--save_name", help="name of the run; default <dataset>_<fs|fr><α>_tau<τ>_<neuron>")
    parser.add_argument("--add_name", help="what to add to the run's default name")
    parser.add_argument("--verbose", action="store_true", help="say after each epoch how active each layer's input is")
    parser.add_argument("--resume", action="store_true", help="continue the run of that name after its last epoch")
    args = parser.parse_args()
    args.path_to_yaml = cli.find_yaml(args.path_to_yaml or cli.default_yaml(sys.argv[1:]))
    return parser.override(config.read_yaml(args.path_to_yaml), args), args


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
    resumed: tuple[config.Config, dict],
    cfg: config.Config,
    network: Network,
    optimizer: torch.optim.Optimizer,
) -> tuple[tuple[float, float], int]:
    """Take up the last epoch of a run: (best standing so far, number of epochs done)."""
    cfg_then, content = resumed
    path = run / "last.pt"
    if changed := [name for name in config.differences(cfg, cfg_then) if name not in MAY_CHANGE_ON_RESUME]:
        raise InputError(f"{path}: cannot resume with another {', '.join(changed)}; give the run's own, or a new name")
    checkpoint.load(run / "best.pt")
    checkpoint.load_weights(network, content["network"], path)
    try:
        optimizer.load_state_dict(content["optimizer"])
    except (ValueError, KeyError) as error:
        raise InputError(f"{path}: its optimiser state does not fit this network ({error})") from None
    return tuple(content["best"]), content["epoch"]


def open_run(run: Path, cfg: config.Config, first_epoch: int) -> None:
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


def log(run: Path, board: SummaryWriter, row: dict) -> None:
    """An epoch's numbers to the screen, to metrics.jsonl and to TensorBoard."""
    tqdm.write(
        f"epoch {row['epoch']:3d}  loss {row['train_loss']:.4f}  validation: "
        f"FS {row['validation_fs_accuracy']:6.2f} %  FR {row['validation_fr_accuracy']:6.2f} %  "
        f"{row['validation_spikes_per_neuron']:.2f} spikes/neuron  "
        f"{row['validation_silent_samples']} silent  ({row['seconds']:.1f} s)"
    )
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    for name, value in row.items():
        if isinstance(value, (int, float)) and name != "epoch":
            board.add_scalar(name.replace("validation_", "validation/"), value, row["epoch"])


def log_activity(network: Network) -> None:
    """How active each linear layer's last input was, and which product that made it take."""
    for name, module in network.named_modules():
        if isinstance(module, EventConv | EventLinear):
            kind = "event-driven" if module.is_event_driven else "dense"
            tqdm.write(f"  {name}: {100 * module.active_share:.1f} % of its input active, {kind} product")


if __name__ == "__main__":
    cli.run(main)
