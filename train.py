"""Train a network on events: python train.py --path_to_yaml configs/adlif_digits.yaml

Writes runs/<name>/: best.pt and last.pt (weights and the whole configuration), config.yaml, metrics.jsonl and what
TensorBoard reads. The best model is chosen on recordings held out from the training file; test.py alone opens the test
file.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import torch
import yaml
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from datasets import prepare, readers
from datasets.events import Bins, batches, hold_out
from snn import checkpoint, cli, config, health
from snn.coding import Window, narrowed_D
from snn.errors import InputError
from snn.evaluation import evaluate
from snn.loss import objective
from snn.network import Network
from snn.team import Team, gather

MAY_CHANGE_ON_RESUME = {"train.epochs", "train.device", "train.backend", "train.log_interval", "data.path"}
NO_STANDING = (-math.inf, -math.inf)  # (accuracy, -loss) of the best epoch before the first


def main() -> None:
    cfg, args = read_command_line()
    data, train, fs = cfg.data, cfg.train, cfg.loss.fs
    team = gather(args.distributed, cli.device(train.device))
    run = Path("runs") / (args.save_name or cfg.run_name + (f"_{args.add_name}" if args.add_name else ""))

    if team.leads:
        prepare.make_if_missing(data.train_path, data.dataset_name, data.prepare)
    team.wait()
    recordings = readers.read(data.layout, data.train_path, "train", data.channels, data.num_classes)
    kept, held_out = hold_out(recordings, data.validation_share, data.validation_by, train.seed)
    bins = Bins(data.dt_ms, data.T, data.T_empty, data.channels)

    torch.manual_seed(train.seed)
    network = Network(cfg.network, data.channels, data.num_classes, train.backend).to(team.device)
    optimizer = torch.optim.Adam(network.parameters(), train.lr, weight_decay=train.weight_decay, amsgrad=True)
    best, first_epoch = NO_STANDING, 0
    if args.resume:
        best, first_epoch = resume(run / "last.pt", cfg, network, optimizer)
    elif args.load_pt_file:
        path = cli.find_checkpoint(args.load_pt_file, args.best_model)
        checkpoint.load_weights(network, checkpoint.load(path)[1]["network"], path)
    if team.leads:
        open_run(run, cfg, first_epoch)
        print(
            f"{run}: {network.num_trainable():,} trainable values on {team.device}; {len(kept)} recordings to train "
            f"on, {len(held_out)} held out"
        )

    advice = f"interrupted; the same command with --resume continues after the last whole epoch in {run / 'last.pt'}"
    with (
        cli.advice_on_ctrl_c(advice),
        SummaryWriter(run, purge_step=first_epoch) if team.leads else nullcontext() as board,
    ):
        for epoch in range(first_epoch, train.epochs):
            started = time.perf_counter()
            # everything random in an epoch follows from (seed, epoch), so a run resumes exactly
            random = np.random.default_rng([train.seed, epoch])
            torch.manual_seed(int(random.integers(2**62)) + team.rank)
            order = random.permutation(kept)
            if train.lr_decay:
                optimizer.param_groups[0]["lr"] = train.lr * (1 + math.cos(math.pi * epoch / train.epochs)) / 2
            D = narrowed_D(fs.D, fs.D_final, epoch / train.epochs) if fs.D_final else fs.D
            goal = partial(objective, loss=cfg.loss, window=Window.of(data.T + data.T_empty, D, fs.A, fs.window))

            train_batches = batches(recordings, order, bins, train.batch_size, team.share)
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
            # the better accuracy in the code that is trained; of equals, the lower loss
            code = "fs_accuracy" if cfg.loss.mode == "first_time" else "fr_accuracy"
            standing = (validation[code], -validation["loss"])
            save = partial(checkpoint.save, config=cfg, network=network, validation=validation, epoch=epoch + 1)
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
    train_batches: Iterable[tuple[Tensor, Tensor]],
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
                f"{name}, step {step + 1}: not a finite number in {health.blame(network, x_TBC)}; last.pt keeps the "
                "epoch before; look at the data there, or try a smaller train.lr"
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
    parser.set_defaults(path_to_yaml=cli.REPOSITORY / "configs" / "adlif_digits.yaml")
    parser.add_argument("--save_name", help="name of the run; default <dataset>_<fs|fr><α>_tau<τ>_<neuron>")
    parser.add_argument("--add_name", help="what to add to the run's default name")
    parser.add_argument(
        "--distributed", action="store_true", help="train with all the processes that torchrun has started"
    )
    parser.add_argument("--resume", action="store_true", help="continue the run of that name after its last epoch")
    args = parser.parse_args()
    args.path_to_yaml = cli.find_yaml(args.path_to_yaml)
    return parser.override(config.read_yaml(args.path_to_yaml), args), args


def resume(
    path: Path, cfg: config.Config, network: Network, optimizer: torch.optim.Optimizer
) -> tuple[tuple[float, float], int]:
    """Load the last epoch of a run: (best standing so far, number of epochs done)."""
    cfg_then, content = checkpoint.load(path)
    if changed := [name for name in config.differences(cfg, cfg_then) if name not in MAY_CHANGE_ON_RESUME]:
        raise InputError(f"{path}: cannot resume with another {', '.join(changed)}; give the run's own, or a new name")
    checkpoint.load_weights(network, content["network"], path)
    optimizer.load_state_dict(content["optimizer"])
    return tuple(content["best"]), content["epoch"]


def open_run(run: Path, cfg: config.Config, first_epoch: int) -> None:
    """Make the folder. An earlier run of that name moves aside; a resumed one loses what came after its last epoch."""
    log_path = run / "metrics.jsonl"
    if first_epoch:
        rows = [row for row in log_path.read_text().splitlines() if json.loads(row)["epoch"] <= first_epoch]
        log_path.write_text("".join(f"{row}\n" for row in rows))
        return
    if run.exists():
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


if __name__ == "__main__":
    cli.run(main)
