"""Results of the configurations: train and test over seeds, store the results, and rebuild the README from them.

    python -m benchmarks.results configs/adlif_digits.yaml --seeds 0 1 2 [options of train.py]
    python -m benchmarks.results --readme

The first writes results/<configuration>.json: commands, seeds, versions, machine, and each seed's metrics on the test
split (which chose nothing: the best epoch is chosen on recordings held out from training). It does so after each seed,
and keeps other seeds of the same commit: seeds may be trained one after the other or side by side, also on different
machines, so the machine is stored with each seed. The second writes the tables between marker comments of README.md and
docs/results.md and the picture docs/results.png, from stored results alone. It also writes docs/frontier.md and its
picture (benchmarks/frontier.py), the ablations (benchmarks/ablation.py), and docs/speed.md from the figures of the
other benchmarks (benchmarks/speed.py).
"""

import argparse
import json
import os
import resource
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from tqdm import tqdm

from benchmarks import figures, frontier, speed
from benchmarks.figures import machine_in_use, mean_of, packed, row
from snn import arguments, cli, config, pictures, schema, settings
from snn.errors import InputError
from snn.files import REPOSITORY, write_whole
from snn.machine import find_device, versions

RESULTS = REPOSITORY / "results"
FIGURE, SPEED, FRONTIER = (REPOSITORY / "docs" / f"{name}.png" for name in ("results", "speed", "frontier"))
COMMENTS = "<!-- {}: python -m benchmarks.results --readme -->", "<!-- end of {} -->"

# FS accuracy (%) of Liu et al. 2023, means of five runs; of Liu and Dragotti 2025 for SSC
PUBLISHED = {
    "adlif_shd": "94.08 %",
    "adlif_ssc": "77.1 %",
    "culif_shd": "87.6 %",
    "adlif_ntidigits": "92.25 %",
    "culif_ntidigits": "89.3 %",
    "culif_dvsgesture": "92.8 %",
    "culif_dvsplane": "92.7 %",
}
COMMAND = ("python", "-m", "benchmarks.results")
NOT_RUN = "Not run yet."
NOT_A_RESULT = {"smoke", "fsdd_search"}  # for a quick try, and ranges of a search
# the metrics of test.py that are stored for each seed
KEPT = (
    *("samples", "images", "fs_accuracy", "fr_accuracy", "accuracy", "fs_accuracy_interval", "fr_accuracy_interval"),
    *("accuracy_interval", "t_d50_ms", "t_d90_ms", "fr_t_d50_ms", "fr_t_d90_ms", "spikes_per_neuron", "silent_samples"),
    *("silent_targets", "cost", "synaptic_operations_per_image", "synapses", "epoch", "samples_of", "thresholds"),
)


def main() -> None:
    parser = cli.OneLineParser(description=__doc__, allow_abbrev=False)  # --seed does not stand for --seeds
    parser.add_argument("configuration", type=Path, nargs="?", help="a YAML to train, test and store")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds to train (0 1 2)")
    parser.add_argument("--readme", action="store_true", help="rebuild tables and pictures of README.md and docs/")
    args, words = parser.parse_known_args()
    if args.readme == (args.configuration is not None):
        parser.error("give a configuration to run, or --readme")
    if args.readme:
        rebuild()
    else:
        store(args, words)


def store(args: argparse.Namespace, words: Sequence[str]) -> None:
    """Train and test every seed, in runs/<configuration>_seed<seed>, and write results/<configuration>.json."""
    path = arguments.find_yaml(args.configuration)
    name, parser = path.stem, arguments.Parser("", arguments.TRAIN)
    cfg = settings.load(path)
    changed = parser.override(settings.read_yaml(path), parser.parse_args(words), path)
    if others := settings.changes(cfg, changed):
        raise InputError(
            f"{', '.join(others)}: a stored result must use {path} unchanged; write another configuration for this"
        )
    RESULTS.mkdir(exist_ok=True)
    out, mine = RESULTS / f"{name}.json", {}
    result: dict[str, Any] = {
        "configuration": f"configs/{path.name}",
        "command": "",  # it names the seeds
        "network": describe(cfg),
        "finished": "",
        "machine": machine_in_use(find_device(changed.train.device), load_at_start=os.getloadavg()[0]),
        "versions": versions(),
    }
    if lost := set(seeds_of(out)) - {str(seed) for seed in args.seeds} - set(seeds_of_same_code(out, result)):
        raise InputError(
            f"{out}: holds seeds of other or uncommitted code that would be lost: {', '.join(sorted(lost, key=int))}; "
            "train them, too, or move the file away"
        )
    scaling = ["--thresholds"] if isinstance(cfg, config.Config) and cfg.data.validation_share else []
    for seed in tqdm(args.seeds, name, disable=None):
        run_name = f"{name}_seed{seed}"
        started, busy = time.perf_counter(), processor_seconds()
        run("train.py", "--path_to_yaml", str(path), "--seed", str(seed), "--save_name", run_name, *words)
        seconds, busy = time.perf_counter() - started, processor_seconds() - busy
        run("test.py", "--load_pt_file", f"runs/{run_name}/best.pt", *scaling)
        folder = Path("runs", run_name, "test")
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        mine[str(seed)] = found = {key: metrics[key] for key in KEPT if key in metrics}
        with np.load(folder / "samples.npz") as samples:
            decided = samples["fs_label" if "fs_label" in samples else "label"]
            found["right"] = packed(decided == samples["target"])
        found |= {"train_seconds": round(seconds, 1), "train_processor_seconds": round(busy, 1)}
        found["machine"] = result["machine"]
        if curves := metrics.get("anytime"):  # for the figure over time
            found["anytime"] = {key: curve for key, curve in curves.items() if "time" in key}
        seeds = seeds_of_same_code(out, result) | mine
        result["seeds"] = {key: seeds[key] for key in sorted(seeds, key=int)}
        result["command"] = shlex.join(
            [*COMMAND, result["configuration"], "--seeds", *result["seeds"], *without_places(words)]
        )
        result["finished"] = time.strftime("%Y-%m-%d")
        write_whole(out, json.dumps(result, indent=1) + "\n")
    print(f"stored in results/{name}.json; python -m benchmarks.results --readme puts it into README.md and docs/")


def run(*command: str) -> None:
    """Run one of our programs; its errors are already on the screen."""
    if code := subprocess.run([sys.executable, str(REPOSITORY / command[0]), *command[1:]]).returncode:
        raise InputError(f"{command[0]} ended with exit code {code}; nothing of this run is stored")


def processor_seconds() -> float:
    """Return the time of our programs so far, over all cores; it is longer on a machine that is busy elsewhere."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def without_places(words: Sequence[str]) -> list[str]:
    """Return the words without the folder of the data, which only concerns this machine."""
    return ["DIR" if before == "--path_to_dataset" else word for before, word in zip(["", *words], words, strict=False)]


def seeds_of_same_code(out: Path, result: dict) -> dict[str, dict]:
    """Return the seeds in this file if the same commit, without changes, and the same packages made them, or {}."""
    if result["versions"].get("commit", "+").endswith("+"):
        return {}
    return seeds_of(out, result["versions"])


def seeds_of(out: Path, made_by: dict | None = None) -> dict[str, dict]:
    """Return the seeds in this file, or {} if other versions made it, if it is none, or holds something else.

    Each has its machine. Older files name one, which is that of all their seeds.
    """
    try:
        before = json.loads(out.read_text(encoding="utf-8"))
        seeds = {key: {"machine": before["machine"]} | seed for key, seed in before["seeds"].items()}
        return seeds if made_by in (None, before["versions"]) else {}
    except (AttributeError, FileNotFoundError, ValueError, KeyError, TypeError):
        return {}


def stored_before(out: Path, result: dict, part: str, *names: str) -> Any:
    """Return this part of the result in a file, or None if there is no file.

    InputError if its fields `names` differ from those of `result`, or the file holds something else.
    """
    if not out.exists():
        return None
    try:
        before = json.loads(out.read_text(encoding="utf-8"))
        others = [name for name in names if before.get(name) != result[name]]
        found = before[part]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{out}: is not such a result; give another --out") from None
    if others:
        raise InputError(f"{out}: is a result with another {', '.join(others)}; remove it, or give another --out")
    return found


def describe(cfg: schema.AnyConfig) -> str:
    """Describe a network in a few words: 700-256-256-20 AdLIF."""
    if isinstance(cfg, config.TTFSConfig):
        return f"{'x'.join(map(str, cfg.data.shape))}, {cfg.ttfs.layers}, {cfg.data.num_classes}; one spike a neuron"
    layers = [word[:-1] if word.endswith("F") else word for word in cfg.network.layers]
    first = str(cfg.data.shape[0]) if cfg.data.sensor is None else f"[{','.join(map(str, cfg.data.shape))}]"
    variant = "" if cfg.network.variant == "spkjelly" else f", {cfg.network.variant}"
    return "-".join([first, *layers, str(cfg.data.num_classes)]) + f" {cfg.network.neuron}{variant}"


def stored(part: str = "") -> dict[str, dict]:
    """Return the contents of results/, or of a folder in it, by the name of the configuration."""
    paths = sorted((RESULTS / part).glob("*.json"))
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in paths}


def summary(results: dict[str, dict]) -> str:
    """Write a row for each stored result: the network, and its accuracy with the first spike and with all."""
    lines = ["| configuration | network | FS | FR | half right by |", "|---|---|---|---|---|"]
    for name, result in results.items():
        seeds = list(result["seeds"].values())
        if "accuracy" in seeds[0]:
            cells = [mean_of(seeds, "accuracy", 2, " %"), "", ""]
        else:
            cells = [mean_of(seeds, key, 1, " %") for key in ("fs_accuracy", "fr_accuracy")]
            cells.append(mean_of(seeds, "t_d50_ms", 0, " ms"))
        lines.append(row([f"`{name}`", result["network"], *cells]))
    return "\n".join(lines)


def table(results: dict[str, dict]) -> str:
    """Write a row for each configuration of configs/: the published and the stored result."""
    lines = [
        "| configuration | network | published FS | FS | FR | half and 90 % right by | spikes/neuron |",
        "|---|---|---|---|---|---|---|",
    ]
    for path in sorted((REPOSITORY / "configs").glob("*.yaml")):
        if path.stem in NOT_A_RESULT:
            continue
        cfg = settings.load(path)
        cells = [f"`configs/{path.name}`", describe(cfg), PUBLISHED.get(path.stem, "-")]
        if path.stem not in results:
            lines.append(row([*cells, "not run", "", "", ""]))
            continue
        seeds = list(results[path.stem]["seeds"].values())
        if "accuracy" in seeds[0]:
            cells += [mean_of(seeds, "accuracy", 2, " %"), "", ""]
        else:
            delays = [mean_of(seeds, key, 0, "") for key in ("t_d50_ms", "t_d90_ms")]
            cells += [
                mean_of(seeds, "fs_accuracy", 1, " %"),
                mean_of(seeds, "fr_accuracy", 1, " %"),
                f"{' and '.join(delays)} ms",
            ]
        lines.append(row([*cells, mean_of(seeds, "spikes_per_neuron", 2, "")]))
    done: dict[str, list[str]] = {}  # by where
    for name, result in results.items():
        at: dict[str, list[str]] = {}
        for key, one in result["seeds"].items():
            at.setdefault(_place(result, one.get("machine")), []).append(key)
        for place, keys in at.items():
            done.setdefault(place, []).append(f"`{name}` {', '.join(keys)}")
    if done:
        seeds = "; ".join(f"{'; '.join(names)} ({place})" for place, names in done.items())
        lines += ["", f"Mean ± std over seeds on the test split: {seeds}."]
    return "\n".join(lines)


def ablation_table(ablation: dict) -> str:
    """Write a row for each ingredient: accuracy and operations with it alone, and without it."""
    by_place = {(one["ingredient"], one["which"]): list(one["seeds"].values()) for one in ablation["rows"]}
    accuracy, code, digits, operations = "fs_accuracy", "FS", 1, "synaptic_operations_to_decision"
    if any("accuracy" in seed for seeds in by_place.values() for seed in seeds):
        accuracy, code, digits, operations = "accuracy", "accuracy", 2, "synaptic_operations_per_image"

    def cells(*place: str) -> list[str]:
        if place not in by_place:
            return ["not run", ""]
        seeds = [seed | {"operations": seed[operations] / 1e6} for seed in by_place[place]]
        return [mean_of(seeds, accuracy, digits, " %"), mean_of(seeds, "operations", 2, " M")]

    heads = ["ingredient", f"alone: {code}", "operations", f"left out: {code}", "operations"]
    lines = [row(heads), "|---|---|---|---|---|"]
    lines.append(row(["none (plain), all (recipe)", *cells("", "plain"), *cells("", "recipe")]))
    names = dict.fromkeys(name for name, _ in by_place if name)
    lines += [row([name, *cells(name, "alone"), *cells(name, "left out")]) for name in names]
    seeds = ", ".join(dict.fromkeys(seed for one in ablation["rows"] for seed in one["seeds"]))
    said = f"On data held out from training, seeds {seeds}, {_place(ablation)}: `{ablation['command']}`."
    return "\n".join([*lines, "", said])


def _place(result: dict, where: dict | None = None) -> str:
    """Say where a stored result was computed, or the part of it that comes from this machine."""
    where = where or result["machine"]
    place = where.get("gpu") or f"{where['cores']} cores of an {where['processor']}"
    return f"{place}, torch {result['versions']['torch']}"


def draw(results: dict[str, dict]) -> plt.Figure | None:
    """Draw accuracy against time of every stored network that spikes in time, with the seeds as a band."""
    shown = {name: list(result["seeds"].values()) for name, result in results.items()}
    shown = {name: seeds for name, seeds in shown.items() if "anytime" in seeds[0]}
    if not shown:
        return None
    with plt.rc_context(pictures.STYLE):
        figure, axis = plt.subplots(figsize=(pictures.WIDTH, 3))
        for k, (name, seeds) in enumerate(shown.items()):
            colour, time_ms = pictures.LAYERS[k % len(pictures.LAYERS)], seeds[0]["anytime"]["time_ms"]
            for code, words, _, style in pictures.CODES:
                curves = list(zip(*(seed["anytime"][f"{code}_accuracy_over_time"] for seed in seeds), strict=True))
                axis.plot(time_ms, list(map(statistics.mean, curves)), color=colour, ls=style, label=f"{name}, {words}")
                axis.fill_between(
                    time_ms, list(map(min, curves)), list(map(max, curves)), color=colour, alpha=0.15, lw=0
                )
        axis.set(xlabel="elapsed time (ms)", ylabel="correct decisions (%)", ylim=(0, 100), xlim=(0, None))
        axis.grid(color=pictures.GREY, lw=0.4)
        axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return figure


def rebuild() -> None:
    """Rewrite README.md and docs/ between their marker comments, and their pictures."""
    results, measured = stored(), figures.stored()
    front = frontier.stored(results, RESULTS)
    sections_of = pages(results, measured, front, stored("ablation"))
    texts = {path: path.read_text(encoding="utf-8") for path in sections_of}
    for path, sections in sections_of.items():
        for name, content in sections.items():
            texts[path] = between(texts[path], name, content, path)
    for path, text in texts.items():
        write_whole(path, text)
    drawn = (FIGURE, draw(results)), (SPEED, speed.draw(measured)), (FRONTIER, frontier.draw(front))
    for path, figure in drawn:
        if figure is not None:
            write_whole(path, pictures.png(figure))
    print(f"README.md, docs/results.md, frontier.md, speed.md and their pictures: {len(results)} stored results")


def pages(
    results: dict[str, dict], measured: dict, front: frontier.Stored, ablations: dict[str, dict]
) -> dict[Path, dict[str, str]]:
    """Return, for each page, the text between its comments by the name in them."""
    ablated = {name: ablation_table(ablation) for name, ablation in ablations.items()}
    speech = ablated.pop("speech", NOT_RUN)  # on the page about that recipe
    return {
        REPOSITORY / "README.md": {"results": summary(results)},
        REPOSITORY / "docs" / "results.md": {
            "results": table(results),
            "ablation": "\n\n".join(ablated.values()) or NOT_RUN,
        },
        REPOSITORY / "docs" / "frontier.md": {
            "networks": frontier.table(front),
            "comparisons": frontier.comparisons(front) or NOT_RUN,
            "ablation": speech,
        },
        REPOSITORY / "docs" / "speed.md": {place: speed.table(measured, place) for place in speed.PLACES},
    }


def between(text: str, name: str, content: str, path: Path) -> str:
    """Return the text with this content between its two comments of that name."""
    begin, end = (comment.format(name) for comment in COMMENTS)
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise InputError(
            f"{path.relative_to(REPOSITORY)}: needs the lines {begin} and {end}, between which a table goes"
        )
    return f"{before}{begin}\n{content}\n{end}{after}"


if __name__ == "__main__":
    cli.run(main)
