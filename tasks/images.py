"""Training and testing of TTFS networks, whose neurons spike at most once, on images."""

import argparse
import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from datasets import images
from datasets.splits import hold_out, say_unseen
from snn import config
from snn.classes import Named
from snn.health import Cures
from snn.machine import find_device
from snn.quantise import quantised, weight_bytes
from snn.report import Subject
from snn.tables import Table
from snn.team import Team
from snn.ttfs import report
from snn.ttfs.evaluation import TTFSEvaluation, decisions, evaluate_images, examine_images
from snn.ttfs.network import silent_neurons_drive
from snn.ttfs.simulation import Simulation
from tasks.kind import Kind, Result, Testing, Training, fingerprint, named, say_missing, say_refusal


class ImageTraining(Training):
    """Training that minimises the cross-entropy of the output potentials."""

    items = "images"
    chosen_by = "accuracy"
    cures = Cures(
        dead="a larger train.silent_drive",
        dead_output="a larger train.silent_drive",
        exploding="a smaller train.lr or train.clip_norm",
        vanishing="ttfs.standardised",
    )
    goals: ClassVar = {
        "accuracy": "maximize",
        "synaptic_operations_per_image": "minimize",
        "spikes_per_neuron": "minimize",
    }

    @staticmethod
    def holds_out(cfg: config.TTFSConfig) -> bool:
        return Training.holds_out(cfg) or images.has_validation(cfg.data)

    def __init__(self, cfg: config.TTFSConfig, team: Team, classes: Named | None = None):
        super().__init__(cfg, team)
        data, train = cfg.data, cfg.train
        with torch.device("meta"):
            cfg.new_network()  # refuses layers that do not fit before images are fetched and read
        self.patience = train.patience
        if team.leads:
            images.fetch_if_missing(data)
        team.wait()
        self.images = images.read(data, "train", classes)
        self.class_names = self.images.class_names
        if team.leads:
            say_refusal(partial(images.look, data, "test", Named(self.class_names, self.images.where)))
        self.tensors = self.images.tensors(team.device)
        if images.has_validation(data):
            validation = images.read(data, "validation", Named(self.class_names, self.images.where))
            self.kept, self.held_out = np.arange(len(self.images)), np.arange(len(validation))
            self.validation = validation.tensors(team.device)
            say_unseen(validation, self.images.labels, validation.labels, "validation")
        else:
            files = self.images.files
            self.kept, self.held_out = hold_out(self.images, data.validation_share, train.seed, files)
            validation, self.validation = self.images, self.tensors
        seen = {"to train on": (self.images, self.kept), "held out": (validation, self.held_out)}
        self.trained_on = {name: fingerprint_of(*samples) for name, samples in seen.items()}
        self.augment = images.augmentations(data.augment, data.crop_pad)
        list(images.batches(*self.tensors, self.kept[:1], 1, augment=self.augment))  # refuses unfit images at once
        self.spikes_by_layer: list[float] = []  # in the last validation
        torch.manual_seed(train.seed)
        self.network = cfg.new_network().to(team.device)
        parameters = self.network.parameters()
        self.optimizer = torch.optim.AdamW(parameters, train.lr, weight_decay=train.weight_decay, fused=True)
        self.loss = self.shared_or_replayed(self._loss)

    def batches(self, order: np.ndarray) -> Iterator[tuple[Tensor, Tensor]]:
        return images.batches(*self.tensors, order, self.cfg.train.batch_size, self.team.share, self.augment)

    def _loss(self, x_BCHW: Tensor, target_B: Tensor, weight: float) -> Tensor:
        activity = self.network(x_BCHW)
        loss = F.cross_entropy(activity.V_BN, target_B)
        if self.cfg.train.silent_drive > 0:
            mean = partial(self.team.mean, weight=weight)
            loss = loss + self.cfg.train.silent_drive * silent_neurons_drive(activity, mean)
        return loss

    def evaluate(self, held_out: np.ndarray) -> TTFSEvaluation:
        batches = images.batches(*self.validation, held_out, self.cfg.train.test_batch_size)
        return evaluate_images(self.network, batches, self.team.device)

    def metrics(self, evaluation: TTFSEvaluation) -> dict:
        metrics = evaluation.metrics()
        self.spikes_by_layer = metrics["spikes_per_neuron_by_layer"]
        return metrics

    def describe(self, validation: dict) -> str:
        return f"{validation['accuracy']:6.2f} %  {validation['spikes_per_neuron']:.3f} spikes/neuron"

    def conclude(self, validation: dict) -> str:
        return f"validation accuracy {validation['accuracy']:.2f} %"

    def activity(self) -> list[str]:
        """Say what share of each layer's neurons fires for a held-out image, on average."""
        return [
            f"layer {k}: {100 * share:.1f} % of its neurons fire" for k, share in enumerate(self.spikes_by_layer, 1)
        ]


class ImageTesting(Testing):
    """A test of accuracy, the number of spikes and their times."""

    words: ClassVar = {
        "simulate": "also run a TTFS network through a simulation over time",
        "quantise": "round the weights as export.py does, and count the decisions that change",
    }
    choices: ClassVar = {"quantise": ("int8",)}
    columns = report.COLUMNS

    def __init__(self, args: argparse.Namespace, subjects: Sequence[Subject]):
        super().__init__(args, subjects)
        data, train = subjects[0].cfg.data, subjects[0].cfg.train
        self.data, self.device, self.batch_size = data, find_device(train.device), train.test_batch_size
        self.trained = [subject.network().to(self.device) for subject in subjects]
        self.networks = [quantised(network) for network in self.trained] if args.quantise else self.trained
        self.moved = [0 for _ in subjects]  # decisions, by quantising
        images.fetch_if_missing(data)
        self.images = images.read(data, "test", subjects[0].classes)
        say_missing(self.images.labels, data.num_classes, self.images.where, "image")
        self.evaluations = [TTFSEvaluation() for _ in subjects]
        self.simulations = [Simulation(network).run if args.simulate else None for network in self.networks]

    def __len__(self) -> int:
        return math.ceil(len(self.images) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return images.batches(*self.images.tensors(self.device), np.arange(len(self.images)), self.batch_size)

    def examine(self, x_BCHW: Tensor, target_B: Tensor) -> None:
        for network, evaluation, simulate in zip(self.networks, self.evaluations, self.simulations, strict=True):
            examine_images(network, x_BCHW, target_B, self.device, evaluation, simulate)
        if self.args.quantise:
            for k, (network, evaluation) in enumerate(zip(self.trained, self.evaluations, strict=True)):
                label_B = decisions(network, x_BCHW.to(self.device)).cpu()
                self.moved[k] += int((label_B != evaluation.labels[-1]).sum())

    def results(self) -> Iterator[Result]:
        names = named(self.images.class_names, self.data.num_classes)
        has_names = names if self.images.class_names is not None else None
        about = {"data": self.images.where, "class_names": names}
        about["samples_of"] = fingerprint(self.images.labels, has_names, self.images.pixels)
        for subject, network, evaluation, moved in zip(
            self.subjects, self.networks, self.evaluations, self.moved, strict=True
        ):
            metrics = evaluation.metrics() | evaluation.details()
            metrics |= {"spike_time_histograms": evaluation.histograms.tolist()}
            if self.args.quantise:
                metrics |= {"moved_by_quantising": moved, "weight_bytes": weight_bytes(network)}
            metrics |= subject.provenance(self.device) | about | {"T": subject.cfg.ttfs.T}
            target_n, label_n = evaluation.decisions()
            report.write(subject, metrics, evaluation)
            yield Result(subject, metrics, {"target": target_n, "label": label_n})

    @staticmethod
    def tables(metrics: dict) -> list[Table]:
        return report.result_tables(metrics)


def fingerprint_of(some: images.Images, index: np.ndarray) -> str:
    """Hash the labels of the images in `index`, and how many of their pixels are not 0."""
    lit_n = np.array([np.count_nonzero(some.pixels[k]) for k in index], np.int64)  # with an axis, numpy copies all
    return fingerprint(some.labels[index], None, lit_n)


KIND = Kind(config.TTFSConfig, ImageTraining, ImageTesting)
