"""Ranges of a search: those beside the configurations, and the values that a trial takes from them."""

import json

import pytest

pytest.importorskip("optuna")
import yaml
from optuna.trial import FixedTrial

import tasks
from snn import ranges, settings
from snn.errors import InputError
from tests.conftest import CONFIGURATIONS, REPOSITORY


@pytest.mark.parametrize("path", sorted(REPOSITORY.glob("configs/*_search.yaml")), ids=lambda path: path.stem)
def test_ranges_beside_a_configuration_are_of_it(path):
    base = path.with_name(path.name.replace("_search", ""))
    assert base in CONFIGURATIONS
    cfg = settings.load(base)
    known = tasks.kind_of(cfg).training.goals
    assert ranges.Space(cfg, ranges.read(path, known).ranges, path.name).own


def space_of(text: str) -> ranges.Space:
    allowed = {field: ranges.Range(**values) for field, values in yaml.safe_load(text).items()}
    return ranges.Space(settings.load(REPOSITORY / "configs" / "smoke.yaml"), allowed, "x")


def test_values_have_the_type_of_their_field():
    """theta takes fractions even if both ends are whole, a batch size does not; a choice may be a list or a section."""
    space = space_of(
        "{network.neuron2.theta: {low: 1, high: 3}, train.batch_size: {low: 1, high: 64}, "
        "train.lr: {choices: [0.1, 1]}, "
        "network.layers: {choices: [[4F], [64F]]}, network.delay_sigma_steps: {low: 0, high: 2, step: 0.5},"
        "loss.treg: {choices: [{weight: 0.5, beta: 0.1}]}}"
    )
    params = {"network.neuron2.theta": 1.5, "train.batch_size": 7, "train.lr": "0.1", "network.layers": '["4F"]'}
    params |= {"network.delay_sigma_steps": 1.5, "loss.treg": '{"weight": 0.5, "beta": 0.1}'}
    assert space.sample(FixedTrial(params)) == params
    cfg = space.at(params)
    assert (cfg.network.neuron2.theta, cfg.train.batch_size, cfg.train.lr) == (1.5, 7, 0.1)
    assert (cfg.network.layers, cfg.network.delay_sigma_steps, cfg.loss.treg.weight) == (("4F",), 1.5, 0.5)
    assert space.own is None
    assert space.takes_whole_numbers == {"train.batch_size"}
    own = space_of("{train.batch_size: {low: 1, high: 64}, network.layers: {choices: [[4F], [64F]]}}").own
    assert own == {"train.batch_size": 16, "network.layers": '["64F"]'}
    neurons = [{"tau_mem_steps": tau, "tau_syn_steps": 5.0, "theta": 1.0} for tau in (3.0, 5.0, 8.0)]
    base = settings.load(REPOSITORY / "configs" / "smoke.yaml").network.neuron1
    neurons[1] = base.model_dump(exclude={"initial"})
    space = space_of(f"{{network.neuron1: {{choices: {json.dumps(neurons)}}}}}")
    assert space.own == {"network.neuron1": json.dumps(neurons[1])}
    space = space_of("{network.layers: {choices: [[8F], [8FD30]]}, data.T: {choices: [20, 60]}}")
    assert space.at({"network.layers": '["8FD30"]', "data.T": "60"}).data.T == 60
    with pytest.raises(InputError, match=r"8FD30.*is longer than the window of 20"):
        space.at({"network.layers": '["8FD30"]', "data.T": "20"})
