"""The report of a TTFS network, report.html."""

from collections.abc import Iterator

from snn import pictures
from snn.report import Column, Section, Subject, Tile, class_table, class_words, keep, write_page
from snn.tables import Table, interval, number, percent, spikes
from snn.ttfs.evaluation import TTFSEvaluation

COLUMNS = (
    Column("accuracy %", "accuracy", 2),
    Column("spikes/neuron", "spikes_per_neuron", 3),
    Column("synaptic operations", "synaptic_operations_per_image", 0),
)


def write(subject: Subject, metrics: dict, evaluation: TTFSEvaluation) -> None:
    """Write report.html of a TTFS network."""
    write_page(subject, metrics, "images", _tiles(metrics), _sections(subject, metrics, evaluation))


def _tiles(metrics: dict) -> list[Tile]:
    operations = metrics["synaptic_operations_per_image"]
    share = f"{100 * operations / metrics['synapses']:.0f} % of all synapses"
    return [
        Tile("accuracy", percent(metrics["accuracy"]), interval(metrics["accuracy_interval"])),
        Tile("spikes per neuron", spikes(metrics["spikes_per_neuron"]), "each at most one"),
        Tile("synaptic operations", number(operations), share),
        Tile("images", f"{metrics['images']:,}", "of the test split"),
    ]


def result_tables(metrics: dict) -> list[Table]:
    """Return the tables of the network and of its layers."""
    rows = [
        ("images", f"{metrics['images']:,}"),
        ("accuracy", percent(metrics["accuracy"])),
        ("95 % interval", interval(metrics["accuracy_interval"])),
        ("loss", number(metrics["loss"])),
        ("spikes per neuron", spikes(metrics["spikes_per_neuron"])),
        ("synaptic operations per image", number(metrics["synaptic_operations_per_image"])),
        ("synapses", f"{metrics['synapses']:,}"),
        ("latency", f"{metrics['latency_windows']} windows"),
    ]
    if "disagreements_with_simulation" in metrics:
        unlike = f"{metrics['disagreements_with_simulation']:,} of {metrics['images']:,}"
        rows.append(("decisions that differ from the simulation over time", unlike))
    if "moved_by_quantising" in metrics:
        moved = f"{metrics['moved_by_quantising']:,} of {metrics['images']:,}"
        rows.append(("decisions changed by rounding the weights", moved))
        rows.append(("bytes of the rounded weights", f"{metrics['weight_bytes']:,}"))
    # the last entry of the synaptic operations is that of the readout, which does not spike
    layers = [
        (str(k + 1), spikes(mean), number(operations))
        for k, (mean, operations) in enumerate(
            zip(metrics["spikes_per_neuron_by_layer"], metrics["synaptic_operations_by_layer"], strict=False)
        )
    ]
    return [
        Table("", (), rows),
        Table("Layers", ("layer", "spikes per neuron", "synaptic operations into it"), layers),
    ]


def _class_rows(metrics: dict) -> Iterator[tuple[str, str]]:
    """Yield a row for each class: its images, and the share decided correctly."""
    for k, row in enumerate(metrics["confusion"]):
        yield f"{sum(row):,}", percent(100 * row[k] / sum(row) if sum(row) else None)


def _sections(subject: Subject, metrics: dict, evaluation: TTFSEvaluation) -> list[Section]:
    out, names = subject.out, metrics["class_names"]
    times = pictures.draw_spike_times(evaluation.histograms, subject.cfg.ttfs.T)  # type: ignore[arg-type]  # of images
    confusion = pictures.draw_confusion(metrics["confusion"], "decisions", names)
    return [
        Section("Results", "Every image of the test split has the same weight.", result_tables(metrics)),
        Section(
            "Spike times",
            pictures=[keep(times, out, "spike_times.png", "Times at which the neurons of each layer fire")],
        ),
        Section(
            "Classes",
            class_words(names),
            [class_table(names, ("images", "accuracy"), _class_rows(metrics))],
            [keep(confusion, out, "confusion.png", "Confusion: numbers of images")],
        ),
    ]
