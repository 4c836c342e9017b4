"""Compare two trained networks on the same samples: python compare.py runs/a runs/b

Both must have been tested by test.py on the same data. The program prints tables and writes compare.html, which also
shows the pictures side by side. Under each code that both have, it gives the accuracies and their paired difference
(Newcombe's interval, exact McNemar test), and the delays and their paired difference.
"""

import json
import re
import shlex
import sys
import zipfile
from pathlib import Path
from typing import NamedTuple

import snn  # comes first, because it says which packages are missing
from snn import cli

if __name__ == "__main__":
    cli.end_at_ctrl_c()
    snn.need("matplotlib", "jinja2", extra="report")

# isort: split
import numpy as np

from snn import pictures, settings, statistics, tables
from snn.classes import Named, numbers_in
from snn.errors import InputError
from snn.evaluation import NOTHING
from snn.files import write_whole
from snn.report import Picture, Section, Tile, provenance_table, render
from snn.statistics import Difference
from snn.tables import DASH, Table, number

# arrays of samples.npz
DECISIONS = {"fs_label": "first spike (FS)", "fr_label": "firing rate (FR)", "label": "decision"}
PICTURES = (  # to show side by side
    "latencies.png",
    "confusion_fs.png",
    "confusion_fr.png",
    "confusion.png",
    "rates.png",
    "learned.png",
    "spike_times.png",
    "decision.png",
    "learning.png",
)


class Tested(NamedTuple):
    """A run and the results of its test."""

    name: str
    folder: Path
    metrics: dict
    samples: dict[str, np.ndarray]


def main() -> None:
    parser = cli.OneLineParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs=2, metavar="RUN", help="folder or name of a run, tested by test.py")
    parser.add_argument("--out", type=Path, default=Path("compare.html"), help="page to write (compare.html)")
    args = parser.parse_args()
    one, other = (read(path) for path in args.runs)
    if one.name == other.name and one.folder != other.folder:
        one, other = (run._replace(name=str(run.folder)) for run in (one, other))
    check_same_samples(one, other)
    other = in_classes_of(one, other)

    accuracy, delay = accuracy_table(one, other), delay_table(one, other)
    print(tables.text([accuracy, delay]), end="\n\n")
    results = Section(
        "Results",
        f"Differences are {other.name} minus {one.name} on the same samples, with intervals of 95 %: Newcombe's for "
        "accuracies, the paired bootstrap for t_d50 and t_d90, Student's for the mean first spike of the samples on "
        "which both networks spike. The exact McNemar test gives p, which is small if one network is right more often.",
        [accuracy, delay],
    )
    sections = [
        results,
        Section("Over time", pictures=curves(one, other)),
        Section("Side by side", pictures=pairs(one, other)),
        Section("Classes", tables=[class_table(one, other)]),
        Section("Configurations", "Fields that differ.", tables=configurations(one, other)),
        Section("Provenance", tables=[provenance_table([one.metrics, other.metrics], ("", one.name, other.name))]),
    ]
    tiles = [
        Tile(f"{row[0]}, difference", row[3].split(" (")[0], f"p = {row[-1]}") for row in accuracy.rows
    ]  # the table gives the interval
    n = len(one.samples["target"])
    lead = f"{one.name} and {other.name} on the same {n:,} samples of {one.metrics['data']}."
    html = render(f"{one.name} against {other.name}", lead, tiles, sections)
    try:
        write_whole(args.out, html)
    except OSError as error:
        raise InputError(f"{args.out}: cannot be written ({error.strerror}); choose another --out") from None
    print(f"pictures in {args.out}")


def read(path: Path) -> Tested:
    """Read the test results of a run, given by its folder, its name, its checkpoint or the folder of the test."""
    beside = []
    if path.is_file():  # test.py keeps the test of any other checkpoint apart from that of best.pt
        beside.append(path.parent / f"test_{path.stem}")
        if path.stem == "best" or not path.with_name("best.pt").exists():
            beside.append(path.parent / "test")
    candidates = (path, path / "test", *beside, Path("runs") / path.name.removesuffix(".pt") / "test")
    folder = next((folder for folder in candidates if (folder / "metrics.json").is_file()), None)
    if folder is None:
        raise InputError(f"{path}: not tested yet; run {test_of(path)} first")
    again = f"test it again: {test_of(folder)}"
    try:
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        with np.load(folder / "samples.npz") as file:
            samples = dict(file)
    except (OSError, ValueError, RecursionError, zipfile.BadZipFile, EOFError):
        raise InputError(f"{folder}: has no readable metrics.json and samples.npz; {again}") from None
    if not isinstance(metrics, dict) or "samples_of" not in metrics or "target" not in samples:
        raise InputError(f"{folder}: was written by an older test.py; {again}")
    name = folder.absolute().parent.name + folder.name.removeprefix("test").replace("_", "/", 1)
    return Tested(name, folder, metrics, samples)


def test_of(path: Path) -> str:
    """Return the command that tests a run, or that fills the folder of a test such as test_last or test_int8."""
    found = re.fullmatch(r"test(?:_(.+?))??(_int8)?", path.name)
    if not found or path.parent.name == "runs":
        return f"python test.py --load_pt_file {shlex.quote(str(path))}"
    checkpoint, int8 = found.groups()
    run = path.parent / f"{checkpoint}.pt" if checkpoint else path.parent
    return f"python test.py --load_pt_file {shlex.quote(str(run))}" + (" --quantise int8" if int8 else "")


def check_same_samples(one: Tested, other: Tested) -> None:
    """Raise InputError if the two were tested on different data."""
    if one.metrics["samples_of"] == other.metrics["samples_of"]:
        return
    data = (f"{run.metrics['data']} ({len(run.samples['target'])} samples)" for run in (one, other))
    runs = shlex.join(str(run.folder.parent) for run in (one, other))
    raise InputError(
        f"{one.name} and {other.name} were tested on different data: {' and '.join(data)}; test both on the same data: "
        f"python test.py --load_pt_file {runs} --path_to_dataset DIR"
    )


def in_classes_of(one: Tested, other: Tested) -> Tested:
    """Return the other run with its classes numbered as in the first. Raise InputError if the class names differ."""
    wanted, own = (Named(tuple(run.metrics["class_names"]), run.name) for run in (one, other))
    numbers = numbers_in(wanted, own)
    labels = {name: numbers[other.samples[name]] for name in ("target", *DECISIONS) if name in other.samples}
    return other._replace(samples=other.samples | labels, metrics=other.metrics | {"class_names": list(wanted.names)})


def codes(one: Tested, other: Tested) -> list[str]:
    """Return the codes under which both have decisions."""
    return [name for name in DECISIONS if name in one.samples and name in other.samples]


def accuracy_table(one: Tested, other: Tested) -> Table:
    """Return the table of accuracies, with a row for each code."""
    rows = []
    for name in codes(one, other):
        right = [run.samples[name] == run.samples["target"] for run in (one, other)]
        shares, *alone, p = statistics.paired_decisions(*right)
        value, low, high = (100 * share for share in shares)
        rows.append(
            (
                DECISIONS[name],
                *(f"{100 * right_n.mean():.2f} %" for right_n in right),
                f"{value:+.2f} points ({low:+.2f} to {high:+.2f})",
                *map(str, alone),
                f"{p:.3g}",
            )
        )
    head = ("", one.name, other.name, "difference", f"only {one.name} right", f"only {other.name} right", "p (McNemar)")
    return Table("Accuracy", head, rows)


def delay_table(one: Tested, other: Tested) -> Table:
    """Return the table of delays; it has no rows for networks whose tests measure none."""
    rows = []
    if all("fs_right" in run.samples for run in (one, other)):
        dt_ms = one.metrics["dt_ms"], other.metrics["dt_ms"]
        for code in ("fs", "fr"):
            right = [run.samples[f"{code}_right"] for run in (one, other)]
            for percent in (50, 90):
                name = f"{'' if code == 'fs' else 'fr_'}t_d{percent}_ms"
                difference = statistics.paired_delays(*right, percent, dt_ms)
                values = (number(run.metrics[name], "ms") for run in (one, other))
                rows.append((f"t_d{percent}, {code.upper()}", *values, signed(difference)))
        steps = [run.samples["first_step"] for run in (one, other)]
        both = (steps[0] != NOTHING) & (steps[1] != NOTHING)
        times = [each[both] * dt for each, dt in zip(steps, dt_ms, strict=True)]
        means = (f"{time.mean():.1f} ms" if both.any() else DASH for time in times)
        rows.append((f"mean first spike, {both.sum()} samples", *means, signed(statistics.paired_mean(*times))))
    return Table("Delay", ("", one.name, other.name, "difference"), rows)


def signed(difference: Difference) -> str:
    """Format a difference of delays and its interval."""
    value, low, high = difference
    if value is None:
        return DASH
    return f"{value:+.1f} ms" + ("" if low is None else f" ({low:+.1f} to {high:+.1f})")


def class_table(one: Tested, other: Tested) -> Table:
    """Return the table of the numbers of correct decisions in each class under each code."""
    names, target = one.metrics["class_names"], one.samples["target"]
    rows = []
    for label, name in enumerate(names):
        is_of_class = target == label
        cells = [str(is_of_class.sum())]
        for decision in codes(one, other):
            cells += [str(int((run.samples[decision][is_of_class] == label).sum())) for run in (one, other)]
        rows.append((name, *cells))
    heads = [f"{DECISIONS[decision]}: {run.name}" for decision in codes(one, other) for run in (one, other)]
    return Table("Correct decisions by class", ("class", "samples", *heads), rows)


def curves(one: Tested, other: Tested) -> list[Picture]:
    """Draw the accuracy of both over time in one picture."""
    if not all("anytime" in run.metrics for run in (one, other)):
        return []
    figure = pictures.draw_anytime({run.name: run.metrics["anytime"] for run in (one, other)})
    return [Picture(pictures.png(figure), "Correct decisions against elapsed time and events seen, under both codes")]


def pairs(one: Tested, other: Tested) -> list[Picture]:
    """Return the pictures that both tests have, in pairs."""
    return [
        Picture((run.folder / name).read_bytes(), f"{run.name}: {name}")
        for name in PICTURES
        if all((run.folder / name).is_file() for run in (one, other))
        for run in (one, other)
    ]


def configurations(one: Tested, other: Tested) -> list[Table]:
    """Return a table of the fields that differ, or none if a run has lost its config.yaml or its loss."""
    paths = [run.folder.parent / "config.yaml" for run in (one, other)]
    if not all(path.is_file() for path in paths):
        return []
    try:
        configs = [settings.load(path) for path in paths]
    except InputError as error:
        print(f"warning: the page does not say which fields differ: {error}", file=sys.stderr)
        return []
    rows = []
    for field in settings.differences(*configs):
        values = list(configs)
        for part in field.split("."):
            values = [getattr(value, part, DASH) for value in values]
        rows.append((field, *map(str, values)))
    return [Table("", ("field", one.name, other.name), rows, is_words=True)]


if __name__ == "__main__":
    cli.run(main)
