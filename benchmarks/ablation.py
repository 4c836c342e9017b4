"""The ingredients of a recipe, one by one: each alone on a plain configuration, and each left out of the recipe.

    python -m benchmarks.ablation configs/adlif_shd.yaml configs/speech.yaml --seeds 0 --epochs 25 [options of train.py]
    python -m benchmarks.ablation configs/ttfs_cifar10_small.yaml --seeds 0 1 2

An ingredient is a group of fields, see ABLATIONS. "alone" is the plain configuration with the recipe's values of one
ingredient; "left out" is the recipe with the plain values of that ingredient. Delays are only a part of a field: they
are added to the layers of the plain configuration and taken from those of the recipe, whose sizes stay as they are.
Everything else in which the two differ (the data set, the window, the held-out speakers) is as in the recipe in all
rows. If only the recipe is given, plain values are the defaults of its fields, and maximum pools in place of average
ones. The options of train.py change both configurations, or the recipe before the plain one is derived from it.

Ingredients are compared on samples held out from training, at the epoch that train.py chooses. Nothing here reads the
test file. Writes results/ablation/<recipe>.json after each training; the same command continues an interrupted one.
"""

import json
import os
import re
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from itertools import chain, repeat
from operator import getitem
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from benchmarks.figures import machine_in_use
from benchmarks.results import RESULTS, run, stored_before, without_places
from snn import arguments, checkpoint, cli, config, settings
from snn.errors import InputError
from snn.files import write_whole
from snn.machine import find_device, versions
from snn.schema import AnyConfig, Mark

COMMAND = ("python", "-m", "benchmarks.ablation")


class Ablation(NamedTuple):
    """The choices for one kind of network.

    Attributes:
        ingredients: names of fields, by the name of their ingredient.
        kept: the metrics of train.py that are stored.
        plain: functions from a recipe's value to the plain one, for fields that have no default.
        parts: for fields of which the ingredient is only a part, functions that take the value of one side and that of
            the other, and return the former with the ingredient of the latter.
    """

    ingredients: dict[str, tuple[str, ...]]
    kept: tuple[str, ...]
    plain: dict[str, Callable[[Any], Any]]
    parts: dict[str, Callable[[Any, Any], Any]]


def with_delays_of(words: Sequence[str], others: Sequence[str]) -> list[str]:
    """Return the layers `words`, whose fully connected ones have the delays of those of `others` in place of their own.

    The first has the delay of the first, and so on; if `others` are fewer, their last delay is repeated. A delay of
    spikes that a layer feeds back to itself (DR) goes to recurrent layers alone.
    """
    full = re.compile(r"(\d+[FR])(.*)")
    delays = [found[2] for word in others if (found := full.fullmatch(word))] or [""]
    given = chain(delays, repeat(delays[-1]))
    result = [found[1] + next(given) if (found := full.fullmatch(word)) else word for word in words]
    return [re.sub(r"^(\d+F.*)DR\d+$", r"\1", word) for word in result]


ABLATIONS: dict[type[AnyConfig], Ablation] = {
    config.Config: Ablation(
        ingredients={
            "loss": ("loss.mode", "network.neuron2"),  # each loss has thresholds that suit it
            "class at each step": ("loss.first_to_spike.each_step",),  # of one loss, so alone it may change nothing
            "neuron": ("network.neuron", "network.neuron1"),
            "delays": ("network.layers",),
            "pooled channels": ("data.pool",),
            "shift, stretch, drop": ("data.augment.shift", "data.augment.stretch", "data.augment.drop"),
            "zoom": ("data.augment.zoom",),
            "blend": ("data.augment.blend",),
            "masks": ("data.augment.mask", "data.augment.mask_ms"),
            "spike budget": ("loss.spike_count",),
            "small batches, large rate": ("train.batch_size", "train.lr", "train.lr_decay"),
            "dropout": ("network.dropout",),
            "pruned weights": ("network.density",),
        },
        kept=(
            *("fs_accuracy", "fr_accuracy", "t_d50_ms", "t_d90_ms"),
            *("spikes_per_neuron", "synaptic_operations_to_decision"),
        ),
        plain={},
        parts={"network.layers": with_delays_of},
    ),
    config.TTFSConfig: Ablation(
        ingredients={
            "augmentation": ("data.augment",),
            "bias": ("ttfs.bias",),
            "standardised weights": ("ttfs.standardised",),
            "average pools": ("ttfs.layers",),
            "drive for silent neurons": ("train.silent_drive",),
            "small batches, large rate": ("train.batch_size", "train.lr", "train.lr_decay", "train.lr_factor"),
            "clipped gradient": ("train.clip_norm",),
        },
        kept=("accuracy", "spikes_per_neuron", "synaptic_operations_per_image"),
        plain={"ttfs.layers": lambda layers: re.sub(r"\bA(?=\d)", "P", layers)},
        parts={},
    ),
}


def value_of(values: dict, field: str) -> Any:
    """Return the value, or the section, at a dotted name."""
    return reduce(getitem, field.split("."), values)


def without_ingredients(recipe: AnyConfig, where: str) -> AnyConfig:
    """Return the plain counterpart of a recipe. InputError names `where` and the fields that have no plain value."""
    ingredients, plain = ABLATIONS[type(recipe)].ingredients, ABLATIONS[type(recipe)].plain
    values = recipe.model_dump(mode="json")
    for field in chain.from_iterable(ingredients.values()):
        section, _, name = field.rpartition(".")
        value = value_of(values, section).pop(name)
        if field in plain:
            settings.override(values, field, plain[field](value))
    return settings.build(values, f"{where} without its ingredients (give a plain YAML before it)")


def variants(plain: AnyConfig, recipe: AnyConfig) -> Iterator[tuple[str, str, AnyConfig]]:
    """Yield (ingredient, "alone" or "left out", configuration), first those with no and with every ingredient."""
    ingredients, parts = ABLATIONS[type(recipe)].ingredients, ABLATIONS[type(recipe)].parts
    by_name = {"plain": plain.model_dump(mode="json"), "recipe": recipe.model_dump(mode="json")}

    def taken(field: str, base: str, other: str) -> Any:
        """Return the value of a field of the base with the ingredient of the other side."""
        values = value_of(by_name[base], field), value_of(by_name[other], field)
        return parts[field](*values) if field in parts else values[1]

    def mixed(where: str, base: str, ingredient: str = "", other: str = "") -> AnyConfig:
        values = recipe.model_dump(mode="json")
        for field in chain.from_iterable(ingredients.values()):
            settings.override(values, field, value_of(by_name[base], field))
        for field in ingredients.get(ingredient, ()):
            settings.override(values, field, taken(field, base, other))
        return settings.build(values, where)

    yield "", "plain", mixed("plain", "plain")
    yield "", "recipe", recipe
    for ingredient, fields in ingredients.items():
        sides = ("plain", "recipe"), ("recipe", "plain")
        if all(taken(field, *side) == value_of(by_name[side[0]], field) for field in fields for side in sides):
            continue
        yield ingredient, "alone", mixed(f"{ingredient} alone", "plain", ingredient, "recipe")
        yield ingredient, "left out", mixed(f"without {ingredient}", "recipe", ingredient, "plain")


def train(name: str, cfg: AnyConfig, seed: int) -> dict[str, float]:
    """Train a configuration in runs/ablation_<name>_seed<seed>; return what train.py measured at the epoch it chose.

    A run of that name is continued if it has the same configuration; otherwise train.py moves it away.
    """
    cfg = cfg.model_copy(update={"train": cfg.train.model_copy(update={"seed": seed})})
    folder = Path("runs", f"ablation_{name}_seed{seed}")
    folder.parent.mkdir(exist_ok=True)
    path = folder.with_suffix(".yaml")
    write_whole(path, settings.as_yaml(cfg))
    is_begun = (folder / "last.pt").exists() and not settings.changes(cfg, settings.load(folder / "config.yaml"))
    run("train.py", "--path_to_yaml", str(path), "--save_name", folder.name, *(["--resume"] if is_begun else []))
    _, content = checkpoint.load(folder / "best.pt")
    if not content["validation"]:
        raise InputError(f"{folder}: nothing was held out to compare ingredients on; set data.validation_share")
    return {"epoch": content["epoch"]} | {key: content["validation"][key] for key in ABLATIONS[type(cfg)].kept}


def of_every_machine(cfg: AnyConfig) -> dict:
    """Return the plain values of a configuration without those fields that only say how this machine runs it."""
    values = cfg.model_dump(mode="json")
    for field in settings.marked(type(cfg), Mark.MACHINE):
        section, name = field.split(".")
        del values[section][name]
    return values


def main() -> None:
    parser = cli.OneLineParser(description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "yaml", type=Path, nargs="+", metavar="YAML", help="the plain configuration, if any; the recipe"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="seeds to train (0)")
    parser.add_argument("--out", type=Path, help="the result; default results/ablation/<recipe>.json")
    args, words = parser.parse_known_args()
    if len(args.yaml) > 2:
        parser.error("give one recipe, and before it at most one plain configuration")
    options = arguments.Parser("", arguments.TRAIN)
    paths, changes = [arguments.find_yaml(path) for path in args.yaml], options.parse_args(words)
    *plains, recipe = (options.override(settings.read_yaml(path), changes, path) for path in paths)
    plain = plains[0] if plains else without_ingredients(recipe, str(args.yaml[-1]))
    if type(plain) is not type(recipe):
        raise InputError(f"{args.yaml[0]} and {args.yaml[1]} must describe the same kind of network")
    out = args.out or RESULTS / "ablation" / f"{args.yaml[-1].stem}.json"
    names = [f"configs/{path.name}" for path in args.yaml]
    result = {
        "command": shlex.join([*COMMAND, *names, "--seeds", *map(str, args.seeds), *without_places(words)]),
        "plain": of_every_machine(plain),
        "recipe": of_every_machine(recipe),
        "finished": None,
        "machine": machine_in_use(find_device(recipe.train.device), load_at_start=os.getloadavg()[0]),
        "versions": versions(),
    }
    result["rows"] = rows = stored_before(out, result, "rows", "command", "plain", "recipe") or []
    seeds_of = {(row["ingredient"], row["which"]): row["seeds"] for row in rows}
    trainings = [(seed, *variant) for seed in args.seeds for variant in variants(plain, recipe)]
    out.parent.mkdir(parents=True, exist_ok=True)
    for seed, ingredient, which, cfg in tqdm(trainings, "trainings", disable=None):
        if (ingredient, which) not in seeds_of:
            seeds_of[ingredient, which] = {}
            rows.append({"ingredient": ingredient, "which": which, "seeds": seeds_of[ingredient, which]})
        if str(seed) in seeds_of[ingredient, which]:
            continue
        name = f"{out.stem} {ingredient} {which}".replace(",", "")
        seeds_of[ingredient, which][str(seed)] = train("_".join(name.split()), cfg, seed)
        result["finished"] = time.strftime("%Y-%m-%d")
        write_whole(out, json.dumps(result, indent=1) + "\n")
    print(f"stored in {out}; python -m benchmarks.results --readme puts it into docs/")


if __name__ == "__main__":
    cli.run(main)
