"""The command line of train.py, test.py and search.py: the published options, each a field, and `--set`.

Importing this module does not import torch, so that --help and wrong options are answered at once.
"""

import argparse
import os
import sys
from pathlib import Path

from snn import architecture, settings, yaml12
from snn.cli import OneLineParser
from snn.errors import InputError
from snn.files import REPOSITORY
from snn.schema import AnyConfig

# option -> (field, type, number of values, help); the published command line of Liu et al. 2023
_COMMON = {
    "--path_to_dataset": ("data.path", str, None, "folder of the data files"),
    "--dataset_name": ("data.dataset_name", str, None, "reads <name>_train.h5 and <name>_test.h5"),
    "--num_classes": ("data.num_classes", int, None, "number of classes"),
    "--dt": ("data.dt_ms", float, None, "width of a time bin (ms)"),
    "--hidden_size": ("network.layers", int, "+", "number of neurons in each fully connected layer"),
    "--neuron1": (("network.neuron1", ("tau_mem_steps", "tau_syn_steps", "theta")), float, 3, "hidden τm τs θ"),
    "--neuron2": (("network.neuron2", ("tau_mem_steps", "tau_syn_steps", "theta")), float, 3, "output τm τs θ"),
    "--loss_mode": ("loss.mode", str, None, "the loss, a file in snn/losses"),
    "--FS": (("loss.fs", ("alpha", "D", "A")), float, "+", "first-spike code: α [D [A]]"),
    "--FR": ("loss.fr.alpha", float, None, "firing-rate code: α"),
    "--treg": (("loss.treg", ("weight", "beta")), float, 2, "regulariser for silent targets: λ β"),
    "--seed": ("train.seed", int, None, "seed"),
    "--test-batch-size": ("train.test_batch_size", int, None, "batch size in validation and test"),
}
TRAIN = _COMMON | {
    "--T": ("data.T", int, None, "number of time bins"),
    "--T_empty": ("data.T_empty", int, None, "number of empty steps after the bins"),
    "--batch-size": ("train.batch_size", int, None, "batch size"),
    "--epochs": ("train.epochs", int, None, "number of epochs"),
    "--lr": ("train.lr", float, None, "learning rate"),
    "--weight_decay": ("train.weight_decay", float, None, "weight decay"),
    "--lr_decay": ("train.lr_decay", bool, 0, "decay the learning rate along a cosine"),
    "--clip_norm": ("train.clip_norm", float, None, "largest norm of the gradient"),
    "--log-interval": ("train.log_interval", int, None, "steps between updates of the progress bar"),
}
TEST = _COMMON | {
    "--T": ("data.test_T", int, None, "number of time bins"),
    "--T_empty": ("data.test_T_empty", int, None, "number of empty steps after the bins"),
}


class Parser(OneLineParser):
    """A parser for the options of `table` and those added later."""

    def __init__(self, description: str | None, table: dict, yaml_help: str = "configuration"):
        super().__init__(description=description, allow_abbrev=False)
        self.table = table
        self.add_argument("--path_to_yaml", type=Path, metavar="YAML", help=yaml_help)
        for word, (_, kind, number, help_text) in table.items():
            # SUPPRESS: an option that is not given leaves no attribute, which tells it from an explicit 0 or false
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

    def take_checkpoints(self, number: str | None = None) -> None:
        """Add the options that choose trained networks; `number` is the `nargs` of --load_pt_file."""
        self.add_argument(
            "--load_pt_file", type=Path, nargs=number, metavar="PT", help="checkpoint, run folder or run name"
        )
        self.add_argument("--best_model", action="store_true", help="load best.pt of the run (the default)")
        self.add_argument(
            "--distributed",
            action="store_true",
            help="train with all started processes (the default under torchrun)",
        )

    def given(self, args: argparse.Namespace) -> dict[str, str]:
        """Return the fields that the command line sets, each with the words that set it."""
        fields: dict[str, str] = {}
        for word, (target, *_) in self.table.items():
            if hasattr(args, word.lstrip("-").replace("-", "_")):
                names = [target] if isinstance(target, str) else [f"{target[0]}.{field}" for field in target[1]]
                fields |= dict.fromkeys(names, word)
        return fields | {field.partition("=")[0].strip(): f"--set {field}" for field in args.set}

    def override(self, values: dict, args: argparse.Namespace, where: Path | None = None) -> AnyConfig:
        """Change plain `values` in place by the command line, and return the configuration that they describe.

        Messages name `where` the values come from; the default is --path_to_yaml.
        """
        for word, (target, *_) in self.table.items():
            name = word.lstrip("-").replace("-", "_")
            if not hasattr(args, name):
                continue
            given = getattr(args, name)
            if word == "--hidden_size":
                given = architecture.resized(_layers(values), given)
            if isinstance(target, str):
                settings.override(values, target, given)
                continue
            section, fields = target
            if len(given) > len(fields):
                self.error(f"{word} takes at most {len(fields)} values, not {len(given)}")
            for field, value in zip(fields, given, strict=False):
                settings.override(values, f"{section}.{field}", value)
        for assignment in args.set:
            field, equals, text = assignment.partition("=")
            if not equals:
                self.error(f"--set {assignment}: write section.field=value")
            settings.override(values, field.strip(), yaml12.parse(text, f"--set {field}"))
        cfg = settings.build(values, str(where or args.path_to_yaml))
        given = [f"--{name}" for name in ("FS", "FR", "treg") if hasattr(args, name)]
        loss = getattr(cfg, "loss", None)  # one kind of network has it
        if given and loss and loss.mode == "first_to_spike":  # it reads none of them
            self.error(
                f"{given[0]} has no effect with the loss first_to_spike; give --loss_mode first_time or firing_rate, "
                "or set fields of loss.first_to_spike"
            )
        return cfg


def train_parser(description: str | None) -> Parser:
    """Return the parser of train.py."""
    parser = Parser(description, TRAIN)
    parser.take_checkpoints()
    parser.add_argument(
        "--save_name",
        help="name of the run (default: <dataset>_<loss>_tau<τ>_<neuron>, such as shd_fs0.2_tau60_adlif, or "
        "<dataset>_ttfs_<layers>)",
    )
    parser.add_argument("--add_name", help="text to add to the name of the run")
    parser.add_argument(
        "--verbose", action="store_true", help="print the activity of each layer's input after each epoch"
    )
    parser.add_argument("--resume", action="store_true", help="continue the run of that name where it ended")
    return parser


def search_parser(description: str | None) -> Parser:
    """Return the parser of search.py."""
    parser = Parser(description, TRAIN)
    parser.add_argument(
        "--ranges", type=Path, metavar="YAML", help="goals and ranges; default <configuration>_search.yaml beside it"
    )
    parser.add_argument(
        "--trials", type=int, default=100, metavar="N", help="trials of the study, by all workers together (100)"
    )
    parser.add_argument("--study", metavar="NAME", help="name of the study; default <configuration>_search")
    parser.add_argument(
        "--storage", metavar="URL", help="database of the study; default sqlite:///runs/<study>/study.db"
    )
    return parser


def _layers(values: dict) -> list[str]:
    """Return the layers in unchecked values, or an empty list if these are not a list of words."""
    network = values.get("network")
    layers = network.get("layers") if isinstance(network, dict) else None
    if isinstance(layers, list) and all(isinstance(word, str) for word in layers):
        return layers
    return []


def find_yaml(path: Path) -> Path:
    """Find a configuration by its path. Published commands write ../configs/x.yaml for our configs/x.yaml."""
    in_repository = REPOSITORY / "configs" / path.name
    if not path.exists() and path.parent.name == "configs" and in_repository.exists():
        print(f"{path} does not exist; reading {os.path.relpath(in_repository)}", file=sys.stderr)
        return in_repository
    return path


def find_checkpoint(path: Path, is_best: bool = False) -> Path:
    """Find a checkpoint by its path, or best.pt of a run by its folder, its name or its published name <run>.pt.

    A run is found even if another folder or file, such as a data set, has its name. Raise InputError if there is no
    such checkpoint or run, or if the path names last.pt although `is_best`.
    """
    run = Path("runs") / path.name.removesuffix(".pt")
    folders = sorted(filter(Path.is_dir, (path, run)), key=lambda folder: not any(folder.glob("*.pt")))
    if path.is_file() and (path.suffix == ".pt" or not folders):
        if is_best and path.name == "last.pt":
            raise InputError(f"--best_model is for best.pt, but --load_pt_file names {path}; leave one of the two out")
        return path
    if folders:
        return folders[0] / "best.pt"
    raise InputError(f"{path}: no such checkpoint and no run {run}; train one with train.py")


def default_yaml(words: list[str]) -> Path:
    """Choose the configuration without --path_to_yaml: the data set's own, or that of SHD if it has none."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--dataset_name", default="digits")
    name = parser.parse_known_args(words)[0].dataset_name
    own = REPOSITORY / "configs" / f"adlif_{name}.yaml"
    return own if own.is_file() else REPOSITORY / "configs" / "adlif_shd.yaml"
