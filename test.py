"""Test trained networks: python test.py --load_pt_file runs/<name>/best.pt [more checkpoints, run folders or names]

The networks come from the checkpoints alone. One network is printed as a table. Several are printed as a row each, with
mean ± std over those whose configurations differ only in the seed. Each run gets a folder runs/<name>/test/ with
report.html (all results), the pictures of that page as PNG, metrics.json (percent, steps, ms), and samples.npz, which
holds the results of each sample for compare.py. The folder of a last.pt beside its best.pt is test_last/.

A first-spike network is tested under first-spike and firing-rate decoding. --show draws a decision of every class, and
--test_single_delay draws the output spikes of one recording of each class in one picture. --streaming decides on events
as they come and compares the cost with that of whole windows. --thresholds scales the output thresholds, for earlier or
surer decisions, and chooses a scale on the recordings that were held out from training. --energy counts operations,
memory traffic and energy (`snn/energy.py`; models of hardware: `snn/hardware.py`). --quantise int8 tests the network as
export.py writes it to C, writes to the folder test_int8/, and says how many decisions quantising changes.

The test of a TTFS network measures accuracy, the number of spikes and their times. --simulate also runs every image
through a simulation over time and counts the decisions that differ. --quantise int8 applies to it, too.
"""

import argparse
import io
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import snn  # comes first, because it says which packages are missing
from snn import cli

if __name__ == "__main__":
    cli.end_at_ctrl_c()
    snn.need("matplotlib", "jinja2", extra="report")

# isort: split
import numpy as np
import torch
from tqdm import tqdm

import tasks
from snn import arguments, checkpoint, schema, settings, tables
from snn.errors import InputError
from snn.files import write_whole
from snn.memory import keep_freed_memory
from snn.report import Subject, runs_table
from snn.schema import Mark
from tasks.kind import Result


def main() -> None:
    keep_freed_memory()
    if torch.distributed.is_torchelastic_launched():
        raise InputError("test.py runs in one process: start it with python, not torchrun")
    args, subjects = read_command_line()
    for subject in subjects:
        open_folder(subject.out)
    metrics: dict[Path, dict] = {}
    for group in alike(subjects):
        test = tasks.kind_of(group[0].cfg).testing(args, group)
        for x, target_B in tqdm(test, "test", leave=False, disable=None):
            test.examine(x, target_B)
        for result in tqdm(test.results(), "report", len(group), leave=False, disable=None):
            write(result)
            metrics[result.subject.path] = result.metrics
    if len(subjects) == 1:
        (subject,) = subjects
        print(tables.text(tasks.kind_of(subject.cfg).testing.tables(metrics[subject.path])), end="\n\n")
        print(f"report in {subject.out / 'report.html'}; metrics.json, the pictures and samples.npz are beside it")
        return
    for kind in tasks.KINDS:
        if tested := [(s, metrics[s.path]) for s in subjects if isinstance(s.cfg, kind.config)]:
            print(runs_table(tested, kind.testing.columns).text(), end="\n\n")
    print("a report.html is in each of " + ", ".join(str(subject.out) for subject in subjects))


def alike(subjects: Sequence[Subject]) -> list[list[Subject]]:
    """Group the networks that see the same batches."""
    groups = defaultdict(list)
    for subject in subjects:
        data, train = subject.cfg.data, subject.cfg.train
        path = getattr(data, "test_path", None)  # the training file if data.test_by is set
        seen = str(data.model_dump(exclude=settings.marked(type(data), Mark.TRAINING)))
        same = type(subject.cfg), seen, path, train.test_batch_size, train.device, subject.content["class_names"]
        groups[same].append(subject)
    return list(groups.values())


def write(result: Result) -> None:
    """Write metrics.json and samples.npz."""
    out, file = result.subject.out, io.BytesIO()
    write_whole(out / "metrics.json", json.dumps(result.metrics, indent=2) + "\n")
    np.savez_compressed(file, **{name: np.asarray(value) for name, value in result.samples.items()})
    write_whole(out / "samples.npz", file.getvalue())


def read_command_line() -> tuple[argparse.Namespace, list[Subject]]:
    """Return the arguments and the networks to test; the arguments override the configurations of the networks."""
    yaml_help = "configuration whose data section is used"
    parser = arguments.Parser(__doc__, arguments.TEST, yaml_help)
    parser.take_checkpoints("+")
    for word, (help_text, choices) in {  # a word that several kinds have is added once
        word: (help_text, kind.testing.choices.get(word))
        for kind in tasks.KINDS
        for word, help_text in kind.testing.words.items()
    }.items():
        takes: dict = {"choices": choices} if choices else {"action": "store_true"}
        parser.add_argument(f"--{word}", help=help_text, **takes)
    args = parser.parse_args()
    if args.load_pt_file is None:
        raise InputError("command line: --load_pt_file is missing: a checkpoint such as runs/<name>/best.pt")
    paths: dict[tuple[Path, str], Path] = {}
    for given in args.load_pt_file:
        path = arguments.find_checkpoint(given, args.best_model)
        paths.setdefault((path.parent.resolve(), path.name), path)  # each once, whatever its folder is called
    folders = [folder for folder, _ in paths]
    subjects = []
    for (folder, _), path in paths.items():
        has_others = folders.count(folder) > 1 or path.with_name("best.pt").exists()
        keeps_apart = has_others and path.stem != "best"  # from other checkpoints of its run
        words = ["test", *([path.stem] if keeps_apart else []), *([args.quantise] if args.quantise else [])]
        out = path.parent / "_".join(words)
        subjects.append(Subject(path, *read_checkpoint(parser, args, path), out))
    return args, subjects


def read_checkpoint(
    parser: arguments.Parser, args: argparse.Namespace, path: Path
) -> tuple[schema.AnyConfig, schema.AnyConfig, dict]:
    """Return the configuration of a checkpoint's test, that of its training, and its content.

    --path_to_yaml replaces the data, other arguments override. One that only training reads is refused.
    """
    trained, content = checkpoint.load(path)
    values = trained.model_dump(mode="json")
    if args.path_to_yaml is not None:
        given = settings.read_yaml(arguments.find_yaml(args.path_to_yaml))
        if others := [section for section in schema.KINDS if section in given and section != trained.section]:
            raise InputError(
                f"{args.path_to_yaml}: describes a network with a section `{others[0]}`, but that of {path} has a "
                f"section `{trained.section}`; choose a configuration of its kind"
            )
        values["data"] = given.get("data", {})
    cfg = parser.override(values, args, args.path_to_yaml or path)
    of_training = {f"train.{name}" for name in type(cfg.train).model_fields} - {"train.seed", "train.test_batch_size"}
    of_training |= {"data.augment", "data.crop_pad"}  # --thresholds reads the fields of what was held out
    of_training -= settings.marked(type(cfg), Mark.MACHINE)
    for field, words in parser.given(args).items():
        if field in ("data", "train"):
            raise InputError(f"command line: {words}: only train.py reads all of {field}; set its fields one by one")
        if any(field == name or field.startswith(f"{name}.") for name in of_training):
            raise InputError(f"command line: {words}: only train.py reads {field}; leave it out of a test")
    section, own = trained.section, tasks.kind_of(trained).testing.words
    for word in (word for kind in tasks.KINDS for word in kind.testing.words if word not in own):
        if getattr(args, word):
            raise InputError(
                f"command line: --{word} does not apply to a network with a section `{section}`, as in {path}"
            )
    if changed := list(settings.differences(getattr(cfg, section), getattr(trained, section), f"{section}.")):
        raise InputError(f"{path}: belongs to another network: it was trained with another {', '.join(changed)}")
    if cfg.train.seed != trained.train.seed:
        raise InputError(f"{path}: was trained with the seed {trained.train.seed}; leave train.seed (--seed) out")
    here, there = ((c.data.shape, c.data.num_classes) for c in (cfg, trained))
    if here != there:
        inputs = ["x".join(map(str, shape)) for shape, _ in (here, there)]
        raise InputError(
            f"{path}: the data do not fit the network: they have {inputs[0]} input channels and {here[1]} classes, "
            f"but it was trained on {inputs[1]} and {there[1]}"
        )
    return cfg, trained, content


def open_folder(out: Path) -> None:
    """Make the output folder, and check that it can be written before the work begins."""
    try:
        out.mkdir(exist_ok=True)
        probe = out / ".writable"
        write_whole(probe, "")
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"{out}: the results cannot be written there ({error.strerror}); it must be a folder that you may write"
        ) from None


if __name__ == "__main__":
    cli.run(main)
