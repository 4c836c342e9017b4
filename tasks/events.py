"""Training and testing of first-spike networks on recordings of events."""

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from datasets import binning, layouts, prepare, readers
from datasets.augment import Change
from datasets.binning import Bins
from datasets.recordings import AnyRecordings, as_inputs, subset
from datasets.splits import groups_by, hold_out, say_unseen
from snn import architecture, config, energy, pictures, report, settings, tables
from snn.classes import Named
from snn.conv import EventConv
from snn.errors import InputError
from snn.evaluation import NOTHING, Evaluation, Samples, evaluate, examine
from snn.health import Cures
from snn.inputs import SparseCounts
from snn.lettering import why_numbers
from snn.linear import EventLinear
from snn.losses import AnyLoss, Loss, objective
from snn.machine import find_device
from snn.network import Network
from snn.quantise import quantised, weight_bytes
from snn.replay import Replayed
from snn.report import Picture, Subject
from snn.streaming import Stream
from snn.team import Team
from tasks import streams, thresholds
from tasks.kind import (
    HELD_OUT_BY,
    Kind,
    Result,
    Testing,
    Training,
    check_unchanged,
    fingerprint,
    named,
    say_missing,
    say_refusal,
)

COCHLEA_CHANNELS = 700  # those that `datasets.prepare` makes of sound
TO_TRAIN, HELD_OUT, SET_APART = "to train on", "held out", "set apart for the test"  # of Training.trained_on
REMEDY = "take those of its training, because it may have been trained on some of these"
TEST_SEED = 0  # data.test_by sets the same recordings apart whatever the run's seed


class EventTraining(Training):
    """Training that minimises a first-spike or a firing-rate loss."""

    items = "recordings"
    goals: ClassVar = {
        "fs_accuracy": "maximize",
        "fr_accuracy": "maximize",
        "t_d50_ms": "minimize",
        "t_d90_ms": "minimize",
        "fr_t_d50_ms": "minimize",
        "fr_t_d90_ms": "minimize",
        "synaptic_operations_to_decision": "minimize",
        "spikes_per_neuron": "minimize",
    }

    @staticmethod
    def holds_out(cfg: config.Config) -> bool:
        return Training.holds_out(cfg) or cfg.data.validation_path is not None

    def __init__(self, cfg: config.Config, team: Team, classes: Named | None = None):
        super().__init__(cfg, team)
        data, train = cfg.data, cfg.train
        self.chosen_by = cfg.loss.chosen.chosen_by
        self.cures = cures_of(cfg.loss.chosen)
        check_validation_file(data)
        if team.leads:
            prepare.make_if_missing(data.train_path, data.dataset_name, data.prepare)
        team.wait()
        self.bins = Bins.of(data, "train")
        self.recordings = read_recordings(data, "train", self.bins, classes)
        self.class_names = self.recordings.class_names
        if team.leads:
            say_refusal(partial(look_at_test_data, data, Named(self.class_names, self.recordings.where)))
        self.kept, self.validation, self.held_out = for_validation(self.recordings, data, self.bins, train.seed)
        self.trained_on = {
            TO_TRAIN: fingerprint_of(self.recordings, self.kept),
            HELD_OUT: fingerprint_of(self.validation, self.held_out),
        }
        if data.test_by:
            own_held_out = self.held_out if self.validation is self.recordings else []
            used = np.concatenate([self.kept, own_held_out])
            apart = np.setdiff1d(np.arange(len(self.recordings)), used)
            self.trained_on[SET_APART] = fingerprint_of(self.recordings, apart)
        check_batch_norm(cfg, len(self.kept), 1 if train.sync_batch_norm else team.size)
        torch.manual_seed(train.seed)
        self.network = cfg.new_network().to(team.device)
        if train.sync_batch_norm:
            team.synchronise(self.network)
        groups = parameter_groups(self.network, train.delay_lr)
        self.optimizer = torch.optim.Adam(groups, train.lr, weight_decay=train.weight_decay, amsgrad=True, fused=True)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.loss = self.shared_or_replayed(self._loss)
        self.recorded: tuple[AnyLoss, float] | None = None  # constants in the recorded step

    def begin_epoch(self, epoch: int, random: np.random.Generator) -> dict[str, float]:
        data, self.change = self.cfg.data, None
        if data.augment != config.Augment():
            height, width = data.shape[1:] if data.sensor else (1, *data.shape)
            self.change = Change(data.augment, (width, height), int(random.integers(2**63)), self.kept)
        train, now = self.cfg.train, self.cfg.schedule(epoch)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * now["lr"] / train.lr
        # in each epoch, because a resumed run starts in any
        if now["delays_are_whole"]:
            self.network.keep_delays_whole()
        self.network.prune(now["density"])
        loss = self.cfg.loss.at(epoch, train.epochs)
        constants = loss, now["delay_sigma_steps"]
        if constants != self.recorded and isinstance(self.loss, Replayed):
            self.loss.forget()
        self.recorded = constants
        self.network.narrow_delays(now["delay_sigma_steps"])
        self.objective = goal(self.cfg, loss)
        return now

    def batches(self, order: np.ndarray) -> Iterator[tuple[SparseCounts | Tensor, Tensor]]:
        size = self.cfg.train.batch_size
        return binning.batches(self.recordings, order, self.bins, size, self.team.share, self.change, self.team.device)

    def _loss(self, x_TBC: SparseCounts, target_B: Tensor, weight: float) -> Tensor:
        self.network.reset()
        mean = partial(self.team.mean, weight=weight)
        return self.objective(self.network(x_TBC), target_B, training=True, mean=mean)

    def after_step(self) -> None:
        self.network.clamp_values()

    def evaluate(self, held_out: np.ndarray) -> Evaluation:
        size, device = self.cfg.train.test_batch_size, self.team.device
        batches = binning.batches(self.validation, held_out, self.bins, size, device=device)
        return evaluate(self.network, batches, partial(self.objective, training=False), device)

    def metrics(self, evaluation: Evaluation) -> dict:
        return evaluation.metrics(self.cfg.data.dt_ms)

    def describe(self, validation: dict) -> str:
        return (
            f"FS {validation['fs_accuracy']:6.2f} %  FR {validation['fr_accuracy']:6.2f} %  "
            f"{validation['spikes_per_neuron']:.2f} spikes/neuron  {validation['silent_samples']} silent"
        )

    def conclude(self, validation: dict) -> str:
        return (
            f"validation FS accuracy {validation['fs_accuracy']:.2f} %, FR accuracy {validation['fr_accuracy']:.2f} %"
        )

    def uses(self, checkpoint: Path) -> list[str]:
        if self.cfg.data.channels != COCHLEA_CHANNELS:
            return []
        command = f"$(bash run.sh --python export) export.py --load_pt_file {checkpoint} --format html"
        return [f"make a page that listens with: {command}"]

    def learned(self) -> dict[str, Tensor]:
        layers = self.network.learned(dt_ms=1.0)
        return {f"{layer}/{name}": value.value for layer, found in layers.items() for name, value in found.items()}

    def activity(self) -> list[str]:
        """Describe how active each layer's last input was, and which product the layer used for it."""
        lines = []
        for name, module in self.network.named_modules():
            if isinstance(module, EventConv | EventLinear):
                share = "" if math.isnan(module.active_share) else f"{100 * module.active_share:.1f} % active, "
                lines.append(f"{name}: input {share}{'event-driven' if module.is_event_driven else 'dense'} product")
        return lines


class EventTesting(Testing):
    """A test under first-spike and firing-rate decoding."""

    words: ClassVar = {
        "show": "draw one decision of each class",
        "energy": "count operations, memory traffic and energy",
        "streaming": "also decide on events as they arrive, and measure the cost",
        "thresholds": "scale the output thresholds: earlier or surer decisions; the scale is chosen on held-out data",
        "test_single_delay": "draw the output spikes of one recording of each class",
        "quantise": "round the weights as export.py does, and count the decisions that change",
    }
    choices: ClassVar = {"quantise": ("int8",)}
    columns = report.COLUMNS

    def __init__(self, args: argparse.Namespace, subjects: Sequence[Subject]):
        super().__init__(args, subjects)
        data, train = subjects[0].cfg.data, subjects[0].cfg.train
        device = torch.device("cpu") if args.quantise else find_device(train.device)
        self.data, self.device, self.batch_size = data, device, train.test_batch_size
        self.bins = Bins.of(data, "test")
        self.trained = [subject.network().to(self.device) for subject in subjects]
        self.networks = [quantised(network) for network in self.trained] if args.quantise else self.trained
        if args.streaming:
            for network in self.networks:
                Stream(
                    network, self.bins.dt_ms, self.bins.T, self.bins.T_empty
                )  # raises InputError for networks it cannot take, before the work begins
        for subject in subjects:
            check_test_data(subject)
        prepare.make_if_missing(data.test_path, data.dataset_name, data.prepare)
        self.recordings = read_recordings(data, "test", self.bins, subjects[0].classes)
        now = {SET_APART: fingerprint_of(self.recordings, np.arange(len(self.recordings)))}
        whole = "to test on all of another file, add --set data.test_by=null --set data.test_file=NAME"
        for subject in filter(has_set_apart, subjects):
            check_unchanged(subject.content, now, subject.path, f"{REMEDY}; {whole}")
        say_missing(self.recordings.labels, data.num_classes, str(data.test_path), "recording")
        self.evaluations = [Evaluation() for _ in subjects]
        self.objectives = [partial(goal(subject.cfg, subject.cfg.loss), training=False) for subject in subjects]
        self.meters = [energy.Meter(network) for network in self.networks] if args.energy else []
        self.held_out = [self._hold_out(subject) for subject in subjects] if args.thresholds else []

    def __len__(self) -> int:
        return math.ceil(len(self.recordings) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[SparseCounts | Tensor, Tensor]]:
        with ExitStack() as metering:
            for meter in self.meters:
                metering.enter_context(meter)
            yield from self._batches(np.arange(len(self.recordings)), self.batch_size)

    def _batches(self, index: np.ndarray, size: int) -> Iterator[tuple[SparseCounts | Tensor, Tensor]]:
        return binning.batches(self.recordings, index, self.bins, size, device=self.device)

    def _everything(self) -> Iterator[tuple[SparseCounts | Tensor, Tensor]]:
        return self._batches(np.arange(len(self.recordings)), self.batch_size)

    def _hold_out(self, subject: Subject) -> Callable[[], Iterator[tuple[SparseCounts | Tensor, Tensor]]]:
        """Return a function that yields the batches of the recordings that were held out from training."""
        data = subject.cfg.data  # others may have been trained on other files, and other recordings held out
        trained = settings.build(subject.content["config"], str(subject.path))
        if changed := HELD_OUT_BY.intersection(settings.differences(subject.cfg, trained)):
            raise InputError(
                f"--thresholds chooses on the recordings that were held out from training; leave {min(changed)} as it "
                f"was for {subject.path}"
            )
        training = read_recordings(data, "train", self.bins, subject.classes)
        _, recordings, index = for_validation(training, data, self.bins, subject.cfg.train.seed)
        if not len(index):
            raise InputError("--thresholds chooses on held-out recordings, but data.validation_share is 0")
        check_unchanged(subject.content, {HELD_OUT: fingerprint_of(recordings, index)}, subject.path, REMEDY)
        return partial(binning.batches, recordings, index, self.bins, self.batch_size, device=self.device)

    def examine(self, x_TBC: SparseCounts | Tensor, target_B: Tensor) -> None:
        for network, goal, evaluation in zip(self.networks, self.objectives, self.evaluations, strict=True):
            examine(network, x_TBC, target_B, goal, self.device, evaluation)

    def results(self) -> Iterator[Result]:
        recordings, bins = self.recordings, self.bins
        names = named(recordings.class_names, self.data.num_classes)
        if why := why_numbers(names):
            print(f"warning: {why}", file=sys.stderr)
        has_names = names if recordings.class_names is not None else None
        about = {"data": str(self.data.test_path), "dt_ms": bins.dt_ms, "T": bins.T, "T_empty": bins.T_empty}
        about["samples_of"] = fingerprint(recordings.labels, has_names, np.diff(recordings.offsets))
        about["class_names"] = names
        for k, (subject, network, evaluation) in enumerate(
            zip(self.subjects, self.networks, self.evaluations, strict=True)
        ):
            samples = evaluation.samples()
            metrics = evaluation.metrics(bins.dt_ms) | evaluation.details(bins.dt_ms)
            if self.meters:
                metrics["energy"] = self.meters[k].result()
            if self.args.quantise:
                metrics |= self._moved_by("quantising", self.trained[k], samples)
                metrics["weight_bytes"] = weight_bytes(network)
            elif network.delays():
                metrics |= self._rounding(network, samples)
            if self.args.streaming:
                metrics["streaming"] = streams.measure(network, recordings, bins, self.batch_size)
            if self.held_out:
                curves = [thresholds.curve(network, of(), bins.dt_ms) for of in (self.held_out[k], self._everything)]
                metrics["thresholds"] = {
                    "held_out": curves[0], "test": curves[1], "chosen": thresholds.chosen(curves[0])
                }  # fmt: skip
            metrics |= subject.provenance(self.device) | about | {"anytime": evaluation.anytime(bins.dt_ms)}
            report.write(subject, metrics, network, evaluation, self._draw(subject, network, samples))
            kept = {name: value for name, value in samples._asdict().items() if name != "events_by_step"}
            yield Result(subject, metrics, kept)

    def _rounding(self, network: Network, samples: Samples) -> dict[str, float]:
        """Return how many FS decisions rounding the delays changes, and the accuracy before it."""
        for delays in network.delays().values():
            delays.train()  # in training mode they are not rounded
        moved = self._moved_by("rounding", network, samples)
        network.eval()
        return moved

    def _moved_by(self, change: str, before: Network, samples: Samples) -> dict[str, float]:
        """Return how many FS decisions differ from those of the network `before`, and its accuracy."""
        label_n = np.concatenate([streams.decide(before, x_TBC)[:, 0] for x_TBC, _ in self._everything()])
        return {
            f"moved_by_{change}": int((label_n != samples.fs_label.numpy()).sum()),
            f"fs_accuracy_before_{change}": 100 * float((label_n == samples.target.numpy()).mean()),
        }

    def _draw(self, subject: Subject, network: Network, samples: Samples) -> list[Picture]:
        """Draw the first recording, a right decision of median delay, a late one, a wrong one; --show: each class."""
        names, labels = self.recordings.class_names, self.recordings.labels

        def draw(r: int, file: str, what: str) -> Picture:
            x_T1C, target_1 = next(self._batches(np.array([r]), 1))
            figure = pictures.draw_decision(network, x_T1C, self.bins.dt_ms, names=names, target=int(target_1))
            return report.keep(figure, subject.out, file, what)

        spoke = (samples.first_step != NOTHING).numpy()
        right = (samples.fs_label == samples.target).numpy()
        by_delay = np.argsort(samples.first_step.numpy(), kind="stable")
        right_by_delay = by_delay[(spoke & right)[by_delay]]
        drawn = [draw(0, "decision.png", "The first recording of the file")]
        if len(right_by_delay):
            typical, late = right_by_delay[len(right_by_delay) // 2], right_by_delay[-1]
            drawn.append(
                draw(typical, "decision_typical.png", f"Recording {typical}, a correct decision of median delay")
            )
            drawn.append(draw(late, "decision_late.png", f"Recording {late}, the latest correct decision"))
        if not right.all():
            wrong = int((~right).argmax())
            drawn.append(draw(wrong, "decision_wrong.png", f"Recording {wrong}, the first wrong decision"))
        classes, first_of_class = np.unique(labels, return_index=True)
        if self.args.show:
            for label, r in zip(classes, first_of_class, strict=True):
                name = pictures.class_name(label, names)
                drawn.append(draw(r, f"decision_{label}.png", f"Recording {r}, the first of {name}"))
        if self.args.test_single_delay:
            x_TBC, target_B = next(self._batches(first_of_class, len(classes)))
            figure = pictures.draw_single_delay(network, x_TBC, target_B, self.bins.dt_ms, names)
            what = "Output spikes of one recording of each class"
            drawn.append(report.keep(figure, subject.out, "single_delay.png", what))
        return drawn

    @staticmethod
    def tables(metrics: dict) -> list[tables.Table]:
        energies = [report.energy_table(metrics["energy"])] if "energy" in metrics else []
        return [*report.result_tables(metrics), *energies]


def cures_of(loss: Loss) -> Cures:
    """Return advice for a run that trains with this loss."""
    wakes = ["a lower network.neuron2.theta", loss.wakes, "empty steps after the recording (data.T_empty)"]
    calms = ["a smaller train.lr or train.clip_norm", loss.calms]
    return Cures(
        dead="a lower network.neuron1.theta",
        dead_output="a lower network.neuron2.theta",
        exploding=", or ".join(cure for cure in calms if cure),
        vanishing="a lower network.neuron1.theta, or network.batch_norm",
        silent=", or ".join(cure for cure in wakes if cure),
    )


def goal(cfg: config.Config, loss: AnyLoss) -> Callable[..., Tensor]:
    """Return `objective` with the arguments that the configuration fixes."""
    return partial(objective, loss=loss, theta=cfg.network.neuron2.theta)


def check_batch_norm(cfg: config.Config, recordings: int, parts: int) -> None:
    """Raise InputError if BatchNorm would see a single value: one step of one recording, in any of `parts` shares."""
    data, size = cfg.data, cfg.train.batch_size
    smallest = max((recordings % size or min(size, recordings)) // parts, 1)
    pixels = [math.prod(shape[1:]) for shape in architecture.shapes(cfg.network.layers, data.shape)]
    if cfg.network.batch_norm and (data.T + data.T_empty) * smallest * min(pixels, default=2) == 1:
        raise InputError(
            f"train.batch_size = {size}: one of {recordings} training recordings is a batch by itself, whose "
            "single step is too little for BatchNorm; choose another train.batch_size, a larger data.T, or "
            "network.batch_norm=false"
        )


def read_recordings(data: config.Data, split: layouts.Split, bins: Bins, classes: Named | None = None) -> AnyRecordings:
    """Read the recordings of one split as the network sees them; those of a camera are down-sampled.

    If the file names the same classes as `classes`, the labels are the numbers in `classes`. With data.test_by the test
    recordings are a part of the training file, and the split "train" still contains them: see `for_validation`.
    """
    if split == "test" and data.test_by:
        recordings = _read(data, data.train_path, "train", bins, classes)
        return subset(recordings, _apart(recordings, data)[1])
    return _read(data, data.train_path if split == "train" else data.test_path, split, bins, classes)


def for_validation(
    recordings: AnyRecordings, data: config.Data, bins: Bins, seed: int
) -> tuple[np.ndarray, AnyRecordings, np.ndarray]:
    """Return (indices to train on, recordings that contain the held-out ones, indices of the held-out ones).

    The held-out recordings come from the validation file if there is one, otherwise from the training recordings.
    """
    rest, _ = _apart(recordings, data)
    if data.validation_path:
        classes = Named(recordings.class_names, recordings.where)
        validation = _read(data, data.validation_path, "test", bins, classes)
        say_unseen(validation, recordings.labels[rest], validation.labels, "validation")
        return rest, validation, np.arange(len(validation))
    groups = groups_by(recordings, data.validation_by, "validation") if data.validation_share else None
    kept, held_out = hold_out(recordings, data.validation_share, seed, groups, rest)
    return kept, recordings, held_out


def _apart(recordings: AnyRecordings, data: config.Data) -> tuple[np.ndarray, np.ndarray]:
    """Split a training file: return the indices (to train on and validate, to test)."""
    if data.test_by is None:
        return np.arange(len(recordings)), np.arange(0)
    return hold_out(recordings, data.test_share, TEST_SEED, groups_by(recordings, data.test_by, "test"), name="test")


def _read(data: config.Data, path: Path, split: layouts.Split, bins: Bins, classes: Named | None) -> AnyRecordings:
    numbers = data.num_units, data.num_classes
    options = data.prepare if data.dataset_name in prepare.MAKEABLE else None
    recordings = readers.read(
        data.layout,
        path,
        split,
        *numbers,
        origin=data.origin,
        in_memory=data.in_memory,
        classes=classes,
        bins=bins,
        strict=data.strict,
        options=options,
    )
    return as_inputs(recordings, data)


def check_validation_file(data: config.Data) -> None:
    """Raise InputError if the best model would be chosen on what it is trained on, or tested on."""
    if (path := data.validation_path) is not None:
        for name, other in (("training", data.train_path), ("test", data.test_path)):
            if path.resolve() == other.resolve():
                raise InputError(
                    f"data.validation_file: {path} is the {name} file, too; leave it out, so that a share of the "
                    "training file (data.validation_share) chooses the best model"
                )


def has_set_apart(subject: Subject) -> bool:
    """Return whether a test is on recordings that data.test_by sets apart in the training file, wherever this lies."""
    data = subject.cfg.data
    return data.test_by is not None and data.test_path.name == subject.trained.data.train_path.name


def fingerprint_of(recordings: AnyRecordings, index: np.ndarray) -> str:
    """Hash the labels and lengths of the recordings in `index`."""
    return fingerprint(recordings.labels[index], None, np.diff(recordings.offsets)[index])


def check_test_data(subject: Subject) -> None:
    """Raise InputError if data.test_by would set other recordings apart than in training; warn of files it has seen."""
    data, trained = subject.cfg.data, subject.trained.data
    if has_set_apart(subject):
        for name in ("test_by", "test_share"):
            if getattr(data, name) != getattr(trained, name):
                raise InputError(
                    f"{subject.path}: data.{name} was {getattr(trained, name)} in its training, which may have read "
                    "recordings that you would test on; leave it as it was"
                )
    elif data.test_path.resolve() == trained.train_path.resolve():
        print(f"warning: {data.test_path}: {subject.path} was trained on this file", file=sys.stderr)
    elif trained.validation_path and data.test_path.resolve() == trained.validation_path.resolve():
        print(f"warning: {data.test_path}: this file has chosen the best epoch of {subject.path}", file=sys.stderr)


def look_at_test_data(data: config.Data, classes: Named) -> None:
    """Raise the error test.py would raise, as far as names, sizes and types tell; no label or event is read."""
    if not data.test_by and (data.test_path.exists() or data.prepare is None):
        numbers = data.num_units, data.num_classes
        about = {"origin": data.origin, "classes": classes, "strict": data.strict}
        readers.look(data.layout, data.test_path, "test", *numbers, **about)


def parameter_groups(network: Network, delay_lr: float) -> list[dict]:
    """Return groups for an optimiser: delays, if there are any, have their own learning rate and no weight decay."""
    delays = [module.steps for module in network.delays().values()]
    others = [parameter for parameter in network.parameters() if all(parameter is not one for one in delays)]
    groups = [{"params": others}]
    return [*groups, {"params": delays, "lr": delay_lr, "weight_decay": 0.0}] if delays else groups


KIND = Kind(config.Config, EventTraining, EventTesting)
