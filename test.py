"""Test trained networks: python test.py --load_pt_file runs/<name>/best.pt [more checkpoints, run folders or names]

The networks come from the checkpoints alone. One is printed as a table; several as a row each, with mean ± std of those
whose configurations differ only in the seed. Each run gets its folder runs/<name>/test/: report.html with all of it,
the pictures of that page as PNG, metrics.json (percent, steps, ms), and samples.npz with what each sample gave, for
compare.py.

A first-spike network is tested under first-spike and firing-rate decoding. --show draws a decision of every class, and
--test_single_delay the output spikes of one recording of each class together. --streaming decides on events as they
come and compares the cost with that of whole windows. --energy counts operations, memory traffic and energy
(`snn/energy.py`; models of hardware: `snn/hardware.py`).

Of a TTFS network: accuracy, spikes and when they come. --simulate runs every image through a simulation over time, too,
and counts the decisions that differ.
"""

import argparse
import hashlib
import io
import json
import math
import shlex
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import snn  # noqa: F401 - first, it says which packages are missing

# isort: split
import numpy as np
import torch
from tqdm import tqdm

import tasks
from datasets import images, prepare
from datasets.events import AnyRecordings, Bins, batches, in_order
from snn import arguments, checkpoint, cli, config, energy, pictures, report, settings, tables
from snn.classes import Named
from snn.coding import Window, first_times, fs_decision
from snn.config import Mark
from snn.errors import InputError
from snn.evaluation import NOTHING, Evaluation, Samples, examine
from snn.events import Events
from snn.files import write_whole
from snn.lettering import why_numbers
from snn.loss import objective
from snn.machine import find_device, machine, versions
from snn.memory import keep_freed_memory
from snn.network import Network
from snn.report import Picture, Subject
from snn.streaming import Stream, first_difference
from snn.ttfs import report as ttfs_report
from snn.ttfs.evaluation import Evaluation as TTFSEvaluation
from snn.ttfs.evaluation import examine as examine_ttfs
from snn.ttfs.network import Network as TTFSNetwork
from snn.ttfs.simulation import Simulation

OF_THE_OTHER_KIND = {"ttfs": ("show", "streaming", "test_single_delay", "energy"), "network": ("simulate",)}  # words
COSTS = ("events", "synaptic ops", "neuron updates", "time (ms)")


def main() -> None:
    keep_freed_memory()
    if torch.distributed.is_torchelastic_launched():
        raise InputError("test.py is one process: start it by python, not by torchrun")
    args, subjects = read_command_line()
    for subject in subjects:
        open_folder(subject.out)
    together = defaultdict(list)  # those that see the same batches
    for subject in subjects:
        data, train = subject.cfg.data, subject.cfg.train
        names = subject.content["class_names"]
        path = getattr(subject.cfg.data, "test_path", None)  # the training file, where data.test_by says so
        data = data.model_dump_json(exclude=settings.marked(type(data), Mark.TRAINING))
        together[type(subject.cfg), data, path, train.test_batch_size, train.device, names].append(subject)
    metrics = {}
    for group in together.values():
        test = test_images if isinstance(group[0].cfg, config.TTFSConfig) else test_recordings
        metrics |= test(args, group)
    if len(subjects) == 1:
        (subject,) = subjects
        found, kind = metrics[subject.path], ttfs_report if isinstance(subject.cfg, config.TTFSConfig) else report
        energies = [report.energy_table(found["energy"])] if args.energy else []
        print(tables.text([*kind.result_tables(found), *energies]), end="\n\n")
        print(f"read {subject.out / 'report.html'}; numbers in metrics.json, pictures and samples.npz beside it")
    else:
        kinds = {config.Config: report.COLUMNS, config.TTFSConfig: ttfs_report.COLUMNS}
        rows = [
            report.runs_table([(s, metrics[s.path]) for s in subjects if isinstance(s.cfg, kind)], columns)
            for kind, columns in kinds.items()
        ]
        print(tables.text(rows), end="\n\n")
        print("a report.html each in " + ", ".join(str(subject.out) for subject in subjects))


def test_recordings(args: argparse.Namespace, subjects: Sequence[Subject]) -> dict[Path, dict]:
    """First-spike networks on recordings of events, all in one pass."""
    data, train = subjects[0].cfg.data, subjects[0].cfg.train
    device, size = find_device(train.device), train.test_batch_size
    networks = [Network(s.cfg.network, data.shape, data.num_classes, s.cfg.train.backend).to(device) for s in subjects]
    for network, subject in zip(networks, subjects, strict=True):
        checkpoint.load_weights(network, subject.content["network"], subject.path)

    T, T_empty = data.test_T or data.T, data.T_empty if data.test_T_empty is None else data.test_T_empty
    bins = Bins(data.dt_ms, T, T_empty, math.prod(data.shape))
    if args.streaming:
        for network in networks:
            Stream(network, bins.dt_ms, bins.T, bins.T_empty)  # refuses what it cannot take before the work is done
    prepare.make_if_missing(data.test_path, data.dataset_name, data.prepare)
    recordings = tasks.read_recordings(data, "test", bins, classes_of(subjects[0]))
    say_missing(recordings.labels, data.num_classes, str(data.test_path), "recording")
    goals = [
        partial(
            objective, loss=loss, window=Window.of(T + T_empty, loss.fs.D, loss.fs.A, loss.fs.window), training=False
        )
        for loss in (subject.cfg.loss for subject in subjects)
    ]
    evaluations = [Evaluation() for _ in subjects]
    everything = batches(recordings, np.arange(len(recordings)), bins, size)
    meters = [energy.Meter(network) for network in networks] if args.energy else []
    with ExitStack() as metering:
        for meter in meters:
            metering.enter_context(meter)
        for x_TBC, target_B in tqdm(everything, "test", math.ceil(len(recordings) / size), leave=False, disable=None):
            for network, goal, evaluation in zip(networks, goals, evaluations, strict=True):
                examine(network, x_TBC, target_B, goal, device, evaluation)

    about = {"data": str(data.test_path), "dt_ms": data.dt_ms, "T": T, "T_empty": T_empty}
    names = class_names(recordings.class_names, data.num_classes)
    about |= {"samples_of": fingerprint(by_name(recordings, names), np.diff(recordings.offsets)), "class_names": names}
    if why := why_numbers(names):
        print(f"warning: {why}", file=sys.stderr)
    result = {}
    bar = tqdm(zip(subjects, networks, evaluations, strict=True), "report", len(subjects), leave=False, disable=None)
    for k, (subject, network, evaluation) in enumerate(bar):
        metrics = evaluation.metrics(data.dt_ms) | evaluation.details(data.dt_ms)
        if args.energy:
            metrics["energy"] = meters[k].result()
        if network.delays():
            metrics |= rounding(network, recordings, bins, size, evaluation.samples())
        if args.streaming:
            metrics["streaming"] = stream(network, recordings, bins, size)
        metrics |= provenance(subject) | about | {"anytime": evaluation.anytime(data.dt_ms)}
        write_metrics(subject.out, metrics, evaluation.samples()._asdict())
        draw = partial(draw_recording, network, recordings, bins, subject.out)
        shown = decisions(draw, recordings, evaluation.samples(), data.dt_ms, args.show)
        if args.test_single_delay:
            classes, first_of_class = np.unique(recordings.labels, return_index=True)
            x_TBC, target_B = next(batches(recordings, first_of_class, bins, len(classes)))
            figure = pictures.draw_single_delay(network, x_TBC.to(device), target_B, data.dt_ms, recordings.class_names)
            shown.append(
                report.keep(figure, subject.out, "single_delay.png", "Output spikes of one recording of each class")
            )
        report.write(subject, metrics, network, evaluation, shown)
        result[subject.path] = metrics
    return result


def test_images(args: argparse.Namespace, subjects: Sequence[Subject]) -> dict[Path, dict]:
    """TTFS networks on images, all in one pass."""
    data, train = subjects[0].cfg.data, subjects[0].cfg.train
    device, size = find_device(train.device), train.test_batch_size
    networks = [TTFSNetwork(subject.cfg.ttfs, data.shape, data.num_classes).to(device) for subject in subjects]
    for network, subject in zip(networks, subjects, strict=True):
        checkpoint.load_weights(network, subject.content["network"], subject.path)
    images.fetch_if_missing(data.layout, data.folder, data.dataset_name)
    test_set = tasks.read_images(data, "test", classes_of(subjects[0]))
    say_missing(test_set.labels, data.num_classes, test_set.where, "image")

    evaluations = [TTFSEvaluation() for _ in subjects]
    simulations = [Simulation(network).run if args.simulate else None for network in networks]
    everything = images.batches(test_set, np.arange(len(test_set)), size)
    for x_BCHW, target_B in tqdm(everything, "test", math.ceil(len(test_set) / size), leave=False, disable=None):
        for network, evaluation, simulate in zip(networks, evaluations, simulations, strict=True):
            examine_ttfs(network, x_BCHW, target_B, device, evaluation, simulate)

    names = class_names(test_set.class_names, data.num_classes)
    about = {"data": test_set.where, "class_names": names}
    about |= {"samples_of": fingerprint(by_name(test_set, names), test_set.pixels)}
    result = {}
    for subject, evaluation in tqdm(
        zip(subjects, evaluations, strict=True), "report", len(subjects), leave=False, disable=None
    ):
        metrics = evaluation.metrics() | evaluation.details()
        metrics |= {"spike_time_histograms": evaluation.histograms.tolist()}
        metrics |= provenance(subject) | about | {"T": subject.cfg.ttfs.T}
        target_n, label_n = evaluation.decisions()
        write_metrics(subject.out, metrics, {"target": target_n, "label": label_n})
        ttfs_report.write(subject, metrics, evaluation)
        result[subject.path] = metrics
    return result


def read_command_line() -> tuple[argparse.Namespace, list[Subject]]:
    """Words, and what is to be tested: checkpoints, their configurations with the words over them."""
    yaml_help = "take the data section from this configuration"
    parser = arguments.Parser(__doc__, arguments.TEST, yaml_help, checkpoints="+")
    parser.add_argument("--show", action="store_true", help="draw one decision of every class")
    parser.add_argument("--energy", action="store_true", help="count operations, memory traffic and energy")
    parser.add_argument(
        "--streaming", action="store_true", help="also decide on events as they come, and what it costs"
    )
    parser.add_argument("--test_single_delay", action="store_true", help="draw output spikes, one recording a class")
    parser.add_argument("--simulate", action="store_true", help="run a TTFS network over time as well")
    args = parser.parse_args()
    if args.load_pt_file is None:
        raise InputError("command line: --load_pt_file is missing: a checkpoint such as runs/<name>/best.pt")
    paths = list(dict.fromkeys(arguments.find_checkpoint(path) for path in args.load_pt_file))
    folders = [path.parent for path in paths]
    subjects = []
    for path in paths:
        keeps_apart = folders.count(path.parent) > 1 and path.stem != "best"  # from others of its run
        out = path.parent / (f"test_{path.stem}" if keeps_apart else "test")
        subjects.append(Subject(path, *read_checkpoint(parser, args, path), out))
    return args, subjects


def read_checkpoint(parser: arguments.Parser, args: argparse.Namespace, path: Path) -> tuple[config.AnyConfig, dict]:
    """Configuration (data of --path_to_yaml, then the other words over it) and content of a checkpoint."""
    trained, content = checkpoint.load(path)
    values = trained.model_dump(mode="json")
    if args.path_to_yaml is not None:
        given = settings.read_yaml(arguments.find_yaml(args.path_to_yaml))
        values["data"] = given.get("data", {})
    cfg = parser.override(values, args, args.path_to_yaml or path)
    section = "ttfs" if isinstance(trained, config.TTFSConfig) else "network"
    for word in OF_THE_OTHER_KIND[section]:
        if getattr(args, word):
            raise InputError(f"command line: --{word} is not for a network with a section `{section}`, as in {path}")
    if changed := list(settings.differences(getattr(cfg, section), getattr(trained, section), f"{section}.")):
        raise InputError(f"{path}: belongs to another network: it was trained with another {', '.join(changed)}")
    here, there = ((c.data.shape, c.data.num_classes) for c in (cfg, trained))
    if here != there:
        inputs = ["x".join(map(str, shape)) for shape, _ in (here, there)]
        raise InputError(
            f"{path}: the data do not fit the network: they have {inputs[0]} input channels and {here[1]} classes, it "
            f"was trained on {inputs[1]} and {there[1]}"
        )
    return cfg, content


def open_folder(out: Path) -> None:
    """Make the folder for what comes out, and see that it can be written, before the work is done."""
    try:
        out.mkdir(exist_ok=True)
        probe = out / ".writable"
        write_whole(probe, "")
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"{out}: the results cannot be written there ({error.strerror}); it must be a folder that you may write"
        ) from None


def provenance(subject: Subject) -> dict:
    """Return where a test's numbers come from."""
    return {
        "checkpoint": str(subject.path),
        "epoch": subject.content["epoch"],
        "seed": subject.cfg.train.seed,
        "command": shlex.join(["python", Path(sys.argv[0]).name, *sys.argv[1:]]),
        "tested": time.strftime("%Y-%m-%d %H:%M:%S"),
        "machine": machine(find_device(subject.cfg.train.device)),
        "versions": versions(),
    }


def fingerprint(*arrays: np.ndarray) -> str:
    """Tells one list of samples from another: labels and the number of events of each, or labels and pixels."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]


def classes_of(subject: Subject) -> Named:
    """Return what the numbers of a network's classes mean."""
    return Named(subject.content["class_names"], str(subject.path))


def say_missing(labels: np.ndarray, classes: int, where: str, item: str) -> None:
    """Say so if classes have nothing to be tested on."""
    if len(missing := np.setdiff1d(np.arange(classes), labels)):
        print(
            f"warning: {where}: no {item} of {len(missing)} of the network's {classes} classes, the first of them "
            f"{missing[0]}; is it the set of its training?",
            file=sys.stderr,
        )


def by_name(samples: AnyRecordings | images.Images, names: Sequence[str]) -> np.ndarray:
    """(n,) labels as places among the sorted names, where classes have names: the same whatever their order."""
    return samples.labels if samples.class_names is None else np.argsort(np.argsort(names))[samples.labels]


def class_names(names: Sequence[str] | None, classes: int) -> list[str]:
    """A word for each class: its name where it has one, else its number."""
    return [names[k] if names is not None and k < len(names) else str(k) for k in range(classes)]


def write_metrics(out: Path, metrics: dict, samples: dict) -> None:
    """metrics.json and samples.npz."""
    write_whole(out / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    file = io.BytesIO()
    np.savez_compressed(
        file, **{name: np.asarray(value) for name, value in samples.items() if name != "events_by_step"}
    )
    write_whole(out / "samples.npz", file.getvalue())


def draw_recording(
    network: Network, recordings: AnyRecordings, bins: Bins, out: Path, r: int, file: str, what: str
) -> Picture:
    """Recording r from its events to its decision."""
    x_T1C, target_1 = next(batches(recordings, np.array([r]), bins, 1))
    x_T1C = x_T1C.to(next(network.parameters()).device)
    figure = pictures.draw_decision(network, x_T1C, bins.dt_ms, names=recordings.class_names, target=int(target_1))
    return report.keep(figure, out, file, what)


def decisions(
    draw: Callable[[int, str, str], Picture], recordings: AnyRecordings, samples: Samples, dt_ms: float, show: bool
) -> list[Picture]:
    """The first recording, a right decision of median delay, a late one, a wrong one; with `show` one of each class."""
    spoke = (samples.first_step != NOTHING).numpy()
    right = (samples.fs_label == samples.target).numpy()
    by_delay = np.argsort(samples.first_step.numpy(), kind="stable")
    right_by_delay = by_delay[(spoke & right)[by_delay]]
    shown = [draw(0, "decision.png", "The first recording of the file")]
    if len(right_by_delay):
        typical, late = right_by_delay[len(right_by_delay) // 2], right_by_delay[-1]
        shown.append(draw(typical, "decision_typical.png", f"Recording {typical}, right after the median delay"))
        shown.append(draw(late, "decision_late.png", f"Recording {late}, the latest of the right decisions"))
    if not right.all():
        wrong = int((~right).argmax())
        shown.append(draw(wrong, "decision_wrong.png", f"Recording {wrong}, the first that is decided wrongly"))
    if show:
        for label, r in zip(*np.unique(recordings.labels, return_index=True), strict=True):
            name = pictures.class_name(label, recordings.class_names)
            shown.append(draw(r, f"decision_{label}.png", f"Recording {r}, the first of {name}"))
    return shown


def stream(network: Network, recordings: AnyRecordings, bins: Bins, batch_size: int) -> dict:
    """Every recording as a stream: accuracy, means of what a decision costs, and what differs from batches."""
    recordings, everything = in_order(recordings), np.arange(len(recordings))
    folded = network.folded()
    of_batches = {
        name: np.concatenate([decide(net, x_TBC) for x_TBC, _ in batches(recordings, everything, bins, batch_size)])
        for name, net in (("trained", network), ("folded", folded))
    }
    streams = {
        name: Stream(network, bins.dt_ms, bins.T, bins.T_empty, recordings.ticks_per_second, stops)
        for name, stops in (("to_decision", True), ("whole_window", False))
    }
    decisions = np.full((len(recordings), 2), NOTHING)  # where no event lies within the window
    costs = {name: np.empty((len(recordings), len(COSTS))) for name in streams}
    for r in tqdm([0, *everything], "streaming", leave=False, disable=None):  # the first one twice: compiled, warm
        loaded, (place,) = recordings.load(np.array([r]))
        events = slice(loaded.offsets[place], loaded.offsets[place + 1])
        times, channels = loaded.times[events], loaded.channels[events]
        for name, stream in streams.items():
            stream.reset()
            started = time.perf_counter()
            stream.push(times, channels)
            decision = stream.finish()
            milliseconds = 1e3 * (time.perf_counter() - started)
            work = stream.work
            costs[name][r] = work.events, work.synaptic_operations, work.neuron_updates, milliseconds
            if decision:
                decisions[r] = decision.label, decision.step or NOTHING
    moved = (of_batches["trained"] != of_batches["folded"]).any(1)
    for r in np.flatnonzero(moved):
        x_T1C, _ = next(batches(recordings, np.array([r]), bins, 1))
        print(f"recording {r}: folding BatchNorm moves the decision; {first_difference(network, folded, x_T1C)}")
    empty = decisions[:, 0] == NOTHING
    decisions[empty] = of_batches["folded"][
        empty
    ]  # a stream has nothing to decide on, but potentials do, as in batches
    return {
        "fs_accuracy": 100 * float(np.mean(decisions[:, 0] == recordings.labels)),
        "without_events": int(empty.sum()),
        "differ_from_batches": int((decisions != of_batches["folded"]).any(1).sum()),
        "moved_by_folding": int(moved.sum()),
        **{name: dict(zip(COSTS, cost.mean(0).tolist(), strict=True)) for name, cost in costs.items()},
    }


def rounding(
    network: Network, recordings: AnyRecordings, bins: Bins, batch_size: int, samples: Samples
) -> dict[str, float]:
    """Return how many FS decisions rounding the delays moves, and the accuracy of delays as they were trained."""
    for delays in network.delays().values():
        delays.train()  # where they are not rounded
    everything = batches(recordings, np.arange(len(recordings)), bins, batch_size)
    label_n = np.concatenate([decide(network, x_TBC)[:, 0] for x_TBC, _ in everything])
    network.eval()
    return {
        "moved_by_rounding": int((label_n != samples.fs_label.numpy()).sum()),
        "fs_accuracy_before_rounding": 100 * float((label_n == samples.target.numpy()).mean()),
    }


@torch.inference_mode()
def decide(network: Network, x_TBC: Events) -> np.ndarray:
    """(B, 2): decision under FS, and the step of the first output spike, NOTHING where there is none."""
    network.reset()
    s_TBN, h_TBN, _ = network(x_TBC.to(next(network.parameters()).device))
    network.reset()
    t_BN = first_times(s_TBN, h_TBN)
    first_B = t_BN.amin(-1).long()
    return torch.stack([fs_decision(t_BN), torch.where(first_B > len(s_TBN), NOTHING, first_B)], 1).cpu().numpy()


if __name__ == "__main__":
    cli.run(main)
