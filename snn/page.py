"""One page of HTML for a test: tables from its metrics, and pictures. It needs nothing but itself."""

import base64
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import jinja2

from snn.learned import Learned

TEMPLATE = Path(__file__).with_name("page.html")
DASH = "–"
PROPER_NAMES = {
    "macs": "MACs",
    "acs": "ACs",
    "lemaire": "(Lemaire)",
    "spikesim": "(SpikeSim)",
    "neuromc": "(NeuroMC)",
}  # in names of energies


class Tile(NamedTuple):
    """A number one reads first."""

    name: str
    value: str
    note: str = ""


class Table(NamedTuple):
    """Rows of text; the first cell of each names it."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    is_words: bool = False  # its cells are words, not numbers


class Picture(NamedTuple):
    """A picture within the page."""

    png: bytes
    caption: str
    file: str = ""  # the same beside the page

    @property
    def uri(self) -> str:
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


class Section(NamedTuple):
    """A heading and what is below it."""

    title: str
    text: str = ""
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    code: str = ""


def render(title: str, lead: str, tiles: Sequence[Tile], sections: Iterable[Section]) -> str:
    """The page; sections with nothing in them are left out."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True)
    sections = [section for section in sections if section.tables or section.pictures or section.code]
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(title=title, lead=lead, tiles=tiles, sections=sections)


def percent(value: float | None) -> str:
    return DASH if value is None else f"{value:.2f} %"


def interval(low_high: Sequence[float]) -> str:
    return f"{low_high[0]:.1f} to {low_high[1]:.1f} %"


def delay(metrics: dict, name: str) -> str:
    """A delay in steps and ms; a dash where there is none."""
    steps = metrics[f"{name}_steps"]
    return DASH if steps is None else f"{metrics[f'{name}_ms']:g} ms ({steps} steps)"


def number(value: float) -> str:
    """Four digits, thousands apart."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def short(value: float) -> str:
    """Three digits; whole numbers from 100 on."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def tiles(metrics: dict) -> list[Tile]:
    """Of a first-spike network, or of a TTFS network."""
    if "accuracy" in metrics:
        share = 100 * metrics["synaptic_operations_per_image"] / metrics["synapses"]
        return [
            Tile("accuracy", percent(metrics["accuracy"]), interval(metrics["accuracy_interval"])),
            Tile("spikes per neuron", f"{metrics['spikes_per_neuron']:.3f}", "each at most one"),
            Tile(
                "synaptic operations",
                number(metrics["synaptic_operations_per_image"]),
                f"{share:.0f} % of all synapses",
            ),
            Tile("images", f"{metrics['images']:,}", "of the test split"),
        ]
    cost = metrics["cost"]
    operations = 100 * cost["to_decision"]["synaptic ops"] / max(1, cost["whole_window"]["synaptic ops"])
    return [
        Tile("first spike (FS)", percent(metrics["fs_accuracy"]), interval(metrics["fs_accuracy_interval"])),
        Tile("firing rate (FR)", percent(metrics["fr_accuracy"]), interval(metrics["fr_accuracy_interval"])),
        Tile("half of the right FS decisions", ms(metrics["t_d50_ms"]), f"90 % by {ms(metrics['t_d90_ms'])}"),
        Tile("spikes per neuron", f"{metrics['spikes_per_neuron']:.2f}", "mean of a sample"),
        Tile("work to the decision", f"{operations:.0f} %", "of the whole window's synaptic operations"),
    ]


def ms(value: float | None) -> str:
    return DASH if value is None else f"{value:g} ms"


def result_tables(metrics: dict) -> list[Table]:
    """Both codes, the layers, and what a decision costs."""
    if "accuracy" in metrics:
        rows = [
            ("accuracy", percent(metrics["accuracy"])),
            ("95 % interval", interval(metrics["accuracy_interval"])),
            ("images", f"{metrics['images']:,}"),
            ("loss", f"{metrics['loss']:.4f}"),
            ("synaptic operations an image", number(metrics["synaptic_operations_per_image"])),
            ("synapses", f"{metrics['synapses']:,}"),
            ("latency", f"{metrics['latency_windows']} windows"),
        ]
        if "disagreements_with_simulation" in metrics:
            rows.append(("decisions unlike the simulation over time", str(metrics["disagreements_with_simulation"])))
        layers = [
            (f"{k + 1}", f"{spikes:.3f}", number(operations))
            for k, (spikes, operations) in enumerate(
                zip(metrics["spikes_per_neuron_by_layer"], metrics["synaptic_operations_by_layer"], strict=False)
            )
        ]
        return [Table((), rows), Table(("layer", "spikes per neuron", "synaptic operations into it"), layers, "Layers")]
    codes = [
        ("accuracy", percent(metrics["fs_accuracy"]), percent(metrics["fr_accuracy"])),
        ("95 % interval", *(interval(metrics[f"{code}_accuracy_interval"]) for code in ("fs", "fr"))),
        ("t_d50", delay(metrics, "t_d50"), delay(metrics, "fr_t_d50")),
        ("t_d90", delay(metrics, "t_d90"), delay(metrics, "fr_t_d90")),
    ]
    counts = [
        ("recordings", f"{metrics['samples']:,}"),
        ("without an output spike", str(metrics["silent_samples"])),
        ("whose target neuron is silent", str(metrics["silent_targets"])),
        ("spikes per neuron and recording", f"{metrics['spikes_per_neuron']:.3f}"),
        ("loss", f"{metrics['loss']:.4f}"),
    ]
    rates = metrics["spikes_per_sample"]
    middle = rates["percentiles"].index(50)
    last = len(metrics["spikes_per_neuron_by_layer"]) - 1
    layers = [
        (
            "output" if k == last else f"hidden {k + 1}",
            f"{mean:.3f}",
            f"{of_neurons[middle]:.3f}",
            f"{of_neurons[-1]:.3f}",
            str(silent),
        )
        for k, (mean, of_neurons, silent) in enumerate(
            zip(
                metrics["spikes_per_neuron_by_layer"],
                rates["of_neurons_by_layer"],
                rates["never_fired_by_layer"],
                strict=True,
            )
        )
    ]
    cost = metrics["cost"]
    costs = [
        (
            name,
            number(cost["to_decision"][name]),
            number(whole),
            f"{100 * cost['to_decision'][name] / max(whole, 1e-9):.0f} %",
        )
        for name, whole in cost["whole_window"].items()
    ]
    tables = [
        Table(("", "first spike (FS)", "firing rate (FR)"), codes, "Accuracy and delay"),
        Table((), counts, "Samples"),
        Table(
            ("layer", "mean", "median neuron", "busiest neuron", "neurons that never fire"),
            layers,
            "Spikes per neuron and sample",
        ),
        Table(("mean of a sample", "to the decision", "whole window", "share"), costs, "Cost of a decision"),
    ]
    if streaming := metrics.get("streaming"):
        names = streaming["to_decision"]
        rows = [(name, *(number(streaming[part][name]) for part in ("to_decision", "whole_window"))) for name in names]
        rows += [
            ("FS accuracy", percent(streaming["fs_accuracy"]), ""),
            ("decisions unlike batches", str(streaming["differ_from_batches"]), ""),
            ("decisions moved by folding", str(streaming["moved_by_folding"]), ""),
        ]
        tables.append(Table(("mean of a recording", "to the decision", "whole window"), rows, "As a stream of events"))
    return tables


def class_table(metrics: dict, names: Sequence[str]) -> Table:
    """Each class: its number where it has a name, accuracies, silent samples, and when its first output spike comes."""
    numbers = [str(k) for k in range(len(names))]
    are_names = list(names) != numbers  # else the first column has the numbers
    if "accuracy" in metrics:
        rows = [
            (name, *numbers[k : k + are_names], str(sum(row)), percent(100 * row[k] / sum(row) if sum(row) else None))
            for k, (name, row) in enumerate(zip(names, metrics["confusion"], strict=True))
        ]
        return Table(("class", *("number",) * are_names, "images", "accuracy"), rows, "By class")
    places = [metrics["spikes_per_sample"]["percentiles"].index(percentile) for percentile in (5, 50, 95)]
    rows = []
    for k, (name, one) in enumerate(zip(names, metrics["by_class"], strict=True)):
        first = (name, *numbers[k : k + are_names], str(one["samples"]))
        times = one["first_spike_ms_percentiles"]
        spike = [f"{times[place]:.0f} ms" for place in places] if times else [DASH] * 3
        silent = str(one["silent_samples"]), str(one["silent_targets"])
        rows.append((*first, percent(one["fs_accuracy"]), percent(one["fr_accuracy"]), *spike, *silent))
    head = (
        "class",
        *("number",) * are_names,
        "samples",
        "FS",
        "FR",
        "5 % spoke by",
        "50 %",
        "95 %",
        "silent",
        "silent targets",
    )
    return Table(head, rows, "By class")


def learned_table(values: dict[str, dict[str, Learned]]) -> Table:
    """Mean, spread and range of what each layer learned, and what it began with."""
    rows = []
    for of_layers in values.values():
        for layer, learned in of_layers.items():
            array, (low, high) = learned.value.double().cpu().numpy(), learned.began
            cells = (f"{short(array.mean())} ± {short(array.std())}", f"{short(array.min())} to {short(array.max())}")
            before = short(low) if low == high else f"{short(low)} to {short(high)}"
            title = f"{learned.title}{' (ms)' if learned.unit == 'ms' else ''}"
            rows.append((title, layer, before, *cells, str(array.size)))
    return Table(("value", "layer", "before training", "mean ± std", "range", "neurons"), rows)


def energy_table(energy: dict[str, dict]) -> Table:
    """What `metrics["energy"]` holds, name -> value, unit, source; a `baseline_` stands beside what it is one of."""

    def words(name: str) -> str:
        return f"{number(energy[name]['value'])} {energy[name]['unit']}" if name in energy else ""

    rows = [
        (
            " ".join(PROPER_NAMES.get(word, word) for word in name.split("_")),
            words(name),
            words(f"baseline_{name}") or DASH,
            one["source"],
        )
        for name, one in energy.items()
        if not name.startswith("baseline_")
    ]
    return Table(("mean of a recording", "this network", "real-valued, dense", "source"), rows, is_words=True)


def words_table(values: dict) -> Table:
    """Names and values; a mapping within goes on one line."""
    rows = [
        (name, ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value))
        for name, value in values.items()
        if value is not None
    ]
    return Table((), rows, is_words=True)
