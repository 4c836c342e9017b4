"""What train.py trains: a first-spike network on recordings of events, or a TTFS network on images.

Both kinds offer the same: `network`, `optimizer`, indices `kept` and `held_out`, `class_names` (or None), `patience`
(epochs without a better standing before training ends, or None), `loss` of (x, labels, weight), the mean loss of this
process's share of a training batch, and the methods of `EventTask`.
"""

import math
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

import first_spike  # noqa: F401 - finds our datasets, beside Hugging Face's too
from datasets import binning, images, layouts, prepare, readers
from datasets.augment import Augmentation, augment
from datasets.binning import Bins
from datasets.recordings import AnyRecordings, downsampled, subset
from datasets.splits import groups_by, hold_out, say_unseen
from snn import architecture, config
from snn.classes import Named
from snn.coding import Window, narrowed_D
from snn.conv import EventConv
from snn.errors import InputError
from snn.evaluation import evaluate
from snn.events import Events
from snn.linear import EventLinear
from snn.loss import objective
from snn.network import Network
from snn.replay import Replayed
from snn.team import Team
from snn.ttfs.evaluation import evaluate as evaluate_ttfs
from snn.ttfs.network import Network as TTFSNetwork
from snn.ttfs.network import silent_neurons_drive

NARROWS_BY = 0.01  # over a training, the triangle of a delay
NO_STANDING = (-math.inf, -math.inf)  # (accuracy, -loss) of no epoch
NOTHING_HELD_OUT = "nothing is held out"  # of an epoch, on the screen
THE_LAST = "the last, as nothing was held out to choose by (data.validation_share is 0)"


class EventTask:
    """A first-spike network on recordings of events."""

    items = "recordings"
    patience = None

    def __init__(self, cfg: config.Config, team: Team, classes: Named | None = None):
        data, train = cfg.data, cfg.train
        self.cfg, self.team = cfg, team
        if team.leads:
            prepare.make_if_missing(data.train_path, data.dataset_name, data.prepare)
        team.wait()
        self.bins = Bins(data.dt_ms, data.T, data.T_empty, math.prod(data.shape))
        self.recordings = read_recordings(data, "train", self.bins, classes)
        self.class_names = self.recordings.class_names
        if team.leads:
            look_at_test_data(cfg, Named(self.class_names, self.recordings.where))
        self.kept, self.validation, self.held_out = for_validation(self.recordings, data, self.bins, train.seed)
        check_batch_norm(cfg, len(self.kept), 1 if train.sync_batch_norm else team.size)
        height, width = data.shape[1:] if data.sensor else (1, data.channels)
        self.augmentation = Augmentation(**data.augment.model_dump(), width=width, height=height)
        torch.manual_seed(train.seed)
        self.network = Network(cfg.network, data.shape, data.num_classes, train.backend, data.dt_ms).to(team.device)
        if train.sync_batch_norm:
            team.synchronise(self.network)
        groups = parameter_groups(self.network, train.delay_lr)
        self.optimizer = torch.optim.Adam(groups, train.lr, weight_decay=train.weight_decay, amsgrad=True, fused=True)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.loss = team.parallel(self.network, self._loss)
        if team.device.type == "cuda" and team.size == 1 and train.cuda_graphs:
            self.loss = Replayed(self.network, self._loss)
        self.course: tuple[Window, float] | None = None  # what a recorded step holds

    def begin_epoch(self, epoch: int, random: np.random.Generator) -> dict[str, float]:
        """Set what changes from epoch to epoch, and say it for the log."""
        self.change = None
        if not self.augmentation.is_off:
            self.change = partial(augment, how=self.augmentation, key=int(random.integers(2**63)))
        data, fs, now = self.cfg.data, self.cfg.loss.fs, schedule(self.cfg, epoch)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * now["lr"] / self.cfg.train.lr
        left = NARROWS_BY ** (epoch / max(1, self.cfg.train.epochs - 1))
        sigma_steps = self.cfg.network.delay_sigma_steps * (left - NARROWS_BY) / (1 - NARROWS_BY)
        window = Window.of(data.T + data.T_empty, now["D"], fs.A, fs.window)
        if (window, sigma_steps) != self.course and isinstance(self.loss, Replayed):
            self.loss.forget()
        self.course = window, sigma_steps
        self.network.narrow_delays(sigma_steps)
        self.goal = partial(objective, loss=self.cfg.loss, window=window)
        return now

    def batches(self, order: np.ndarray) -> Iterator[tuple[Events | Tensor, Tensor]]:
        """The training batches of an epoch, this process's share of each."""
        size = self.cfg.train.batch_size
        return binning.batches(self.recordings, order, self.bins, size, self.team.share, self.change, self.team.device)

    def _loss(self, x_TBC: Events, target_B: Tensor, weight: float) -> Tensor:
        self.network.reset()
        mean = partial(self.team.mean, weight=weight)
        return self.goal(self.network(x_TBC), target_B, training=True, mean=mean)

    def after_step(self) -> None:
        """Do what follows a step of the optimiser."""
        self.network.clamp_values()

    def validate(self) -> dict:
        """Metrics on what is held out, of which each process sees a part; none where nothing is held out."""
        self.team.agree(self.network)
        if not len(self.held_out):
            return {}
        held_out = self.team.part(self.held_out)
        size = self.cfg.train.test_batch_size
        batches = binning.batches(self.validation, held_out, self.bins, size, device=self.team.device)
        goal = partial(self.goal, training=False)
        return self.team.total(evaluate(self.network, batches, goal, self.team.device)).metrics(self.cfg.data.dt_ms)

    def standing(self, validation: dict) -> tuple[float, float]:
        """The larger, the better: the accuracy in the code that is trained; of equals, the lower loss."""
        if not validation:
            return NO_STANDING
        code = "fs_accuracy" if self.cfg.loss.mode == "first_time" else "fr_accuracy"
        return validation[code], -validation["loss"]

    def learned(self) -> dict[str, Tensor]:
        """Return what modules learned beside weights, for the log; times in steps."""
        layers = self.network.learned(dt_ms=1.0)
        return {f"{layer}/{name}": value.value for layer, found in layers.items() for name, value in found.items()}

    def describe(self, validation: dict) -> str:
        """An epoch's validation for the screen."""
        if not validation:
            return NOTHING_HELD_OUT
        return (
            f"FS {validation['fs_accuracy']:6.2f} %  FR {validation['fr_accuracy']:6.2f} %  "
            f"{validation['spikes_per_neuron']:.2f} spikes/neuron  {validation['silent_samples']} silent"
        )

    def conclude(self, validation: dict) -> str:
        """The best epoch's accuracy in a sentence."""
        if not validation:
            return THE_LAST
        return (
            f"validation FS accuracy {validation['fs_accuracy']:.2f} %, FR accuracy {validation['fr_accuracy']:.2f} %"
        )

    def log_activity(self) -> None:
        """Return how active each linear layer's last input was, and which product that made it take."""
        for name, module in self.network.named_modules():
            if isinstance(module, EventConv | EventLinear):
                share = "" if math.isnan(module.active_share) else f"{100 * module.active_share:.1f} % active, "
                tqdm.write(f"  {name}: input {share}{'event-driven' if module.is_event_driven else 'dense'} product")


class ImageTask:
    """A TTFS network on images. Its methods are those of `EventTask`."""

    items = "images"

    def __init__(self, cfg: config.TTFSConfig, team: Team, classes: Named | None = None):
        data, train = cfg.data, cfg.train
        self.cfg, self.team = cfg, team
        self.patience = train.patience
        if team.leads:
            images.fetch_if_missing(data)
        team.wait()
        self.images = images.read(data, "train", classes)
        self.class_names = self.images.class_names
        if team.leads:
            look_at_test_data(cfg, Named(self.class_names, self.images.where))
        self.kept, self.held_out = hold_out(self.images, data.validation_share, train.seed)
        self.augment = images.augmentations(data.augment, data.crop_pad)
        self.spikes_by_layer: list[float] = []  # of the last validation
        torch.manual_seed(train.seed)
        self.network = TTFSNetwork(cfg.ttfs, data.shape, data.num_classes).to(team.device)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), train.lr, weight_decay=train.weight_decay, fused=True
        )
        self.loss = team.parallel(self.network, self._loss)

    def begin_epoch(self, epoch: int, random: np.random.Generator) -> dict[str, float]:
        now = schedule(self.cfg, epoch)
        self.optimizer.param_groups[0]["lr"] = now["lr"]
        return now

    def batches(self, order: np.ndarray) -> Iterator[tuple[Tensor, Tensor]]:
        return images.batches(self.images, order, self.cfg.train.batch_size, self.team.share, self.augment)

    def _loss(self, x_BCHW: Tensor, target_B: Tensor, weight: float) -> Tensor:
        activity = self.network(x_BCHW)
        loss = F.cross_entropy(activity.V_BN, target_B)
        if self.cfg.train.silent_drive > 0:
            mean = partial(self.team.mean, weight=weight)
            loss = loss + self.cfg.train.silent_drive * silent_neurons_drive(activity, mean)
        return loss

    def after_step(self) -> None:
        """Nothing: no weight has a range."""

    def validate(self) -> dict:
        if not len(self.held_out):
            return {}
        batches = images.batches(self.images, self.team.part(self.held_out), self.cfg.train.test_batch_size)
        metrics = self.team.total(evaluate_ttfs(self.network, batches, self.team.device)).metrics()
        self.spikes_by_layer = metrics["spikes_per_neuron_by_layer"]
        return metrics

    def standing(self, validation: dict) -> tuple[float, float]:
        return (validation["accuracy"], -validation["loss"]) if validation else NO_STANDING

    def learned(self) -> dict[str, Tensor]:
        return {}

    def describe(self, validation: dict) -> str:
        if not validation:
            return NOTHING_HELD_OUT
        return f"{validation['accuracy']:6.2f} %  {validation['spikes_per_neuron']:.3f} spikes/neuron"

    def conclude(self, validation: dict) -> str:
        return f"validation accuracy {validation['accuracy']:.2f} %" if validation else THE_LAST

    def log_activity(self) -> None:
        """The share of neurons of each layer that fired for a held-out image."""
        for k, share in enumerate(self.spikes_by_layer):
            tqdm.write(f"  layer {k + 1}: {100 * share:.1f} % of its neurons fire")


def schedule(cfg: config.AnyConfig, epoch: int) -> dict[str, float]:
    """What changes from epoch to epoch: the learning rate and, of a first-spike network, D of the gradient window."""
    train = cfg.train
    lr = train.lr * (1 + math.cos(math.pi * epoch / train.epochs)) / 2 if train.lr_decay else train.lr
    if isinstance(cfg, config.TTFSConfig):
        return {"lr": lr * train.lr_factor**epoch}
    fs = cfg.loss.fs
    return {"lr": lr, "D": narrowed_D(fs.D, fs.D_final, epoch / train.epochs) if fs.D_final else fs.D}


def check_batch_norm(cfg: config.Config, recordings: int, parts: int) -> None:
    """InputError if BatchNorm would see a batch of one value: one step of one recording (of a batch in `parts`)."""
    data, size = cfg.data, cfg.train.batch_size
    smallest = max((recordings % size or min(size, recordings)) // parts, 1)
    pixels = [math.prod(shape[1:]) for shape in architecture.shapes(cfg.network.layers, data.shape)]
    if cfg.network.batch_norm and (data.T + data.T_empty) * smallest * min(pixels, default=2) == 1:
        raise InputError(
            f"train.batch_size = {size}: one of {recordings} recordings to train on makes a batch of its own, whose "
            "one step is too little for BatchNorm; choose another train.batch_size, a larger data.T, or "
            "network.batch_norm=false"
        )


TEST_SEED = 0  # draws what data.test_by sets apart: the same recordings whatever the run's seed


def read_recordings(data: config.Data, split: layouts.Split, bins: Bins, classes: Named | None = None) -> AnyRecordings:
    """The recordings of one split, as the network sees them; those of a camera are down-sampled.

    Where they and `classes` name the same classes, their labels are the numbers in `classes`. With data.test_by those
    to test are a part of the training file, where they stay: see `for_validation`.
    """
    if split == "test" and data.test_by:
        recordings = _read(data, data.train_path, "train", bins, classes)
        return subset(recordings, _apart(recordings, data)[1])
    return _read(data, data.train_path if split == "train" else data.test_path, split, bins, classes)


def for_validation(
    recordings: AnyRecordings, data: config.Data, bins: Bins, seed: int
) -> tuple[np.ndarray, AnyRecordings, np.ndarray]:
    """(indices to train on, recordings to choose the best model by, their indices), of the training recordings.

    What is held out comes from the validation file where there is one, else from the training recordings.
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
    """Indices (to train on and validate, to test) of a training file."""
    if data.test_by is None:
        return np.arange(len(recordings)), np.arange(0)
    return hold_out(recordings, data.test_share, TEST_SEED, groups_by(recordings, data.test_by, "test"), name="test")


def _read(data: config.Data, path: Path, split: layouts.Split, bins: Bins, classes: Named | None) -> AnyRecordings:
    numbers = data.num_units, data.num_classes
    options = data.prepare if data.dataset_name in prepare.MAKEABLE else None
    recordings = readers.read(
        data.layout, path, split, *numbers, data.origin, data.in_memory, classes, bins, data.strict, options
    )
    return downsampled(recordings, data.sensor) if data.sensor else recordings


def look_at_test_data(cfg: config.AnyConfig, classes: Named) -> None:
    """Say now what test.py would refuse, as far as names, sizes and types tell: no label or event is read."""
    data = cfg.data
    try:
        if isinstance(cfg, config.TTFSConfig):
            images.look(data, "test", classes)
        elif not data.test_by and (data.test_path.exists() or data.prepare is None):
            numbers = data.num_units, data.num_classes
            readers.look(data.layout, data.test_path, "test", *numbers, data.origin, classes, data.strict)
    except InputError as error:
        print(f"warning: test.py will refuse the test data: {error}", file=sys.stderr)


def parameter_groups(network: Network, delay_lr: float) -> list[dict]:
    """For an optimiser: delays, if there are any, have their own learning rate and do not decay."""
    delays = [module.steps for module in network.delays().values()]
    others = [parameter for parameter in network.parameters() if all(parameter is not one for one in delays)]
    groups = [{"params": others}]
    return [*groups, {"params": delays, "lr": delay_lr, "weight_decay": 0.0}] if delays else groups


Task = EventTask | ImageTask


def of(cfg: config.AnyConfig, team: Team, classes: Named | None = None) -> Task:
    """The task of a configuration; `classes`: what the numbers of the classes mean, where that is known."""
    return (ImageTask if isinstance(cfg, config.TTFSConfig) else EventTask)(cfg, team, classes)
