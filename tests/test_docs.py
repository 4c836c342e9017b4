"""The text of docs/ is true: its paths and links lead somewhere, its programs run, its reference is up to date."""

import ast
import inspect
import json
import os
import re
import shlex
import subprocess
import sys
from functools import cache
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets import readers
from datasets.layouts import LAYOUTS
from datasets.prepare import dvsgesture, dvsplane, heidelberg, wav
from datasets.prepare.__main__ import main
from datasets.prepare.recordings import LISTS
from snn import checkpoint, config, exchange, manual, schema, settings
from snn.network import Network
from tests.conftest import ON_CPU, REPOSITORY, TINY, write_nmnist
from tests.originals import SPLITS, save_sound, write_originals
from tests.programs import COMMANDS, blocks

PAGES = sorted((REPOSITORY / "docs").glob("*.md"))
FIELDS = {option.name for kind in schema.KINDS.values() for option in manual.options(kind)}


def test_pages_are_there():
    names = (
        "adding_a_data_set adding_a_loss adding_a_neuron code configuration embedded export frontier library method "
        "my_data reading_the_report recordings results runs search several_processes speed supported trials ttfs_trials"
    )
    assert [page.stem for page in PAGES] == names.split()


def test_the_configuration_reference_is_up_to_date():
    written = (REPOSITORY / "docs" / "configuration.md").read_text()
    assert written == manual.markdown() + "\n", "python -m snn.config --markdown > docs/configuration.md"
    assert all(f"| `{field}` |" in written for field in FIELDS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_page_names_is_there(page):
    text = page.read_text()
    paths = re.findall(r"(?:configs|snn|datasets|tasks|tests|benchmarks|docs)/[\w./]*\w|\b\w+\.py\b", text)
    paths += [f"{'docs/' * (page.parent != REPOSITORY)}{link}" for link in re.findall(r"\]\(([\w./]+)\)", text)]
    for path in paths:
        assert (REPOSITORY / path).exists(), path
    for field in re.findall(r"`(?:data|network|loss|train|ttfs)\.(?!(?:py|h)\b)[\w.]+", text):
        field = field.strip("`")
        assert any(known == field or known.startswith(f"{field}.") for known in FIELDS), field


@cache
def words_known_to(program: str) -> set[str]:
    """Return the options that a program's help lists, or, of a module that starts slowly, those in its source."""
    if program.startswith("snn.") or program.endswith(".py"):
        words = [sys.executable, *([] if program.endswith(".py") else ["-m"]), program, "--help"]
        done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True)
        return set(re.findall(r"--[\w-]+", done.stdout))
    path = REPOSITORY / program.replace(".", "/")
    files = [path.with_suffix(".py")] if path.with_suffix(".py").exists() else path.glob("*.py")
    source = "".join(file.read_text() for file in files)
    of_training = words_known_to("train.py") if "arguments.Parser(" in source else set()
    return set(re.findall(r'"(--[\w-]+)"', source)) | of_training


@pytest.mark.parametrize("page", [*PAGES, REPOSITORY / "README.md"], ids=lambda page: page.stem)
def test_words_of_commands_are_words_of_the_programs(page):
    for program, words in re.findall(r"python (?:-m )?([\w./]+) ([^`\n#|]*)", page.read_text()):
        assert set(re.findall(r"(?<!\S)--[\w-]+", words)) <= words_known_to(program), f"{program} {words}"


def test_the_data_sets_of_the_page_train_and_test(program, tmp_path, monkeypatch):
    """Use one in SHD's layout, and the same recordings in the page's own layout, which is not HDF5."""
    files, layout = blocks("adding_a_data_set.md", "python")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(LAYOUTS, "npz", None)  # and leave none behind
    for snippet in (files, layout):
        exec(compile(snippet, "adding_a_data_set.md", "exec"), {})
    for split in ("train", "test"):
        of = readers.read("shd", tmp_path / f"mine_{split}.h5", split, 30, 3)
        times_us, lengths = (1e6 * of.times).astype(np.uint32), np.diff(of.offsets)
        np.savez(f"mine_{split}.npz", times_us=times_us, units=of.channels, lengths=lengths, labels=of.labels)
        given = readers.read("npz", tmp_path / f"mine_{split}.npz", split, 30, 3, in_memory=False)
        assert np.array_equal(given.load(np.arange(30))[0].channels, of.load(np.arange(30))[0].channels[: 30 * 80])
    commands = [line for block in blocks("adding_a_data_set.md", "bash") for line in block.splitlines()]
    assert len(commands) == 4
    for command in commands:
        small = " --hidden_size 8" if "train.py" in command else ""
        result = program(command.removeprefix("python ").replace("configs/", f"{REPOSITORY}/configs/") + small)
        assert result.returncode == 0, result.stderr
        assert "train.py" in command or re.search(r"accuracy +[\d.]+ %", result.stdout)


def test_recordings_of_the_page_come_to_a_test_result(program, tmp_path, monkeypatch):
    """Follow both examples of the page, on small folders of the true form."""
    monkeypatch.setattr(wav, "map_in_order", lambda function, tasks, *_: map(function, tasks))
    for i in range(10):
        save_sound(tmp_path / "my_recordings" / f"{'ab'[i % 2]}_{i}.flac", i)
    for i in range(15):
        name = f"{'no up yes'.split()[i % 3]}/{i // 3:08x}_nohash_0.wav"
        save_sound(tmp_path / "speech_commands_v0.02" / name, i)
        if i > 8:
            with (tmp_path / "speech_commands_v0.02" / LISTS["test" if i > 11 else "validation"]).open("a") as file:
                print(name, file=file)
    walks = blocks("recordings.md", "bash")
    assert len(walks) == 2
    for walk in walks:
        for command in walk.splitlines():
            small = command.removeprefix("python ").replace("--num_classes 35", "--num_classes 3")
            small += " --hidden_size 8 --epochs 1" if "train.py" in command else ""
            result = program(small)
            assert result.returncode == 0, result.stderr
            if "prepare" in command:
                advised = re.search(r"to train on them: python (.*)", result.stdout)[1]
                assert advised in walk.replace("--num_classes 35", "--num_classes 3")
            elif "train.py" in command and "commands" in command:  # the file of validation_list.txt is validated on
                assert "9 recordings to train on, 3 held out" in result.stdout
        assert re.search(r"accuracy +[\d.]+ %", result.stdout)


@pytest.mark.slow
@pytest.mark.usefixtures("shd_folder")
def test_the_neuron_of_the_page_needs_no_other_change(tmp_path):
    """Training, resume, test with report, streaming, and the sources that are shown.

    The neuron, two coupled states, is the only file of a folder of one's own.
    """
    (snippet,) = blocks("adding_a_neuron.md", "python")
    (tmp_path / "neurons").mkdir()
    (tmp_path / "neurons" / "coupled.py").write_text(snippet, encoding="utf-8")
    train = (
        f"train --path_to_yaml {REPOSITORY}/configs/adlif_shd.yaml --path_to_dataset shd {TINY} --dataset_name shd "
        f"{ON_CPU} --set network.neuron=Coupled"
    )
    commands = [
        f"{train} --set train.backend={backend} --save_name {backend} {more}"
        for backend in ("torch", "cpu")
        for more in ("--epochs 1", "--epochs 2 --resume")
    ]
    commands += ["test --load_pt_file torch", "test --load_pt_file cpu --streaming"]
    commands += [f"snn.ops.show Coupled --backend {shown}" for shown in ("cpu", "cuda")]
    environment = os.environ | {"FIRST_SPIKE_NEURONS": str(tmp_path / "neurons"), "PYTHONPATH": str(REPOSITORY)}
    words = [sys.executable, "-c", COMMANDS, json.dumps([command.split() for command in commands])]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("r_next = ") == 2
    for backend in ("torch", "cpu"):
        page = (tmp_path / "runs" / backend / "test" / "report.html").read_text(encoding="utf-8")
        assert "coupling to the potential, c" in page
        assert "recovery time constant (ms)" in page


@torch.no_grad()
def test_the_snippets_for_exported_files_run(tmp_path, monkeypatch):
    """Run them on the network of the file: with their recording of zeros, and with input in place of the zeros."""
    torch.manual_seed(0)
    constants = config.NeuronParams(tau_mem_steps=5, tau_syn_steps=5, theta=0.1)
    network = Network(config.Network(layers=["6F"], neuron="CuLIF", neuron1=constants, neuron2=constants), (5,), 3)
    network.layers[0].norm.bias += 1
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
    cfg = settings.load(REPOSITORY / "configs" / "adlif_shd.yaml")
    network = Network(cfg.network, cfg.data.shape, cfg.data.num_classes)
    checkpoint.save(tmp_path / "best.pt", cfg, network, epoch=1, validation={})
    assert program("export.py --load_pt_file best.pt --format onnx").returncode == 0
    names: dict = {}
    exec(blocks("export.md", "python")[1], names)
    with torch.no_grad():
        _, h_TBN, _ = network.eval().folded()(torch.zeros(100, 1, 700))
    np.testing.assert_allclose(names["potentials"], h_TBN[-1].numpy(), atol=1e-5)


def find_module(parts: list[str]) -> ModuleSpec | None:
    try:
        return find_spec(".".join(parts))
    except ModuleNotFoundError:  # the one before the last is a class
        return None


CALL = re.compile(r"`((?:snn|datasets)(?:\.\w+)+)\(([^`]*)\)`")


@pytest.mark.parametrize("page", [REPOSITORY / "README.md", *PAGES], ids=lambda page: page.stem)
def test_calls_that_a_page_shows_have_the_arguments_of_the_code(page):
    """In `snn.module.name(a, b)`, a and b are its first arguments, in this order; `c=1` is one of its names."""
    for name, words in CALL.findall(page.read_text(encoding="utf-8")):
        modules = name.split(".")
        while find_module(modules) is None:
            modules.pop()
        called = import_module(".".join(modules))
        for part in name.split(".")[len(modules) :]:
            called = getattr(called, part)
        known = list(inspect.signature(called).parameters)
        shown = ast.parse(f"f({words})", mode="eval").body
        assert [argument.id for argument in shown.args] == known[: len(shown.args)], f"{page.name}: {name}"
        assert {word.arg for word in shown.keywords} <= set(known), f"{page.name}: {name}"


def test_pages_show_calls():
    assert len(CALL.findall((REPOSITORY / "docs" / "library.md").read_text(encoding="utf-8"))) >= 8


def test_no_page_is_long():
    for page in PAGES:
        if page.stem != "configuration":
            assert len(Path(page).read_text().splitlines()) <= 120, page
    assert len((REPOSITORY / "README.md").read_text().splitlines()) <= 150


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
