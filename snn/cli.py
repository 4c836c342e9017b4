"""The command line: the published words, each of them a field of the configuration, and `--set section.field=value`."""

import argparse
import errno
import os
import re
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from snn import architecture, config, output, yaml12
from snn.errors import InputError

if TYPE_CHECKING:
    import torch  # else only where it is used: datasets.prepare and --help do without

REPOSITORY = Path(__file__).resolve().parent.parent
LOST_PROCESS = r"\bgloo\b|\bNCCL\b|Connection (closed|reset) by peer"  # in what torch.distributed raises

# word -> (field, type, number of values, help); the published command line of Liu et al. 2023
_COMMON = {
    "--path_to_dataset": ("data.path", str, None, "folder of the data files"),
    "--dataset_name": ("data.dataset_name", str, None, "reads <name>_train.h5 and <name>_test.h5"),
    "--num_classes": ("data.num_classes", int, None, "classes"),
    "--dt": ("data.dt_ms", float, None, "time bin (ms)"),
    "--hidden_size": ("network.layers", int, "+", "neurons of each fully connected layer"),
    "--neuron1": (("network.neuron1", ("tau_mem_steps", "tau_syn_steps", "theta")), float, 3, "hidden τm τs θ"),
    "--neuron2": (("network.neuron2", ("tau_mem_steps", "tau_syn_steps", "theta")), float, 3, "output τm τs θ"),
    "--loss_mode": ("loss.mode", str, None, "first_time or firing_rate"),
    "--FS": (("loss.fs", ("alpha", "D", "A")), float, "+", "first-spike code: α [D [A]]"),
    "--FR": ("loss.fr.alpha", float, None, "firing-rate code: α"),
    "--treg": (("loss.treg", ("weight", "beta")), float, 2, "regulariser of silent targets: λ β"),
    "--seed": ("train.seed", int, None, "seed"),
    "--test-batch-size": ("train.test_batch_size", int, None, "batch of validation and test"),
}
TRAIN = _COMMON | {
    "--T": ("data.T", int, None, "time bins"),
    "--T_empty": ("data.T_empty", int, None, "empty steps after the bins"),
    "--batch-size": ("train.batch_size", int, None, "batch"),
    "--epochs": ("train.epochs", int, None, "epochs"),
    "--lr": ("train.lr", float, None, "learning rate"),
    "--weight_decay": ("train.weight_decay", float, None, "weight decay"),
    "--lr_decay": ("train.lr_decay", bool, 0, "cosine schedule"),
    "--clip_norm": ("train.clip_norm", float, None, "largest norm of the gradient"),
    "--log-interval": ("train.log_interval", int, None, "steps between updates of the progress bar"),
}
TEST = _COMMON | {
    "--T": ("data.test_T", int, None, "time bins"),
    "--T_empty": ("data.test_T_empty", int, None, "empty steps after the bins"),
}


class OneLineParser(argparse.ArgumentParser):
    """A wrong word is an InputError. Of the description (a module's docstring) --help says the first line."""

    def __init__(self, *, description: str | None = None, **words: Any):
        super().__init__(description=(description or "").partition("\n")[0], **words)  # None: python -OO

    def error(self, message: str) -> None:
        raise InputError(f"command line: {message}; {self.prog} --help lists the words")


class Parser(OneLineParser):
    """Takes the words of `table` beside those added to it; `checkpoints` is argparse's number of them."""

    def __init__(
        self, description: str | None, table: dict, yaml_help: str = "configuration", checkpoints: str | None = None
    ):
        super().__init__(description=description, allow_abbrev=False)
        self.table = table
        self.add_argument("--path_to_yaml", type=Path, metavar="YAML", help=yaml_help)
        for word, (_, kind, number, help_text) in table.items():
            # an absent word leaves no trace, so an explicit 0 or false is told from silence
            if number == 0:
                self.add_argument(word, action="store_true", default=argparse.SUPPRESS, help=help_text)
            else:
                self.add_argument(word, type=kind, nargs=number, default=argparse.SUPPRESS, help=help_text)
        self.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="SECTION.FIELD=VALUE",
            help="set any field of the configuration (python -m snn.config lists them); the value is YAML",
        )
        self.add_argument(
            "--load_pt_file", type=Path, nargs=checkpoints, metavar="PT", help="checkpoint, run folder or run name"
        )
        self.add_argument("--best_model", action="store_true", help="of a run, load best.pt (also without this word)")
        self.add_argument(
            "--distributed",
            action="store_true",
            help="train with all the processes that were started; under torchrun also without this word",
        )

    def override(self, values: dict, args: argparse.Namespace, where: Path | None = None) -> config.AnyConfig:
        """The configuration of plain `values` (changed in place) with the words of the command line over it.

        `where` the values come from, for messages; default --path_to_yaml.
        """
        for word, (target, *_) in self.table.items():
            name = word.lstrip("-").replace("-", "_")
            if not hasattr(args, name):
                continue
            given = getattr(args, name)
            if word == "--hidden_size":
                given = architecture.resized(_layers(values), given)
            if isinstance(target, str):
                config.override(values, target, given)
                continue
            section, fields = target
            if len(given) > len(fields):
                self.error(f"{word} takes at most {len(fields)} values, not {len(given)}")
            for field, value in zip(fields, given, strict=False):
                config.override(values, f"{section}.{field}", value)
        for assignment in args.set:
            field, equals, text = assignment.partition("=")
            if not equals:
                self.error(f"--set {assignment}: write section.field=value")
            config.override(values, field.strip(), yaml12.parse(text, f"--set {field}"))
        return config.build(values, str(where or args.path_to_yaml))


def _layers(values: dict) -> list[str]:
    """The layers of plain values that are not checked yet; none where they are no list of words."""
    network = values.get("network")
    layers = network.get("layers") if isinstance(network, dict) else None
    is_list = isinstance(layers, list) and all(isinstance(word, str) for word in layers)
    return layers if is_list else []


def find_yaml(path: Path) -> Path:
    """A configuration by its path. Published commands say ../configs/x.yaml; here that is configs/x.yaml."""
    in_repository = REPOSITORY / "configs" / path.name
    if not path.exists() and path.parent.name == "configs" and in_repository.exists():
        print(f"{path} is not there; reading {os.path.relpath(in_repository)}", file=sys.stderr)
        return in_repository
    return path


def find_checkpoint(path: Path) -> Path:
    """A checkpoint by its path; or best.pt of a run, by its folder, its name or its published name <run>.pt.

    A folder or file of another kind, such as one of data, does not hide a run of its name.
    """
    run = Path("runs") / path.name.removesuffix(".pt")
    folders = sorted(filter(Path.is_dir, (path, run)), key=lambda folder: not any(folder.glob("*.pt")))
    if path.is_file() and (path.suffix == ".pt" or not folders):
        return path
    if folders:
        return folders[0] / "best.pt"
    raise InputError(f"{path}: no such checkpoint, and there is no run {run}; train one with train.py")


def device(name: str) -> "torch.device":
    """The device of that name; auto is CUDA where there is one."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(name)
        if chosen.type != "cpu":
            torch.zeros(1, device=chosen).item()  # meta makes tensors, but they hold no numbers
            # else convolutions keep 10 bits of a float32 and a network decides otherwise than on the CPU
            torch.backends.cudnn.allow_tf32 = False
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"train.device = {name}: cannot be used here ({reason:.100}); take cpu or auto") from None
    return chosen


def default_yaml(words: list[str]) -> Path:
    """What a command line without --path_to_yaml means: the set's own configuration, else that of its layout, SHD."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--dataset_name", default="digits")
    name = parser.parse_known_args(words)[0].dataset_name
    own = REPOSITORY / "configs" / f"adlif_{name}.yaml"
    return own if own.is_file() else REPOSITORY / "configs" / "adlif_shd.yaml"


class Interruption:
    """Within it, SIGINT and SIGTERM only leave their number here, 0 before, so that work comes to a good end.

    A second Ctrl-C ends the program at once, with this advice. What a shell has told to ignore Ctrl-C goes on to do so.
    """

    def __init__(self, advice: str):
        self.advice, self.number = advice, 0

    def __enter__(self) -> "Interruption":
        heard = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) != signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._note) for number in heard}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.number and number == signal.SIGINT:
            raise KeyboardInterrupt(self.advice)
        self.number = number


class Interrupted(Exception):
    """The program ends because a signal of this number asked it to; what it did is kept."""

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.number = number


def _quiet_about_ctrl_c(unraisable: "sys.UnraisableHookArgs") -> None:
    """Ctrl-C in the midst of a callback from C is raised again by who called C (`snn.ops.compiled`)."""
    if unraisable.exc_type is not KeyboardInterrupt:
        sys.__unraisablehook__(unraisable)


def _quiet_about_files(failure: "threading.ExceptHookArgs") -> None:
    """TensorBoard's thread meets a full disk and says so again to the next who writes or closes (`train.log`)."""
    if not issubclass(failure.exc_type, OSError):
        threading.__excepthook__(failure)


def run(main: Callable[[], None]) -> None:
    """Run a program: what the user or the machine got wrong is one line and exit code 2, Ctrl-C is exit code 130.

    SIGTERM is 143 where a program takes it up by `Interruption`.
    """
    output.take_any_character()
    sys.unraisablehook = _quiet_about_ctrl_c
    threading.excepthook = _quiet_about_files
    try:
        main()
    except InputError as error:
        message, code = f"error: {error}", 2
    except (MemoryError, RuntimeError) as error:
        if re.search(LOST_PROCESS, str(error)):
            message = (
                "error: another process of this training has ended or does not answer; what it said and torchrun's "
                "report name it, and the same command with --resume goes on from the last checkpoint"
            )
        elif isinstance(error, MemoryError) or re.search("can't allocate memory|out of memory", str(error)):
            message = "error: out of memory; a smaller batch, T or network may fit"
        else:
            raise
        code = 2
    except BrokenPipeError:  # whoever read our output, `head` say, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        if error.filename is None and error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise  # not about a file of the user's: a fault of ours
        message, code = f"error: {error.filename or 'writing'}: {error.strerror}", 2
    except Interrupted as interrupted:
        message, code = str(interrupted), 128 + interrupted.number
    except KeyboardInterrupt as interrupt:
        message, code = str(interrupt) or "interrupted", 130
    else:
        return
    print(" ".join(message.split()), file=sys.stderr)
    sys.exit(code)
