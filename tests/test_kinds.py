"""A third kind of network takes one file and a row of `tasks.KINDS`: the programs train, resume and test it."""

import json
import sys

import pytest

import tasks
from snn import schema
from tests.conftest import assert_one_line

TOY = '''
"""Points in a plane, told apart by a line."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch import nn

from snn import schema
from snn.errors import InputError
from snn.health import Cures
from snn.report import Column, write_page
from snn.tables import Table, percent
from tasks.kind import Kind, Result, Testing, Training


class Line(schema.Section):
    width: float = schema.Field(description="spread of the points")


class Plane(schema.DataSet):
    @property
    def shape(self) -> tuple[int, ...]:
        return (2,)


class PointConfig(schema.AnyConfig, section="line"):
    data: Plane
    line: Line
    train: schema.Train

    @property
    def run_name(self) -> str:
        return "points"

    def new_network(self, backend: str | None = None) -> nn.Module:
        return Points()


class Points(nn.Linear):
    def __init__(self):
        super().__init__(2, 2)

    def check_values(self, where: str) -> None:
        if not self.weight.isfinite().all():
            raise InputError(f"{where}: not finite")


def points(n: int, width: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    x_N2 = width * torch.randn(n, 2, generator=torch.Generator().manual_seed(seed))
    return x_N2, (x_N2[:, 0] > x_N2[:, 1]).long()


class PointTraining(Training):
    items = "points"
    chosen_by = "accuracy"
    cures = Cures("more points", "more points", "a smaller train.lr", "a larger train.lr")
    class_names = None

    def __init__(self, cfg, team, classes=None):
        super().__init__(cfg, team)
        self.x_N2, self.target_N = points(400, cfg.line.width, 0)
        self.kept, self.held_out = np.arange(300), np.arange(300, 400)
        torch.manual_seed(cfg.train.seed)
        self.network = cfg.new_network()
        self.optimizer = torch.optim.Adam(self.network.parameters(), cfg.train.lr)
        self.loss = lambda x, target, weight: nn.functional.cross_entropy(self.network(x), target)

    def batches(self, order) -> Iterator:
        for part in np.split(order, range(self.cfg.train.batch_size, len(order), self.cfg.train.batch_size)):
            yield self.x_N2[part], self.target_N[part]

    def evaluate(self, held_out):
        return float((self.network(self.x_N2[held_out]).argmax(1) == self.target_N[held_out]).float().mean())

    def metrics(self, evaluation) -> dict:
        return {"accuracy": 100 * evaluation, "loss": 1 - evaluation}

    def describe(self, validation) -> str:
        return percent(validation["accuracy"])

    def conclude(self, validation) -> str:
        return f"{percent(validation['accuracy'])} of the points"


class PointTesting(Testing):
    items = "points"
    words = {"mirror": "test the mirror image"}
    columns = (Column("accuracy %", "accuracy", 2),)

    def __init__(self, args, subjects):
        super().__init__(args, subjects)
        self.networks = [subject.network() for subject in subjects]
        self.right = [0] * len(subjects)

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator:
        x_N2, target_N = points(200, 1.0, 1)
        yield (x_N2.flip(1), 1 - target_N) if self.args.mirror else (x_N2, target_N)

    def examine(self, x, target_B) -> None:
        for k, network in enumerate(self.networks):
            self.right[k] += int((network(x).argmax(1) == target_B).sum())

    def results(self) -> Iterator[Result]:
        for subject, right in zip(self.subjects, self.right, strict=True):
            found = {"data": "points", "samples": 200, "accuracy": right / 2}
            metrics = subject.provenance(torch.device("cpu")) | found
            metrics["samples_of"] = "points"
            write_page(subject, metrics, self.items, [], [])
            yield Result(subject, metrics, {"target": np.zeros(200)})

    @staticmethod
    def tables(metrics) -> list[Table]:
        return [Table("", (), [("accuracy", percent(metrics["accuracy"]))])]


KIND = Kind(PointConfig, PointTraining, PointTesting)
'''
YAML = """
data: {dataset_name: points, num_classes: 2}
line: {width: 1.0}
train: {epochs: 3, batch_size: 32, lr: 0.1, device: cpu}
"""


@pytest.fixture
def third_kind(tmp_path, monkeypatch):
    """Add the file of the kind and its row in the table; nothing else in the repository knows of it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy_kind.py").write_text(TOY)
    (tmp_path / "points.yaml").write_text(YAML)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(schema, "KINDS", dict(schema.KINDS))
    monkeypatch.setattr("snn.settings.KINDS", schema.KINDS)
    from toy_kind import KIND

    monkeypatch.setattr(tasks, "KINDS", (*tasks.KINDS, KIND))
    yield KIND
    sys.modules.pop("toy_kind")


def test_a_third_kind_trains_resumes_and_is_tested(program, tmp_path, third_kind):
    whole = program("train.py --path_to_yaml points.yaml --save_name whole")
    assert whole.returncode == 0, whole.stderr
    assert "300 points to train on, 100 held out" in whole.stdout
    assert program("train.py --path_to_yaml points.yaml --save_name parts --epochs 2").returncode == 0
    resumed = program("train.py --path_to_yaml points.yaml --save_name parts --resume")
    assert resumed.returncode == 0, resumed.stderr
    rows = [
        json.loads((tmp_path / f"runs/{run}/metrics.jsonl").read_text().splitlines()[-1]) for run in ("whole", "parts")
    ]
    assert rows[0]["train_loss"] == rows[1]["train_loss"]

    tested = program("test.py --load_pt_file whole")
    assert tested.returncode == 0, tested.stderr
    metrics = json.loads((tmp_path / "runs/whole/test/metrics.json").read_text())
    assert metrics["accuracy"] > 90
    assert f"accuracy  {metrics['accuracy']:.2f} %" in tested.stdout
    mirrored = program("test.py --load_pt_file whole parts --mirror")
    assert mirrored.returncode == 0, mirrored.stderr
    assert "accuracy %" in mirrored.stdout
    assert "whole" in (tmp_path / "runs/whole/test/report.html").read_text()


def test_words_of_another_kind_are_refused(program, third_kind):
    assert program("train.py --path_to_yaml points.yaml --save_name x --epochs 1").returncode == 0
    assert_one_line(program("test.py --load_pt_file x --streaming"), "--streaming", "section `line`")
    assert_one_line(program("train.py --path_to_yaml points.yaml --set line.width=wide"), "line.width")
