"""report.html of a tested network: one self-contained page, and its pictures beside it as PNG.

First comes the page itself, then what the reports of all kinds of networks share, then the report of a first-spike
network (that of a TTFS network is `snn.ttfs.report`). `snn.pictures` draws; `snn.tables` formats numbers.
"""

import base64
import json
import shlex
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from snn import checkpoint, pictures, settings, tables, yaml12
from snn.classes import Named
from snn.evaluation import Evaluation
from snn.files import write_whole
from snn.learned import Learned
from snn.lettering import why_numbers
from snn.machine import machine, versions
from snn.network import Network
from snn.schema import AnyConfig
from snn.tables import DASH, Table, interval, layer_name, number, percent, spikes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEMPLATE = Path(__file__).with_suffix(".html")


class Tile(NamedTuple):
    """A number for readers to see first."""

    name: str
    value: str
    note: str = ""


class Picture(NamedTuple):
    """A picture on the page."""

    png: bytes
    caption: str
    file: str = ""  # the same picture beside the page

    @property
    def uri(self) -> str:
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


class Section(NamedTuple):
    """A heading and the content below it."""

    title: str
    text: str = ""
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    code: str = ""


def render(title: str, lead: str, tiles: Sequence[Tile], sections: Iterable[Section]) -> str:
    """Render the page as HTML without its empty sections."""
    import jinja2  # imported here because training does not need it

    environment = jinja2.Environment(autoescape=True, trim_blocks=True)
    sections = [section for section in sections if section.tables or section.pictures or section.code]
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(title=title, lead=lead, tiles=tiles, sections=sections)


class Subject(NamedTuple):
    """A network to test, and the folder for the results."""

    path: Path
    cfg: AnyConfig
    trained: AnyConfig  # the configuration of its training
    content: dict[str, Any]  # of the checkpoint
    out: Path

    def network(self) -> nn.Module:
        """Build the network and load its weights."""
        network = self.cfg.new_network().eval()
        checkpoint.load_weights(network, self.content["network"], self.path)
        return network

    @property
    def classes(self) -> Named:
        """Return the names of the network's classes."""
        return Named(self.content["class_names"], str(self.path))

    def provenance(self, device: torch.device) -> dict:
        """Return the facts that say where the numbers of a test on this device come from."""
        return {
            "checkpoint": str(self.path),
            "epoch": self.content["epoch"],
            "seed": self.cfg.train.seed,
            "command": shlex.join(["python", Path(sys.argv[0]).name, *sys.argv[1:]]),
            "tested": time.strftime("%Y-%m-%d %H:%M:%S"),
            "machine": machine(device),
            "versions": versions(),
        }

    @property
    def run(self) -> str:
        """Return the name of the run, with that of the checkpoint if it is not best.pt."""
        run = self.path.absolute().parent.name
        return run if self.path.stem == "best" else f"{run}/{self.path.name}"


def keep(figure: "Figure", out: Path, file: str, caption: str) -> Picture:
    """Make a picture for the page, and also write it as PNG beside the page."""
    picture = Picture(pictures.png(figure), caption, file)
    write_whole(out / file, picture.png)
    return picture


def write_page(subject: Subject, metrics: dict, items: str, tiles: Sequence[Tile], sections: Sequence[Section]) -> None:
    """Write report.html for any kind of network: its tiles and sections, then its training and provenance."""
    n = metrics.get("samples", metrics.get("images"))
    lead = f"Epoch {metrics['epoch']} of {subject.path.parent}, tested on {n:,} {items} of {metrics['data']}."
    page = render(subject.run, lead, tiles, [*sections, *_origin(subject, metrics)])
    write_whole(subject.out / "report.html", page)


def _origin(subject: Subject, metrics: dict) -> list[Section]:
    curves, log_path = [], subject.path.with_name("metrics.jsonl")
    if rows := read_log(log_path):
        figure = pictures.draw_learning(rows, metrics["epoch"])
        words = "Training and held-out data by epoch; the dotted line marks the tested checkpoint"
        curves.append(keep(figure, subject.out, "learning.png", words))
    text = yaml12.text(subject.cfg.model_dump(mode="json"), default_flow_style=None, width=100)
    return [
        Section("Training", pictures=curves),
        Section("Configuration", code=text),
        Section("Provenance", tables=[provenance_table([metrics])]),
    ]


def read_log(path: Path) -> list[dict]:
    """Read the epochs in metrics.jsonl, or none if there is no such file. Incomplete lines are left out."""
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        with suppress(ValueError):
            rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict) and {"epoch", "train_loss"} <= row.keys()]


ORIGIN = ("checkpoint", "epoch", "seed", "data", "samples_of", "command", "tested", "machine", "versions")


def provenance_table(tests: Sequence[dict], head: Sequence[str] = (), names: Sequence[str] = ORIGIN) -> Table:
    """Return a table of where numbers come from: a row for each fact, a column for each test."""

    def words(value: object) -> str:
        return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)

    rows = [(name.replace("_", " "), *(words(metrics.get(name, DASH)) for metrics in tests)) for name in names]
    return Table("", head, rows, is_words=True)


def class_words(names: Sequence[str]) -> str:
    """Explain in a sentence why pictures show numbers instead of names; return "" if they show all names."""
    if len(names) > pictures.MOST_NAMES:
        return f"Pictures of more than {pictures.MOST_NAMES} classes show numbers; the table gives the names."
    return why_numbers(names)


def class_table(names: Sequence[str], head: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """Return a table with a row for each class; its number stands beside its name if the two differ."""
    numbers = [str(k) for k in range(len(names))]
    if list(names) == numbers:
        return Table("By class", ("class", *head), [(name, *row) for name, row in zip(names, rows, strict=True)])
    named = [(name, number, *row) for name, number, row in zip(names, numbers, rows, strict=True)]
    return Table("By class", ("class", "number", *head), named)


class Column(NamedTuple):
    """A metric as a column of the table that has a row for each network."""

    title: str
    key: str
    digits: int  # decimals


def runs_table(tested: Sequence[tuple[Subject, dict]], columns: Sequence[Column]) -> Table:
    """Return a table: a row per network, then mean ± std over those whose trainings differ only in the seed."""

    def cells(metrics: Sequence[dict]) -> list[str]:
        return [tables.mean_and_std([each[c.key] for each in metrics], c.digits) for c in columns]

    groups: list[dict[int, tuple[Subject, dict]]] = []  # by seed
    for subject, metrics in tested:
        seed = subject.trained.train.seed
        for group in groups:
            first, _ = next(iter(group.values()))
            if seed not in group and set(settings.changes(first.trained, subject.trained)) <= {"train.seed"}:
                group[seed] = subject, metrics
                break
        else:
            groups.append({seed: (subject, metrics)})
    rows = [[subject.run, str(subject.trained.train.seed), *cells([metrics])] for subject, metrics in tested]
    for group in groups:
        if len(group) > 1:
            subjects, metrics = zip(*group.values(), strict=True)
            rows.append([f"mean ± std, {subjects[0].trained.run_name}", f"{len(group)} seeds", *cells(metrics)])
    return Table("", ("run", "seed", *(column.title for column in columns)), rows)


# the report of a first-spike network

COLUMNS = (
    Column("FS %", "fs_accuracy", 2),
    Column("FR %", "fr_accuracy", 2),
    Column("t_d50 ms", "t_d50_ms", 0),
    Column("t_d90 ms", "t_d90_ms", 0),
    Column("spikes/neuron", "spikes_per_neuron", 3),
    Column("silent", "silent_samples", 0),
)
CLASS_HEAD = ("recordings", "FS", "FR", "5 % decided by", "50 %", "95 %", "silent", "silent targets")
PROPER_NAMES = {  # spelling of names in the keys of energies
    "macs": "MACs",
    "acs": "ACs",
    "lemaire": "(Lemaire)",
    "spikesim": "(SpikeSim)",
    "neuromc": "(NeuroMC)",
}


def write(subject: Subject, metrics: dict, network: Network, evaluation: Evaluation, decisions: list[Picture]) -> None:
    """Write report.html of a first-spike network; `decisions` are pictures of single recordings."""
    sections = _sections(subject, metrics, network, evaluation, decisions)
    write_page(subject, metrics, "recordings", _tiles(metrics), sections)


def _tiles(metrics: dict) -> list[Tile]:
    cost = metrics["cost"]
    operations = 100 * cost["to_decision"]["synaptic operations"] / max(1, cost["whole_window"]["synaptic operations"])
    return [
        Tile("first spike (FS)", percent(metrics["fs_accuracy"]), interval(metrics["fs_accuracy_interval"])),
        Tile("firing rate (FR)", percent(metrics["fr_accuracy"]), interval(metrics["fr_accuracy_interval"])),
        Tile(
            "half of the correct FS decisions",
            number(metrics["t_d50_ms"], "ms"),
            f"90 % by {number(metrics['t_d90_ms'], 'ms')}",
        ),
        Tile("spikes per neuron", spikes(metrics["spikes_per_neuron"]), "mean per recording"),
        Tile("work until the decision", f"{operations:.0f} %", "of the whole window's synaptic operations"),
    ]


def result_tables(metrics: dict) -> list[Table]:
    """Return tables: both codes, the recordings, the layers, the cost of a decision, and on a stream if tested."""
    codes = [
        ("accuracy", percent(metrics["fs_accuracy"]), percent(metrics["fr_accuracy"])),
        ("95 % interval", *(interval(metrics[f"{code}_accuracy_interval"]) for code in ("fs", "fr"))),
        *((name, _delay(metrics, name), _delay(metrics, f"fr_{name}")) for name in ("t_d50", "t_d90")),
    ]
    counts = [
        ("recordings", f"{metrics['samples']:,}"),
        ("without an output spike", f"{metrics['silent_samples']:,}"),
        ("with a silent target neuron", f"{metrics['silent_targets']:,}"),
        ("spikes per neuron and recording", spikes(metrics["spikes_per_neuron"])),
        ("loss", number(metrics["loss"])),
    ]
    for change, what in (("rounding", "delays"), ("quantising", "weights")):
        if f"moved_by_{change}" in metrics:
            counts += [
                (f"decisions changed by rounding the {what}", _of(metrics[f"moved_by_{change}"], metrics)),
                ("FS accuracy without that rounding", percent(metrics[f"fs_accuracy_before_{change}"])),
            ]
    if "weight_bytes" in metrics:
        counts.append(("bytes of the rounded weights", f"{metrics['weight_bytes']:,}"))
    rates, means = metrics["spikes_per_sample"], metrics["spikes_per_neuron_by_layer"]
    middle = rates["percentiles"].index(50)
    layers = [
        (layer_name(k, len(means)), spikes(mean), spikes(of_neurons[middle]), spikes(of_neurons[-1]), f"{silent:,}")
        for k, (mean, of_neurons, silent) in enumerate(
            zip(means, rates["of_neurons_by_layer"], rates["never_fired_by_layer"], strict=True)
        )
    ]
    result = [
        Table("Accuracy and delay", ("", "first spike (FS)", "firing rate (FR)"), codes),
        Table("Samples", (), counts),
        Table(
            "Spikes per neuron and recording",
            ("layer", "mean", "median neuron", "busiest neuron", "neurons that never fire"),
            layers,
        ),
        _cost_table("Cost of a decision", metrics["cost"]),
    ]
    if streaming := metrics.get("streaming"):
        unlike = [
            ("FS accuracy", percent(streaming["fs_accuracy"])),
            ("decisions that differ from those in batches", _of(streaming["differ_from_batches"], metrics)),
            ("decisions changed by folding BatchNorm", _of(streaming["moved_by_folding"], metrics)),
            ("recordings without events, which cost a stream nothing", _of(streaming["without_events"], metrics)),
        ]
        result += [
            _cost_table("Cost of a decision on a stream of events", streaming),
            Table("Decisions on that stream", (), unlike),
        ]
    if "thresholds" in metrics:
        result.append(threshold_table(metrics["thresholds"]))
    return result


def threshold_table(measured: dict) -> Table:
    """Return a table of decisions at scaled output thresholds, a row for each scale."""
    of_scale = {row["scale"]: row for row in measured["test"]}
    for_loss: dict[float, list[str]] = {}
    for points, scale in measured["chosen"].items():
        for_loss.setdefault(scale, []).append(points)
    rows = [
        (
            f"{held['scale']:g}" + (f" (chosen: at most {' or '.join(points)} points lower)" if points else ""),
            percent(held["fs_accuracy"]),
            percent(test["fs_accuracy"]),
            number(test["time_ms"], "ms"),
            DASH if test["t_d90_ms"] is None else number(test["t_d90_ms"], "ms"),
            percent(test["events_share"]),
            number(test["operations_to_decision"]),
        )
        for held in measured["held_out"]
        for test, points in [(of_scale[held["scale"]], for_loss.get(held["scale"]))]
    ]
    head = ("scale of θ", "held-out FS", "test FS", "mean time", "t_d90", "events heard", "synaptic operations")
    return Table("Scaled output thresholds", head, rows)


def _of(count: int, metrics: dict) -> str:
    return f"{count:,} of {metrics['samples']:,}"


def _delay(metrics: dict, name: str) -> str:
    """Format a delay in ms and steps."""
    steps = metrics[f"{name}_steps"]
    return DASH if steps is None else f"{number(metrics[f'{name}_ms'], 'ms')} ({steps} steps)"


def _cost_table(title: str, cost: dict) -> Table:
    """Return a table of mean costs up to the decision and over the whole window."""
    rows = [
        (name, number(to_decision), number(whole), f"{100 * to_decision / max(whole, 1e-9):.0f} %")
        for name, to_decision, whole in (
            (name, value, cost["whole_window"][name]) for name, value in cost["to_decision"].items()
        )
    ]
    return Table(title, ("mean per recording", "until the decision", "whole window", "share"), rows)


def energy_table(energy: dict[str, dict]) -> Table:
    """Return a table of the value, unit and source of each entry, with the entry `baseline_<name>` beside it."""

    def quantity(name: str) -> str:
        return number(energy[name]["value"], energy[name]["unit"]) if name in energy else DASH

    rows = [
        (
            " ".join(PROPER_NAMES.get(word, word) for word in name.split("_")),
            quantity(name),
            quantity(f"baseline_{name}"),
            one["source"],
        )
        for name, one in energy.items()
        if not name.startswith("baseline_")
    ]
    return Table(
        "Operations, memory and energy",
        ("mean per recording", "this network", "real-valued, dense", "source"),
        rows,
        is_words=True,
    )


def _class_rows(metrics: dict) -> Iterator[tuple[str, ...]]:
    """Yield a row for each class: accuracies, first-spike times and silent recordings."""
    places = [metrics["spikes_per_sample"]["percentiles"].index(percentile) for percentile in (5, 50, 95)]
    for one in metrics["by_class"]:
        times = one["first_spike_ms_percentiles"]
        yield (
            f"{one['samples']:,}",
            percent(one["fs_accuracy"]),
            percent(one["fr_accuracy"]),
            *(number(times[place], "ms") if times else DASH for place in places),
            str(one["silent_samples"]),
            str(one["silent_targets"]),
        )


def learned_values(network: Network, dt_ms: float) -> dict[str, dict[str, Learned]]:
    """Return name of the value -> layer -> learned value, times in ms. Empty if nothing is learned."""
    layers = list(network.learned(dt_ms).values())
    result: dict[str, dict[str, Learned]] = {}
    for k, learned in enumerate(layers):
        for name, value in learned.items():
            result.setdefault(name, {})[layer_name(k, len(layers))] = value
    return result


def learned_table(values: dict[str, dict[str, Learned]]) -> Table:
    """Return a table of the mean, spread and range of each layer's learned values, and of their initial values."""
    rows = []
    for of_layers in values.values():
        for layer, learned in of_layers.items():
            array, began = learned.value.double().cpu().numpy(), dict.fromkeys(map(number, learned.began))
            rows.append(
                (
                    f"{learned.title}{' (ms)' if learned.unit == 'ms' else ''}",
                    layer,
                    " to ".join(began),
                    f"{number(array.mean())} ± {number(array.std())}",
                    f"{number(array.min())} to {number(array.max())}",
                    f"{array.size:,}",
                )
            )
    return Table("", ("value", "layer", "before training", "mean ± std", "range", "values"), rows)


def _sections(
    subject: Subject, metrics: dict, network: Network, evaluation: Evaluation, decisions: list[Picture]
) -> list[Section]:
    dt_ms, names = subject.cfg.data.dt_ms, metrics["class_names"]
    anytime = keep(
        pictures.draw_anytime({subject.run: metrics["anytime"]}),
        subject.out,
        "anytime.png",
        "Correct decisions if recordings end after this time, or after this number of events. A recording without an "
        "output spike by then counts as wrong",
    )
    latencies = keep(
        pictures.draw_latencies(evaluation.samples(), dt_ms, names),
        subject.out,
        "latencies.png",
        "Above: times of the first output spikes. Below: the same for each class, with its median in orange",
    )
    thresholds = []
    if "thresholds" in metrics:
        words = "Accuracy against the time of the decision, if the output thresholds are scaled by the numbers given"
        thresholds.append(keep(pictures.draw_thresholds(metrics["thresholds"]), subject.out, "thresholds.png", words))
    confusion = [
        keep(
            pictures.draw_confusion(metrics["confusion"][code], title, names),
            subject.out,
            f"confusion_{code}.png",
            f"Confusion under the {title} code: numbers of recordings",
        )
        for code, title, *_ in pictures.CODES
    ]
    rates = keep(
        pictures.draw_rates(evaluation),
        subject.out,
        "rates.png",
        "Number of spikes that the neurons of each layer fire",
    )
    return [
        Section(
            "Results",
            "Every recording of the test split has the same weight. Intervals are Wilson's. t_d50 and t_d90 are the "
            "times by which FS has made 50 % and 90 % of its correct decisions. FR can fall again: there they are the "
            "first times at which it reaches these shares of its highest accuracy.",
            result_tables(metrics),
        ),
        Section(
            "Energy",
            "These are estimates from the constants given as sources.",
            [energy_table(metrics["energy"])] if "energy" in metrics else [],
        ),
        Section(
            "Decisions",
            "A recording's events, the spikes of each layer, the potential of each output neuron (the decided class in "
            "orange, the true one in blue if it differs) and the output spikes, of which the first is marked.",
            pictures=decisions,
        ),
        Section("Delay", pictures=[anytime, latencies, *thresholds]),
        Section("Classes", class_words(names), [class_table(names, CLASS_HEAD, _class_rows(metrics))], confusion),
        Section("Activity", pictures=[rates]),
        _learned_section(learned_values(network, dt_ms), subject.out),
    ]


def _learned_section(learned: dict[str, dict[str, Learned]], out: Path) -> Section:
    title, words = "Learned neurons", "Time constants come from the learned decays, τ = -dt / ln λ."
    if not learned:
        return Section(title)
    caption = (
        "Values that each layer learned, one per neuron, input, synapse or layer; time constants on a log axis. "
        "Dotted: the value before training, or the two bounds between which the values were drawn"
    )
    return Section(
        title, words, [learned_table(learned)], [keep(pictures.draw_learned(learned), out, "learned.png", caption)]
    )
