"""report.html of a tested network, section by section; `snn.report` draws the pictures and `snn.page` lays it out."""

import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from matplotlib.figure import Figure

from snn import config, page, report
from snn.evaluation import Evaluation
from snn.files import write_whole
from snn.lettering import why_numbers
from snn.network import Network
from snn.page import Picture, Section
from snn.ttfs.evaluation import Evaluation as TTFSEvaluation
from snn.ttfs.report import draw_spike_times


class Subject(NamedTuple):
    """A network to be tested, and the folder for what comes out."""

    path: Path
    cfg: config.AnyConfig
    content: dict[str, Any]  # of the checkpoint
    out: Path

    @property
    def run(self) -> str:
        """Its run's name, and the checkpoint's where it is not the best one."""
        run = self.path.absolute().parent.name
        return run if self.path.stem == "best" else f"{run}/{self.path.name}"


def keep(figure: Figure, out: Path, file: str, caption: str) -> Picture:
    """A picture for the page, and as PNG beside it."""
    picture = Picture(report.png(figure), caption, file)
    write_whole(out / file, picture.png)
    return picture


def of_events(
    subject: Subject, network: Network, evaluation: Evaluation, metrics: dict, decisions: list[Picture]
) -> list[Section]:
    """The page of a first-spike network."""
    out, dt_ms, names = subject.out, subject.cfg.data.dt_ms, metrics["class_names"]
    samples = evaluation.samples()
    learned = report.learned_values(network, dt_ms)
    delays = [
        keep(
            report.draw_anytime({subject.run: metrics["anytime"]}),
            out,
            "anytime.png",
            "Were the recording cut after so much time, or after so many events: right decisions. A sample without an "
            "output spike by then counts as wrong",
        ),
        keep(
            report.draw_latencies(samples, dt_ms, names),
            out,
            "latencies.png",
            "Above: when the first output spike comes. Below: the same for each class, its median in orange",
        ),
    ]
    confusion = [
        keep(
            report.draw_confusion(metrics["confusion"][code], title, names),
            out,
            f"confusion_{code}.png",
            f"Confusion under the {title} code: numbers of samples",
        )
        for code, title, *_ in report.CODES
    ]
    rates = keep(report.draw_rates(evaluation), out, "rates.png", "How many spikes the neurons of each layer fire")
    learned_pictures = []
    if learned:
        words = (
            "What the neurons of each layer learned, one value a neuron or a layer; time on a logarithmic axis. "
            "Dotted: before training, one value for all, or two bounds between which they were drawn"
        )
        learned_pictures.append(keep(report.draw_learned(learned), out, "learned.png", words))
    return [
        Section(
            "Results",
            "Of all samples of the test split, each weighing the same. Intervals are Wilson's, and t_d50 and t_d90 the "
            "times at which half and 90 % of the decisions that come out right have done so.",
            page.result_tables(metrics),
        ),
        of_energy(metrics),
        Section(
            "Decisions",
            "A recording's events, the spikes of each layer, the potential of each output neuron (the decided class in "
            "orange, the true one in blue where it is another) and the output spikes, the first of them marked.",
            pictures=decisions,
        ),
        Section("Delay", pictures=delays),
        Section("Classes", of_names(names), tables=[page.class_table(metrics, names)], pictures=confusion),
        Section("Activity", pictures=[rates]),
        Section(
            "Learned neurons",
            "Time constants come from the learned decays, τ = -dt / ln λ.",
            [page.learned_table(learned)] if learned else [],
            learned_pictures,
        ),
        *common(subject, metrics),
    ]


def of_images(subject: Subject, evaluation: TTFSEvaluation, metrics: dict) -> list[Section]:
    """The page of a TTFS network."""
    out, names = subject.out, metrics["class_names"]
    spikes = draw_spike_times(evaluation.histograms, subject.cfg.ttfs.T)
    confusion = report.draw_confusion(metrics["confusion"], "decisions", names)
    return [
        Section(
            "Results", "Mean of all images of the test split, each weighing the same.", page.result_tables(metrics)
        ),
        of_energy(metrics),
        Section("Spike times", pictures=[keep(spikes, out, "spike_times.png", "When the neurons of each layer fire")]),
        Section(
            "Classes",
            of_names(names),
            tables=[page.class_table(metrics, names)],
            pictures=[keep(confusion, out, "confusion.png", "Confusion: numbers of images")],
        ),
        *common(subject, metrics),
    ]


def of_names(names: Sequence[str]) -> str:
    """Why pictures have numbers in place of names, where they have."""
    if len(names) > report.MOST_NAMES:
        return f"Of more than {report.MOST_NAMES} classes the pictures have numbers; the table has each one's name."
    return why_numbers(names)


def of_energy(metrics: dict) -> Section:
    """Where the metrics have an energy: quantities with their unit and source."""
    tables = [page.energy_table(metrics["energy"])] if "energy" in metrics else []
    return Section("Energy", "Estimates, with the constants they come from.", tables)


def common(subject: Subject, metrics: dict) -> list[Section]:
    """Return how the network was trained, and where the numbers come from."""
    curves, log_path = [], subject.path.with_name("metrics.jsonl")
    if rows := read_log(log_path):
        figure = report.draw_learning(rows, metrics["epoch"])
        words = "Training and held-out data, epoch by epoch; the dotted line is the checkpoint that was tested"
        curves.append(keep(figure, subject.out, "learning.png", words))
    known = ("checkpoint", "epoch", "seed", "data", "samples_of", "command", "tested", "machine", "versions")
    values = {name: metrics[name] for name in known}
    values["samples of"] = values.pop("samples_of")
    text = yaml.safe_dump(
        subject.cfg.model_dump(mode="json"), sort_keys=False, default_flow_style=None, width=100, allow_unicode=True
    )
    return [
        Section("Training", pictures=curves),
        Section("Configuration", code=text),
        Section("Provenance", tables=[page.words_table(values)]),
    ]


def read_log(path: Path) -> list[dict]:
    """The epochs of metrics.jsonl; none where the run has no such file, nor a line that is torn."""
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        with suppress(ValueError):
            rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict) and {"epoch", "train_loss"} <= row.keys()]


def write(subject: Subject, metrics: dict, sections: Iterable[Section]) -> None:
    """report.html."""
    n, what = (metrics["images"], "images") if "images" in metrics else (metrics["samples"], "recordings")
    lead = f"Epoch {metrics['epoch']} of {subject.path.parent}, tested on {n:,} {what} of {metrics['data']}."
    write_whole(subject.out / "report.html", page.render(subject.run, lead, page.tiles(metrics), sections))
