"""Networks: parameter counts of the paper, chunks, dropout over time, checkpoints."""

import math
from pathlib import Path

import pytest
import torch

from snn import checkpoint, config, health
from snn.errors import InputError
from snn.network import Network

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


def read(name: str) -> config.Config:
    return config.build(config.read_yaml(CONFIGS / f"{name}.yaml"), name)


def build(cfg: config.Config) -> Network:
    torch.manual_seed(0)
    return Network(cfg.network, cfg.data.shape, cfg.data.num_classes, "torch")


def small(**changes) -> config.Config:
    cfg = read("adlif_shd")
    network = cfg.network.model_copy(
        update={
            "layers": ("16F", "12F"),
            "neuron1": config.NeuronParams(tau_mem_steps=5.0, tau_syn_steps=5.0, theta=0.2),
            "neuron2": config.NeuronParams(tau_mem_steps=5.0, tau_syn_steps=5.0, theta=0.02),
        }
        | changes
    )
    data = cfg.data.model_copy(update={"channels": 30, "num_classes": 4})
    return cfg.model_copy(update={"network": network, "data": data})


def events(T: int = 25, B: int = 6) -> torch.Tensor:
    return torch.poisson(torch.full((T, B, 30), 0.3), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(
    ("name", "trainable"),
    [("adlif_shd", 252_928), ("adlif_ntidigits", 87_808), ("culif_shd", 250_368), ("culif_ntidigits", 216_832)],
)
def test_published_number_of_trainable_values(name, trainable):
    assert build(read(name)).num_trainable() == trainable


@pytest.mark.parametrize(
    "changes", [{}, {"layers": ("16R", "12R"), "variant": "superspike"}, {"neuron": "CuAdLIF"}], ids=str
)
def test_a_sequence_in_chunks_equals_one_call(changes):
    network, x_TBC = build(small(**changes)).eval(), events()
    whole = network(x_TBC)
    network.reset()
    chunks = [network(x_TBC[a:b]) for a, b in ((0, 1), (1, 9), (9, 25))]
    assert whole.s_TBN.any()
    assert torch.equal(torch.cat([chunk.s_TBN for chunk in chunks]), whole.s_TBN)
    assert len(whole.layers) == 3


def test_dropout_is_one_mask_a_sequence():
    network = build(small(dropout=0.5)).train()
    network(events())
    mask = network.blocks[0].dropout.mask
    assert mask.shape == (6, 16)
    network.reset()
    network(events())
    assert not torch.equal(network.blocks[0].dropout.mask, mask)


def test_every_parameter_learns():
    network = build(small(neuron="CuAdLIF", layers=("16R", "12R"))).train()
    activity = network(events())
    (activity.h_TBN.sum() + sum(s.sum() for s in activity.layers)).backward()
    for name, p in network.named_parameters():
        assert p.grad is not None, name
        assert p.grad.abs().sum() > 0, name


def test_blame_names_the_first_place():
    network, x_TBC = build(small()), events()
    assert health.blame(network, x_TBC.log()) == "the input"
    with torch.no_grad():
        network.blocks[1].linear.weight[0, 0] = torch.nan
    assert health.blame(network, x_TBC) == "the parameter blocks.1.linear.weight"
    with torch.no_grad():
        network.blocks[1].linear.weight[0, 0] = 1
        network.blocks[1].norm.running_var.fill_(-1)
    network.eval()
    assert health.blame(network, x_TBC) == "the output of blocks.1.norm"


def test_checkpoint_round_trip(tmp_path):
    cfg = small(neuron="CuAdLIF", layers=("16R", "12R"))
    network = build(cfg)
    checkpoint.save(tmp_path / "x.pt", cfg, network, epoch=3)
    cfg_read, content = checkpoint.load(tmp_path / "x.pt")
    assert cfg_read == cfg
    assert content["epoch"] == 3
    other = build(cfg_read)
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    checkpoint.load_weights(other, content["network"], tmp_path / "x.pt")
    assert torch.equal(network.eval()(events()).s_TBN, other.eval()(events()).s_TBN)
    assert [path.name for path in tmp_path.iterdir()] == ["x.pt"]


def test_a_failed_save_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    cfg = small()
    path = tmp_path / "x.pt"
    checkpoint.save(path, cfg, build(cfg))
    before = path.read_bytes()

    def full_disk(content, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(InputError, match="No space left on device"):
        checkpoint.save(path, cfg, build(cfg))
    assert path.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["x.pt"]


class Malicious:
    def __reduce__(self):
        return (print, ("code has run",))


@pytest.mark.parametrize(
    "kind", ["text", "empty", "truncated", "foreign", "pickle", "tensor", "version", "network", "config"]
)
def test_what_is_no_checkpoint(tmp_path, kind, capsys):
    path, cfg = tmp_path / "x.pt", small()
    checkpoint.save(path, cfg, build(cfg), epoch=1)
    content = torch.load(path, weights_only=True)
    if kind == "text":
        path.write_text("hello")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "truncated":
        path.write_bytes(path.read_bytes()[:-500])
    elif kind == "foreign":
        torch.save({"state_dict": {}}, path)
    elif kind == "pickle":
        torch.save({"format": Malicious()}, path)
    elif kind == "tensor":
        torch.save(torch.zeros(3), path)
    else:
        torch.save(
            content | {"version": 99} if kind == "version" else {k: v for k, v in content.items() if k != kind}, path
        )
    with pytest.raises(InputError) as refusal:
        checkpoint.load(path)
    assert str(path) in str(refusal.value)
    assert "code has run" not in capsys.readouterr().out


def test_weights_of_another_network(tmp_path):
    with pytest.raises(InputError, match="belongs to another network"):
        checkpoint.load_weights(build(small()), build(small(layers=("8F",))).state_dict(), tmp_path)


@pytest.mark.parametrize(("value", "name"), [(1.5, "a"), (-0.1, "b"), (math.nan, "a"), (1.0, "lam_m")])
def test_learned_values_out_of_range_are_refused(tmp_path, value, name):
    cfg = small(neuron="CuAdLIF", variant="superspike")
    weights = build(cfg).state_dict()
    weights[f"blocks.0.neurons.{name}"][3] = value
    with pytest.raises(InputError, match=rf"blocks\.0\.neurons: the learned value {name} is"):
        checkpoint.load_weights(build(cfg), weights, tmp_path)
