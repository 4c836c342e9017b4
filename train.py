"""Train a network: python train.py --path_to_yaml configs/adlif_digits.yaml

This file holds the loop. tasks/ holds what it trains: a first-spike network on events or a TTFS network on images.
A run writes runs/<name>/: best.pt and last.pt (weights and the whole configuration), config.yaml, metrics.jsonl and
TensorBoard's file. The best model is chosen on data held out from the training file. Only test.py reads the test data;
training looks at their layout first and warns if test.py would refuse it.

last.pt marks how far the run got. If a kill left newer data in the other files, that work is repeated. With --resume a
run continues at the batch after its last.pt, and on the CPU produces the same bits as an uninterrupted run.

The same seed gives the same bits on the same machine with the same packages and number of threads. With another number
of threads (OMP_NUM_THREADS), torch may sum in another order, as its BatchNorm of recurrent layers does. A potential at
the threshold may then spike or not, and the run differs as it would with another seed. Another kind of processor may
round differently, and a GPU may do so from run to run.
"""

import argparse
import math
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from snn import cli  # comes first, because importing snn says which packages are missing

if __name__ == "__main__":
    cli.end_at_ctrl_c()

# isort: split
from snn import arguments

if __name__ == "__main__":
    cli.run(arguments.train_parser(__doc__).parse_args)  # answers --help and wrong options before torch is imported
    cli.end_at_ctrl_c()

# isort: split
import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

import tasks
from snn import checkpoint, health, runs, schema, settings
from snn.classes import Named
from snn.errors import InputError
from snn.machine import find_device
from snn.memory import keep_freed_memory
from snn.schema import Mark
from snn.team import Team, gather
from tasks.kind import Training, check_unchanged

NO_STANDING = (False, -math.inf, -math.inf)  # before the first epoch
THE_LAST = "the last, because nothing was held out to choose by (data.validation_share is 0)"


@dataclass
class Position:
    """The progress of a run. The order of an epoch is not stored: (seed, epoch) determine everything random in it."""

    epoch: int = 0  # complete epochs
    step: int = 0  # batches done in the next epoch
    loss_sum: float = 0.0  # over this process's samples in these batches
    seconds: float = 0.0  # that these batches took
    random: tuple[Tensor, ...] = ()  # states of torch's generators after these batches
    gradient_norm: float = 0.0  # of the last batch, before it was clipped
    # of the best epoch: whether the network had its final form, its accuracy, -its loss
    best: tuple[bool, float, float] = NO_STANDING
    best_epoch: int = 0

    def content(self, team: Team) -> dict[str, Any]:
        """Return the entries for the checkpoint; those that differ between processes are listed by rank."""
        own = {"loss_sum": self.loss_sum, "random": random_states(team.device)}
        common = {"epoch": self.epoch, "step": self.step, "seconds": self.seconds}
        return {**common, "best": self.best, "best_epoch": self.best_epoch, "processes": team.gathered(own)}


def main() -> None:
    keep_freed_memory()
    cfg, args = read_command_line()
    team = gather(args.distributed, find_device(cfg.train.device))
    run = runs.folder((args.save_name or cfg.run_name) + (f"_{args.add_name}" if args.add_name else ""))
    with runs.locked(run) if team.leads else nullcontext():
        train_run(cfg, args, team, run)


def train_run(cfg: schema.AnyConfig, args: argparse.Namespace, team: Team, run: Path) -> None:
    """Train, from the start or from where the run stopped, and say how good the best epoch is."""
    train, last = cfg.train, run / "last.pt"
    found, *resumed = checkpoint.load_newest(last) if args.resume else (None,)
    started_from = (
        arguments.find_checkpoint(args.load_pt_file, args.best_model) if args.load_pt_file and not args.resume else None
    )
    content = checkpoint.load(started_from)[1] if started_from else resumed[1] if resumed else {}
    classes = Named(content.get("class_names"), str(started_from or last))

    task = tasks.kind_of(cfg).training(cfg, team, classes)
    network, optimizer = task.network, task.optimizer
    position = Position()
    warned: set[str] = set()
    if resumed:
        position = resume(run, *resumed, cfg, task, team)
    elif started_from:
        checkpoint.load_weights(network, content["network"], started_from)
    of_data = {"class_names": task.class_names, "trained_on": dict(task.trained_on)}
    save = partial(checkpoint.save, config=cfg, network=network, **of_data)
    save_last = partial(save, keep=True)
    begun, settles = position.content(team), cfg.settles

    def open_run() -> AbstractContextManager:
        """Create or reopen the folder of the run, and open TensorBoard's file in it."""
        if found:
            runs.reopen(run, cfg, found, position.epoch)
        else:
            runs.begin(run, cfg, partial(save, optimizer=optimizer.state_dict(), **begun))
        num_trainable = sum(p.numel() for p in network.parameters() if p.requires_grad)
        print(
            f"{run}: {num_trainable:,} trainable values on {team.device}; {len(task.kept)} {task.items} to "
            f"train on, {len(task.held_out)} held out"
        )
        return runs.tensorboard(run, position.epoch + 1)

    with (
        cli.Interruption(f"interrupted; the same command with --resume continues from {last}") as interruption,
        open_run() if team.leads else nullcontext() as board,
    ):
        for epoch in range(position.epoch, train.epochs):
            if task.patience and epoch - position.best_epoch >= task.patience:
                break
            started = time.perf_counter() - position.seconds
            # (seed, epoch) determine everything random in an epoch, so a run resumes exactly
            random = np.random.default_rng([train.seed, epoch])
            torch.manual_seed(int(random.integers(2**62)) + team.rank)
            order = random.permutation(task.kept)
            schedule = task.begin_epoch(epoch, random)
            is_whole = train_epoch(task, order, position, train, team, interruption, last)
            position.seconds = time.perf_counter() - started
            if is_whole:
                loss = team.sum(position.loss_sum) / len(order)
                validation = task.validate()
                standing = NO_STANDING
                if validation:
                    standing = epoch >= settles, validation[task.chosen_by], -validation["loss"]
                is_best = standing > position.best or not validation
                if is_best:
                    position.best, position.best_epoch = standing, epoch + 1
                if team.leads:
                    row = {
                        "epoch": epoch + 1,
                        "train_loss": loss,
                        **{f"validation_{name}": value for name, value in validation.items()},
                        "best_epoch": position.best_epoch,
                        **schedule,
                        **health.gradient_norms(network, position.gradient_norm, train.clip_norm),
                        "seconds": time.perf_counter() - started,
                    }
                    words = task.describe(validation) if validation else "nothing is held out"
                    runs.log(run, board, row, words, task.learned())
                    for warning in health.warnings_of(row, task.cures):
                        if warning not in warned:
                            tqdm.write(f"warning: {warning}", file=sys.stderr)
                            warned.add(warning)
                    for line in task.activity() if args.verbose else ():
                        tqdm.write(f"  {line}")
                    if is_best:
                        save(run / "best.pt", validation=validation, epoch=epoch + 1)
                position = Position(epoch + 1, best=position.best, best_epoch=position.best_epoch)
            here = position.content(team)
            if team.leads:
                save_last(last, optimizer=optimizer.state_dict(), **here)
            if number := team.largest(interruption.number)[0]:
                epoch, batch = position.epoch, position.step
                where = f"in epoch {epoch + 1}, after batch {batch}" if batch else f"after epoch {epoch}"
                raise cli.Interrupted(
                    f"interrupted {where}; the same command with --resume continues from there", number
                )

    if team.leads:
        _, content = checkpoint.load(run / "best.pt")
        validation = content["validation"]
        print(
            f"best epoch {content['epoch']}: {task.conclude(validation) if validation else THE_LAST}\n"
            f"saved in {run / 'best.pt'}; test it with: bash run_test.sh {run / 'best.pt'}"
        )
        for line in task.uses(run / "best.pt"):
            print(line)
    team.part_ways()


def train_epoch(
    task: Training,
    order: np.ndarray,
    position: Position,
    train: schema.Train,
    team: Team,
    interruption: cli.Interruption,
    last: Path,
) -> bool:
    """Train on the rest of an epoch in this order and update `position`. Return whether the epoch is complete."""
    network, optimizer = task.network, task.optimizer
    network.train()
    if position.step:
        set_random_states(position.random, team.device)
    values = [value for value in network.state_dict().values() if value.is_floating_point()]
    name, steps = f"epoch {position.epoch + 1}/{train.epochs}", math.ceil(len(order) / train.batch_size)
    batches = task.batches(order[position.step * train.batch_size :])
    bar = tqdm(batches, name, steps, initial=position.step, leave=False, disable=None if team.leads else True)

    def fault(step: int, place: str, which: Sequence[int] | slice = slice(None)) -> InputError:
        samples = team.share(order[step * train.batch_size :][: train.batch_size])[which]
        return InputError(
            f"{name}, step {step + 1}: not a finite number in {place}; check the data there, or try a smaller "
            f"train.lr; {last} holds the run up to there. The batch has these {task.items}, by number in the file: "
            f"{', '.join(map(str, samples))}"
        )

    for step, (x, target_B) in enumerate(bar, position.step):
        if at_fault := health.samples_at_fault(x):
            raise fault(step, "the input", at_fault)
        x, target_B = x.to(team.device), target_B.to(team.device)
        optimizer.zero_grad(set_to_none=True)
        batch_size = min(train.batch_size, len(order) - step * train.batch_size)
        loss = task.loss(x, target_B, team.weight(batch_size))
        loss.backward()
        norm = nn.utils.clip_grad_norm_(network.parameters(), train.clip_norm or math.inf)
        is_bad, number = team.largest(not (loss.isfinite() and norm.isfinite()), interruption.number)
        if not is_bad:
            optimizer.step()
            task.after_step()
        if is_bad or not health.are_finite(values):
            raise fault(step, health.blame(network, x, loss))
        loss_value = loss.item()
        position.step, position.gradient_norm = step + 1, float(norm)
        position.loss_sum += loss_value / team.size * batch_size
        if step % train.log_interval == 0:
            bar.set_postfix(loss=f"{loss_value:.3f}")
        if number:
            break
    return position.step == steps


def random_states(device: torch.device) -> list[Tensor]:
    """Return the states of the torch generators that draw for this device."""
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def set_random_states(states: Sequence[Tensor], device: torch.device) -> None:
    """Set torch's generators to these states. A run that began on a CPU has no state for a GPU."""
    torch.set_rng_state(states[0])
    if device.type == "cuda" and len(states) > 1:
        torch.cuda.set_rng_state(states[1], device)


def read_command_line() -> tuple[schema.AnyConfig, argparse.Namespace]:
    parser = arguments.train_parser(__doc__)
    args = parser.parse_args()
    if args.best_model and args.load_pt_file is None:
        raise InputError("command line: --best_model chooses among the checkpoints of --load_pt_file, which is missing")
    args.path_to_yaml = arguments.find_yaml(args.path_to_yaml or arguments.default_yaml(sys.argv[1:]))
    return parser.override(settings.read_yaml(args.path_to_yaml), args), args


def resume(
    run: Path,
    cfg_then: schema.AnyConfig,
    content: dict[str, Any],
    cfg: schema.AnyConfig,
    task: Training,
    team: Team,
) -> Position:
    """Restore a run from its checkpoint and return its position."""
    path = run / "last.pt"
    if changed := settings.changes(cfg, cfg_then, Mark.RESUME):
        raise InputError(
            f"{path}: cannot resume with another {', '.join(changed)}; give the run's own value, or a new name"
        )
    processes = content["processes"]
    if len(processes) != team.size:
        raise InputError(
            f"{path}: the run has {len(processes)} processes, but {team.size} were started; resume it with the same "
            f"number (torchrun --nproc_per_node={len(processes)} train.py ...)"
        )
    if (begun := content["epoch"] + bool(content["step"])) > cfg.train.epochs:
        raise InputError(
            f"{path}: the run has begun epoch {begun} already, beyond train.epochs = {cfg.train.epochs}; give at least "
            "as many (--epochs)"
        )
    check_unchanged(
        content, task.trained_on, path, "bring those back, or train again without --resume or with another --save_name"
    )
    if content["best_epoch"]:
        checkpoint.load(run / "best.pt")
    checkpoint.load_weights(task.network, content["network"], path)
    try:
        task.optimizer.load_state_dict(content["optimizer"])
    except (ValueError, KeyError) as error:
        raise InputError(f"{path}: its optimiser state does not fit this network ({error})") from None
    if team.leads:
        say_jumps(path, cfg_then, cfg, content["epoch"])
    best = tuple(content["best"])
    if len(best) == 2:  # an earlier version wrote (accuracy, -loss)
        best = (content["best_epoch"] > cfg_then.settles, *best)
    position = Position(content["epoch"], best=best, best_epoch=content["best_epoch"])
    if content["step"]:
        own = processes[team.rank]
        position.step, position.seconds = content["step"], content["seconds"]
        position.loss_sum, position.random = own["loss_sum"], own["random"]
    return position


def say_jumps(path: Path, cfg_then: schema.AnyConfig, cfg: schema.AnyConfig, epoch: int) -> None:
    """Warn of schedules that jump here because the number of epochs has changed."""
    then, now, before = (c.schedule(k) for c, k in ((cfg_then, epoch), (cfg, epoch), (cfg_then, max(epoch - 1, 0))))
    if jumps := [f"{name} goes from {before[name]:.3g} to {now[name]:.3g}" for name in now if now[name] != then[name]]:
        print(
            f"warning: {path}: train.epochs = {cfg.train.epochs} gives another schedule over the epochs than "
            f"{cfg_then.train.epochs} did: after epoch {epoch} {' and '.join(jumps)}. For a run with one schedule, "
            "train again from the start with all its epochs",
            file=sys.stderr,
        )


if __name__ == "__main__":
    cli.run(main)
