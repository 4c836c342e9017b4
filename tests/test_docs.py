"""What docs/ says is so: its paths and links lead somewhere, its programs run, its reference is up to date."""

import re
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets import readers
from datasets.prepare import dvsgesture, dvsplane, heidelberg, wav
from datasets.prepare.__main__ import main
from snn import checkpoint, config, exchange
from snn.network import Network
from tests.conftest import REPOSITORY, write_nmnist
from tests.originals import write_originals
from tests.test_prepare_official import SPLITS

PAGES = sorted((REPOSITORY / "docs").glob("*.md"))
FIELDS = {line.split()[0] for kind in (config.Config, config.TTFSConfig) for line in config.describe(kind)}


def blocks(page: str, language: str) -> list[str]:
    """Code blocks of a page, also those within a list."""
    text = (REPOSITORY / "docs" / page).read_text()
    return [
        "\n".join(line.removeprefix(indent) for line in block.splitlines())
        for indent, block in re.findall(rf"^( *)```{language}\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
    ]


def test_pages_are_there():
    names = "adding_a_data_set adding_a_neuron configuration export method my_data reading_the_report several_processes"
    assert [page.stem for page in PAGES] == names.split()


def test_the_configuration_reference_is_up_to_date():
    written = (REPOSITORY / "docs" / "configuration.md").read_text()
    assert written == config.markdown() + "\n", "python -m snn.config --markdown > docs/configuration.md"
    assert all(f"| `{field}` |" in written for field in FIELDS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_page_names_is_there(page):
    text = page.read_text()
    paths = re.findall(r"(?:configs|snn|datasets|tests|benchmarks|docs)/[\w./]*\w|\b\w+\.py\b", text)
    paths += [f"{'docs/' * (page.parent != REPOSITORY)}{link}" for link in re.findall(r"\]\(([\w./]+)\)", text)]
    for path in paths:
        assert (REPOSITORY / path).exists(), path
    for field in re.findall(r"`(?:data|network|loss|train|ttfs)\.[\w.]+", text):
        field = field.strip("`")
        assert any(known == field or known.startswith(f"{field}.") for known in FIELDS), field


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_words_of_commands_are_words_of_the_programs(page):
    for program, words in re.findall(r"python (?:-m )?([\w./]+) ([^`\n#]*)", page.read_text()):
        path = REPOSITORY / (program if program.endswith(".py") else f"{program.replace('.', '/')}.py")
        if not path.exists():
            path = path.with_suffix("") / "__main__.py"
        known = path.read_text() + (REPOSITORY / "snn" / "cli.py").read_text()
        known += "".join(p.read_text() for p in (REPOSITORY / "datasets" / "prepare").glob("*.py"))
        for word in re.findall(r"(?<!\S)--[\w-]+", words):
            assert f'"{word}"' in known, f"{program} {word}"


def test_the_data_set_of_the_page_trains_and_tests(program, tmp_path, monkeypatch):
    (snippet,) = blocks("adding_a_data_set.md", "python")
    monkeypatch.chdir(tmp_path)
    exec(compile(snippet, "adding_a_data_set.md", "exec"), {})
    (commands,) = blocks("adding_a_data_set.md", "bash")
    for command in commands.splitlines():
        small = " --hidden_size 8" if "train.py" in command else ""
        result = program(command.removeprefix("python ").replace("configs/", f"{REPOSITORY}/configs/") + small)
        assert result.returncode == 0, result.stderr
    assert re.search(r"accuracy +[\d.]+ %", result.stdout)


def test_the_neuron_of_the_page_is_one_of_the_family():
    """Its class runs; that the page's file names and edits are those of the repository is seen in its text."""
    (snippet,) = blocks("adding_a_neuron.md", "python")
    source = (REPOSITORY / "snn" / "neurons.py").read_text()
    entered = re.search(r"^NEURONS.*$", source, re.MULTILINE)[0]
    assert entered.replace("CuAdLIF)}", "CuAdLIF, PLIF)}").replace("CuAdLIF)", "CuAdLIF, PLIF)") in snippet
    names: dict = {}
    exec("from snn.neurons import *\nfrom snn.neurons import SpikingNeuron, NEURONS\n" + snippet, names)
    neuron = names["NEURONS"]["PLIF"](4, tau_mem_steps=5, tau_syn_steps=5, theta=0.2, backend="torch")
    spikes = neuron(torch.ones(10, 2, 4))
    spikes.sum().backward()
    assert spikes.sum() > 0
    assert neuron.p_lam_m.grad.abs().sum() > 0


@torch.no_grad()
def test_the_snippets_for_exported_files_run(tmp_path, monkeypatch):
    """They see the network of the file: its recording of zeros, and the same with input in place of zeros."""
    torch.manual_seed(0)
    constants = config.NeuronParams(tau_mem_steps=5, tau_syn_steps=5, theta=0.1)
    network = Network(config.Network(layers=["6F"], neuron="CuLIF", neuron1=constants, neuron2=constants), (5,), 3)
    network.blocks[0].norm.bias += 1
    for_nir, for_onnx = blocks("export.md", "python")
    monkeypatch.chdir(tmp_path)
    if find_spec("snntorch"):
        import nir

        graph = exchange.nir_graph(network, (5,), 1e-4)
        nir.write(tmp_path / "best.nir", graph)
        names: dict = {}
        exec(for_nir, names)
        expected_TN = network.folded()(torch.zeros(102, 1, 5)).s_TBN[2:, 0]
        assert expected_TN.sum() > 0
        assert torch.equal(names["spikes"], expected_TN)
    compile(for_onnx, "export.md", "exec")


@pytest.mark.slow  # torch.onnx.export takes its time
def test_the_onnx_snippet_runs(program, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    cfg = config.build(config.read_yaml(REPOSITORY / "configs" / "adlif_shd.yaml"), "test")
    network = Network(cfg.network, cfg.data.shape, cfg.data.num_classes)
    checkpoint.save(tmp_path / "best.pt", cfg, network, epoch=1, validation={})
    assert program("export.py --load_pt_file best.pt --format onnx").returncode == 0
    names: dict = {}
    exec(blocks("export.md", "python")[1], names)
    with torch.no_grad():
        _, h_TBN, _ = network.eval().folded()(torch.zeros(100, 1, 700))
    np.testing.assert_allclose(names["potentials"], h_TBN[-1].numpy(), atol=1e-5)


def test_no_page_is_long():
    for page in PAGES:
        if page.stem != "configuration":
            assert len(Path(page).read_text().splitlines()) <= 100, page


def test_every_command_of_my_data_runs_on_small_files_of_the_true_layout(program, tmp_path, monkeypatch):
    monkeypatch.setattr(heidelberg, "NUMBERS", SPLITS)
    for module in (dvsgesture, dvsplane, wav):  # no processes
        monkeypatch.setattr(module, "map_in_order", lambda function, tasks, *_: map(function, tasks))
    write_originals(tmp_path)
    commands = [line for block in blocks("my_data.md", "bash") for line in block.splitlines()]
    assert len(commands) > 15
    for command in commands:
        words = shlex.split(command.removeprefix("python -m datasets.prepare "))
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["prepare", *words])
        main()
    assert (tmp_path / "data/table/table.png").is_file()
    assert (tmp_path / "data/listed/listed_validation.h5").is_file()


def test_the_snippets_of_my_data_run(tmp_path, monkeypatch):
    own, of_tonic = blocks("my_data.md", "python")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(own, names)
    assert names["x_TBC"].dense().shape == (20, 8, 40)
    assert len(readers.read("shd", tmp_path / "data/own/own_train.h5", "train", 40, 3)) == 30
    tonic = pytest.importorskip("tonic")
    write_nmnist(tmp_path / "data" / "NMNIST", 1, 0)
    monkeypatch.setattr(tonic.datasets.NMNIST, "_check_exists", lambda self: True)
    exec(of_tonic, {})
    assert len(readers.read("shd", tmp_path / "nmnist_train.h5", "train", 2 * 34 * 34, 10)) == 10
