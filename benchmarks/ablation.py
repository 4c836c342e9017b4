"""The ingredients of a recipe, one by one: each alone on a plain configuration, and each left out of the recipe.

    python -m benchmarks.ablation configs/adlif_shd.yaml configs/speech.yaml --seeds 0 --epochs 25 [options of train.py]

An ingredient is a group of fields, see INGREDIENTS. "alone" is the plain configuration with the recipe's values of one
ingredient; "left out" is the recipe with the plain values of that ingredient. Everything else in which the two differ
(the data set, the window, the held-out speakers) is as in the recipe in all rows.

Ingredients are compared on recordings held out from training, at the epoch that train.py chooses. Nothing here reads
the test file. Writes results/ablation/<recipe>.json after each training; the same command continues an interrupted one.
"""

import json
import os
import shlex
import time
from collections.abc import Iterator, Sequence
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.figures import machine_in_use
from benchmarks.results import RESULTS, run, stored_before, without_places
from snn import arguments, checkpoint, cli, config, settings
from snn.errors import InputError
from snn.files import write_whole
from snn.front import as_yaml
from snn.machine import find_device, versions

COMMAND = ("python", "-m", "benchmarks.ablation")
INGREDIENTS = {
    "loss": ("loss.mode", "network.neuron2"),  # each loss has thresholds that suit it
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
}
KEPT = ("fs_accuracy", "fr_accuracy", "t_d50_ms", "t_d90_ms", "spikes_per_neuron", "synaptic_operations_to_decision")


def value_of(values: dict, field: str) -> Any:
    """Return the value, or the section, at a dotted name."""
    return reduce(getitem, field.split("."), values)


def variants(plain: config.Config, recipe: config.Config) -> Iterator[tuple[str, str, config.Config]]:
    """Yield (ingredient, "alone" or "left out", configuration), first those with no and with every ingredient."""
    by_name = {"plain": plain.model_dump(mode="json"), "recipe": recipe.model_dump(mode="json")}

    def mixed(where: str, sources: dict[str, str]) -> config.Config:
        values = recipe.model_dump(mode="json")
        for ingredient, source in sources.items():
            for field in INGREDIENTS[ingredient]:
                settings.override(values, field, value_of(by_name[source], field))
        return settings.build(values, where)

    yield "", "plain", mixed("plain", dict.fromkeys(INGREDIENTS, "plain"))
    yield "", "recipe", recipe
    for ingredient, fields in INGREDIENTS.items():
        if all(value_of(by_name["plain"], field) == value_of(by_name["recipe"], field) for field in fields):
            continue
        others = dict.fromkeys(INGREDIENTS, "plain") | {ingredient: "recipe"}
        yield ingredient, "alone", mixed(f"{ingredient} alone", others)
        yield ingredient, "left out", mixed(f"without {ingredient}", {ingredient: "plain"})


def train(name: str, cfg: config.Config, seed: int, words: Sequence[str]) -> dict[str, float]:
    """Train a configuration in runs/ablation_<name>_seed<seed>; return what train.py measured at the epoch it chose."""
    folder = Path("runs", f"ablation_{name}_seed{seed}")
    folder.parent.mkdir(exist_ok=True)
    path = folder.with_suffix(".yaml")
    write_whole(path, as_yaml(cfg))
    begun = ["--resume"] if (folder / "last.pt").exists() else []
    place = ["--path_to_yaml", str(path), "--seed", str(seed), "--save_name", folder.name]
    run("train.py", *words, *place, *begun)
    _, content = checkpoint.load(folder / "best.pt")
    return {"epoch": content["epoch"]} | {key: content["validation"][key] for key in KEPT}


def main() -> None:
    parser = cli.OneLineParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("plain", type=Path, help="the configuration that ingredients are added to")
    parser.add_argument("recipe", type=Path, help="the configuration that ingredients are left out of")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="seeds to train (0)")
    parser.add_argument("--out", type=Path, help="the result; default results/ablation/<recipe>.json")
    args, words = parser.parse_known_args()
    plain, recipe = (settings.load(arguments.find_yaml(path)) for path in (args.plain, args.recipe))
    if not (isinstance(plain, config.Config) and isinstance(recipe, config.Config)):
        raise InputError(f"{args.plain} and {args.recipe} must both describe first-spike networks")
    out = args.out or RESULTS / "ablation" / f"{args.recipe.stem}.json"
    names = f"configs/{args.plain.name}", f"configs/{args.recipe.name}"
    result = {
        "command": shlex.join([*COMMAND, *names, "--seeds", *map(str, args.seeds), *without_places(words)]),
        "finished": None,
        "machine": machine_in_use(find_device("auto"), load_at_start=os.getloadavg()[0]),
        "versions": versions(),
    }
    result["rows"] = rows = stored_before(out, result, "rows", "command") or []
    seeds_of = {(row["ingredient"], row["which"]): row["seeds"] for row in rows}
    trainings = [(str(seed), *variant) for seed in args.seeds for variant in variants(plain, recipe)]
    out.parent.mkdir(parents=True, exist_ok=True)
    for seed, ingredient, which, cfg in tqdm(trainings, "trainings", disable=None):
        if (ingredient, which) not in seeds_of:
            seeds_of[ingredient, which] = {}
            rows.append({"ingredient": ingredient, "which": which, "seeds": seeds_of[ingredient, which]})
        if seed in seeds_of[ingredient, which]:
            continue
        name = f"{ingredient} {which}".strip().replace(",", "").replace(" ", "_")
        seeds_of[ingredient, which][seed] = train(name, cfg, int(seed), words)
        result["finished"] = time.strftime("%Y-%m-%d")
        write_whole(out, json.dumps(result, indent=1) + "\n")
    print(f"stored in {out}; python -m benchmarks.results --readme puts it into docs/frontier.md")


if __name__ == "__main__":
    cli.run(main)
