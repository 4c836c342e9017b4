"""Train a network on events: python train.py --path_to_yaml configs/adlif_digits.yaml

Writes runs/<name>/: best.pt and last.pt (weights and the whole configuration), config.yaml, metrics.jsonl and what
TensorBoard reads. The best model is chosen on recordings held out from the training file; test.py alone opens the test
file.
"""

import argparse
import json
import math
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
import yaml
from torch import nn
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

MAY_CHANGE_ON_RESUME = {"train.epochs", "train.device", "train.backend", "train.log_interval", "data.path"}


def main() -> None:
    cfg, args = read_command_line()
    data, train, fs = cfg.data, cfg.train, cfg.loss.fs
    device = cli.device(train.device)

    prepare.make_if_missing(data.dataset_name, data.folder, data.train_path)
    recordings = readers.read(data.layout, data.train_path, "train", data.channels, data.num_classes)
    kept, held_out = hold_out(recordings, data.validation_share, data.validation_by, train.seed)
    bins = Bins(data.dt_ms, data.T, data.T_empty, data.channels)
    T = data.T + data.T_empty

    torch.manual_seed(train.seed)
    network = Network(cfg.network, data.channels, data.num_classes, train.backend).to(device)
    if args.load_pt_file:
        path = cli.find_checkpoint(args.load_pt_file, args.best_model)
        checkpoint.load_weights(network, checkpoint.load(path)[1]["network"], path)
    optimizer = torch.optim.Adam(network.parameters(), train.lr, weight_decay=train.weight_decay, amsgrad=True)

    run = Path("runs") / (args.save_name or cfg.run_name + (f"_{args.add_name}" if args.add_name else ""))
    best, first_epoch = (-1.0, -math.inf), 0
    if args.resume:
        best, first_epoch = resume(run / "last.pt", cfg, network, optimizer)
    open_run(run, cfg, first_epoch)
    print(
        f"{run}: {network.num_trainable():,} trainable values on {device}; {len(kept)} recordings to train on, "
        f"{len(held_out)} held out"
    )

    with SummaryWriter(run, purge_step=first_epoch) as board:
        for epoch in range(first_epoch, train.epochs):
            started = time.perf_counter()
            # everything random in an epoch follows from (seed, epoch), so a run resumes exactly
            random = np.random.default_rng([train.seed, epoch])
            torch.manual_seed(int(random.integers(2**62)))
            if train.lr_decay:
                optimizer.param_groups[0]["lr"] = train.lr * (1 + math.cos(math.pi * epoch / train.epochs)) / 2
            D = narrowed_D(fs.D, fs.D_final, epoch / train.epochs) if fs.D_final else fs.D
            goal = partial(objective, loss=cfg.loss, window=Window.of(T, D, fs.A, fs.window))

            network.train()
            order = random.permutation(kept)
            loss_sum = 0.0
            steps = math.ceil(len(order) / train.batch_size)
            epoch_name = f"epoch {epoch + 1}/{train.epochs}"
            bar = tqdm(batches(recordings, order, bins, train.batch_size), epoch_name, steps, leave=False, disable=None)
            for step, (x_TBC, target_B) in enumerate(bar):
                x_TBC, target_B = x_TBC.to(device), target_B.to(device)
                network.reset()
                optimizer.zero_grad(set_to_none=True)
                loss = goal(network(x_TBC), target_B, training=True)
                loss.backward()
                norm = nn.utils.clip_grad_norm_(network.parameters(), train.clip_norm or math.inf)
                if not (loss.isfinite() and norm.isfinite()):
                    where = health.blame(network, x_TBC)
                    raise InputError(
                        f"{epoch_name}, step {step + 1}: not a finite number in {where}; the weights of the epoch "
                        f"before are in {run / 'last.pt'}; try a smaller train.lr, and look at the data"
                    )
                optimizer.step()
                network.clamp_values()
                loss_value = loss.item()
                loss_sum += loss_value * len(target_B)
                if step % train.log_interval == 0:
                    bar.set_postfix(loss=f"{loss_value:.3f}")

            validation = evaluate(
                network,
                batches(recordings, held_out, bins, train.test_batch_size),
                partial(goal, training=False),
                device,
            ).metrics(data.dt_ms)
            row = {
                "epoch": epoch + 1,
                "train_loss": loss_sum / len(order),
                **{f"validation_{name}": value for name, value in validation.items()},
                "lr": optimizer.param_groups[0]["lr"],
                "D": D,
                "seconds": time.perf_counter() - started,
            }
            log(run, board, row)
            # the better accuracy in the code that is trained; of equals, the lower loss
            code = "fs_accuracy" if cfg.loss.mode == "first_time" else "fr_accuracy"
            standing = (validation[code], -validation["loss"])
            best, is_best = max(best, standing), standing > best
            save = partial(checkpoint.save, config=cfg, network=network, validation=validation, epoch=epoch + 1)
            if is_best:
                save(run / "best.pt")
            save(run / "last.pt", optimizer=optimizer.state_dict(), best=best)

    _, content = checkpoint.load(run / "best.pt")
    print(
        f"best epoch {content['epoch']}: validation FS accuracy {content['validation']['fs_accuracy']:.2f} %, "
        f"FR accuracy {content['validation']['fr_accuracy']:.2f} %\n"
        f"saved in {run / 'best.pt'}; test it by: bash run_test.sh {run / 'best.pt'}"
    )


def read_command_line() -> tuple[config.Config, argparse.Namespace]:
    parser = cli.Parser(__doc__.splitlines()[0], cli.TRAIN)
    parser.set_defaults(path_to_yaml=cli.REPOSITORY / "configs" / "adlif_digits.yaml")
    parser.add_argument("--save_name", help="name of the run; default <dataset>_<fs|fr><α>_tau<τ>_<neuron>")
    parser.add_argument("--add_name", help="what to add to the run's default name")
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
