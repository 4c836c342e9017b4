"""Damaged or hostile checkpoints are refused in one line, and a run continues from the previous one."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from snn import checkpoint, settings
from snn.errors import InputError
from snn.network import Network
from tests.conftest import REPOSITORY, assert_one_line
from tests.programs import EVENTS, state


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.usefixtures("shd_folder")
def test_damaged_checkpoints(program, tmp_path):
    """A run continues from the previous one and says so; if that or best.pt is missing, it is an error."""
    words, run = f"{EVENTS} --epochs 3 --save_name x", tmp_path / "runs" / "x"
    assert program(words).returncode == 0
    whole = state(run)
    flip_a_bit(run / "last.pt")
    resumed = program(f"{words} --resume")
    assert resumed.returncode == 0
    assert "last.pt: not a checkpoint of first-spike, or damaged; continuing from the previous one" in resumed.stderr
    assert state(run) == whole
    flip_a_bit(run / "best.pt")
    assert_one_line(program(f"{words} --resume"), "best.pt", "damaged", "beside it: last.previous.pt, last.pt")
    assert_one_line(program("test.py --load_pt_file x"), "best.pt", "damaged", "beside it: last.previous.pt, last.pt")
    for name in ("last.pt", "last.previous.pt"):
        flip_a_bit(run / name)
    assert_one_line(program(f"{words} --resume"), "last.pt and runs/x/last.previous.pt are both damaged")


@pytest.fixture(scope="module")
def whole_checkpoint(tmp_path_factory) -> Path:
    """A checkpoint of a small network with its optimiser."""
    values = settings.read_yaml(REPOSITORY / "configs" / "smoke.yaml")
    values["network"]["layers"], values["data"]["channels"] = ["8F"], 40
    cfg = settings.build(values, "test")
    network = Network(cfg.network, (40,), 20)
    optimizer = torch.optim.Adam(network.parameters(), amsgrad=True)
    for parameter in network.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    path = tmp_path_factory.mktemp("whole") / "last.pt"
    checkpoint.save(path, cfg, network, optimizer=optimizer.state_dict(), epoch=1)
    return path


def test_the_options_of_a_lost_loss_are_left_out(whole_checkpoint, tmp_path, capsys):
    """The run of another loss is read where the file of that one is gone; a run of that one is refused."""
    content = torch.load(whole_checkpoint, weights_only=True)
    content["config"]["loss"]["margin"] = {"width": 0.1}
    torch.save(content, tmp_path / "x.pt")
    assert checkpoint.load(tmp_path / "x.pt")[0] == checkpoint.load(whole_checkpoint)[0]
    assert capsys.readouterr().err.endswith("x.pt: left out options that are not known here: loss.margin\n")
    content["config"]["loss"]["mode"] = "margin"
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(InputError, match=r"x\.pt, configuration: loss\.mode"):
        checkpoint.load(tmp_path / "x.pt")


def test_a_network_is_loaded_from_the_folder_of_its_run(whole_checkpoint, tmp_path):
    with pytest.raises(InputError, match=r"best.pt: no such checkpoint; train one with train.py"):
        checkpoint.load_network(tmp_path)
    shutil.copy(whole_checkpoint, tmp_path / "best.pt")
    network, *_ = checkpoint.load_network(str(tmp_path))
    weights = checkpoint.load(whole_checkpoint)[1]["network"]
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())


def plain(content: object) -> object:
    """Convert to a form that can be compared bit by bit."""
    if isinstance(content, torch.Tensor):
        return content.dtype, tuple(content.shape), content.numpy().tobytes()
    if isinstance(content, dict):
        return {key: plain(value) for key, value in content.items()}
    return [plain(value) for value in content] if isinstance(content, list | tuple) else content


@pytest.mark.parametrize(
    "places", [20, pytest.param(300, marks=pytest.mark.slow), pytest.param(2000, marks=pytest.mark.long)]
)
@pytest.mark.parametrize("version", [1, 2])
def test_no_wrong_load(tmp_path, whole_checkpoint, version, places):
    """Flip a bit or cut off the end at random places: the content stays the same, or an error names the file.

    Version 1 had no sum at its end, but the sums of the zip archive; damage to the archive's list may escape these.
    """
    intact, random, path = whole_checkpoint.read_bytes(), np.random.default_rng(version), tmp_path / "x.pt"
    end = len(intact)
    if version == 1:
        intact, end = intact[: intact.index(checkpoint.MARK)], intact.index(b"PK\x01\x02")
    path.write_bytes(intact)
    whole, refused = plain(checkpoint.load(path)[1]), 0
    for place in random.integers(end, size=places).tolist():
        flipped = bytearray(intact)
        flipped[place] ^= 1 << random.integers(8)
        for damaged in (flipped, intact[:place]):
            path.write_bytes(damaged)
            try:
                content = checkpoint.load(path)[1]
            except InputError:
                refused += 1
            else:
                assert plain(content) == whole, place  # padding, or the mark of the sum
    assert refused > (1.95 if version == 2 else 1.25) * places


class Malicious:
    def __reduce__(self):
        return os.system, ("touch code_has_run",)


@pytest.mark.usefixtures("shd_folder")
def test_code_in_a_checkpoint_does_not_run(program, tmp_path):
    """Try it in place of last.pt, in place of best.pt, and in another folder."""
    torch.save({"format": checkpoint.FORMAT, "version": 2, "epoch": Malicious()}, tmp_path / "evil.pt")
    assert_one_line(program("test.py --load_pt_file evil.pt"), "evil.pt: not a checkpoint of first-spike")
    assert_one_line(program(f"{EVENTS} --load_pt_file evil.pt"), "evil.pt: not a checkpoint of first-spike")
    (tmp_path / "runs" / "x").mkdir(parents=True)
    (tmp_path / "evil.pt").rename(tmp_path / "runs" / "x" / "last.pt")
    assert_one_line(program(f"{EVENTS} --save_name x --resume"), "runs/x/last.pt: not a checkpoint of first-spike")
    assert not (tmp_path / "code_has_run").exists()


@pytest.mark.parametrize("name", ["recurrent", "superspike"])
def test_checkpoints_of_earlier_versions_give_the_same_spikes(name):
    """Read checkpoints that are older than the files of neurons, with the outputs of their networks at that time."""
    folder = Path(__file__).with_name("earlier")
    cfg, content = checkpoint.load(folder / f"{name}.pt")
    network = Network(cfg.network, cfg.data.shape, cfg.data.num_classes)
    checkpoint.load_weights(network, content["network"], folder / f"{name}.pt")
    with np.load(folder / f"{name}.npz") as answers, torch.no_grad():
        activity = network.eval()(torch.from_numpy(answers["x"]).float())
        for k, s_TBN in enumerate(activity.layers):
            assert np.array_equal(s_TBN.numpy(), answers[f"s{k}"])
            assert s_TBN.any()
        np.testing.assert_allclose(activity.h_TBN.numpy(), answers["h"], atol=1e-6)
